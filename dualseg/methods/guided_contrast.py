"""Guided point contrastive learning (Jiang et al., ICCV 2021, arXiv:2110.08188), as a term on voxels."""

from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualseg.arguments import fraction, positive
from dualseg.data.batch import Batch
from dualseg.losses.masked import masked_mean
from dualseg.losses.ranks import of_all_ranks, own_rank
from dualseg.methods.extra import ExtraTerm, Host, voxel_rows
from dualseg.methods.terms import LossTerm, Ramp, Time
from dualseg.views import contrast, gamma, noise, uniform

CHANNELS = 32  # of an embedding
POSITIVES = 512  # voxels of an unlabeled patch; as the next two, shared by the classes: of each as many, at least 1
NEGATIVES = 4096
LENGTH = 8192  # of a bank


class GuidedContrast(ExtraTerm):
    """Contrast of a voxel in two views, against others of other predicted classes, where it is sure (Jiang, 2021).

    e is a linear projection of the features, of unit length. For a voxel i in view a, with view b,
    l_i = -log[P / (P + sum_n exp(e_i^a . n / tau))], P = exp(e_i^a . e_i^b / tau), n from a bank of view b's
    embeddings of other classes than i's prediction in a; the term is the mean of l_i over the voxels where b's
    confidence is at least gamma. The gradient reaches e^a alone. With two networks, the views are theirs of the same
    patches, and each network's term has it as a. With one, view 2 is a second forward pass of changed intensities, and
    the term the sum of both directions. With more than two, b is the next.

    Differences: views of intensity on one crop, so that every voxel has its partner, rather than two crops. At most
    POSITIVES / K voxels of each class in view 1, not filled up with others; the same ones enter the banks. The banks
    hold what was seen, never random vectors, and are saved with the run, so that a resumed one is the same to the last
    bit. The ramp is short and smooth rather than a start at 0.5 % of the run. With several processes the banks hold the
    voxels of all. The network's dropout is before the projection.

    Args:
        weight: 0.1 in the paper's runs.
        temperature: tau.
        confidence: gamma.
    """

    def __init__(
        self,
        weight: float = 0.1,
        ramp: Ramp = "start",
        enabled: bool = True,
        temperature: float = 0.1,
        confidence: float = 0.75,
    ) -> None:
        super().__init__(weight, ramp, enabled)
        positive("temperature", temperature)
        fraction("confidence", confidence)
        self.temperature, self.confidence = temperature, confidence
        self.projectors = nn.ModuleDict()
        self.banks = nn.ModuleList()

    def build(self, method: Host) -> None:
        for network in method.takes:
            channels = method.feature_channels(network, "the term guided contrast")
            self.projectors[network] = nn.Linear(channels, CHANNELS)
        for _ in range(max(2, len(method.takes))):
            self.banks.append(Bank(len(method.class_names)))

    def terms(self, method: Host, name: str, batch: Batch, time: Time) -> Iterator[LossTerm]:
        views = [(network, method.view(network), batch.label.numel()) for network in method.takes]
        if len(views) == 1:
            network, view, _ = views[0]
            changed = batch.unlabeled.image
            views.append((network, method.see(network, _changed(changed)), 0) if len(changed) else views[0])
        voxels, counts = balanced_voxels(views[0][1].predicted[len(batch.label) :], len(method.class_names))
        seen = []
        for (network, view, first), bank in zip(views, self.banks, strict=True):
            e = F.normalize(self.projectors[network](voxel_rows(view.features, first + voxels)), dim=1)
            with torch.no_grad():
                confidence, label = voxel_rows(view.log_p, first + voxels).exp().max(dim=1)
                cast(Bank, bank).push(e, label, counts)
            seen.append(Seen(e, label, counts & (confidence >= self.confidence)))
        values, supports = [], []
        for number, a in enumerate(seen):
            b = (number + 1) % len(seen)
            negatives = cast(Bank, self.banks[b]).draw()
            values.append(guided_contrast(a, seen[b], negatives, self.temperature))
            supports.append(seen[b].sure.sum())
        if len(method.takes) == 1:
            yield method.term(name, method.takes[0], values[0] + values[1], supports[0] + supports[1])
            return
        for network, value, support in zip(method.takes, values, supports, strict=True):
            yield method.term(name, network, value, support)


class Seen(NamedTuple):
    """Voxels in a view: e (n, E) of unit length, predicted classes (n,), and which are sure (n,) bool."""

    e: Tensor
    label: Tensor
    sure: Tensor


class Negatives(NamedTuple):
    """(m, E) of unit length, classes (m,), which there are (m,) bool, and which fresh voxel, or -1 (m,)."""

    e: Tensor
    label: Tensor
    there: Tensor
    voxel: Tensor


