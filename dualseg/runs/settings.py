"""Checks of a resolved configuration that need no torch, so that a mistake answers at once."""

from collections.abc import Mapping
from typing import Any

from dualseg.errors import DualsegError


def resolve(config: Any) -> dict[str, Any]:
    """The composed configuration as plain, resolved, checked containers.

    Raises:
        DualsegError: naming the first key whose value cannot work.
        omegaconf.MissingMandatoryValue: a key that has no default is not given.
    """
    from omegaconf import OmegaConf

    settings = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(settings, dict)
    plain = {str(key): value for key, value in settings.items()}
    _check(plain)
    return plain


def _check(settings: Mapping[str, Any]) -> None:
    trainer = settings["trainer"]
    positive = {
        "trainer.max_iterations": trainer["max_iterations"],
        "trainer.checkpoint_every": trainer["checkpoint_every"],
        "trainer.checkpoints_kept": trainer["checkpoints_kept"],
        "trainer.log_every": trainer["log_every"],
        "inference.batch_size": settings["inference"]["batch_size"],
    }
    for key, value in positive.items():
        if not isinstance(value, int) or value < 1:
            raise DualsegError(f"{key}={value}: give a whole number of at least 1.")
    unknown = [stage for stage in settings["evaluate_on"] if stage not in ("validation", "test")]
    if unknown:
        raise DualsegError(
            f"evaluate_on={settings['evaluate_on']}: holds {unknown[0]}; choose from validation and test."
        )
    patch, stride = settings["data"]["patch_size"], settings["data"]["stride"]
    if len(patch) != 3 or len(stride) != 3 or not all(1 <= s <= p for s, p in zip(stride, patch, strict=True)):
        raise DualsegError(f"data.stride={stride}: needs three numbers from 1 to data.patch_size={patch}.")
