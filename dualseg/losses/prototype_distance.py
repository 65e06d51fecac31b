"""Distances of uncertain voxels to class means, and between these (SSL-contrastive, arXiv:2311.12617)."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from dualseg.losses.contrast import NORM_EPS, directions, draw_voxels, members_of
from dualseg.losses.masked import masked_mean

Separation = Literal["hinge", "pull"]


def class_means(features: Tensor, fused: Tensor, reliable: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Directions of the c_k, mean features of the voxels of R with yhat_fused = k; and which classes have such voxels.

    With gradient; under distributed training of this rank's voxels.

    Args:
        features: (N, F, W, H, D).
        fused: (N, W, H, D) int64.
        reliable: (N, W, H, D) bool, R.

    Returns:
        (K, F) float32, unit length, 0 for a class without voxels; (K,) bool.
    """
    rows, members = members_of(features, fused, reliable, num_classes)
    counts = members.sum(dim=(0, 2))
    means = (members.to(rows.dtype) @ rows).sum(dim=0) / counts.clamp(min=1)[:, None]
    return F.normalize(means, dim=1, eps=NORM_EPS), counts > 0


def prototype_distance(
    features: Tensor,
    predicted: Tensor,
    fused: Tensor,
    reliable: Tensor,
    num_classes: int,
    separation: Separation = "hinge",
    margin: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """mean d(f_fg, c_own) + mean d(f_bg, c_0) + separation, d(x, y) = |x / |x| - y / |y||.

    f are features of voxels outside R: n = 1 % of those that the network predicts as foreground (at most 4,096), and n
    of its background. The separation is the mean over pairs of classes of max(0, margin - d(c_k, c_l)) (`hinge`), or
    of d(c_k, c_l) (`pull`, as it was written, which draws the classes together). What a class without voxels would
    enter is 0.

    Args:
        features: (N, F, W, H, D) features of network i.
        predicted: (N, W, H, D) int64, argmax of network i's own probabilities.
        fused, reliable: (N, W, H, D), yhat_fused and R.

    Returns:
        The term, and how many voxels were drawn.

    >>> label = torch.arange(2).repeat_interleave(1000).view(1, 20, 10, 10)
    >>> reliable = (torch.arange(2000) % 2 == 0).view(1, 20, 10, 10)
    >>> features = torch.stack([label == 0, label == 1], dim=1).float()
    >>> prototype_distance(features, label, label, reliable, num_classes=2)
    (tensor(0.), tensor(10))
    """
    c, present = class_means(features, fused, reliable, num_classes)
    foreground = draw_voxels(~reliable & (predicted > 0))
    background = draw_voxels(~reliable & (predicted == 0), foreground.counts.sum())
    k, other = torch.triu_indices(num_classes, num_classes, 1, device=c.device)
    distance = torch.linalg.vector_norm(c[k] - c[other], dim=1)
    values = F.relu(margin - distance) if separation == "hinge" else distance
    total, support = masked_mean(values, present[k] & present[other]), present.new_zeros((), dtype=torch.int64)
    for drawn in (foreground, background):
        own = predicted.flatten()[drawn.voxels]
        counts = drawn.counts & present[own]
        total = total + masked_mean(
            torch.linalg.vector_norm(directions(features, drawn.voxels) - c[own], dim=1), counts
        )
        support = support + counts.sum()
    return total, support
