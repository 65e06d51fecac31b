"""Losses within a region of each patch, normalised by that region alone (BCP, Bai et al., CVPR 2023)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from dualseg.losses.masked import masked_mean, mean


def region_ce(log_p: Tensor, label: Tensor, region: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
    """sum_v M w CE(z, y) / sum_v M, over the whole batch; 0 where M is empty.

    Args:
        log_p: (N, K, W, H, D) float32, log-softmax of the logits.
        label: (N, W, H, D) int64, values 0..K-1.
        region: (N, W, H, D) or (1, W, H, D) bool, M; None: every voxel.
        weight: (N, W, H, D) float32, w; None: 1.

    >>> log_p = torch.tensor([0.5, 0.5]).log().view(1, 2, 1, 1, 1)
    >>> label = torch.zeros(1, 1, 1, 1, dtype=torch.int64)
    >>> region_ce(log_p, label), region_ce(log_p, label, label > 0)
    (tensor(0.6931), tensor(0.))
    """
    ce = F.nll_loss(log_p, label, reduction="none")
    if weight is not None:
        ce = weight * ce
    return mean(ce) if region is None else masked_mean(ce, region.expand_as(label))


def region_dice(p: Tensor, label: Tensor, region: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Dice loss 1 - (2 sum_v M p_c y_c + eps) / (sum_v M (p_c + y_c) + eps), mean over patches and all K classes.

    Each patch has sums of its own, the background counts as a class, and nothing is squared. A class that neither M's
    labels nor its probabilities have is 0.

    Args:
        p: (N, K, W, H, D) float32 probabilities.
        label: (N, W, H, D) int64, values 0..K-1.
        region: (N, W, H, D) or (1, W, H, D) bool, M; None: every voxel.

    >>> p = torch.tensor([0.5, 0.5]).view(1, 2, 1, 1, 1)
    >>> region_dice(p, torch.ones(1, 1, 1, 1, dtype=torch.int64))
    tensor(0.6667)
    """
    classes = torch.arange(p.shape[1], device=label.device).view(-1, 1, 1, 1)
    y = label[:, None] == classes
    if region is not None:
        y, p = y & region[:, None], p.where(region[:, None], 0.0)
    voxels = (2, 3, 4)
    overlap = p.where(y, 0.0).sum(voxels)
    return mean(1 - (2 * overlap + eps) / (p.sum(voxels) + y.sum(voxels) + eps))
