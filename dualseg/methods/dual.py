"""Two networks that teach each other with uncertainty-guided pseudo-labels (Lu et al., arXiv:2509.13084).

Equations, names and their order are those of method.md, sections 3 (described) and 4 (released).
"""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from dualseg.errors import DualsegError
from dualseg.losses import (
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
    supervised_ce,
    supervised_dice,
    uncertainty,
)
from dualseg.losses.contrast import Contrast
from dualseg.losses.entropy_filtered import Fusion
from dualseg.losses.masked import mean
from dualseg.methods.base import LossTerm, SegmentationMethod
from dualseg.methods.schedules import gaussian_rampup

Objective = Literal["described", "released"]


@dataclass(frozen=True)
class TermSetting:
    """Switch and weight of one loss term."""

    enabled: bool = True
    weight: float = 1.0


DEFAULT_TERMS: Mapping[str, TermSetting] = {
    "supervised_ce": TermSetting(),
    "supervised_dice": TermSetting(),
    "rectification": TermSetting(weight=0.5),  # alpha
    "cross_pseudo": TermSetting(),
    "uncertainty": TermSetting(),
    "entropy_filtered": TermSetting(),
    "cosine": TermSetting(),
    "contrast": TermSetting(weight=0.1),  # lambda_c at full ramp
}


@dataclass(frozen=True)
class View:
    """What the loss terms need of one network's output on a batch or half of it; float32."""

    log_p: Tensor
    p: Tensor
    features: Tensor

    @classmethod
    def of(cls, logits: Tensor, features: Tensor) -> "View":
        log_p = logits.float().log_softmax(dim=1)
        return cls(log_p, log_p.exp(), features)

    def halves(self, labeled: int) -> tuple["View", "View"]:
        """The labeled and the unlabeled half."""
        sizes = [labeled, len(self.p) - labeled]
        first, second = zip(*(t.split(sizes) for t in (self.log_p, self.p, self.features)), strict=True)
        return View(*first), View(*second)

    @cached_property
    def predicted(self) -> Tensor:
        """argmax over classes, (N, W, H, D) int64."""
        return self.p.max(dim=1).indices  # on the CPU 15 times faster along a strided axis than argmax


class FusedPseudoLabels(NamedTuple):
    """`label`: yhat_fused (N_u, W, H, D) int64. `reliable`: R (N_u, W, H, D) bool."""

    label: Tensor
    reliable: Tensor


