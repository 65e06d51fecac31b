"""Correction on disagreement, CR (method.md section 3; after MCF, Wang et al., CVPR 2023)."""

import torch
from torch import Tensor

from dualseg.losses.masked import masked_mean


@torch.no_grad()
def confident_disagreement(p_a: Tensor, p_b: Tensor, confidence: float = 0.6) -> Tensor:
    """M: voxels where the confident predictions C_A and C_B of the two networks differ.

    C_i is the predicted class where its probability is >= `confidence`, else 0; for K = 2 that is
    C_A xor C_B of the confident foregrounds.

    Args:
        p_a, p_b: (N, K, W, H, D) float32 probabilities.

    Returns:
        (N, W, H, D) bool.

    >>> p_a, p_b = torch.tensor([0.3, 0.7]).view(1, 2, 1, 1, 1), torch.tensor([0.45, 0.55]).view(1, 2, 1, 1, 1)
    >>> confident_disagreement(p_a, p_b)
    tensor([[[[True]]]])
    """

    def confident_class(p: Tensor) -> Tensor:
        probability, predicted = p.max(dim=1)
        return predicted.where(probability >= confidence, 0)

    return confident_class(p_a) != confident_class(p_b)


def rectification(p: Tensor, label: Tensor, disagreement: Tensor) -> Tensor:
    """L_cr,i: mean over M and the K-1 foreground channels of (p_i - onehot(y))^2; 0 where M is empty.

    Args:
        p: (N, K, W, H, D) float32 probabilities of network i.
        label: (N, W, H, D) int64.
        disagreement: (N, W, H, D) bool, M.

    >>> p = torch.tensor([0.3, 0.7]).view(1, 2, 1, 1, 1)
    >>> label = torch.ones(1, 1, 1, 1, dtype=torch.int64)
    >>> rectification(p, label, label > 0)
    tensor(0.0900)
    """
    # F.one_hot looks at the values, and its int64 would take twice what the probabilities of many classes do
    classes = torch.arange(1, p.shape[1], device=label.device).view(-1, 1, 1, 1)
    onehot = (label[:, None] == classes).to(torch.uint8)
    squared_error = (p[:, 1:] - onehot).square().mean(dim=1)
    return masked_mean(squared_error, disagreement)
