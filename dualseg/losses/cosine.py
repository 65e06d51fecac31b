"""Cosine consistency of the two predictions (method.md section 3, CCE part 4; after RCPS, arXiv:2301.05500)."""

from torch import Tensor
from torch.nn import functional as F

from dualseg.losses.masked import mean


def cosine(p: Tensor, p_other: Tensor) -> Tensor:
    """mean over voxels of 1 - cos(p_i, p_j) along the class axis, eps 1e-8.

    The caller stops the gradient of `p_other` (described) or does not (released).

    Args:
        p, p_other: (N, K, W, H, D) float32 probabilities.
    """
    return mean(1 - F.cosine_similarity(p, p_other, dim=1, eps=1e-8))
