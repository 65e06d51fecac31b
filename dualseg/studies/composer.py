"""The configurations of a sweep's runs."""

from collections.abc import Sequence
from typing import Any

from dualseg.training.dataset import check_data
from dualseg.training.settings import resolve

AXES = ("seed", "data.fold")  # values that choose nothing else of a configuration


class Composer:
    """The checked configurations of a sweep's runs.

    Hydra takes a third of a second to compose one, so runs that differ in `AXES` alone share a composition.

    Args:
        sweeper: Hydra's.
        launcher: the argument that chooses one, if it is given.
    """

    def __init__(self, sweeper: Any, launcher: Sequence[str]) -> None:
        self._sweeper, self._launcher = sweeper, launcher
        self._composed: dict[tuple[str, ...], Any] = {}

    def settings(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Raises: DualsegError, or Hydra's: arguments that make no run."""
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from omegaconf import OmegaConf, open_dict

        keys = {argument: argument.partition("=")[0] for argument in arguments}
        own = [argument for argument in arguments if keys[argument] in AXES]
        others = tuple(argument for argument in arguments if keys[argument] not in AXES)
        if any(keys[argument].lstrip("+") in AXES for argument in others):
            own, others = [], tuple(arguments)  # which of the two counts is for Hydra to say
        shared = (*others, *(keys[argument] for argument in own))
        if shared not in self._composed:
            loader = self._sweeper.hydra_context.config_loader
            config = loader.load_sweep_config(self._sweeper.config, [*arguments, *self._launcher])
            with open_dict(config):
                del config["hydra"]
            self._composed[shared] = config
        config = self._composed[shared].copy()
        for override in OverridesParser.create().parse_overrides(own):
            OmegaConf.update(config, override.key_or_group, override.value())
        settings = resolve(config)
        check_data(settings)
        return settings
