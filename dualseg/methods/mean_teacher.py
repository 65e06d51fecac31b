"""Mean teacher (Tarvainen and Valpola, NeurIPS 2017), in 3-D as SSL4MIS has it (field.md 2.1)."""

from collections.abc import Iterator

from dualseg.data.batch import Batch
from dualseg.losses.masked import mean
from dualseg.methods.averages import Average
from dualseg.methods.base import SegmentationMethod
from dualseg.methods.terms import LossTerm, Term, Time
from dualseg.views import noise


class MeanTeacher(SegmentationMethod):
    """1/2 (CE + Dice) on the labeled patches + w(t) mean (p_s - p_t)^2 on the unlabeled ones, w up to 0.1.

    The teacher sees the unlabeled patches with noise, in training mode with its own batch statistics, as in the public
    code: its BatchNorm buffers are not averaged. That code tests the student, and so do we (`record`).

    Differences: the ramp is smooth, over the whole run (theirs: steps of 150 iterations, up at 30,000); Dice is over
    the foreground classes.
    """

    averages = {"teacher": Average("a", decay=0.99, warmup=True)}
    record = "a"
    TERMS = {
        "supervised_ce": Term("labeled", weight=0.5),
        "supervised_dice": Term("labeled", weight=0.5),
        "consistency": Term("unlabeled", weight=0.1, ramp="run"),
    }

    def objective(self, batch: Batch, time: Time) -> Iterator[LossTerm]:
        n = len(batch.label)
        view = self.see("a", batch.image)
        labeled, unlabeled = view.split(n, len(view) - n)
        yield from self.supervised("a", labeled, batch.label)
        if self.on("consistency"):
            teacher = self.watch("teacher", noise(batch.unlabeled.image, std=0.1, limit=0.2), mode="train")
            yield self.term("consistency", "a", mean((unlabeled.p - teacher.p).square()))
