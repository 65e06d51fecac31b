"""The largest connected component of each class of a label map, an array or a batch on the device."""

import time
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

_TOUCHING = np.ones((3, 3, 3), bool)  # by a face, an edge or a corner


class Components(NamedTuple):
    """`label`: (N, W, H, D) int64, on the device of the argument. `seconds`: of the search on the CPU."""

    label: Tensor
    seconds: float


def keep_largest(label: np.ndarray, classes: Iterable[int]) -> None:
    """Turn all but the largest connected component of each of `classes` to background, in place.

    Args:
        label: (W, H, D), integers. Components hang together by faces, edges or corners; of two as large, the first in
            the order of voxels stays.
    """
    regions = ndimage.find_objects(label)  # of class 1, of class 2, ... up to the last there is
    for value in classes:
        if value > len(regions) or regions[value - 1] is None:
            continue
        part = label[regions[value - 1]]
        components, count = ndimage.label(part == value, _TOUCHING)
        if count > 1:
            sizes = np.bincount(components.ravel())[1:]
            part[(components > 0) & (components != 1 + sizes.argmax())] = 0


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
