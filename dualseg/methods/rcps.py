"""RCPS (Zhao et al., IEEE JBHI 2023): one network, rectified pseudo-labels for its own views, a voxel contrast."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualseg.arguments import count, one_of, positive
from dualseg.data.batch import Batch
from dualseg.losses import block_mean, cosine, cross_pseudo, kl_divergence, region_dice, supervised_ce, uncertainty
from dualseg.losses.voxel_contrast import bidirectional_contrast
from dualseg.methods.base import SegmentationMethod
from dualseg.methods.terms import LossTerm, Term, Time
from dualseg.methods.view import View
from dualseg.views import uniform

STRIDE = 4  # of the contrast's blocks


class RCPS(SegmentationMethod):
    """Two intensity views of every patch follow the prediction for the patch itself (arXiv:2301.05500).

    L = L_seg + 0.1 rho (L_cps + L_cos + L_bc), rho over the whole run. z0 are the logits of a patch, z1 and z2 those of
    its views, all of one forward pass; D_t = KL(sg softmax z0 || softmax z_t).
    L_seg = Dice + 2/11 CE of z0, foreground weighted 10. L_cps: `pseudo_label`, the sum over t of mean exp(-D_t)
    CE(sg softmax(z0 / T), z_t), and `uncertainty`, that of mean D_t. L_cos: `cosine`, mean (1 - cos(z1, z2)) along
    classes. L_bc: `contrast`, see `bidirectional_contrast`, in blocks of 4^3 voxels. The last three are sums of the
    labeled patches' mean and the unlabeled ones'. All but L_bc are summed over the network's scales: its logits, and
    those of `others` whose names begin with `logits`, enlarged.

    Differences: our networks, all but the planned ones, give one scale, where theirs has four, so that L_cps and L_cos
    are four times as small beside L_bc; the projector reads their features in blocks of 4^3 voxels, theirs a decoder's
    stride of 4; noise is drawn anew for each view (the script reuses it); negatives are never of the anchor's class
    (the script takes such where others are too few); no grid distortion; the ramp is smooth.

    Args:
        sharpening: T, of the pseudo-label.
        cosine_of: what the cosine compares, `logits` or `probabilities`.
        negatives: N, of an anchor.
        temperature: of the contrast.
        projection: channels of the projector.
        others: see `SegmentationMethod`.

    Raises:
        DualsegError: unknown `cosine_of`; a number that cannot be; the network does not say how many channels its
            features have.
    """

    TERMS = {
        "supervised_ce": Term("labeled", weight=2 / 11),
        "supervised_dice": Term("labeled"),
        "pseudo_label": Term("both", weight=0.1, ramp="run"),
        "uncertainty": Term("both", weight=0.1, ramp="run"),
        "cosine": Term("both", weight=0.1, ramp="run"),
        "contrast": Term("both", weight=0.1, ramp="run"),
    }

    def __init__(
        self,
        *args: Any,
        sharpening: float = 0.5,
        cosine_of: Literal["logits", "probabilities"] = "logits",
        negatives: int = 400,
        temperature: float = 0.1,
        projection: int = 64,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        one_of("method.cosine_of", cosine_of, ("logits", "probabilities"))
        positive("method.sharpening", sharpening)
        positive("method.temperature", temperature)
        count("method.negatives", negatives)
        count("method.projection", projection)
        self.sharpening, self.cosine_of = sharpening, cosine_of
        self.negatives, self.temperature = negatives, temperature
        if self.on("contrast"):
            channels = self.feature_channels("a", "the projector")
            self.heads["projector"] = nn.Sequential(
                nn.Conv3d(channels, projection, 1), nn.PReLU(), nn.Conv3d(projection, projection, 1)
            )

    def objective(self, batch: Batch, time: Time) -> Iterator[LossTerm]:
        n, total = len(batch.label), len(batch.image)
        seen = self.see("a", torch.cat([batch.image, _changed(batch.image), _changed(batch.image)]))
        # of each scale: the patches', and those of their two views
        scales = [view.split(total, total, total) for view in seen.scales]
        labeled = [z0.split(n, total - n)[0] for z0, _, _ in scales]
        if self.on("supervised_ce"):
            weight = torch.full((len(self.class_names),), 10.0, device=batch.image.device)
            weight[:1].fill_(1.0)  # on the device: `weight[0] = 1.0` would wait for it
            yield self.term("supervised_ce", "a", _sum(supervised_ce(z.log_p, batch.label, weight) for z in labeled))
        if self.on("supervised_dice"):
            yield self.term("supervised_dice", "a", _sum(region_dice(z.p, batch.label) for z in labeled))
        yield from self._rectified(n, scales[0][0].log_p.detach(), [z.log_p for _, *views in scales for z in views])
        if self.on("cosine"):
            of = (lambda view: view.logits.float()) if self.cosine_of == "logits" else (lambda view: view.p)
            yield self.term("cosine", "a", _sum(_of_halves(cosine, n, of(z1), of(z2)) for _, z1, z2 in scales))
        if self.on("contrast"):
            yield self._contrast(n, seen, scales[0][0])

    def _rectified(self, n: int, z0: Tensor, views: Sequence[Tensor]) -> Iterator[LossTerm]:
        """L_cps in its two parts, of log-softmaxes; without `uncertainty`, the plain cross-entropy."""
        target = (z0 / self.sharpening).softmax(dim=1)
        weights = [(kl_divergence(z_t, z0),) if self.on("uncertainty") else () for z_t in views]
        if self.on("pseudo_label"):
            values = [_of_halves(cross_pseudo, n, z_t, target, *d_t) for z_t, d_t in zip(views, weights, strict=True)]
            yield self.term("pseudo_label", "a", _sum(values))
        if self.on("uncertainty"):
            yield self.term("uncertainty", "a", _sum(_of_halves(uncertainty, n, *d_t) for d_t in weights))

    def _contrast(self, n: int, seen: View, raw: View) -> LossTerm:
        """L_bc, on blocks of STRIDE^3 voxels."""
        embedded = F.normalize(self.heads["projector"](block_mean(seen.features, STRIDE).float()), dim=1)
        u0, u1, u2 = embedded.movedim(1, -1).flatten(1, 3).split(len(raw))
        confidence, predicted = (tensor.flatten(1) for tensor in block_mean(raw.p.detach(), STRIDE).max(dim=1))
        value, support = bidirectional_contrast(
            u0, u1, u2, predicted, confidence, n, len(self.class_names), self.negatives, self.temperature
        )
        return self.term("contrast", "a", value, support)


def _changed(image: Tensor) -> Tensor:
    """A view: a x + b mean(a x), a in 0.5..1.5, b in -0.5..0.5; every other time noise of deviation 0 to 0.1."""
    ranges = ((0.5, 1.5), (-0.5, 0.5), (0.0, 0.1), (0.0, 1.0))
    a, b, sigma, noisy = (uniform(image, *between).view(-1, 1, 1, 1, 1) for between in ranges)
    scaled = a * image
    changed = scaled + b * scaled.mean(dim=(2, 3, 4), keepdim=True)
    return changed + sigma * (noisy < 0.5) * torch.randn_like(image)


def _of_halves(loss: Callable[..., Tensor], n: int, *tensors: Tensor) -> Tensor:
    """The loss of the first n patches, and of the rest, added."""
    return loss(*(tensor[:n] for tensor in tensors)) + loss(*(tensor[n:] for tensor in tensors))


def _sum(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum()
