"""Contrast of a voxel's two views with the surest voxels of other classes in another image (RCPS, arXiv:2301.05500)."""

import math

import torch
from torch import Tensor

from dualseg.losses.masked import mean

EPS = 1e-8


def voxel_contrast(
    first: Tensor,
    second: Tensor,
    predicted: Tensor,
    bank: Tensor,
    bank_predicted: Tensor,
    bank_confidence: Tensor,
    num_classes: int,
    negatives: int = 400,
    temperature: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """Mean over V voxels of L(u1, u2) + L(u2, u1), L(u, w) = -log e^{u.w} / (e^{u.w} + sum_N e^{u.n} + 1e-8).

    Products are divided by the temperature. N are the `negatives` voxels of the bank that are predicted as another
    class than the anchor, with the highest confidence; fewer where there are fewer. An anchor with none counts 0.
    Gradients go to anchors, positives and negatives. Anchors of one class have the same N: a list a class is found.

    Args:
        first, second: (V, F) float32 unit embeddings u1, u2 of the same voxels in two views.
        predicted: (V,) int64, the anchors' class.
        bank: (M, F) embeddings of the other image, `bank_predicted` (M,) int64, `bank_confidence` (M,) in 0..1.

    Returns:
        The term, and how many voxels have negatives.

    >>> u, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> of_u, of_other = torch.tensor([0]), torch.tensor([1])
    >>> voxel_contrast(u, u, of_u, other, of_other, torch.tensor([0.9]), num_classes=2, temperature=1.0)
    (tensor(0.6265), tensor(1))
    """
    if not len(first) or not len(bank):
        return 0 * (first.sum() + second.sum() + bank.sum()), predicted.new_zeros(())
    positive = (first * second).sum(dim=1) / temperature
    floor = torch.full_like(positive, math.log(EPS))
    per_class, found = [], []
    for k in range(num_classes):
        surest = bank_confidence.where(bank_predicted != k, -1.0).topk(min(negatives, len(bank)))
        others = bank[surest.indices]
        value = torch.zeros_like(positive)
        for anchor in (first, second):
            products = anchor @ others.T / temperature
            # the lowest number rather than -inf, whose gradient is NaN where no voxel is of another class
            products = products.masked_fill(surest.values < 0, torch.finfo(products.dtype).min)
            value = value + torch.stack([positive, products.logsumexp(dim=1), floor]).logsumexp(dim=0) - positive
        per_class.append(value)
        found.append((surest.values >= 0).any())
    has_negatives = torch.stack(found)[predicted]
    values = torch.stack(per_class).gather(0, predicted[None])[0]
    return mean(values.where(has_negatives, 0.0)), has_negatives.sum()


def bidirectional_contrast(
    u0: Tensor,
    u1: Tensor,
    u2: Tensor,
    predicted: Tensor,
    confidence: Tensor,
    labeled: int,
    num_classes: int,
    negatives: int = 400,
    temperature: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """`voxel_contrast` with the labeled patches' anchors and the unlabeled ones' bank, and the other way round, added.

    Args:
        u0: (N, V, F) unit embeddings of the patches as they are, which make the bank.
        u1, u2: (N, V, F), of two views of them, which make the anchors.
        predicted: (N, V) int64, of the patches as they are.
        confidence: (N, V) in 0..1, of that.
        labeled: how many patches are labeled: the first.

    Returns:
        The term, and how many voxels have negatives.
    """

    def side(own: slice, other: slice) -> tuple[Tensor, Tensor]:
        return voxel_contrast(
            u1[own].flatten(0, 1),
            u2[own].flatten(0, 1),
            predicted[own].flatten(),
            u0[other].flatten(0, 1),
            predicted[other].flatten(),
            confidence[other].flatten(),
            num_classes,
            negatives,
            temperature,
        )

    of_labeled, of_unlabeled = slice(labeled), slice(labeled, None)
    first, first_support = side(of_labeled, of_unlabeled)
    second, second_support = side(of_unlabeled, of_labeled)
    return first + second, first_support + second_support
