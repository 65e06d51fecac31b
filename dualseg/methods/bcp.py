"""Bidirectional copy-paste (Bai et al., CVPR 2023)."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dualseg.data.batch import Batch
from dualseg.errors import DualsegError
from dualseg.losses import region_ce, region_dice, supervised_ce
from dualseg.methods.averages import Average, Variant
from dualseg.methods.copy_paste import CopyPaste
from dualseg.methods.terms import LossTerm, Term, Time
from dualseg.views import contiguous_box, paste


class BidirectionalCopyPaste(CopyPaste):
    """Labeled and unlabeled patches in one image, a teacher's classes as labels (BCP, Bai et al., CVPR 2023).

    M is 0 in one box of 2/3 of each side, shared by the batch. Of the labeled patches L and the unlabeled ones U, a is
    the first half and b the second; yhat is the largest component of each class that the teacher predicts.

        x_l = L_a M + U_a (1 - M)     x_u = U_b M + L_b (1 - M)
        L_mix(z, y, yhat, M) = 1/2 [D(z, y, M) + CE(z, y, M)] + alpha/2 [D(z, yhat, 1 - M) + CE(z, yhat, 1 - M)]
        L = L_mix(z_l, y_a, yhat_a, M) + L_mix(z_u, y_b, yhat_b, 1 - M)

    D and CE are means over their own region each. First, and throughout without unlabeled patches, labeled ones are
    mixed with one another: x = L_a M + L_b (1 - M), 1/2 (D + CE) everywhere; at first the teacher is a copy.

    A term's value is the mean of its two mixed images, whose sum L has; so alpha is the weight of `pseudo_ce` and
    `pseudo_dice`. Where there are more patches of one kind, those of the other take part again.

    Differences: the two stages are one run with one optimizer and one polynomial schedule (theirs: x 0.1 every 2,500
    iterations), and the last weights of each count, where the public code takes the best on the test cases; its
    schedule leaves no learning rate in the last half of the run, so that pre-training is a quarter of the live
    iterations, as here, rather than 2,000 of 17,000. The student stands for the run, in both variants. The largest
    component is taken of every foreground class, so that a class of two organs loses one (the paper's is binary).

    Args:
        variant: `described`: the teacher runs in training mode and its weights alone are averaged, with decay 0.99;
            `averaged_buffers`: BatchNorm's statistics as well, and it runs in evaluation mode.
        others: see `CopyPaste` and `SegmentationMethod`.

    Raises:
        DualsegError: a variant or share that cannot be; a batch without labeled patches.
    """

    record = "a"
    deep_supervision = False
    TERMS = {
        "supervised_ce": Term("labeled"),
        "supervised_dice": Term("labeled"),
        "pseudo_ce": Term("unlabeled", weight=0.5),
        "pseudo_dice": Term("unlabeled", weight=0.5),
    }

    def __init__(self, *args: Any, variant: Variant = "described", **kwargs: Any) -> None:
        self.averages = {"teacher": Average.teacher("a", variant, warmup=False)}
        super().__init__(*args, **kwargs)

    def objective(self, batch: Batch, time: Time) -> Iterator[LossTerm]:
        if not len(batch.label):
            raise DualsegError("batch.labeled=0: bcp mixes labeled patches into unlabeled ones; give at least 1.")
        outside = ~contiguous_box(batch.image.shape[2:], device=batch.image.device)  # M
        labeled, unlabeled = batch.labeled.image, batch.unlabeled.image
        if self.pretrains(time) or not len(unlabeled):
            yield from self._labeled_pairs(labeled, batch.label, outside)
            return
        most = max(len(labeled), len(unlabeled))
        x_labeled, y, x_unlabeled = _halves(most, labeled, batch.label, unlabeled)
        regions = (outside, ~outside)  # of the labeled patches
        kinds = [("supervised", y, regions)]
        if self.on("pseudo_ce", "pseudo_dice"):
            kinds.append(("pseudo", self._pseudo_labels(x_unlabeled), regions[::-1]))
        views = [self.see("a", paste(*parts)) for parts in zip(x_labeled, x_unlabeled, regions, strict=True)]
        for name, label, own in kinds:
            parts = list(zip(views, label, own, strict=True))
            if self.on(f"{name}_ce"):
                ce = [region_ce(view.log_p, target, region) for view, target, region in parts]
                yield self.term(f"{name}_ce", "a", torch.stack(ce).mean())
            if self.on(f"{name}_dice"):
                dice = [region_dice(view.p, target, region) for view, target, region in parts]
                yield self.term(f"{name}_dice", "a", torch.stack(dice).mean())

    def _labeled_pairs(self, image: Tensor, label: Tensor, outside: Tensor) -> Iterator[LossTerm]:
        """1/2 (CE + D) of labeled patches mixed with one another: half the weights, as there is one image a pair."""
        (x_a, x_b), (y_a, y_b) = _halves(len(label), image, label)
        view, y = self.see("a", paste(x_a, x_b, outside)), paste(y_a, y_b, outside)
        values = {"supervised_ce": supervised_ce(view.log_p, y), "supervised_dice": region_dice(view.p, y)}
        for name, value in values.items():
            if self.on(name):
                term = self.term(name, "a", value)
                yield replace(term, weight=term.weight / 2)

    def _pseudo_labels(self, patches: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The largest component of each class that the teacher predicts; it sees one half at a time."""
        predicted = torch.cat([self.watch("teacher", image).predicted for image in patches])
        return self.largest(predicted, range(1, len(self.class_names))).chunk(2)


def _halves(count: int, *patches: Tensor) -> list[tuple[Tensor, ...]]:
    """First and second half of each tensor (N, ...), ceil(count / 2) patches each; after the last comes the first."""
    half = (count + 1) // 2
    return [x[torch.arange(2 * half, device=x.device) % len(x)].chunk(2) for x in patches]
