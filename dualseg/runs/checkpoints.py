"""Checkpoints: written whole or not at all, read without executing code from them."""

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO
from torch import Tensor, nn

from dualseg import __version__
from dualseg.errors import DualsegError
from dualseg.files import replacing
from dualseg.methods.base import CHECKPOINT_FORMAT
from dualseg.runs.cases import Record

ANOTHER = "Copy it again, or delete it to go on from an earlier one."
RESUMES = ("loops", "lr_schedulers", "optimizer_states", "pytorch-lightning_version")  # without them no run goes on


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, written to a temporary file in the target folder, synced and renamed.

    Args:
        trained_on: what the run is trained on, see `dualseg.runs.cases`; the checkpoints bear it along.
    """

    def __init__(self, trained_on: Sequence[Record] = ()) -> None:
        super().__init__()
        self.trained_on = [*trained_on]

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        path = Path(path)
        if self.trained_on:
            checkpoint = {**checkpoint, "dualseg": {**checkpoint["dualseg"], "trained_on": self.trained_on}}
        try:
            with replacing(path) as temporary:
                torch.save(checkpoint, temporary)
        except (DualsegError, RuntimeError) as error:  # torch turns a write that failed into a RuntimeError
            cause = error.__cause__ if isinstance(error, DualsegError) else error
            reason = getattr(cause, "strerror", None) or str(cause).partition("\n")[0]  # the system's words, no path
            raise DualsegError(
                f"{path}: the checkpoint could not be written (disk full? {reason}). Earlier checkpoints are good: "
                "free space, then give the same command again to resume."
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(path)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint onto the CPU with `weights_only`.

    Raises:
        DualsegError: missing or damaged file, no dualseg checkpoint, one without weights, or one of a newer version.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DualsegError(f"{path}: no such checkpoint.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:  # torch's own message advises to load it unsafely
        raise DualsegError(
            f"{path}: no checkpoint, or it holds objects that could run code when loaded, so it is not. Give a "
            "checkpoints/iteration-NNNNNN.ckpt of a run folder."
        ) from error
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DualsegError(f"{path}: cannot be read as a checkpoint ({reason}). Damaged? {ANOTHER}") from error
    made_by = checkpoint.get("dualseg") if isinstance(checkpoint, Mapping) else None
    if not isinstance(made_by, Mapping) or type(made_by.get("format")) is not int:
        raise DualsegError(f"{path}: not written by dualseg; give a checkpoints/iteration-NNNNNN.ckpt of a run folder.")
    if made_by["format"] > CHECKPOINT_FORMAT:
        raise DualsegError(
            f"{path}: written by dualseg {made_by.get('version')}, newer than this {__version__}; update dualseg."
        )
    state = checkpoint.get("state_dict")
    if not isinstance(state, Mapping) or not all(map(_is_name, state)):
        raise DualsegError(f"{path}: its state_dict is missing or damaged, so it holds no weights. {ANOTHER}")
    return checkpoint


def _is_name(key: Any) -> bool:
    """It can be a key of the state dict of a method: what is of a network is networks.<name>.<parameter>."""
    return isinstance(key, str) and (not key.startswith("networks.") or key.count(".") > 1)


def _check_resumes(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Raises: DualsegError where a checkpoint holds weights, but not what else a run needs to go on from it."""
    missing = [key for key in RESUMES if key not in checkpoint]
    optimizers = checkpoint.get("optimizer_states")
    whole = isinstance(optimizers, list) and all(
        isinstance(one, Mapping) and isinstance(one.get("state"), Mapping) for one in optimizers
    )
    if missing or not whole:
        what = missing[0] if missing else "optimizer_states"
        raise DualsegError(
            f"{path}: {what} is missing or damaged, so no run can go on from it. {ANOTHER} Its weights alone start "
            "another run: weights=FILE name=..."
        )


