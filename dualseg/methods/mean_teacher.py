"""Mean teacher (Tarvainen and Valpola, NeurIPS 2017), in 3-D."""

from collections.abc import Iterator
from typing import Any

from dualseg.data.batch import Batch
from dualseg.losses.masked import mean
from dualseg.methods.averages import Average, Variant
from dualseg.methods.base import SegmentationMethod
from dualseg.methods.terms import LossTerm, Term, Time
from dualseg.views import noise


class MeanTeacher(SegmentationMethod):
    """The network agrees with its own average over time (Tarvainen and Valpola, NeurIPS 2017; in 3-D as in SSL4MIS).

        L = 1/2 (CE + Dice)(p_s, y) on labeled patches + w(t) mean_{v,c} (p_s - p_t)^2 on unlabeled ones

    with w(t) up to 0.1 over the whole run. The teacher sees the unlabeled patches with Gaussian noise of deviation 0.1,
    cut off at 0.2; the student sees all patches as they are, in one pass, and stands for the run.

    Differences: a smooth ramp (theirs moves every 150 iterations); the Dice of this framework, over the foreground
    classes with squared denominators (theirs: the background too); the teacher starts as a copy of the student; the
    learning rate follows the run's `lr_schedule` (theirs: polynomial).

    Args:
        variant: `described`: the teacher runs in training mode and its weights alone are averaged; `averaged_buffers`:
            BatchNorm's statistics as well, and it runs in evaluation mode.
        decay: of the average.
        warmup: let the average follow fast at first, d = min(1 - 1 / (t + 1), decay).
        others: see `SegmentationMethod`.

    Raises:
        DualsegError: a variant, decay or warmup that cannot be.
    """

    record = "a"
    TERMS = {
        "supervised_ce": Term("labeled", weight=0.5),
        "supervised_dice": Term("labeled", weight=0.5),
        "consistency": Term("unlabeled", weight=0.1, ramp="run"),
    }

    def __init__(
        self, *args: Any, variant: Variant = "described", decay: float = 0.99, warmup: bool = True, **kwargs: Any
    ) -> None:
        self.averages = {"teacher": Average.teacher("a", variant, decay, warmup)}
        super().__init__(*args, **kwargs)

    def objective(self, batch: Batch, time: Time) -> Iterator[LossTerm]:
        n = len(batch.label)
        view = self.see("a", batch.image)
        labeled, unlabeled = view.split(n, len(view) - n)
        yield from self.supervised("a", labeled, batch.label)
        if self.on("consistency") and len(unlabeled):
            teacher = self.watch("teacher", noise(batch.unlabeled.image, std=0.1, limit=0.2))
            yield self.term("consistency", "a", mean((unlabeled.p - teacher.p).square()))
