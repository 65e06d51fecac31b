"""From a resolved configuration to objects: the one place that knows both."""

import inspect
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from monai.transforms import MapTransform
from torch import nn

from dualseg.data import SemiSupervisedDataModule, SpatialAugmentation
from dualseg.data.volumes import VolumeSource
from dualseg.errors import DualsegError, missing_package
from dualseg.inference import SlidingWindow
from dualseg.methods import SegmentationMethod
from dualseg.training.instantiating import naming_keys_of
from dualseg.views import Augmentation

Config = Mapping[str, Any]
WORTH_COMPILING = 1000  # iterations


def use_threads(config: Config) -> None:
    """`trainer.threads`: before anything is computed."""
    threads = config["trainer"]["threads"]
    if threads:
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # else Lightning sets its own number in each of several processes


def build_source(config: Config) -> VolumeSource:
    """`data.source`."""
    source = config["data"]["source"]
    with naming_keys_of("data.source", source):
        return instantiate(source)


def build_data(config: Config) -> SemiSupervisedDataModule:
    """`data` and `batch`."""
    augmentation = config["data"]["augmentation"] or {}
    with naming_keys_of("data.augmentation", augmentation):
        transforms = instantiate(augmentation) if augmentation else ()
    return build_evaluation_data(config, build_source(config), transforms)


def build_evaluation_data(
    config: Config, source: VolumeSource, augmentation: SpatialAugmentation | Sequence[MapTransform] = ()
) -> SemiSupervisedDataModule:
    """`data` and `batch` around a source that is there already; without augmentation, which an evaluation needs not."""
    others = ("name", "root", "source", "stride", "augmentation", "memory")
    settings = {k: v for k, v in config["data"].items() if k not in others}
    with naming_keys_of("data", config["data"]):
        return SemiSupervisedDataModule(
            source,
            augmentation=augmentation,
            labeled_per_batch=config["batch"]["labeled"],
            unlabeled_per_batch=config["batch"]["unlabeled"],
            seed=config["seed"],
            **settings,
        )


def on_cpu(config: Config) -> bool:
    """`trainer.accelerator` means the CPU on this machine."""
    accelerator = config["trainer"]["accelerator"]
    return accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())


def compile_networks(config: Config, method: SegmentationMethod, processes: int = 1, began: bool | None = None) -> bool:
    """`trainer.compile`: auto, for one process on a GPU, where the iterations pay for the minute that it takes.

    With several processes nobody has tried it.

    Args:
        began: whether the run that is resumed was compiled, which `auto` keeps; None: it begins.

    Returns:
        Whether the networks are compiled at their first use.
    """
    setting = config["trainer"]["compile"]
    pays = config["trainer"]["max_iterations"] >= WORTH_COMPILING and torch.cuda.is_available() and not on_cpu(config)
    auto = pays and processes == 1 if began is None else began
    compiles = setting is True or (setting == "auto" and auto)
    if compiles:
        method.compile_networks(required=setting is True)
    return compiles


def build_networks(config: Config, source: VolumeSource) -> dict[str, nn.Module]:
    """`networks`: the initial weights are a function of the seed alone.

    Raises:
        DualsegError: a setting of a network that cannot be, or that it does not take.
    """
    pl.seed_everything(config["seed"], verbose=False)
    networks = {}
    for name, network in config["networks"].items():
        with naming_keys_of(f"networks.{name}", network):
            settings = {key: value for key, value in network.items() if key != "architecture"}
            try:
                networks[name] = instantiate(settings, **shape_of(source))
            except InstantiationException as error:
                cause = error.__cause__
                if isinstance(cause, DualsegError):  # of its constructor, which knows no network's name
                    raise DualsegError(f"networks.{name}.{cause}") from error
                if isinstance(cause, ImportError):
                    kind = network.get("network", network["_target_"])
                    raise DualsegError(f"networks.{name}: {kind} {missing_package(cause)}") from error
                raise
    return networks


def shape_of(source: VolumeSource) -> dict[str, int]:
    """What a network is built for, beside its own settings."""
    return {"in_channels": source.channels, "num_classes": len(source.class_names)}


def build_sliding_window(config: Config, mirror: bool = False) -> SlidingWindow:
    """`inference`, with the patch and stride of `data`."""
    return SlidingWindow(
        config["data"]["patch_size"],
        config["data"]["stride"],
        config["inference"]["batch_size"],
        torch.channels_last_3d if config["trainer"]["channels_last"] else torch.contiguous_format,
        mirror,
    )


def build_method(config: Config, source: VolumeSource) -> SegmentationMethod:
    """`method` with its `networks`, `optimizer` and `lr_schedule`."""
    settings = {k: v for k, v in config["method"].items() if k != "name"}
    if isinstance(settings.get("terms"), Mapping):
        settings["terms"] = {name: _term(name, term) for name, term in settings["terms"].items()}
    with naming_keys_of("optimizer", config["optimizer"]):
        optimizer = instantiate(config["optimizer"])
        if isinstance(optimizer, partial):  # called in the fit, when it is too late for an answer
            inspect.signature(optimizer.func).bind_partial(**optimizer.keywords)
    with naming_keys_of("lr_schedule", config["lr_schedule"]):
        lr_schedule = instantiate(config["lr_schedule"])
    networks = build_networks(config, source)
    augmented = config["augmentation"]
    with naming_keys_of("method", settings):
        # _convert_=all: the networks and plain containers arrive as they are
        method: SegmentationMethod = instantiate(
            settings,
            networks=networks,
            optimizer=optimizer,
            lr_schedule=lr_schedule,
            class_names=source.class_names,
            regions=dict(source.regions),
            sliding_window=build_sliding_window(config),
            seed=config["seed"],
            distance_unit=config["inference"]["distance_unit"],
            augmentation=Augmentation(**augmented) if any(augmented.values()) else None,
            _convert_="all",
        )
    method.check_batch(config["batch"]["labeled"], config["batch"]["unlabeled"])
    return method


def _term(name: str, setting: Any) -> Any:
    """A term of the method's own as it is set; one that is added to them (`+term=NAME`), built."""
    if not isinstance(setting, Mapping) or "_target_" not in setting:
        return setting
    key = f"method.terms.{name}"
    try:
        with naming_keys_of(key, setting):
            return instantiate(setting)
    except InstantiationException as error:
        if isinstance(error.__cause__, DualsegError):
            raise DualsegError(f"{key}.{error.__cause__}") from error
        raise
