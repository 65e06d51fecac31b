"""Two unlike networks on mixed patches, labeled by the averages of both."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dualseg.arguments import fraction, is_list, one_of, switch
from dualseg.data.batch import Batch
from dualseg.errors import DualsegError
from dualseg.losses import (
    confident_disagreement,
    entropy,
    fuse,
    kl_divergence,
    over_scales,
    rectification,
    region_ce,
    region_dice,
)
from dualseg.losses.scales import label_at
from dualseg.methods.averages import Average
from dualseg.methods.copy_paste import CopyPaste
from dualseg.methods.terms import LossTerm, Term, Time
from dualseg.methods.view import View
from dualseg.views import contiguous_box, paste, with_next


class Target(NamedTuple):
    """Labels, or pseudo-labels, of N patches.

    Attributes:
        label: (N, W, H, D) int64.
        weight: (N, W, H, D) float32, of the voxels in the cross-entropy; None: 1.
        region: (1, W, H, D) bool, where they count; None: everywhere.
    """

    label: Tensor
    weight: Tensor | None = None
    region: Tensor | None = None


class Part(NamedTuple):
    """Patches (N, C, W, H, D), what is labeled of them and what is pseudo-labeled."""

    image: Tensor
    label: Target | None
    pseudo: Target | None = None


class DualMix(CopyPaste):
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
        decay: of the averages.
        teacher: whose pseudo-labels a network learns: `shared`, those of both averages together; `other`, those of the
            other network's average.
        teacher_weights: w of the shared pseudo-label: `entropy`, exp(-H); `equal`, 1.
        agreement: weigh a pseudo-label's cross-entropy with exp(-D), D the mean of the teachers' two divergences.
        same_patches: whether both networks see the same mixed images; else the halves of the second are swapped, and it
            has a box of its own.
        mix_unlabeled: whether labeled and unlabeled patches are mixed; else x_l = L_a and x_u = U_b.
        keep_largest: classes whose largest component alone stays in pseudo-labels: `auto`, those that are in one piece
            in the labeled volumes; `all`; or names.
        others: see `CopyPaste` and `SegmentationMethod`.

    Raises:
        DualsegError: a setting that cannot be; fewer than 2 labeled patches, or unlabeled ones that are not as
            many.
    """

    takes = ("a", "b")
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
        decay: float = 0.99,
        teacher: Literal["shared", "other"] = "shared",
        teacher_weights: Literal["entropy", "equal"] = "entropy",
        agreement: bool = True,
        same_patches: bool = True,
        mix_unlabeled: bool = True,
        keep_largest: Literal["auto", "all"] | list[str] = "auto",
        **kwargs: Any,
    ) -> None:
        fraction("method.decay", decay)
        self.averages = {f"teacher_{i}": Average(i, decay, warmup=False, buffers=True) for i in self.takes}
        super().__init__(*args, **kwargs)
        one_of("method.teacher", teacher, ("shared", "other"))
        one_of("method.teacher_weights", teacher_weights, ("entropy", "equal"))
        switch("method.agreement", agreement)
        switch("method.same_patches", same_patches)
        switch("method.mix_unlabeled", mix_unlabeled)
        if not same_patches and self.on("rectification"):
            raise DualsegError(
                "method.same_patches=false: the term rectification compares the networks on the same image; set "
                "method.terms.rectification.enabled=false."
            )
        self.teacher, self.teacher_weights = teacher, teacher_weights
        self.agreement, self.same_patches, self.mix_unlabeled = agreement, same_patches, mix_unlabeled
        self.keep_largest = keep_largest
        self.kept = _classes(keep_largest, self.class_names)

    def check_batch(self, labeled: int, unlabeled: int) -> None:
        super().check_batch(labeled, unlabeled)
        if labeled < 2:
            raise DualsegError(
                f"batch.labeled={labeled}: dual_mix mixes labeled patches in pairs; give each process 2 or more."
            )
        if unlabeled not in (0, labeled):
            raise DualsegError(
                f"batch.unlabeled={unlabeled}: dual_mix mixes each labeled patch with an unlabeled one; give as many "
                f"as batch.labeled={labeled}, or 0 for its labels-only twin."
            )

    def on_fit_start(self) -> None:
        super().on_fit_start()
        in_one_piece = self.offered("classes_in_one_piece")
        if self.keep_largest == "auto" and in_one_piece is not None:
            self.kept = in_one_piece()

    def objective(self, batch: Batch, time: Time) -> Iterator[LossTerm]:
        unlabeled = batch.unlabeled.image
        self.check_batch(len(batch.label), len(unlabeled))  # the share of one of several processes
        alone = self.pretrains(time) or not len(unlabeled)
        pseudo = {} if alone or not self.on("pseudo_ce", "pseudo_dice") else self._pseudo_labels(unlabeled)
        parts: dict[str, list[Part]] = {}
        views: dict[str, tuple[View, ...]] = {}
        for i in self.takes:
            if not parts or not self.same_patches:
                outside = ~contiguous_box(batch.image.shape[2:], device=batch.image.device)  # M
            parts[i] = self._labeled_pairs(batch, outside) if alone else self._mixed(batch, pseudo.get(i), outside, i)
            image = torch.cat([part.image for part in parts[i]])
            views[i] = self.see(i, image).split(*(len(part.image) for part in parts[i]))
        for i, j in (("a", "b"), ("b", "a")):
            known = [(view, part.label) for view, part in zip(views[i], parts[i], strict=True) if part.label]
            yield from self._region_terms("supervised", i, known)
            if self.on("rectification"):
                yield self._rectification(i, views[i], views[j], parts[i])
            guessed = [(view, part.pseudo) for view, part in zip(views[i], parts[i], strict=True) if part.pseudo]
            if guessed:
                yield from self._region_terms("pseudo", i, guessed)

    def _labeled_pairs(self, batch: Batch, outside: Tensor) -> list[Part]:
        """Each labeled patch with a box of the next one."""
        return [Part(with_next(batch.labeled.image, outside), Target(with_next(batch.label, outside)))]

    def _mixed(self, batch: Batch, pseudo: Target | None, outside: Tensor, network: str) -> list[Part]:
        """x_l and x_u; where the networks see patches of their own, the second one has the halves swapped."""
        tensors = [batch.labeled.image, batch.label, batch.unlabeled.image]
        if pseudo is not None:
            tensors += [tensor for tensor in (pseudo.label, pseudo.weight) if tensor is not None]
        half = (len(batch.label) + 1) // 2
        swapped = network == "b" and not self.same_patches
        a, b = zip(*(x.roll(half if swapped else 0, dims=0).tensor_split([half]) for x in tensors), strict=True)
        if not self.mix_unlabeled:
            return [Part(a[0], Target(a[1])), Part(b[2], None, _target(b[3:]))]
        inside = ~outside
        return [
            Part(paste(a[0], a[2], outside), Target(a[1], None, outside), _target(a[3:], inside)),
            Part(paste(b[2], b[0], outside), Target(b[1], None, inside), _target(b[3:], outside)),
        ]

    def _pseudo_labels(self, image: Tensor) -> dict[str, Target]:
        """What each network learns on whole unlabeled patches, (N, C, W, H, D)."""
        a, b = (self.watch(f"teacher_{i}", image) for i in self.takes)
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

    def _region_terms(self, kind: str, network: str, seen: "list[tuple[View, Target]]") -> Iterator[LossTerm]:
        """The two terms of a kind: means over the parts of a network's view."""
        if self.on(f"{kind}_ce"):
            ce = [_of_regions(region_ce, [s.log_p for s in _scales(view)], t, t.weight) for view, t in seen]
            yield self.term(f"{kind}_ce", network, torch.stack(ce).mean())
        if self.on(f"{kind}_dice"):
            dice = [_of_regions(region_dice, [s.p for s in _scales(view)], t) for view, t in seen]
            yield self.term(f"{kind}_dice", network, torch.stack(dice).mean())

    def _rectification(
        self, network: str, own: Sequence[View], other: Sequence[View], parts: Sequence[Part]
    ) -> LossTerm:
        """The correction on disagreement where there are labels: mean over the parts."""
        values, support = [], []
        for view, opposite, part in zip(own, other, parts, strict=True):
            if part.label is not None:
                mask = confident_disagreement(view.p, opposite.p)
                mask = mask if part.label.region is None else mask & part.label.region
                values.append(rectification(view.p, part.label.label, mask))
                support.append(mask.sum())
        return self.term("rectification", network, torch.stack(values).mean(), torch.stack(support).sum())


