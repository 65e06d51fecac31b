"""SemSim (Xie et al., arXiv:2410.13486), in 3-D: FixMatch with similarities of features within and across patches."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualseg.arguments import at_least, count, fraction, positive
from dualseg.data.batch import Batch
from dualseg.losses import block_centre, block_mean, masked_dice
from dualseg.losses.masked import masked_mean, mean
from dualseg.losses.similarity import agreement, class_log_probabilities, patch_prototypes, refined, similarities
from dualseg.methods.base import SegmentationMethod
from dualseg.methods.terms import LossTerm, Term, Time
from dualseg.views import blur, brightness, contrast, cutmix_boxes, gamma, noise, paste, uniform

STRIDE = 8  # of the features that are compared


class SemSim(SegmentationMethod):
    """Confident weak predictions, as they are and by likeness of features, teach strong views (arXiv:2410.13486).

    L = 1/2 (1/2 (CE + Dice) + 1/2 L_u + 1/4 L_intra + 1/4 L_cross). Of each unlabeled patch x_w there are two strong
    views s1 and s2 (intensities, and a box of another patch). Targets are sg of x_w's, with the same boxes, where their
    probability is at least tau. L_u, `pseudo_label`: Dice(argmax p_w -> p_s1). L_intra, `intra_image`: the same between
    p_w and p_s1 `refined` by the likeness of voxels within a patch. L_cross, `cross_image`: the mean of Ubar CE(argmax
    p2_w -> p_cr); p2_w and p_cr are what x_w's and s2's features say by their likeness to class prototypes of the
    labeled patches, Ubar is these patches' `agreement`. Likeness is that of features f, a 1x1x1 convolution of the
    network's in blocks of 8^3 voxels.

    Differences: written in 3-D and from the text, there is no public code. Softmaxes of cosines have a temperature
    (without one p_cr never reaches tau, and the refinement is a mean); refined predictions are halved, to be
    probabilities; a prototype is one of a patch, not of aligned regions of a slice; f is theirs without the transformer
    (SemSim-); no dropout of feature channels; brightness is a shift of -0.5 to 0.5, as a factor would only scale images
    of mean 0 once more; the partner of a box is another patch of the batch, so that one unlabeled patch alone has none.

    Args:
        confidence: tau.
        temperature: of the softmaxes of cosines.
        sharpness: r, how fast Ubar falls with the disagreement.
        channels: of f.
        others: see `SegmentationMethod`.

    Raises:
        DualsegError: a number that cannot be; the network does not say how many channels its features have.
    """

    pseudo_labels = True
    TERMS = {
        "supervised_ce": Term("labeled", weight=0.25),
        "supervised_dice": Term("labeled", weight=0.25),
        "pseudo_label": Term("unlabeled", weight=0.25),
        "intra_image": Term("unlabeled", weight=0.125),
        "cross_image": Term("unlabeled", weight=0.125),
    }

    def __init__(
        self,
        *args: Any,
        confidence: float = 0.95,
        temperature: float = 0.1,
        sharpness: float = 1000.0,
        channels: int = 64,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        fraction("method.confidence", confidence)
        positive("method.temperature", temperature)
        at_least("method.sharpness", sharpness, 0)
        count("method.channels", channels)
        self.confidence, self.temperature, self.sharpness = confidence, temperature, sharpness
        if self.on("intra_image", "cross_image"):
            self.heads["likeness"] = nn.Conv3d(self.feature_channels("a", "the method"), channels, 1)

    def objective(self, batch: Batch, time: Time) -> Iterator[LossTerm]:
        n, weak = len(batch.label), batch.unlabeled.image
        parts = (n, len(weak), len(weak), len(weak))
        boxes = [_boxes(weak) for _ in range(2)]
        seen = self.see("a", torch.cat([batch.image, *(_with_boxes(_strong(weak), box) for box in boxes)]))
        labeled, w, s1, _ = seen.split(*parts)
        yield from self.supervised("a", labeled, batch.label)
        p_w = w.p.detach()
        self.note_pseudo_labels(w.predicted)
        if self.on("pseudo_label"):
            yield self._dice("pseudo_label", s1.p, p_w, boxes[0])
        if not self.on("intra_image", "cross_image"):
            return
        coarse = [block_mean(box[:, None].float(), STRIDE)[:, 0] > 0.5 for box in boxes]
        f, f_w, f_s1, f_s2 = self.heads["likeness"](block_mean(seen.features, STRIDE).float()).split(list(parts))
        if self.on("intra_image"):
            target = refined(block_mean(p_w, STRIDE), f_w.detach(), self.temperature)
            p_s1 = refined(block_mean(s1.p, STRIDE), f_s1, self.temperature)
            yield self._dice("intra_image", p_s1, target, coarse[0])
        if self.on("cross_image"):
            yield self._cross(f, f_w.detach(), f_s2, block_centre(batch.label, STRIDE), coarse[1])

    def _dice(self, name: str, p_s1: Tensor, p_w: Tensor, box: Tensor) -> LossTerm:
        """L_u or L_intra: Dice where the weak prediction is confident."""
        label, mask = self._targets(name, p_w, box)
        return self.term(name, "a", masked_dice(p_s1, label, mask), mask.sum())

    def _cross(self, f: Tensor, f_w: Tensor, f_s2: Tensor, label: Tensor, box: Tensor) -> LossTerm:
        """L_cross; f and label are those of the labeled patches."""
        if not len(label):
            return self.term("cross_image", "a", 0 * f_s2.sum(), 0)
        g, present = patch_prototypes(f, label, len(self.class_names))
        m_w = similarities(f_w, g.detach())
        target, mask = self._targets("cross_image", class_log_probabilities(m_w, present, self.temperature).exp(), box)
        log_p_cr = class_log_probabilities(similarities(f_s2, g), present, self.temperature)
        weight = _with_boxes(agreement(m_w, present, self.sharpness), box)
        mask = mask & present.any(dim=0)[target]
        value = masked_mean(weight * F.nll_loss(log_p_cr, target, reduction="none"), mask)
        return self.term("cross_image", "a", value, mask.sum())

    def _targets(self, name: str, p: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
        """Classes of p with boxes of other patches, and where they are confident."""
        confidence, label = _with_boxes(p, box).max(dim=1)
        mask = confidence >= self.confidence
        self.watched[f"confident/{name}"] = mean(mask.float())
        return label, mask


def _with_boxes(tensor: Tensor, box: Tensor) -> Tensor:
    """Each patch with the box of the one before it in the batch."""
    return paste(tensor.roll(1, dims=0), tensor, box)


def _boxes(image: Tensor) -> Tensor:
    """(N, W, H, D) bool: a box in every other patch."""
    boxes = cutmix_boxes(image.shape[2:], count=len(image), device=image.device)
    return boxes & (uniform(image, 0, 1) < 0.5).view(-1, 1, 1, 1)


def _strong(image: Tensor) -> Tensor:
    """In 4 of 5 patches: contrast, brightness and gamma, noise, and for every other one blur."""
    changed = brightness(contrast(image, uniform(image, 0.5, 1.5)), uniform(image, -0.5, 0.5))
    changed = gamma(changed, uniform(image, 0.7, 1.5))
    blurred = blur(changed, uniform(image, 0.1, 2.0), largest=2.0)
    blurs, changes = ((uniform(image, 0, 1) < share).view(-1, 1, 1, 1) for share in (0.5, 0.8))
    return paste(noise(paste(blurred, changed, blurs)), image, changes)
