"""Cross pseudo supervision (Chen et al., CVPR 2021), in 3-D as SSL4MIS has it (field.md 2.5)."""

from collections.abc import Iterator

from dualseg.data.batch import Batch
from dualseg.losses import cross_pseudo
from dualseg.methods.base import SegmentationMethod
from dualseg.methods.terms import LossTerm, Term, Time


class CrossPseudoSupervision(SegmentationMethod):
    """1/2 (CE + Dice) on the labeled patches + w(t) CE(z_i, argmax p_j) on the unlabeled ones, w up to 0.1.

    Pseudo-labels on the unlabeled patches alone, as in the public code (the paper has them on labeled ones too). The
    two networks start from different weights; any pair can stand here.

    Differences: the ramp is smooth, over the whole run; the ensemble stands for the run, where they test network 1.
    """

    takes = ("a", "b")
    TERMS = {
        "supervised_ce": Term("labeled", weight=0.5),
        "supervised_dice": Term("labeled", weight=0.5),
        "cross_pseudo": Term("unlabeled", weight=0.1, ramp="run"),
    }

    def objective(self, batch: Batch, time: Time) -> Iterator[LossTerm]:
        n = len(batch.label)
        labeled, unlabeled = {}, {}
        for name in self.takes:
            view = self.see(name, batch.image)
            labeled[name], unlabeled[name] = view.split(n, len(view) - n)
        for i, j in (("a", "b"), ("b", "a")):
            yield from self.supervised(i, labeled[i], batch.label)
            if self.on("cross_pseudo"):
                yield self.term("cross_pseudo", i, cross_pseudo(unlabeled[i].log_p, unlabeled[j].predicted))
