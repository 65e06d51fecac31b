"""The largest connected component of each class of pseudo-labels."""

import time
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from dualseg.inference.components import keep_largest


class Components(NamedTuple):
    """`label`: (N, W, H, D) int64, on the device of the argument. `seconds`: of the search on the CPU."""

    label: Tensor
    seconds: float


def largest_component(label: Tensor, classes: Iterable[int]) -> Components:
    """Turn all but the largest component of each of `classes` to background, patch by patch.

    On the CPU, so a GPU is waited for: the one function of the views with which that is so. The wait is no part of
    `seconds`, which a method makes a curve of: `time/largest_component`.

    Args:
        label: (N, W, H, D) int64, below 32,768. Voxels hang together by faces, edges or corners.

    Returns:
        The labels, in which a class that is nowhere stays so, and the time.
    """
    kept = tuple(classes)
    numbers = label.to("cpu", torch.int16, copy=True).numpy()
    begun = time.perf_counter()
    for patch in numbers:
        keep_largest(patch, kept)
    seconds = time.perf_counter() - begun
    return Components(torch.from_numpy(numbers).to(label.device, label.dtype), seconds)
