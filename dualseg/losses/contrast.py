"""Contrast of uncertain voxels with reliable prototypes (method.md section 3; after arXiv:2311.12617)."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dualseg.losses.masked import masked_mean
from dualseg.losses.ranks import sum_over_ranks

Contrast = Literal["infonce", "distance"]
MAX_DRAWN = 4096
NORM_EPS = 1e-6


class Prototypes(NamedTuple):
    """`vectors`: (K, F) float32, unit length where `present`, else 0. `present`: (K,) bool."""

    vectors: Tensor
    present: Tensor

    def updated(self, new: "Prototypes", momentum: float) -> "Prototypes":
        """c_k <- normalise(momentum c_k + (1 - momentum) new); a class absent from `new` keeps its own, a first value
        is taken as it is."""
        mixed = F.normalize(momentum * self.vectors + (1 - momentum) * new.vectors, dim=1, eps=NORM_EPS)
        vectors = mixed.where(
            (self.present & new.present)[:, None], new.vectors.where(new.present[:, None], self.vectors)
        )
        return Prototypes(vectors, self.present | new.present)


def members_of(features: Tensor, fused: Tensor, reliable: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Feature vectors in rows of voxels, (N W H, D, F) float32, and which are members of class k: (N W H, K, D) bool.

    A member of class k is a voxel of R with yhat_fused = k. Sum over a row, then over rows with `sum`, which adds up
    pairwise: one running float32 sum over millions of voxels would lose digits.

    Args:
        features: (N, F, W, H, D).
        fused: (N, W, H, D) int64.
        reliable: (N, W, H, D) bool, R.
    """
    rows = features.movedim(1, -1).flatten(0, 2).float()  # of channels-last features a view
    group = fused.where(reliable, -1).view(rows.shape[:2])
    return rows, torch.stack([group == k for k in range(num_classes)], dim=1)


@torch.no_grad()
def class_prototypes(features: Tensor, fused: Tensor, reliable: Tensor, num_classes: int) -> Prototypes:
    """c_k: normalised mean, over the voxels of R with yhat_fused = k, of the L2-normalised features; no gradient.

    Under distributed training the sums and counts of all ranks are added before the mean.

    Args:
        features: (N_u, F, W, H, D) features of network i.
        fused: (N_u, W, H, D) int64.
        reliable: (N_u, W, H, D) bool, R.

    >>> features = torch.tensor([[2.0, 0.0], [0.0, 3.0]]).view(1, 2, 2, 1, 1)
    >>> label = torch.tensor([0, 1]).view(1, 2, 1, 1)
    >>> class_prototypes(features, label, label >= 0, num_classes=2).vectors
    tensor([[1., 0.],
            [0., 1.]])
    """
    rows, members = members_of(features, fused, reliable, num_classes)
    lengths = torch.linalg.vector_norm(rows, dim=2).clamp(min=NORM_EPS)
    sums = (members / lengths[:, None] @ rows).sum(dim=0)
    counts = members.sum(dim=(0, 2)).to(rows.dtype)
    sums_and_counts = torch.cat([sums, counts[:, None]], dim=1)
    sum_over_ranks(sums_and_counts)
    sums, counts = sums_and_counts[:, :-1], sums_and_counts[:, -1]
    means = sums / counts.clamp(min=1)[:, None]
    return Prototypes(F.normalize(means, dim=1, eps=NORM_EPS), counts > 0)


class Drawn(NamedTuple):
    """At most n drawn voxels. `voxels`: (n,) int64, flat indices. `counts`: (n,) bool, which of them are drawn."""

    voxels: Tensor
    counts: Tensor


@torch.no_grad()
def draw_voxels(unreliable: Tensor, wanted: Tensor | None = None) -> Drawn:
    """min(4096, floor(1 % of the unreliable voxels)) of them, uniform, without replacement.

    The size of the result depends on the shape alone, so that no GPU is waited for: the voxels with the smallest of
    uniform random numbers, of which only the unreliable ones have such that count. Draws from torch's global generator:
    the caller's seed decides.

    Args:
        unreliable: bool, any shape.
        wanted: scalar int64, how many instead of 1 % of them; never more than there are.

    >>> drawn = draw_voxels(torch.ones(1000, dtype=torch.bool))
    >>> drawn.counts.sum()
    tensor(10)
    """
    flat = unreliable.flatten()
    at_most = min(MAX_DRAWN, len(flat) // 100)
    numbers = torch.rand(flat.shape, device=flat.device).where(flat, 1.0)  # rand is below 1
    voxels = numbers.topk(at_most, largest=False).indices  # in ascending order of the numbers
    wanted = flat.sum() // 100 if wanted is None else wanted.minimum(flat.sum())
    return Drawn(voxels, torch.arange(at_most, device=flat.device) < wanted)


def directions(features: Tensor, voxels: Tensor) -> Tensor:
    """L2-normalised features (N, F, W, H, D) of some voxels, flat indices (n,) -> (n, F) float32."""
    found = features.movedim(1, -1).reshape(-1, features.shape[1])[voxels].float()
    # a voxel whose features dropout left all zero has no direction: no gradient, rather than 1 / eps, which float16
    # cannot hold
    found = found.where((found != 0).any(dim=1, keepdim=True), 0.0)
    return F.normalize(found, dim=1, eps=NORM_EPS)


def contrast(
    features: Tensor,
    predicted: Tensor,
    drawn: Drawn,
    prototypes: Prototypes,
    kind: Contrast = "infonce",
    temperature: float = 0.1,
    margin: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Pull drawn uncertain voxels to the prototype of the class they predict, away from the others.

    infonce: -log softmax_k(f(v).c / temperature) over the classes that have a prototype.
    distance: |f(v) - c_k| + sum over the other classes l of max(0, margin - |f(v) - c_l|).
    Mean over the drawn voxels whose class has a prototype; 0 with fewer than two prototypes or nothing drawn.

    Args:
        features: (N, F, W, H, D) features of network i.
        predicted: (N, W, H, D) int64, argmax of network i's own probabilities.
        drawn: from `draw_voxels`, indices into `predicted.flatten()`.
        prototypes: of network i.

    Returns:
        The term, and of how many voxels it is the mean.

    >>> features = torch.tensor([[2.0, 0.0], [0.0, 3.0]]).view(1, 2, 2, 1, 1)
    >>> label = torch.tensor([0, 1]).view(1, 2, 1, 1)
    >>> both = torch.tensor([True, True])
    >>> contrast(features, label, Drawn(torch.tensor([0, 1]), both), Prototypes(torch.eye(2), both), kind="distance")
    (tensor(0.), tensor(2))
    """
    own = predicted.flatten()[drawn.voxels]
    counts = drawn.counts & prototypes.present[own] & (prototypes.present.sum() >= 2)
    f = directions(features, drawn.voxels)
    if kind == "infonce":
        logits = (f @ prototypes.vectors.T / temperature).masked_fill(~prototypes.present, -torch.inf)
        # of voxels that do not count no logit is infinite, so that none of their gradients is NaN
        values = F.cross_entropy(logits.where(counts[:, None], 0.0), own, reduction="none")
    else:
        distances = torch.linalg.vector_norm(f[:, None] - prototypes.vectors, dim=2)
        is_own = own[:, None] == torch.arange(len(prototypes.present), device=own.device)
        push = F.relu(margin - distances).where(~is_own & prototypes.present, 0.0).sum(dim=1)
        values = distances.where(is_own, 0.0).sum(dim=1) + push
    return masked_mean(values, counts), counts.sum()
