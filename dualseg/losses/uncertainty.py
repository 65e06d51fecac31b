"""The networks' divergence as uncertainty (method.md section 3, CCE part 2; after RCPS, arXiv:2301.05500)."""

from torch import Tensor

from dualseg.losses.masked import mean


def kl_divergence(log_p: Tensor, log_p_other: Tensor) -> Tensor:
    """D_i = KL(sg(p_j) || p_i) per voxel, summed over classes.

    Args:
        log_p: (N, K, W, H, D) float32, log-softmax of network i's logits.
        log_p_other: the same of network j; its gradient is stopped here.

    Returns:
        (N, W, H, D) float32, >= 0 up to rounding.

    >>> import torch
    >>> log_p = torch.tensor([0.5, 0.5]).log().view(1, 2, 1, 1, 1)
    >>> kl_divergence(log_p, torch.tensor([0.25, 0.75]).log().view(1, 2, 1, 1, 1))
    tensor([[[[0.1308]]]])
    """
    log_q = log_p_other.detach()
    return (log_q.exp() * (log_q - log_p)).sum(dim=1)


def uncertainty(divergence: Tensor) -> Tensor:
    """mean(D_i): keeps the weight exp(-D_i) from being lowered for free.

    >>> import torch
    >>> uncertainty(torch.tensor([0.0, 1.0]))
    tensor(0.5000)
    """
    return mean(divergence)
