"""What happens at each case that is evaluated: slices for the report, what was scored, components."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from dualseg.data.reading import EvaluationVolume, Fingerprint, refuse_seen
from dualseg.files import replacing, write_json
from dualseg.inference.slices import display_slices
from dualseg.views import keep_largest


class SliceWriter(Callback):
    """Writes three orthogonal slices of every evaluated case, as the report shows them, to <folder>/<case>.npz."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _write(self, pl_module: Any, volume: Any, outputs: Any) -> None:
        with replacing(self.folder / f"{volume.case}.npz") as temporary:
            roles = pl_module.roles
            slices: dict[str, Any] = display_slices(
                volume.image, volume.label, volume.spacing, outputs, roles.record, roles.members
            )
            np.savez_compressed(temporary, **slices)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *args: Any
    ) -> None:
        if trainer.state.fn == "validate":  # not in the evaluations along a run
            self._write(pl_module, batch, outputs)

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *args: Any) -> None:
        self._write(pl_module, batch, outputs)


class ScoredVolumes(Callback):
    """Knows the volumes that an evaluation scores, and stops it at one that the networks were trained on.

    Args:
        seen: see `refuse_seen`.

    Attributes:
        fingerprint: of the volumes, as a run's manifest.json has it of its stages.
    """

    def __init__(self, seen: Mapping[str, str]) -> None:
        self.seen, self.fingerprint = seen, Fingerprint()

    def _see(self, volume: EvaluationVolume) -> None:
        volume = volume._replace(image=volume.image.cpu(), label=volume.label.cpu())
        refuse_seen(volume, self.seen)
        self.fingerprint.add_evaluated(volume)

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, *args: Any) -> None:
        self._see(batch)

    def on_test_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, *args: Any) -> None:
        self._see(batch)


class ComponentWriter(Callback):
    """Writes what keeping the largest component of each class alone does to a validated case, to <folder>/<case>.json.

    Class -> [Dice of what stands for the run, Dice of its largest component], both in 0..1. Of a fold: on labeled cases
    that trained nothing it is decided which classes keep their largest component.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *args: Any
    ) -> None:
        if trainer.state.fn != "validate":
            return
        predicted = outputs[pl_module.roles.record].argmax(dim=0).cpu().numpy()
        largest, reference = predicted.copy(), batch.label.cpu().numpy()
        keep_largest(largest, range(1, len(pl_module.class_names)))
        found = {
            name: [_dice(label == value, reference == value) for label in (predicted, largest)]
            for value, name in enumerate(pl_module.class_names)
            if value
        }
        write_json(self.folder / f"{batch.case}.json", found)


def _dice(prediction: np.ndarray, reference: np.ndarray) -> float:
    """Dice of two masks, 1 where both are empty."""
    voxels = int(prediction.sum()) + int(reference.sum())
    return 2 * int((prediction & reference).sum()) / voxels if voxels else 1.0
