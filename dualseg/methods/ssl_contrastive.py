"""SSL-contrastive (Karimijafarbigloo et al., ISBI 2024): two networks, entropy-filtered labels, class prototypes."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dualseg.arguments import at_least, one_of, switch
from dualseg.losses import prototype_distance, supervised_dice
from dualseg.losses.entropy_filtered import Fusion
from dualseg.losses.prototype_distance import Separation
from dualseg.methods.dual import FusedPseudoLabels, TwoNetworks
from dualseg.methods.terms import LossTerm, Term
from dualseg.methods.view import View


class SSLContrastive(TwoNetworks):
    """What one network is sure of trains both; what neither is goes to class prototypes (arXiv:2311.12617).

    L_i = CE(z_i, y) + Dice(p_i, y) + 1/2 rectification + mean over R of CE(z_i, yhat), and for the loser, the network
    with the higher Dice loss on this batch's labels, + lambda(t) L_c. yhat is the union of both foregrounds;
    `reliable_voxels` gives R, `prototype_distance` L_c; lambda goes up to 0.1. `objective=released`: the script
    computes both unlabeled terms without gradient, so that the first three remain.

    Differences: R leaves out voxels among the least certain 20 % of both networks (the script keeps those among the
    most certain 20 % of one: an argument read the other way round), and a voxel at the very quantile is kept;
    prototypes are kept apart by a hinge, where the script's sign would draw them together; the mean over R is not
    multiplied by |Omega| / |R| as well; at most 4,096 voxels are drawn of either kind; the ramp is smooth; more than
    two classes.

    Args:
        fusion: of yhat, as in `TwoNetworks`; with more than two classes it has to be `mean`.
        separation: of the prototypes, `hinge` or, as written, `pull`.
        margin: of the hinge.
        loser_only: whether L_c trains the loser alone, or both networks.
        others: see `TwoNetworks`, `SegmentationMethod`.

    Raises:
        DualsegError: unknown separation; a margin or switch that cannot be.
    """

    TERMS = {
        "supervised_ce": Term("labeled"),
        "supervised_dice": Term("labeled"),
        "rectification": Term("labeled", weight=0.5),
        "entropy_filtered": Term("unlabeled"),
        "contrast": Term("unlabeled", weight=0.1, ramp="run"),  # lambda
    }

    def __init__(
        self,
        *args: Any,
        fusion: Fusion = "union",
        separation: Separation = "hinge",
        margin: float = 1.0,
        loser_only: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, fusion=fusion, **kwargs)
        one_of("method.separation", separation, ("hinge", "pull"))
        at_least("method.margin", margin, 0)
        switch("method.loser_only", loser_only)
        self.separation = separation
        self.margin = margin
        self.loser_only = loser_only

    def on(self, *names: str) -> bool:
        """As everywhere; a term of `TwoNetworks` that this method has not is off."""
        return super().on(*(name for name in names if name in self.terms))

    def contrast_terms(
        self, views: dict[str, View], label: Tensor, pseudo: FusedPseudoLabels | None
    ) -> Iterator[LossTerm]:
        if not self.on("contrast") or pseudo is None:
            return
        n = len(label)
        with torch.no_grad():
            dice = {i: supervised_dice(view.p[:n], label) for i, view in views.items()}
        b_loses = dice["a"] < dice["b"]
        for i, loses in (("a", ~b_loses), ("b", b_loses)):
            features, predicted = views[i].features[n:], views[i].predicted[n:]
            value, support = prototype_distance(
                features, predicted, *pseudo, len(self.class_names), self.separation, self.margin
            )
            if self.loser_only:
                value, support = value.where(loses, 0.0), support.where(loses, 0)
            yield self.term("contrast", i, value, support)
