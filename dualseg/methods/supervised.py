"""One network, labels only: the lower bound with few labels, the upper bound with all."""

from collections.abc import Iterator

from dualseg.data.batch import Batch
from dualseg.methods.base import SegmentationMethod
from dualseg.methods.terms import LossTerm, Term, Time


class Supervised(SegmentationMethod):
    """Cross-entropy and Dice of network `a` on the labeled patches: the baseline.

    Arguments as `SegmentationMethod`.
    """

    TERMS = {"supervised_ce": Term("labeled"), "supervised_dice": Term("labeled")}

    def objective(self, batch: Batch, time: Time) -> Iterator[LossTerm]:
        yield from self.supervised("a", self.see("a", batch.labeled.image), batch.label)
