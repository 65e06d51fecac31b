"""A script: two processes of the CPU train averages, a head, both added terms and a guard, and leave rank-<rank>.pt."""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from method_toys import Normed, cpu_trainer, tiny_parts, volumes_data
from test_averages import Alternating

from dualseg.data.batch import Batch
from dualseg.methods import ERDA, Average, GuidedContrast, LossTerm, Time, guided_contrast
from dualseg.methods.guided_contrast import balanced_voxels

ITERATIONS = 4


class Noting(Alternating):
    """An average with buffers, two that take turns, and a guard of what the first one predicts."""

    averages = {"teacher": Average("a", decay=0.9, buffers=True), **Alternating.averages}
    pseudo_labels = True

    def objective(self, batch: Batch, time: Time) -> Iterator[LossTerm]:
        predicted = self.watch("teacher", batch.unlabeled.image).predicted
        self.shares = [*getattr(self, "shares", []), float((predicted == 1).double().mean())]
        self.note_pseudo_labels(predicted)
        yield from super().objective(batch, time)

    def moving_averages(self, time: Time) -> dict[str, Average]:
        return {"teacher": self.averages["teacher"], **super().moving_averages(time)}

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        super().training_step(batch, batch_idx)
        self.cases = [*getattr(self, "cases", []), *batch.case]
        self.voxels = len(balanced_voxels(torch.zeros_like(batch.unlabeled.image[:, 0], dtype=torch.long), 2)[0])

    def on_train_end(self) -> None:
        trained = {name: any(p.requires_grad for p in self.networks[name].parameters()) for name in self.averages}
        notes = {"state": self.state_dict(), "cases": self.cases, "trained": trained, "voxels": self.voxels}
        notes |= {"shares": self.shares, "expected": float(self.guard.expected)}
        torch.save(notes, Path(sys.argv[1]) / f"rank-{self.global_rank}.pt")


if __name__ == "__main__":
    guided_contrast.POSITIVES = 64
    torch.manual_seed(0)
    terms = {"erda": ERDA(), "guided_contrast": GuidedContrast(confidence=0.5)}
    method = Noting(**tiny_parts(a=Normed()), terms=terms, guard=True)
    trainer = cpu_trainer(ITERATIONS, devices=2, strategy="ddp_fork", use_distributed_sampler=False)
    trainer.fit(method, volumes_data())
