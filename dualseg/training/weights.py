"""Networks that start from those of another run: `weights=RUN`, and `weights_as` for what goes where."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualseg.errors import DualsegError
from dualseg.methods import SegmentationMethod
from dualseg.record import averages_of
from dualseg.runs.cases import Record, trained_before
from dualseg.runs.folder import checkpoint_of
from dualseg.training.checkpoints import check_same_shapes, network_states, not_finite, read_checkpoint


@dataclass(frozen=True)
class Origin:
    """What a run has started from.

    Attributes:
        checkpoint: the file.
        records: what it says itself that it was trained on; None in one of an older version.
    """

    checkpoint: Path
    records: Any

    def trained_on(self) -> list[Record]:
        """What its networks were trained on, as it says itself or the manifest.json of its run.

        Raises:
            DualsegError: as `trained_before`.
        """
        return trained_before(str(self.checkpoint), self.records)


def start_from(weights: str, method: SegmentationMethod, parts: Mapping[str, str] | None = None) -> Origin:
    """Copy the networks of a checkpoint into those of a method; the averages of what is copied follow.

    Args:
        weights: a checkpoint, or a run folder.
        parts: network, or network.module, of the method -> the one of the checkpoint that goes there. None: every
            network under its own name, and none may be missing.

    Returns:
        What was started from.

    Raises:
        DualsegError: a part is not there or of another shape, or values are not finite.
    """
    path = checkpoint_of(weights)
    checkpoint = read_checkpoint(path)
    states = network_states(checkpoint)
    if not states:
        raise DualsegError(f"{path}: its state_dict holds no networks; give a checkpoint that a run wrote.")
    if parts is None:
        if set(method.takes) != states.keys() - averages_of(checkpoint["dualseg"], str(path)).keys():
            first = sorted(states)[0]
            example = ", ".join(f"{name}: {name if name in states else first}" for name in method.takes)
            raise DualsegError(
                f"{path}: holds the networks {sorted(states)}, the configuration {sorted(method.takes)}; say what goes "
                f"where, for example weights_as={{{example}}}."
            )
        parts = {name: name for name in method.networks if name in states}
    for target, source in parts.items():
        _copy(path, method, states, target, source)
    for name, average in method.averages.items():
        if name not in parts:
            method.networks[name].load_state_dict(method.networks[average.of].state_dict())
    return Origin(path, checkpoint["dualseg"].get("trained_on"))


def _copy(
    path: Path, method: SegmentationMethod, states: Mapping[str, Mapping[str, Any]], target: str, source: str
) -> None:
    try:
        module = method.networks.get_submodule(target)
    except AttributeError as error:
        known = [f"{name}.{part}" for name, network in method.networks.items() for part, _ in network.named_children()]
        raise DualsegError(
            f"weights_as: {target} is no part of this run's networks: {', '.join([*method.networks, *known])}."
        ) from error
    network, _, rest = source.partition(".")
    prefix = f"{rest}." if rest else ""
    given = {key.removeprefix(prefix): v for key, v in states.get(network, {}).items() if key.startswith(prefix)}
    if not given:
        raise DualsegError(f"weights_as: {path} has no {source}; it holds the networks {', '.join(sorted(states))}.")
    check_same_shapes(path, f"{source} as {target}", module.state_dict(), given)
    if (broken := not_finite(given, {name for name, _ in module.named_parameters()})) is not None:
        key = f"networks.{source}.{broken}"
        raise DualsegError(f"{path}: weights not finite: {key} holds NaN or infinity; start from others.")
    module.load_state_dict(given)