def guided_contrast(a: Seen, b: Seen, negatives: Negatives, temperature: float) -> Tensor:
    """The mean of l_i over what is sure in b; gradient to `a.e` alone. Fresh negatives count voxels of this process."""
    positive = (a.e * b.e.detach()).sum(dim=1, keepdim=True) / temperature
    own = torch.arange(len(a.e), device=a.e.device)[:, None]
    allowed = negatives.there & (negatives.label != a.label[:, None]) & (negatives.voxel != own)
    others = (a.e @ negatives.e.T / temperature).masked_fill(~allowed, -torch.inf)
    return masked_mean(torch.cat([positive, others], dim=1).logsumexp(dim=1) - positive[:, 0], b.sure)


@torch.no_grad()
def balanced_voxels(predicted: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """At most POSITIVES / K voxels of each class and patch, uniform, without replacement.

    The size of the result depends on the shape alone, so that no GPU is waited for.

    Args:
        predicted: (N, W, H, D) int64.

    Returns:
        Flat indices (n,), and which of them count (n,) bool: a patch may have too few of a class.
    """
    of_patch = predicted.flatten(1)
    numbers = torch.rand(of_patch.shape, device=predicted.device)
    each = min(_share(POSITIVES, classes), of_patch.shape[1])
    found = [numbers.where(of_patch == k, 2.0).topk(each, dim=1, largest=False) for k in range(classes)]
    starts = torch.arange(len(of_patch), device=predicted.device)[:, None] * of_patch.shape[1]
    voxels, drawn = torch.cat([f.indices for f in found], dim=1), torch.cat([f.values for f in found], dim=1)
    return (voxels + starts).flatten(), (drawn < 1).flatten()


class Bank(nn.Module):
    """The newest LENGTH / K embeddings of each class, from all processes: the same on each of them.

    Saved with the run, so that a resumed one draws what the uninterrupted one would have drawn.
    """

    e: Tensor
    count: Tensor
    voxel: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.length = _share(LENGTH, classes)
        self.register_buffer("e", torch.zeros(classes * self.length + 1, CHANNELS))  # the last row is nobody's
        self.register_buffer("count", torch.zeros(classes, dtype=torch.int64))  # of each class, ever stored
        fresh = torch.full((classes * self.length + 1,), -1)  # which voxel of this iteration and process a row is
        self.register_buffer("voxel", fresh, persistent=False)

    @torch.no_grad()
    def push(self, e: Tensor, label: Tensor, counts: Tensor) -> None:
        """Store the embeddings (n, E) of classes (n,) that count (n,), in the place of the oldest."""
        own = torch.arange(len(e), device=e.device)
        rows = of_all_ranks(torch.cat([e, label[:, None], counts[:, None]], dim=1))
        fresh = torch.cat([own if r == own_rank() else -torch.ones_like(own) for r in range(len(rows))])
        all_rows = torch.cat(rows)
        e, label, there = all_rows[:, :-2], all_rows[:, -2].long(), all_rows[:, -1] > 0
        classes = torch.arange(len(self.count), device=e.device)
        members = (label[:, None] == classes) & there[:, None]
        place = members.cumsum(dim=0).gather(1, label[:, None])[:, 0] - 1  # among the new ones of its class
        kept = there & (place < self.length)
        row = (label * self.length + (self.count[label] + place) % self.length).where(kept, len(self.e) - 1)
        self.e[row] = e.where(kept[:, None], 0.0)
        self.voxel.fill_(-1)
        self.voxel[row] = fresh.where(kept, -1)
        self.count += (members & kept[:, None]).sum(dim=0)

    @torch.no_grad()
    def draw(self) -> Negatives:
        """At most NEGATIVES / K of each class, uniform, without replacement, from those that there are."""
        classes = len(self.count)
        filled = torch.arange(self.length, device=self.e.device) < self.count[:, None]
        numbers = torch.rand(filled.shape, device=self.e.device).where(filled, 2.0)
        drawn = numbers.topk(min(_share(NEGATIVES, classes), self.length), dim=1, largest=False)
        label = torch.arange(classes, device=self.e.device)[:, None]
        row = (label * self.length + drawn.indices).flatten()
        return Negatives(
            self.e[row], label.expand_as(drawn.indices).flatten(), (drawn.values < 1).flatten(), self.voxel[row]
        )


def _share(budget: int, classes: int) -> int:
    """What each class has of it: at least 1."""
    return max(1, budget // classes)


def _changed(image: Tensor) -> Tensor:
    """Another contrast and gamma for each patch, and noise."""
    changed = gamma(contrast(image, uniform(image, 0.5, 1.5)), uniform(image, 0.7, 1.5))
    return noise(changed, std=0.1)
