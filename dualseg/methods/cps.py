"""Cross pseudo supervision (Chen et al., CVPR 2021), in 3-D."""

from collections.abc import Iterator

from dualseg.data.batch import Batch
from dualseg.losses import cross_pseudo
from dualseg.methods.base import SegmentationMethod
from dualseg.methods.terms import LossTerm, Term, Time


class CrossPseudoSupervision(SegmentationMethod):
    """Two networks, each with the other's classes as labels (CPS, Chen et al., CVPR 2021; in 3-D as in SSL4MIS).

        L_i = 1/2 (CE + Dice)(p_i, y) on labeled patches + w(t) CE(z_i, argmax p_j) on unlabeled ones, i != j

    with w(t) up to 0.1 over the whole run. Both networks see the same patches; no gradient goes through a label.

    Differences: pseudo-labels on the unlabeled patches alone, as in SSL4MIS (the paper: on the labeled ones too); any
    two networks (theirs: one architecture, initialised in two ways); a smooth ramp (theirs moves every 150 iterations);
    the Dice of this framework, over the foreground classes with squared denominators (theirs: the background too); the
    ensemble stands for the run (theirs: network 1); the learning rate follows the run's `lr_schedule` (theirs:
    polynomial).

    Arguments as `SegmentationMethod`.
    """

    takes = ("a", "b")
    pseudo_labels = True
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
        self.note_pseudo_labels(*(view.predicted for view in unlabeled.values()))
        for i, j in (("a", "b"), ("b", "a")):
            yield from self.supervised(i, labeled[i], batch.label)
            if self.on("cross_pseudo"):
                yield self.term("cross_pseudo", i, cross_pseudo(unlabeled[i].log_p, unlabeled[j].predicted))
