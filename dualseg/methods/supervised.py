"""One network, labels only: the lower bound with few labels, the upper bound with all."""

from collections.abc import Iterator

from dualseg.data.batch import Batch
from dualseg.losses import supervised_ce, supervised_dice
from dualseg.methods.base import SegmentationMethod
from dualseg.methods.terms import LossTerm, Term, Time


class Supervised(SegmentationMethod):
    """CE + Dice of network `a` on the labeled patches. Arguments as `SegmentationMethod`."""

    TERMS = {"supervised_ce": Term("labeled"), "supervised_dice": Term("labeled")}

    def objective(self, batch: Batch, time: Time) -> Iterator[LossTerm]:
        view = self.see("a", batch.labeled.image)
        if self.on("supervised_ce"):
            yield self.term("supervised_ce", "a", supervised_ce(view.log_p, batch.label))
        if self.on("supervised_dice"):
            yield self.term("supervised_dice", "a", supervised_dice(view.p, batch.label))
