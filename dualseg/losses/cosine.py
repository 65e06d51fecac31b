"""Cosine consistency of the two predictions (method.md section 3, CCE part 4; after RCPS, arXiv:2301.05500)."""

from torch import Tensor

from dualseg.losses.masked import mean

EPS = 1e-8


def cosine(p: Tensor, p_other: Tensor) -> Tensor:
    """mean over voxels of 1 - cos(p_i, p_j) along the class axis, eps 1e-8.

    The caller stops the gradient of `p_other` (described) or does not (released).

    Args:
        p, p_other: (N, K, W, H, D) float32 probabilities.

    >>> import torch
    >>> cosine(torch.tensor([1.0, 0.0]).view(1, 2, 1, 1, 1), torch.tensor([0.0, 1.0]).view(1, 2, 1, 1, 1))
    tensor(1.)
    """
    # written out: F.cosine_similarity takes norms along a strided axis, which on the CPU is 15 times slower
    squares = p.square().sum(dim=1).clamp(min=EPS**2) * p_other.square().sum(dim=1).clamp(min=EPS**2)
    return mean(1 - (p * p_other).sum(dim=1) / squares.sqrt())