class DualNetwork(SegmentationMethod):
    """The paper's method: networks `a` and `b` on the same patches, one total, one backward, both stepped.

    Args:
        objective: `described` (the paper's text) or `released` (what the authors' script optimises).
        terms: name -> {"enabled": bool, "weight": float}; what is not named keeps its default (`DEFAULT_TERMS`).
        confidence: threshold of the confident predictions C_i (rectification).
        keep_fraction: quantile of the entropy filter; 0.8 drops the most uncertain fifth.
        fusion: pseudo-label of the entropy-filtered term: argmax of the `mean`, or `union` of the foregrounds (K = 2).
        contrast: `infonce` or `distance`.
        temperature, margin: of the one and of the other.
        prototype_momentum: 0 takes each batch's own prototypes.
        rampup_iterations: of w(t); None is a tenth of the run, 0 means w = 1 from the start.
        others: see `SegmentationMethod`.

    Raises:
        DualsegError: networks not named a and b; unknown objective, term, fusion or contrast; `union` with K > 2.
    """

    term_names = tuple(DEFAULT_TERMS)

    def __init__(
        self,
        *args: Any,
        objective: Objective = "described",
        terms: Mapping[str, Mapping[str, Any]] | None = None,
        confidence: float = 0.6,
        keep_fraction: float = 0.8,
        fusion: Fusion = "mean",
        contrast: Contrast = "infonce",
        temperature: float = 0.1,
        margin: float = 1.0,
        prototype_momentum: float = 0.0,
        rampup_iterations: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if set(self.networks) != {"a", "b"}:
            raise DualsegError(f"networks: method=dual needs the two networks a and b, not {sorted(self.networks)}.")
        _one_of("objective", objective, ("described", "released"))
        _one_of("method.fusion", fusion, ("mean", "union"))
        _one_of("method.contrast", contrast, ("infonce", "distance"))
        if fusion == "union" and len(self.class_names) > 2:
            raise DualsegError(f"method.fusion=union is defined for 2 classes, not {len(self.class_names)}; use mean.")
        for key, value in (("keep_fraction", keep_fraction), ("prototype_momentum", prototype_momentum)):
            if not 0 <= value <= 1:
                raise DualsegError(f"method.{key}={value}: give a value from 0 to 1.")
        self.objective = objective
        self.terms = _merge_terms(terms or {})
        self.confidence = confidence
        self.keep_fraction = keep_fraction
        self.fusion = fusion
        self.contrast = contrast
        self.temperature, self.margin = temperature, margin
        self.prototype_momentum = prototype_momentum
        self.rampup_iterations = rampup_iterations
        if prototype_momentum > 0:
            for name, network in self.networks.items():
                if not hasattr(network, "feature_channels"):
                    raise DualsegError(
                        f"networks.{name}: method.prototype_momentum > 0 needs the network's attribute "
                        f"feature_channels (int), the channels of its features; {type(network).__name__} has none."
                    )
                vectors = torch.zeros(len(self.class_names), cast(int, network.feature_channels))
                self.register_buffer(f"prototypes_{name}", vectors)
                self.register_buffer(f"prototypes_{name}_present", torch.zeros(len(self.class_names), dtype=torch.bool))

    def loss_terms(self, batch: dict[str, Any], iteration: int, max_iterations: int) -> list[LossTerm]:
        image, label = batch["image"], batch["label"]
        outputs = {name: network(image) for name, network in self.networks.items()}
        with torch.autocast(image.device.type, enabled=False):
            views = {name: View.of(*output) for name, output in outputs.items()}
            halves = {name: view.halves(len(label)) for name, view in views.items()}
            labeled = {name: half for name, (half, _) in halves.items()}
            unlabeled = {name: half for name, (_, half) in halves.items()}
            self.watched = self._foreground_shares(unlabeled, label)
            terms = [*self._supervised(labeled, label)]
            if self.objective == "described":
                pseudo = self._fused_pseudo_labels(unlabeled)
                terms += self.consistency_terms(unlabeled, pseudo, self._w(iteration, max_iterations))
                terms += self._contrast(views, len(label), pseudo, gaussian_rampup(iteration, max_iterations))
            else:
                terms += self._released(views)
        return terms

    def ramps(self, iteration: int, max_iterations: int) -> dict[str, float]:
        if self.objective == "released":
            return {}
        ramps = {
            "unsupervised": self._w(iteration, max_iterations),
            "contrast": gaussian_rampup(iteration, max_iterations),
        }
        return {f"ramp/{name}": value for name, value in ramps.items()}

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

    def _w(self, iteration: int, max_iterations: int) -> float:
        """w(t)."""
        length = max_iterations // 10 if self.rampup_iterations is None else self.rampup_iterations
        return gaussian_rampup(iteration, length)

    def _on(self, name: str) -> bool:
        return self.terms[name].enabled

    def _term(
        self, name: str, network: str | None, value: Tensor, ramp: float = 1.0, support: Tensor | int | None = None
    ) -> LossTerm:
        return LossTerm(name, network, value, self.terms[name].weight * ramp, support)

    def _supervised(self, views: dict[str, View], label: Tensor) -> Iterator[LossTerm]:
        """L_s,i = CE(z_i, y) + Dice(p_i, y) + alpha L_cr,i."""
        if self._on("rectification"):
            disagreement = confident_disagreement(views["a"].p, views["b"].p, self.confidence)
        for i, view in views.items():
            if self._on("supervised_ce"):
                yield self._term("supervised_ce", i, supervised_ce(view.log_p, label))
            if self._on("supervised_dice"):
                yield self._term("supervised_dice", i, supervised_dice(view.p, label))
            if self._on("rectification"):
                value = rectification(view.p, label, disagreement)
                yield self._term("rectification", i, value, support=disagreement.sum())

    def _fused_pseudo_labels(self, views: dict[str, View]) -> FusedPseudoLabels | None:
        """yhat_fused and R, where a term that is on reads them."""
        if not (self._on("entropy_filtered") or self._on("contrast")):
            return None
        a, b = views["a"], views["b"]
        reliable = reliable_voxels(entropy(a.log_p), entropy(b.log_p), self.keep_fraction)
        return FusedPseudoLabels(fuse(a.p, b.p, self.fusion), reliable)

    def consistency_terms(
        self, views: dict[str, View], pseudo: FusedPseudoLabels | None, w: float
    ) -> Iterator[LossTerm]:
        """w(t) L_u,i: cross consistency enhancement on the unlabeled half, parts 1 to 4.

        A subclass adds a term of its own here, see docs/change-one-thing.md.
        """
        for i, j in (("a", "b"), ("b", "a")):
            view, other = views[i], views[j]
            divergence = kl_divergence(view.log_p, other.log_p) if self._on("uncertainty") else None
            if self._on("cross_pseudo"):
                yield self._term("cross_pseudo", i, cross_pseudo(view.log_p, other.predicted, divergence), w)
            if divergence is not None:
                yield self._term("uncertainty", i, uncertainty(divergence), w)
            if self._on("entropy_filtered") and pseudo is not None:
                value = entropy_filtered(view.log_p, pseudo.label, pseudo.reliable)
                yield self._term("entropy_filtered", i, value, w, support=pseudo.reliable.sum())
            if self._on("cosine"):
                yield self._term("cosine", i, cosine(view.p, other.p.detach()), w)

    def _contrast(
        self, views: dict[str, View], labeled: int, pseudo: FusedPseudoLabels | None, ramp: float
    ) -> Iterator[LossTerm]:
        """lambda_c(t) L_c,i on the unlabeled half.

        Voxels are picked from the whole batch's features: picked from a half, their gradient would be padded to the
        whole in one more pass over memory.
        """
        if not self._on("contrast") or pseudo is None:
            return
        for i, view in views.items():
            unlabeled = view.features[labeled:]
            prototypes = class_prototypes(unlabeled, pseudo.label, pseudo.reliable, len(self.class_names))
            if self.prototype_momentum > 0:
                prototypes = self._update_prototypes(i, prototypes)
            drawn = view.features[:labeled, 0].numel() + draw_voxels(~pseudo.reliable)
            value = contrast(
                view.features,
                view.predicted,
                drawn,
                prototypes,
                kind=self.contrast,
                temperature=self.temperature,
                margin=self.margin,
            )
            counted = prototypes.present[view.predicted.flatten()[drawn]].sum()
            yield self._term("contrast", i, value, ramp, support=counted * (prototypes.present.sum() >= 2))

    def _update_prototypes(self, network: str, new: Prototypes) -> Prototypes:
        vectors, present = getattr(self, f"prototypes_{network}"), getattr(self, f"prototypes_{network}_present")
        updated = Prototypes(vectors, present).updated(new, self.prototype_momentum)
        vectors.copy_(updated.vectors)
        present.copy_(updated.present)
        return updated

    def _released(self, views: dict[str, View]) -> Iterator[LossTerm]:
        """mean(exp(-D) CE(z_A, argmax z_B)) + mean(D) + mean(1 - cos(p_A, p_B)) over the whole batch, no ramp."""
        a, b = views["a"], views["b"]
        divergence = kl_divergence(a.log_p, b.log_p) if self._on("uncertainty") else None
        if self._on("cross_pseudo"):
            yield self._term("cross_pseudo", "a", cross_pseudo(a.log_p, b.predicted, divergence))
        if divergence is not None:
            yield self._term("uncertainty", "a", uncertainty(divergence))
        if self._on("cosine"):
            yield self._term("cosine", None, cosine(a.p, b.p))


def _merge_terms(changes: Mapping[str, Mapping[str, Any]]) -> dict[str, TermSetting]:
    unknown = [name for name in changes if name not in DEFAULT_TERMS]
    if unknown:
        near = difflib.get_close_matches(unknown[0], DEFAULT_TERMS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the terms are {', '.join(DEFAULT_TERMS)}."
        raise DualsegError(f"method.terms.{unknown[0]}: no such loss term; {hint}")
    defaults = {name: {"enabled": s.enabled, "weight": s.weight} for name, s in DEFAULT_TERMS.items()}
    return {name: TermSetting(**{**default, **changes.get(name, {})}) for name, default in defaults.items()}


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise DualsegError(f"{key}={value}: give one of {', '.join(allowed)}.")
