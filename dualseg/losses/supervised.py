"""Supervised terms, on the labeled half (method.md section 3, "Supervised")."""

import torch
from torch import Tensor
from torch.nn import functional as F


def supervised_ce(log_p: Tensor, label: Tensor, weight: Tensor | None = None) -> Tensor:
    """CE(z, y), mean over voxels.

    Args:
        log_p: (N, K, W, H, D) float32, log-softmax of the logits.
        label: (N, W, H, D) int64, values 0..K-1.
        weight: (K,) of the classes; the mean is then one with these weights.

    >>> log_p = torch.tensor([0.5, 0.5]).log().view(1, 2, 1, 1, 1)
    >>> supervised_ce(log_p, torch.zeros(1, 1, 1, 1, dtype=torch.int64))
    tensor(0.6931)
    """
    return F.nll_loss(log_p, label, weight) if len(label) else log_p[:0].sum()


def supervised_dice(p: Tensor, label: Tensor, eps: float = 1e-5) -> Tensor:
    """Dice loss: 1 - (2 sum(p y) + eps) / (sum(p^2) + sum(y^2) + eps), mean over the foreground classes.

    The sums run over the whole batch, one class at a time.

    Args:
        p: (N, K, W, H, D) float32 probabilities.
        label: (N, W, H, D) int64, values 0..K-1.

    >>> p = torch.tensor([0.5, 0.5]).view(1, 2, 1, 1, 1)
    >>> supervised_dice(p, torch.ones(1, 1, 1, 1, dtype=torch.int64))
    tensor(0.2000)
    """
    losses = []
    for k in range(1, p.shape[1]):
        p_k, y_k = p[:, k], (label == k).to(p.dtype)
        losses.append(1 - (2 * (p_k * y_k).sum() + eps) / ((p_k * p_k).sum() + y_k.sum() + eps))
    return torch.stack(losses).mean() if len(label) else p[:0].sum()
