"""Box masks: which voxels of a patch come from another one."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def _boxes(start: Sequence[Tensor], stop: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """For each axis the (N,) first voxels and the ones after the last -> (N, W, H, D) bool."""
    count, device = len(start[0]), start[0].device
    inside = torch.ones(count, 1, 1, 1, dtype=torch.bool, device=device)
    for axis, length in enumerate(size):
        places = torch.arange(length, device=device)
        along = (places >= start[axis][:, None]) & (places < stop[axis][:, None])
        inside = inside & along.view(count, *(length if k == axis else 1 for k in range(3)))
    return inside


def contiguous_box(
    size: Sequence[int], share: float = 2 / 3, count: int = 1, device: torch.device | None = None
) -> Tensor:
    """Boxes of a share of each side at places drawn uniformly (BCP, Bai et al., CVPR 2023).

    Args:
        size: (W, H, D) of the patch.
        share: of each side, rounded down.
        count: N boxes.

    Returns:
        (N, W, H, D) bool, true inside.
    """
    place = torch.rand(count, 3, device=device)
    sides = [int(share * length) for length in size]
    # axis by axis: a tensor made of a list would wait for the device
    start = [(place[:, k] * (size[k] - side)).floor() for k, side in enumerate(sides)]
    return _boxes(start, [first + side for first, side in zip(start, sides, strict=True)], size)


def cutmix_boxes(
    size: Sequence[int],
    volume: tuple[float, float] = (0.02, 0.4),
    aspect: tuple[float, float] = (0.3, 3.3),
    count: int = 1,
    device: torch.device | None = None,
) -> Tensor:
    """Boxes of a drawn volume and aspect (CutMix in 3-D, as CrossMatch has it): sides (V/r)^1/3, (V r)^1/3, V^1/3.

    Args:
        size: (W, H, D) of the patch.
        volume: range of the share of the patch's volume; a side is never longer than the patch's.
        aspect: range of r.
        count: N boxes.

    Returns:
        (N, W, H, D) bool, true inside.
    """
    low, high = volume
    v = (low + (high - low) * torch.rand(count, device=device)) * math.prod(size)
    r = aspect[0] + (aspect[1] - aspect[0]) * torch.rand(count, device=device)
    sides = [side.pow(1 / 3).round().clamp(max=size[k]) for k, side in enumerate((v / r, v * r, v))]
    place = torch.rand(count, 3, device=device)
    start = [(place[:, k] * (size[k] - side + 1)).floor() for k, side in enumerate(sides)]
    return _boxes(start, [first + side for first, side in zip(start, sides, strict=True)], size)