def _target(known: Sequence[Tensor], region: Tensor | None = None) -> Target | None:
    """Of a label and perhaps a weight; None of nothing."""
    return Target(known[0], known[1] if len(known) > 1 else None, region) if known else None


def _scales(view: View) -> tuple[View, ...]:
    return (view, *view.coarser)


def _of_regions(
    loss: Callable[..., Tensor], outputs: Sequence[Tensor], target: Target, *weight: Tensor | None
) -> Tensor:
    """A loss in the target's region, mean over the scales of `outputs`, (N, K, w, h, d) each."""
    kept = (target.region, *weight)

    def of_scale(output: Tensor, label: Tensor) -> Tensor:
        return loss(output, label, *(None if x is None else label_at(x, output.shape[2:]) for x in kept))

    return over_scales(of_scale, outputs, target.label)


def _classes(keep_largest: Literal["auto", "all"] | Sequence[str], class_names: Sequence[str]) -> tuple[int, ...]:
    """Numbers of the classes whose largest component alone is kept.

    Raises:
        DualsegError: a name that no class has.
    """
    foreground = class_names[1:]
    if keep_largest in ("auto", "all"):  # auto: until the labeled volumes are known
        return tuple(range(1, len(class_names)))
    if not is_list(keep_largest) or {*keep_largest} - {*foreground}:
        raise DualsegError(f"method.keep_largest={keep_largest}: give auto, all, or a list of {', '.join(foreground)}.")
    return tuple(k for k, name in enumerate(class_names) if k and name in keep_largest)
