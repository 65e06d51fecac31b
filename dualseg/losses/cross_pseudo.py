"""Cross pseudo supervision with and without uncertainty weighting (method.md section 3, CCE parts 1 and 2)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from dualseg.losses.masked import mean


def cross_pseudo(log_p: Tensor, pseudo_label: Tensor, divergence: Tensor | None = None) -> Tensor:
    """mean(CE(z_i, yhat_j)), or mean(exp(-D_i) CE(z_i, yhat_j)) where the divergence D_i is given.

    exp(-D_i) is not detached, as in the specification. The caller stops the gradient of a soft pseudo-label.

    Args:
        log_p: (N, K, W, H, D) float32, log-softmax of network i's logits.
        pseudo_label: (N, W, H, D) int64, argmax of the other network's probabilities; or (N, K, W, H, D) float32, a
            soft one.
        divergence: (N, W, H, D) float32 from `kl_divergence`, or None.

    >>> log_p = torch.tensor([0.5, 0.5]).log().view(1, 2, 1, 1, 1)
    >>> label = torch.zeros(1, 1, 1, 1, dtype=torch.int64)
    >>> cross_pseudo(log_p, label), cross_pseudo(log_p, label, torch.full((1, 1, 1, 1), 2.0).log())
    (tensor(0.6931), tensor(0.3466))
    """
    if pseudo_label.is_floating_point():
        cross_entropy = -(pseudo_label * log_p).sum(dim=1)
    else:
        cross_entropy = F.nll_loss(log_p, pseudo_label, reduction="none")
    if divergence is not None:
        cross_entropy = torch.exp(-divergence) * cross_entropy
    return mean(cross_entropy)
