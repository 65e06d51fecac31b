"""One network on mixed patches, labeled by its own average; `dual_mix` is the form with two."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from dualseg.arguments import fraction, is_list, switch
from dualseg.data.batch import Batch
from dualseg.errors import DualsegError
from dualseg.losses import over_scales, region_ce, region_dice
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


class SoloMix(CopyPaste):
    """One network on patches mixed of labeled and unlabeled ones; its average gives the pseudo-labels.

    M is 0 in one box of 2/3 of each side. L are the labeled patches, U as many unlabeled ones, a their first halves and
    b the second; yhat is what the teacher, an average of the network, predicts, of some classes the largest component.

        x_l = L_a M + U_a (1 - M)     x_u = U_b M + L_b (1 - M)
        L = CE(y) + Dice(y) + 1/2 [CE(yhat) + Dice(yhat)],   mean over x_l and x_u

    The first two terms are of the labeled region, the others of the unlabeled one: means over their own region each,
    and over the scales of planned networks as well. At first, and throughout without unlabeled patches (the labels-only
    twin), each labeled patch has a box of the next one: as many images an iteration, the first two terms everywhere.
    While labels are alone at first, the teacher is a copy of the network.

    Bidirectional copy-paste (Bai et al., CVPR 2023) as `bcp` has it, but it trains coarser logits as well, its teacher
    always runs in evaluation mode, and labels alone have as many images and their full weight. `dual_mix` adds a second
    network, and what two can tell one another.

    Args:
        decay: of the average.
        mix_unlabeled: whether labeled and unlabeled patches are mixed; else x_l = L_a and x_u = U_b.
        keep_largest: classes whose largest component alone stays in pseudo-labels: `auto`, those that are in one piece
            in the labeled volumes; `all`; or names.
        others: see `CopyPaste` and `SegmentationMethod`.

    Raises:
        DualsegError: a setting that cannot be; fewer than 2 labeled patches, or unlabeled ones that are not as many.
    """

    TEACHERS: ClassVar[Mapping[str, str]] = {"a": "teacher"}
    """Network -> its average."""
    TERMS = {
        "supervised_ce": Term("labeled"),
        "supervised_dice": Term("labeled"),
        "pseudo_ce": Term("unlabeled", weight=0.5),
        "pseudo_dice": Term("unlabeled", weight=0.5),
    }
    same_patches: bool = True
    """Whether all networks see the same mixed images."""

    def __init__(
        self,
        *args: Any,
        decay: float = 0.99,
        mix_unlabeled: bool = True,
        keep_largest: Literal["auto", "all"] | list[str] = "auto",
        **kwargs: Any,
    ) -> None:
        fraction("method.decay", decay)
        self.averages = {teacher: Average(i, decay, warmup=False, buffers=True) for i, teacher in self.TEACHERS.items()}
        super().__init__(*args, **kwargs)
        switch("method.mix_unlabeled", mix_unlabeled)
        self.mix_unlabeled = mix_unlabeled
        self.keep_largest = keep_largest
        self.kept = _classes(keep_largest, self.class_names)

    def check_batch(self, labeled: int, unlabeled: int) -> None:
        super().check_batch(labeled, unlabeled)
        if labeled < 2:
            raise DualsegError(
                f"batch.labeled={labeled}: labeled patches are mixed in pairs; give each process 2 or more."
            )
        if unlabeled not in (0, labeled):
            raise DualsegError(
                f"batch.unlabeled={unlabeled}: each labeled patch is mixed with an unlabeled one; give as many as "
                f"batch.labeled={labeled}, or 0 for the labels-only twin."
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
        pseudo = {} if alone or not self.on("pseudo_ce", "pseudo_dice") else self.pseudo_targets(unlabeled)
        parts: dict[str, list[Part]] = {}
        views: dict[str, tuple[View, ...]] = {}
        for i in self.takes:
            if not parts or not self.same_patches:
                outside = ~contiguous_box(batch.image.shape[2:], device=batch.image.device)  # M
            parts[i] = self._labeled_pairs(batch, outside) if alone else self._mixed(batch, pseudo.get(i), outside, i)
            image = torch.cat([part.image for part in parts[i]])
            views[i] = self.see(i, image).split(*(len(part.image) for part in parts[i]))
        for i in self.takes:
            known = [(view, part.label) for view, part in zip(views[i], parts[i], strict=True) if part.label]
            yield from self._region_terms("supervised", i, known)
            yield from self.terms_of_two(i, views, parts[i])
            guessed = [(view, part.pseudo) for view, part in zip(views[i], parts[i], strict=True) if part.pseudo]
            if guessed:
                yield from self._region_terms("pseudo", i, guessed)

    def pseudo_targets(self, image: Tensor) -> dict[str, Target]:
        """What each network learns on whole unlabeled patches, (N, C, W, H, D)."""
        return {
            i: Target(self.largest(self.watch(name, image).predicted, self.kept)) for i, name in self.TEACHERS.items()
        }

    def terms_of_two(
        self, network: str, views: Mapping[str, Sequence[View]], parts: Sequence[Part]
    ) -> Iterator[LossTerm]:
        """Terms that compare a network with another one; of one network there are none."""
        yield from ()

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

    def _region_terms(self, kind: str, network: str, seen: "list[tuple[View, Target]]") -> Iterator[LossTerm]:
        """The two terms of a kind: means over the parts of a network's view."""
        if self.on(f"{kind}_ce"):
            ce = [_of_regions(region_ce, [s.log_p for s in _scales(view)], t, t.weight) for view, t in seen]
            yield self.term(f"{kind}_ce", network, torch.stack(ce).mean())
        if self.on(f"{kind}_dice"):
            dice = [_of_regions(region_dice, [s.p for s in _scales(view)], t) for view, t in seen]
            yield self.term(f"{kind}_dice", network, torch.stack(dice).mean())


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
