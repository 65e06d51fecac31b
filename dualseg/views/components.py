"""The largest connected component of each class of pseudo-labels."""

from collections.abc import Iterable

import torch
from torch import Tensor

from dualseg.inference.components import keep_largest


def largest_component(label: Tensor, classes: Iterable[int]) -> Tensor:
    """Turn all but the largest component of each of `classes` to background, patch by patch.

    On the CPU, so a GPU is waited for: the one function of the views with which that is so.

    Args:
        label: (N, W, H, D) int64. Voxels hang together by faces, edges or corners.

    Returns:
        (N, W, H, D) int64; a class that is nowhere stays so.
    """
    kept = tuple(classes)
    numbers = label.to("cpu", torch.uint8).numpy().copy()
    for patch in numbers:
        keep_largest(patch, kept)
    return torch.from_numpy(numbers).to(label.device, label.dtype)
