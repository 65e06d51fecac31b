"""The method of the distributed tests: it notes what each rank is given, and what it ends with."""

import hashlib
import os
from pathlib import Path

import torch

from dualseg.data.batch import Batch
from dualseg.methods import DualNetwork


def patches_of(batch: Batch) -> list[tuple[str, str]]:
    """Case and hash of every patch, and of its label where it has one."""
    labels = [label.numpy().tobytes() for label in batch.label] + [b""] * len(batch.case)
    images = [image.contiguous().numpy().tobytes() for image in batch.image]
    digests = [hashlib.sha256(image + label).hexdigest() for image, label in zip(images, labels, strict=False)]
    return list(zip(batch.case, digests, strict=True))


class NotingDualNetwork(DualNetwork):
    """Leaves rank-<rank>.pt in the folder DDP_NOTES."""

    def on_train_start(self) -> None:
        self.batches: list[list[tuple[str, str]]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        self.batches.append(patches_of(batch))
        super().training_step(batch, batch_idx)

    def on_train_end(self) -> None:
        parameters = {name: parameter.detach().clone() for name, parameter in self.networks.named_parameters()}
        notes = {"batches": self.batches, "parameters": parameters, "pid": os.getpid()}
        torch.save(notes, Path(os.environ["DDP_NOTES"]) / f"rank-{self.global_rank}.pt")
