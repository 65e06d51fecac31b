"""The largest connected component of each class of a label map: of an array by SciPy, of a batch where it is."""

import math
import time
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

_TOUCHING = np.ones((3, 3, 3), bool)  # by a face, an edge or a corner


class Components(NamedTuple):
    """`label`: (N, W, H, D) int64, where the argument is. `seconds`: of the search on the CPU; None on a GPU."""

    label: Tensor
    seconds: float | None


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

    Of a CUDA tensor on its GPU, else on the CPU. A GPU is waited for, a few times for each class: the one function of
    the views with which that is so. What a CPU takes, a method makes a curve of: `time/largest_component`.

    Args:
        label: (N, W, H, D) int64, below 32,768. Voxels hang together by faces, edges or corners.

    Returns:
        The labels, in which a class that is nowhere stays so, and the time.
    """
    kept = tuple(classes)
    if label.is_cuda:
        return Components(keep_largest_on_device(label, kept), None)
    numbers = label.to("cpu", torch.int16, copy=True).numpy()
    begun = time.perf_counter()
    for patch in numbers:
        keep_largest(patch, kept)
    seconds = time.perf_counter() - begun
    return Components(torch.from_numpy(numbers).to(label.device, label.dtype), seconds)


def keep_largest_on_device(label: Tensor, classes: Iterable[int]) -> Tensor:
    """What `keep_largest` makes of each of the patches (N, W, H, D), by whole-tensor operations.

    SciPy's search, which a CPU does faster, would have a GPU wait for two copies and for one core: at the size of the
    paper's patches, several times as long as the rest of an iteration.
    """
    voxels = math.prod(label.shape[1:])
    places = torch.arange(voxels, device=label.device)
    for value in classes:
        inside = (label == value).flatten(1)
        first = first_of_component(inside.view(label.shape)).flatten(1)
        sizes = torch.zeros_like(first)
        sizes.scatter_add_(1, first.where(inside, places), inside.long())
        # of two as large the first in the order of voxels; below 2^63 up to three thousand million voxels
        winner = (sizes * voxels - places).argmax(dim=1, keepdim=True)
        label = label.masked_fill((inside & (first != winner)).view(label.shape), 0)
    return label


def first_of_component(mask: Tensor) -> Tensor:
    """Of each voxel of a mask (N, W, H, D) the first voxel, in the order of its patch, that hangs together with it.

    By hooking and shortcutting, as FastSV does (Zhang, Azad and Hu, SIAM PP 2020): each component's number falls to the
    lowest that its voxels see around them, and each voxel takes the number of its number. Some five rounds, however
    large a component is; whether one more is needed is what the device is waited for.

    Returns:
        (N, W, H, D) int64, flat index in the patch; where the mask is not, W H D.
    """
    outside = math.prod(mask.shape[1:])
    places = torch.arange(outside, device=mask.device)
    number = places.view(mask.shape[1:]).where(mask, outside).flatten(1)
    while True:
        seen = lowest_around(number.view(mask.shape)).where(mask, outside).flatten(1)
        # voxels that see nothing lower write to their own place: many that write to one would wait for one another
        lowered = number.scatter_reduce(1, number.where(seen < number, places), seen.minimum(number), "amin")
        chain = F.pad(lowered, (0, 1), value=outside)
        for _ in range(3):
            chain = chain.gather(1, chain)
        found = chain[:, :-1]
        if torch.equal(found, number):
            return number.view(mask.shape)
        number = found


def lowest_around(numbers: Tensor) -> Tensor:
    """The lowest of each voxel's 27 neighbours, itself included: (N, W, H, D), exact for every integer type."""
    for axis in (1, 2, 3):
        length = numbers.shape[axis] - 1
        low = numbers.clone()
        for here, there in ((0, 1), (1, 0)):
            part = low.narrow(axis, here, length)
            torch.minimum(part, numbers.narrow(axis, there, length), out=part)
        numbers = low
    return numbers
