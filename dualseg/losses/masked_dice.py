"""Dice with pseudo-labels of which only some count (UniMatch, Yang et al., CVPR 2023, for medical images)."""

import torch
from torch import Tensor


def masked_dice(p: Tensor, label: Tensor, mask: Tensor, eps: float = 1e-5) -> Tensor:
    """Dice loss 1 - (2 sum(p y) + eps) / (sum(p^2) + sum(y) + eps) over the voxels of a mask, mean over all classes.

    Background is a class; the sums run over the whole batch. 0 where the mask is empty.

    Args:
        p: (N, K, W, H, D) float32 probabilities.
        label: (N, W, H, D) int64, pseudo-labels.
        mask: (N, W, H, D) bool.

    >>> p = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1, 1)
    >>> label = torch.ones(1, 1, 1, 1, dtype=torch.int64)
    >>> masked_dice(p, label, label > 0)
    tensor(0.)
    """
    losses = []
    for k in range(p.shape[1]):
        p_k, y_k = p[:, k].where(mask, 0.0), ((label == k) & mask).to(p.dtype)
        losses.append(1 - (2 * (p_k * y_k).sum() + eps) / (p_k.square().sum() + y_k.sum() + eps))
    return torch.stack(losses).mean()
