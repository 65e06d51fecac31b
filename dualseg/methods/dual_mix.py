"""Two unlike networks on mixed patches, labeled by the averages of both."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from dualseg.arguments import one_of, switch
from dualseg.errors import DualsegError
from dualseg.losses import confident_disagreement, entropy, fuse, kl_divergence, rectification
from dualseg.methods.solo_mix import Part, SoloMix, Target
from dualseg.methods.terms import LossTerm, Term
from dualseg.methods.view import View


class DualMix(SoloMix):
    """Two unlike networks on patches mixed of labeled and unlabeled ones; the averages of both give the pseudo-labels.

    M is 0 in one box of 2/3 of each side. L are the labeled patches, U as many unlabeled ones, a their first halves and
    b the second; the teachers A' and B' are averages of the networks A and B.

        x_l = L_a M + U_a (1 - M)     x_u = U_b M + L_b (1 - M)
        yhat = largest component of argmax (w_A p_A' + w_B p_B'),   w_i = exp(-H(p_i'))
        e = exp(-D),   D = 1/2 [KL(p_A' || p_B') + KL(p_B' || p_A')]
        L_i = CE(y) + Dice(y) + 1/2 L_cr,i(y) + 1/2 [CE(yhat; e) + Dice(yhat)],   mean over x_l and x_u

    The first three terms are of the labeled region, the others of the unlabeled one: means over their own region each,
    e a weight of its voxels, and over the scales of planned networks as well. L_cr is the correction where confident
    classes of the networks differ. At first, and throughout without unlabeled patches (the labels-only twin), each
    labeled patch has a box of the next one: as many images an iteration, the first three terms everywhere. While labels
    are alone at first, the teachers are copies of the networks.

    Bidirectional copy-paste (Bai et al., CVPR 2023) for two networks; from the paper (arXiv:2509.13084) come the two
    architectures, the entropy, the divergence (of the teachers here, so that it is no loss) and the correction.

    Args:
        teacher: whose pseudo-labels a network learns: `shared`, those of both averages together; `other`, those of the
            other network's average.
        teacher_weights: w of the shared pseudo-label: `entropy`, exp(-H); `equal`, 1.
        agreement: weigh a pseudo-label's cross-entropy with exp(-D), D the mean of the teachers' two divergences.
        same_patches: whether both networks see the same mixed images; else the halves of the second are swapped, and it
            has a box of its own.
        others: see `SoloMix`.

    Raises:
        DualsegError: a setting that cannot be; see `SoloMix`.
    """

    takes = ("a", "b")
    TEACHERS = {"a": "teacher_a", "b": "teacher_b"}
    TERMS = {
        "supervised_ce": Term("labeled"),
        "supervised_dice": Term("labeled"),
        "rectification": Term("labeled", weight=0.5),
        "pseudo_ce": Term("unlabeled", weight=0.5),
        "pseudo_dice": Term("unlabeled", weight=0.5),
    }

    def __init__(
        self,
        *args: Any,
        teacher: Literal["shared", "other"] = "shared",
        teacher_weights: Literal["entropy", "equal"] = "entropy",
        agreement: bool = True,
        same_patches: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        one_of("method.teacher", teacher, ("shared", "other"))
        one_of("method.teacher_weights", teacher_weights, ("entropy", "equal"))
        switch("method.agreement", agreement)
        switch("method.same_patches", same_patches)
        if not same_patches and self.on("rectification"):
            raise DualsegError(
                "method.same_patches=false: the term rectification compares the networks on the same image; set "
                "method.terms.rectification.enabled=false."
            )
        self.teacher, self.teacher_weights = teacher, teacher_weights
        self.agreement, self.same_patches = agreement, same_patches

    def pseudo_targets(self, image: Tensor) -> dict[str, Target]:
        """What each network learns on whole unlabeled patches, (N, C, W, H, D)."""
        a, b = (self.watch(name, image) for name in self.TEACHERS.values())
        if self.teacher == "other":
            predicted = torch.cat([b.predicted, a.predicted])
        elif self.teacher_weights == "entropy":
            p_a, p_b = (view.p * (-entropy(view.log_p)).exp()[:, None] for view in (a, b))
            predicted = fuse(p_a, p_b)
        else:
            predicted = fuse(a.p, b.p)
        label = self.largest(predicted, self.kept)
        weight = None
        if self.agreement:
            weight = (-(kl_divergence(a.log_p, b.log_p) + kl_divergence(b.log_p, a.log_p)) / 2).exp()
            self.watched["pseudo_weight"] = weight.mean()
        own = label.chunk(2) if self.teacher == "other" else (label, label)
        return {i: Target(one, weight) for i, one in zip(self.takes, own, strict=True)}

    def terms_of_two(
        self, network: str, views: Mapping[str, Sequence[View]], parts: Sequence[Part]
    ) -> Iterator[LossTerm]:
        """The correction on disagreement where there are labels: mean over the parts."""
        if not self.on("rectification"):
            return
        own, other = views[network], views["b" if network == "a" else "a"]
        values, support = [], []
        for view, opposite, part in zip(own, other, parts, strict=True):
            if part.label is not None:
                mask = confident_disagreement(view.p, opposite.p)
                mask = mask if part.label.region is None else mask & part.label.region
                values.append(rectification(view.p, part.label.label, mask))
                support.append(mask.sum())
        yield self.term("rectification", network, torch.stack(values).mean(), torch.stack(support).sum())