def not_finite(state: Mapping[str, Any], parameters: Container[str]) -> str | None:
    """Name of the first entry of a state dict that holds NaN or, of a parameter, infinity; None where there is none.

    A buffer may be infinite, as a mask of attention is; what is no tensor, as a module's extra state, is passed over.

    Args:
        parameters: names of those entries that are parameters.
    """
    for key, value in state.items():
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            continue
        if bool(value.isnan().any()) or (key in parameters and not value.isfinite().all()):
            return key
    return None


def _check_finite(path: Path, checkpoint: Mapping[str, Any], networks: Mapping[str, nn.Module], resume: bool) -> None:
    """Raises: DualsegError for weights that are not finite: they segment, without a word, as background alone."""
    parameters = {
        f"networks.{name}.{key}" for name, network in networks.items() for key, _ in network.named_parameters()
    }
    broken = not_finite(checkpoint["state_dict"], parameters)
    if broken is None and resume:
        for number, optimizer in enumerate(checkpoint["optimizer_states"]):
            for parameter, values in optimizer["state"].items():
                if isinstance(values, Mapping) and (key := not_finite(values, ())):
                    broken = broken or f"optimizer_states[{number}], {key} of parameter {parameter}"
    if broken is not None:
        raise DualsegError(
            f"{path}: weights not finite: {broken} holds NaN or infinity, so nothing can be done with this checkpoint. "
            "Copy it again, delete it to go on from an earlier one, or train again."
        )


def network_states(checkpoint: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name of each network in a checkpoint -> its state dict."""
    states: dict[str, dict[str, Any]] = {}
    for key, value in checkpoint["state_dict"].items():
        if key.startswith("networks."):
            _, name, parameter = key.split(".", 2)
            states.setdefault(name, {})[parameter] = value
    return states


def check_architecture(
    path: Path, networks: Mapping[str, nn.Module], resume: bool = False, checkpoint: Mapping[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """The states of a checkpoint's networks, after checking that they fit.

    Args:
        resume: a run goes on from it, for which the optimizers' states must be there and finite as well.
        checkpoint: what `read_checkpoint` gave of it, where it has been read.

    Raises:
        DualsegError: other networks, parameters of other names or shapes, values that are not finite, or what a run
            needs to go on is not there.
    """
    checkpoint = checkpoint or read_checkpoint(path)
    if resume:
        _check_resumes(path, checkpoint)
    _check_finite(path, checkpoint, networks, resume)
    states = network_states(checkpoint)
    if states.keys() != networks.keys():
        raise DualsegError(f"{path}: holds the networks {sorted(states)}, the configuration {sorted(networks)}.")
    for name, network in networks.items():
        check_same_shapes(path, name, network.state_dict(), states[name])
    return states


def check_same_shapes(path: Path, name: str, own: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raises: DualsegError where the state `given` by a checkpoint does not fit the `own` one of network `name`."""
    wrong = next((k for k in own.keys() | given.keys() if k not in own or k not in given), None) or next(
        (k for k in own if _shape(own, k) != _shape(given, k)), None
    )
    if wrong is not None:
        here, there = _shape(own, wrong), _shape(given, wrong)
        raise DualsegError(
            f"{path}: of another architecture: network {name}, {wrong} is {there} there and {here} here. "
            "Use the networks=... and widths that the checkpoint was trained with."
        )


def _shape(state: Mapping[str, Any], key: str) -> tuple[int, ...] | str:
    """Of an entry of a state dict; extra state of a module has none."""
    if key not in state:
        return "absent"
    return tuple(state[key].shape) if isinstance(state[key], Tensor) else "no tensor"


def load_networks(
    path: str | Path, networks: Mapping[str, nn.Module], checkpoint: Mapping[str, Any] | None = None
) -> None:
    """Copy a checkpoint's networks into `networks`. Arguments and errors as of `check_architecture`."""
    for name, state in check_architecture(Path(path), networks, checkpoint=checkpoint).items():
        networks[name].load_state_dict(state)
