"""Every method sees the batch as the augmentation leaves it: once an iteration, reproducibly, in float32."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from method_toys import Bare, cpu_trainer, tiny_parts, volumes_data
from torch import Tensor

from dualseg.data.batch import Batch
from dualseg.data.checks import check_mix
from dualseg.errors import DualsegError
from dualseg.methods import LossTerm, Term, Time
from dualseg.views import Augmentation

STRONG = Augmentation("strong", mix=True)


class Seen(Bare):
    """Keeps the batches that its objective is given."""

    TERMS = {"supervised_ce": Term("labeled"), "supervised_dice": Term("labeled")}

    def objective(self, batch: Batch, time: Time) -> Iterator[LossTerm]:
        self.batches = [*getattr(self, "batches", []), batch]
        yield from self.supervised("a", self.see("a", batch.labeled.image), batch.label)


def seen(augmentation: Augmentation | None = None, callbacks: Sequence[pl.Callback] = (), **asked: Any) -> Seen:
    parts = tiny_parts()
    method = Seen({"a": parts["networks"]["a"]}, *list(parts.values())[1:], augmentation=augmentation)
    cpu_trainer(4, callbacks=list(callbacks)).fit(method, volumes_data(**asked))
    return method


def images(method: Seen) -> list[Tensor]:
    return [batch.image for batch in method.batches]


class Given(pl.Callback):
    """Keeps the batches that the trainer gives."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Batch, index: int) -> None:
        self.batches.append(batch)


def test_without_one_the_objective_sees_the_batch_itself():
    given = Given()
    plain, augmented = seen(callbacks=[given]), seen(augmentation=STRONG, callbacks=[Given()])
    assert len(given.batches) == 4
    for before, after in zip(given.batches, plain.batches, strict=True):
        assert after.image is before.image and after.label is before.label
    assert not any(torch.equal(a, b) for a, b in zip(images(plain), images(augmented), strict=True))


def test_images_and_labels_are_those_of_the_augmentation():
    plain, augmented = seen(), seen(augmentation=STRONG)
    for iteration, (before, after) in enumerate(zip(plain.batches, augmented.batches, strict=True)):
        augmented.seed_iteration(iteration)
        rng = np.random.default_rng((0, 5, iteration, 0))
        image, label = STRONG(before.image, before.label, rng)
        assert torch.equal(after.image, image) and torch.equal(after.label, label) and after.case == before.case
        assert not torch.equal(after.label, before.label)
    assert all(torch.equal(a, b) for a, b in zip(images(augmented), images(seen(augmentation=STRONG)), strict=True))


def test_one_labeled_patch_cannot_be_mixed():
    with pytest.raises(DualsegError, match=r"batch\.labeled=1: augmentation\.mix=true .*at least 2, .*mix=false"):
        seen(augmentation=Augmentation(mix=True), labeled_per_batch=1)


def test_without_labels_nothing_is_mixed():
    image, label = torch.randn(2, 1, 8, 8, 8), torch.empty(0, 8, 8, 8, dtype=torch.int64)
    mixed, its = Augmentation(mix=True)(image, label, np.random.default_rng(0))
    assert torch.equal(mixed, image) and its.shape == label.shape
    check_mix(0, processes=2)
