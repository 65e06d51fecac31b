"""Box masks: which voxels of a patch come from another one."""

from collections.abc import Sequence

import torch
from torch import Tensor


def _boxes(start: Tensor, stop: Tensor, size: Sequence[int]) -> Tensor:
    """(N, 3) first voxels and the ones after the last -> (N, W, H, D) bool."""
    inside = torch.ones(len(start), 1, 1, 1, dtype=torch.bool, device=start.device)
    for axis, length in enumerate(size):
        places = torch.arange(length, device=start.device)
        along = (places >= start[:, axis, None]) & (places < stop[:, axis, None])
        inside = inside & along.view(len(start), *(length if k == axis else 1 for k in range(3)))
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
    sides = torch.tensor([int(share * length) for length in size], device=device)
    room = torch.tensor(list(size), device=device) - sides
    start = (torch.rand(count, 3, device=device) * room).floor()
    return _boxes(start, start + sides, size)


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
    full = torch.tensor([float(length) for length in size], device=device)
    low, high = volume
    v = (low + (high - low) * torch.rand(count, device=device)) * full.prod()
    r = aspect[0] + (aspect[1] - aspect[0]) * torch.rand(count, device=device)
    sides = torch.stack([v / r, v * r, v], dim=1).pow(1 / 3).round().minimum(full)
    start = (torch.rand(count, 3, device=device) * (full - sides + 1)).floor()
    return _boxes(start, start + sides, size)
