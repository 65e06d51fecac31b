"""Two networks that teach each other with uncertainty-guided pseudo-labels (Lu et al., arXiv:2509.13084).

Equations, names and their order are those of method.md, sections 3 (described) and 4 (released).
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dualseg.arguments import at_least, fraction, one_of, positive, switch
from dualseg.data.batch import Batch
from dualseg.errors import DualsegError
from dualseg.losses import (
    Drawn,
    Prototypes,
    class_prototypes,
    confident_disagreement,
    contrast,
    cosine,
    cross_pseudo,
    draw_voxels,
    entropy,
    entropy_filtered,
    fuse,
    kl_divergence,
    rectification,
    reliable_voxels,
    uncertainty,
)
from dualseg.losses.contrast import Contrast
from dualseg.losses.entropy_filtered import Fusion
from dualseg.losses.masked import mean
from dualseg.methods.base import SegmentationMethod
from dualseg.methods.terms import LossTerm, Term, Time
from dualseg.methods.view import View

Objective = Literal["described", "released"]


class FusedPseudoLabels(NamedTuple):
    """`label`: yhat_fused (N_u, W, H, D) int64. `reliable`: R (N_u, W, H, D) bool."""

    label: Tensor
    reliable: Tensor


class TwoNetworks(SegmentationMethod):
    """What `dual` shares with its ancestors: networks `a` and `b` on the same patches, one total, both stepped.

    Args:
        objective: `described` (the paper's text) or `released` (what the authors' script optimises, without ramps).
        confidence: threshold of the confident predictions C_i (rectification).
        keep_fraction: quantile of the entropy filter; 0.8 drops the most uncertain fifth.
        fusion: pseudo-label of the entropy-filtered term: argmax of the `mean`, or `union` of the foregrounds (K = 2).
        second_pass: whether sg(p_j) and the fused pseudo-label come from a second pass in evaluation mode: without
            dropout, and with BatchNorm's running statistics. Not in the paper. The cosine of `released`, which stops no
            gradient, keeps the first pass.
        others: see `SegmentationMethod`.

    Raises:
        DualsegError: unknown objective or fusion; `union` with K > 2.
    """

    takes = ("a", "b")
    pseudo_labels = True

    def __init__(
        self,
        *args: Any,
        objective: Objective = "described",
        confidence: float = 0.6,
        keep_fraction: float = 0.8,
        fusion: Fusion = "mean",
        second_pass: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        switch("method.second_pass", second_pass)
        one_of("objective", objective, ("described", "released"))
        one_of("method.fusion", fusion, ("mean", "union"))
        if fusion == "union" and len(self.class_names) > 2:
            raise DualsegError(f"method.fusion=union is defined for 2 classes, not {len(self.class_names)}; use mean.")
        fraction("method.confidence", confidence)
        fraction("method.keep_fraction", keep_fraction)
        self.described = objective == "described"
        if not self.described:  # the authors' script has no ramp; a term that was added keeps its own
            plain = {name: replace(self.terms[name], ramp="none") for name in self.TERMS}
            self.terms = {**self.terms, **plain}
        self.confidence = confidence
        self.keep_fraction = keep_fraction
        self.fusion = fusion
        self.second_pass = second_pass

    @abstractmethod
    def contrast_terms(
        self, views: dict[str, View], label: Tensor, pseudo: FusedPseudoLabels | None
    ) -> Iterator[LossTerm]:
        """lambda_c(t) L_c,i on the unlabeled half of the views, which are of the whole batch."""

    def objective(self, batch: Batch, time: Time) -> Iterator[LossTerm]:
        views = {name: self.see(name, batch.image) for name in self.takes}
        labeled, unlabeled = {}, {}
        n = len(batch.label)
        for name, view in views.items():
            labeled[name], unlabeled[name] = view.split(n, len(view) - n)
        teaching = unlabeled
        if self.second_pass:
            teaching = {name: self.watch(name, batch.unlabeled.image) for name in self.takes}
        self.watched = self._foreground_shares(teaching, batch.label)
        self.note_pseudo_labels(*(view.predicted for view in teaching.values()))
        yield from self._supervised(labeled, batch.label)
        if self.described:
            pseudo = self._fused_pseudo_labels(teaching)
            yield from self.consistency_terms(unlabeled, teaching, pseudo)
            yield from self.contrast_terms(views, batch.label, pseudo)
        else:
            yield from self._released(views, self.watch("b", batch.image) if self.second_pass else views["b"])

    @torch.no_grad()
    def _foreground_shares(self, unlabeled: dict[str, View], label: Tensor) -> dict[str, Tensor]:
        """Share of foreground in each network's pseudo-labels, and in the labels to compare with.

        Predicting no foreground on unlabeled volumes minimises every unlabeled term: these curves show whether a run
        goes there, which no loss can show.
        """
        masks = {i: view.predicted > 0 for i, view in unlabeled.items() if view.predicted.numel()} | {
            "labels": label > 0
        }
        return {f"foreground/{name}": mean(mask.float()) for name, mask in masks.items()}

    def _supervised(self, views: dict[str, View], label: Tensor) -> Iterator[LossTerm]:
        """L_s,i = CE(z_i, y) + Dice(p_i, y) + alpha L_cr,i."""
        if self.on("rectification"):
            disagreement = confident_disagreement(views["a"].p, views["b"].p, self.confidence)
        for i, view in views.items():
            yield from self.supervised(i, view, label)
            if self.on("rectification"):
                value = rectification(view.p, label, disagreement)
                yield self.term("rectification", i, value, support=disagreement.sum())

    def _fused_pseudo_labels(self, views: dict[str, View]) -> FusedPseudoLabels | None:
        """yhat_fused and R, where a term that is on reads them."""
        if not self.on("entropy_filtered", "contrast"):
            return None
        a, b = views["a"], views["b"]
        reliable = reliable_voxels(entropy(a.log_p), entropy(b.log_p), self.keep_fraction)
        return FusedPseudoLabels(fuse(a.p, b.p, self.fusion), reliable)

    def consistency_terms(
        self, views: dict[str, View], teaching: dict[str, View], pseudo: FusedPseudoLabels | None
    ) -> Iterator[LossTerm]:
        """w(t) L_u,i: cross consistency enhancement on the unlabeled half, parts 1 to 4.

        A subclass adds a term of its own here, see docs/change-one-thing.md.

        Args:
            views, teaching: of each network, what learns, and what the other one learns from; the same objects unless
                there is a second pass.
            pseudo: of `teaching`; None where no term reads them.
        """
        for i, j in (("a", "b"), ("b", "a")):
            view, other = views[i], teaching[j]
            divergence = kl_divergence(view.log_p, other.log_p) if self.on("uncertainty") else None
            if self.on("cross_pseudo"):
                yield self.term("cross_pseudo", i, cross_pseudo(view.log_p, other.predicted, divergence))
            if divergence is not None:
                yield self.term("uncertainty", i, uncertainty(divergence))
            if self.on("entropy_filtered") and pseudo is not None:
                value = entropy_filtered(view.log_p, pseudo.label, pseudo.reliable)
                yield self.term("entropy_filtered", i, value, support=pseudo.reliable.sum())
            if self.on("cosine"):
                yield self.term("cosine", i, cosine(view.p, other.p.detach()))

    def _released(self, views: dict[str, View], teacher: View) -> Iterator[LossTerm]:
        """mean(exp(-D) CE(z_A, argmax z_B)) + mean(D) + mean(1 - cos(p_A, p_B)) over the whole batch, no ramp.

        `teacher`: B's view as A learns it; the cosine trains both, so it has B's own.
        """
        a, b = views["a"], views["b"]
        divergence = kl_divergence(a.log_p, teacher.log_p) if self.on("uncertainty") else None
        if self.on("cross_pseudo"):
            yield self.term("cross_pseudo", "a", cross_pseudo(a.log_p, teacher.predicted, divergence))
        if divergence is not None:
            yield self.term("uncertainty", "a", uncertainty(divergence))
        if self.on("cosine"):
            yield self.term("cosine", None, cosine(a.p, b.p))


class DualNetwork(TwoNetworks):
    """Two networks that teach each other with uncertainty-guided pseudo-labels (Lu et al., arXiv:2509.13084).

    Networks `a` and `b` on the same patches, one total, one backward, both stepped; docs/method.md has the equations.

    Args:
        contrast: `infonce` or `distance`.
        temperature, margin: of the one and of the other.
        prototype_momentum: 0 takes each batch's own prototypes.
        others: see `TwoNetworks` and `SegmentationMethod`; the ramp `start` is w(t), the ramp `run` lambda_c(t) / 0.1.

    Raises:
        DualsegError: unknown contrast; a momentum that cannot be.
    """

    TERMS = {
        "supervised_ce": Term("labeled"),
        "supervised_dice": Term("labeled"),
        "rectification": Term("labeled", weight=0.5),  # alpha
        "cross_pseudo": Term("unlabeled", ramp="start"),
        "uncertainty": Term("unlabeled", ramp="start"),
        "entropy_filtered": Term("unlabeled", ramp="start"),
        "cosine": Term("unlabeled", ramp="start"),
        "contrast": Term("unlabeled", weight=0.1, ramp="run"),  # lambda_c at full ramp
    }

    def __init__(
        self,
        *args: Any,
        contrast: Contrast = "infonce",
        temperature: float = 0.1,
        margin: float = 1.0,
        prototype_momentum: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        one_of("method.contrast", contrast, ("infonce", "distance"))
        fraction("method.prototype_momentum", prototype_momentum)
        positive("method.temperature", temperature)
        at_least("method.margin", margin, 0)
        self.contrast = contrast
        self.temperature, self.margin = temperature, margin
        self.prototype_momentum = prototype_momentum
        if prototype_momentum > 0:
            for name in self.takes:
                channels = self.feature_channels(name, "method.prototype_momentum > 0")
                vectors = torch.zeros(len(self.class_names), channels)
                self.register_buffer(f"prototypes_{name}", vectors)
                self.register_buffer(f"prototypes_{name}_present", torch.zeros(len(self.class_names), dtype=torch.bool))

    def contrast_terms(
        self, views: dict[str, View], label: Tensor, pseudo: FusedPseudoLabels | None
    ) -> Iterator[LossTerm]:
        """lambda_c(t) L_c,i on the unlabeled half.

        Voxels are picked from the whole batch's features: picked from a half, their gradient would be padded to the
        whole in one more pass over memory.
        """
        if not self.on("contrast") or pseudo is None:
            return
        labeled = len(label)
        for i, view in views.items():
            unlabeled = view.features[labeled:]
            prototypes = class_prototypes(unlabeled, pseudo.label, pseudo.reliable, len(self.class_names))
            if self.prototype_momentum > 0:
                prototypes = self._update_prototypes(i, prototypes)
            voxels, counts = draw_voxels(~pseudo.reliable)
            drawn = Drawn(voxels + view.features[:labeled, 0].numel(), counts)
            value, support = contrast(
                view.features,
                view.predicted,
                drawn,
                prototypes,
                kind=self.contrast,
                temperature=self.temperature,
                margin=self.margin,
            )
            yield self.term("contrast", i, value, support)

    def _update_prototypes(self, network: str, new: Prototypes) -> Prototypes:
        vectors, present = getattr(self, f"prototypes_{network}"), getattr(self, f"prototypes_{network}_present")
        updated = Prototypes(vectors, present).updated(new, self.prototype_momentum)
        vectors.copy_(updated.vectors)
        present.copy_(updated.present)
        return updated
