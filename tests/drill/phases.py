"""The method of the signal drill: every process of a run notes what it is doing, and dwells on it.

Importing this module, as `method._target_` does before a volume is read, takes hold of the other phases too.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dualseg.data.reading import VolumeReader
from dualseg.methods import DualNetwork
from dualseg.runs import results
from dualseg.training.checkpoints import AtomicCheckpointIO

NOTES = Path(os.environ["DRILL_NOTES"])  # an empty folder
RANK = int(os.environ.get("RANK", 0))
# the others wait for the slow one in collective operations, where no Python code runs
DWELL = 0.5 if str(RANK) == os.environ.get("DRILL_SLOW", "0") else 0.02


def dwell(phase: str) -> None:
    """Note `phase`, and stay in it for a while."""
    (NOTES / f"{phase}.{RANK}").touch()
    time.sleep(DWELL)


def first(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, in `phase`."""

    def dwelling(*arguments: Any, **named: Any) -> Any:
        dwell(phase)
        return function(*arguments, **named)

    return dwelling


def _save(checkpoint: Any, path: Path) -> None:
    _torch_save(checkpoint, path)
    dwell("checkpointing")  # written, and not yet renamed


_torch_save = torch.save
torch.save = _save
VolumeReader.read_pair = first("reading", VolumeReader.read_pair)  # type: ignore[method-assign]
AtomicCheckpointIO.save_checkpoint = first("saving", AtomicCheckpointIO.save_checkpoint)  # type: ignore[method-assign]
results.write_cases = first("writing", results.write_cases)


class PhasedNetwork(DualNetwork):
    """The dual network, slowly."""

    def setup(self, stage: str) -> None:
        dwell("joining")
        super().setup(stage)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        if self.trainer.global_step:
            dwell("iterating")
        super().training_step(batch, batch_idx)

    def validation_step(self, *arguments: Any) -> Any:
        dwell("validating" if self.trainer.state.fn == "fit" else "evaluating")
        return super().validation_step(*arguments)

    def on_fit_end(self) -> None:
        dwell("between")
