"""Rotation, scaling and mirroring of patches, with nnU-Net's probabilities and ranges."""

import math
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dualseg.data.checks import check_mirror_axes
from dualseg.data.transforms import cut, start_around

ROTATED, ANGLE = 0.2, math.radians(30)  # share of the patches, and up to which angle about each axis
SCALED, SCALES = 0.2, (0.7, 1.4)  # voxels of the volume per voxel of the patch
MIRRORED = 0.5  # along each axis
ANISOTROPIC = 3  # times the shortest side that the longest one is, from which on a patch is turned in its plane alone
WORD = re.compile(r"[A-Z]?[a-z]+\d*|[A-Z]+\d*(?![a-z])")


class SpatialChange(NamedTuple):
    """What happens to one patch.

    Attributes:
        matrix: (3, 3), steps in the patch -> steps in the volume; None: the patch is a plain crop.
        mirrored: axes of the patch.
    """

    matrix: np.ndarray | None
    mirrored: tuple[int, ...]


class SpatialAugmentation:
    """Which spatial augmentation a run has.

    Args:
        mirror_axes: axes along which patches are mirrored, 0 from right to left; `auto`: all, without 0 where the name
            of a class has a side.

    Raises:
        DualsegError: neither `auto` nor a list of axes.
    """

    def __init__(self, mirror_axes: Literal["auto"] | Sequence[int] = "auto") -> None:
        if isinstance(mirror_axes, Sequence) and not isinstance(mirror_axes, str):
            mirror_axes = list(mirror_axes)  # of Hydra's own kind, perhaps
        check_mirror_axes(mirror_axes)
        self.mirror_axes = mirror_axes

    def axes_for(self, class_names: Sequence[str]) -> tuple[int, ...]:
        """The axes along which patches of these classes are mirrored."""
        if self.mirror_axes == "auto":
            return (1, 2) if with_side(class_names) else (0, 1, 2)
        return tuple(map(int, self.mirror_axes))

    def note(self, class_names: Sequence[str]) -> str | None:
        """A line for the user where class names decide that patches are not mirrored from right to left."""
        sided = with_side(class_names)
        if self.mirror_axes != "auto" or not sided:
            return None
        return (
            f"patches are not mirrored from right to left, since class names have a side ({', '.join(sided[:2])}); "
            "data.augmentation.mirror_axes=[0,1,2] mirrors them all the same"
        )


def with_side(class_names: Sequence[str]) -> list[str]:
    """The foreground classes whose names say left or right: Left Kidney, parotid_R, ctx-lh-insula."""
    return [name for name in class_names[1:] if _has_side(name)]


def _has_side(name: str) -> bool:
    words = [word.lower() for word in WORD.findall(name)]
    if any(word.startswith(("left", "right")) or word in ("lh", "rh", "lt", "rt") for word in words):
        return True
    return len(words) > 1 and not {words[0], words[-1]}.isdisjoint({"l", "r"})


class SpatialCut:
    """A patch out of a volume, one in three or so of them rotated or scaled, half of them mirrored along each axis.

    Rotation and scaling are one interpolation, of no more of the volume than the patch needs; the whole volume is never
    changed. Beyond its edges there are zeros, as in a plain crop. torch's `grid_sample` on a grid of our own takes 5 ms
    for a patch of 32x48x32 and its label on one core, MONAI's `RandAffined` and SciPy 8 ms, so it is not MONAI's.

    Args:
        patch_size: (W, H, D) of the patch. Where the longest side is over 3 times the shortest one, the axis of the
            shortest one stays as it is: patches are turned and scaled in their plane, as in nnU-Net's "dummy 2-D",
            which however turns them all the way round.
        mirror_axes: along which patches are mirrored.
    """

    def __init__(self, patch_size: Sequence[int], mirror_axes: Sequence[int]) -> None:
        self.patch_size = tuple(patch_size)
        self.mirror_axes = tuple(mirror_axes)
        thin = max(patch_size) > ANISOTROPIC * min(patch_size)
        self.thin_axis = int(np.argmin(patch_size)) if thin else None

    def draw(self, rng: np.random.Generator) -> SpatialChange:
        """The change of one patch; the generator moves alike whatever comes out."""
        rotated, scaled = rng.random(2) < (ROTATED, SCALED)
        angles, scale = rng.uniform(-ANGLE, ANGLE, 3), rng.uniform(*SCALES)
        mirrored = rng.random(3) < MIRRORED
        matrix = None
        if rotated or scaled:
            matrix = np.eye(3)
            for axis in range(3) if self.thin_axis is None else (self.thin_axis,):
                matrix = matrix @ _rotation(axis, angles[axis] if rotated else 0.0)
            matrix = matrix * [scale if scaled and axis != self.thin_axis else 1.0 for axis in range(3)]
        return SpatialChange(matrix, tuple(axis for axis in self.mirror_axes if mirrored[axis]))

    def __call__(
        self, image: Tensor, label: Tensor | None, voxel: tuple[int, ...] | None, seed: int
    ) -> tuple[Tensor, Tensor | None]:
        """One patch, a pure function of its arguments: see `WholeVolumeCut`."""
        rng = np.random.default_rng(seed)
        change, place = self.draw(rng), rng.random(3)
        shape = image.shape[1:]
        if voxel is None:  # a plain crop is uniform over all that lie within the volume
            rooms = [max(n - s, 0) + 1 for n, s in zip(shape, self.patch_size, strict=True)]
            voxel = tuple(int(p * room) + s // 2 for p, room, s in zip(place, rooms, self.patch_size, strict=True))
        start = start_around(voxel, shape, self.patch_size)
        patch = self._patch(image, start, change, "bilinear")
        return patch, None if label is None else self._patch(label[None], start, change, "nearest")[0]

    def _patch(self, volume: Tensor, start: tuple[int, ...], change: SpatialChange, mode: str) -> Tensor:
        """(C, w, h, d) -> (C, W, H, D): the crop from `start`, or what lies about its middle, mirrored."""
        if change.matrix is None:
            patch = cut(volume, start, self.patch_size)
        else:
            centre = np.add(start, (np.array(self.patch_size) - 1) / 2)
            patch = resampled(volume, centre, change.matrix, self.patch_size, mode)
        return patch.flip([axis - 3 for axis in change.mirrored]) if change.mirrored else patch


def _rotation(axis: int, angle: float) -> np.ndarray:
    """(3, 3) about one of the axes."""
    matrix = np.eye(3)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix[[i, i, j, j], [i, j, i, j]] = math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)
    return matrix


def resampled(volume: Tensor, centre: np.ndarray, matrix: np.ndarray, size: Sequence[int], mode: str) -> Tensor:
    """The values of a volume at centre + matrix (x - (size - 1) / 2), for all voxels x of a patch; zeros outside.

    Args:
        volume: (C, w, h, d), of any type.
        centre: voxel coordinates of the middle of the patch.
        matrix: (3, 3), steps in the patch -> steps in the volume.
        size: (W, H, D) of the patch.
        mode: bilinear (which in 3-D is trilinear) or nearest.

    Returns:
        (C, W, H, D) float32.
    """
    middle = (np.array(size) - 1) / 2
    reach = np.abs(matrix) @ middle
    low = np.maximum(np.floor(centre - reach).astype(int) - 1, 0)  # a voxel more, for rounding
    high = np.minimum(np.ceil(centre + reach).astype(int) + 2, volume.shape[1:])
    region = volume[:, low[0] : high[0], low[1] : high[1], low[2] : high[2]].float()
    # in grid_sample's units the region goes from -1 to 1
    steps = matrix * (2 / (high - low))[:, None]
    first = (2 * (centre - matrix @ middle - low) + 1) / (high - low) - 1
    grid = _grid(steps, first, size, volume.device)
    return F.grid_sample(region[None], grid[None], mode=mode, padding_mode="zeros", align_corners=False)[0]


def _grid(steps: np.ndarray, first: np.ndarray, size: Sequence[int], device: torch.device) -> Tensor:
    """(W, H, D, 3) float32: first + steps x of each voxel x of a patch, last axis first, as grid_sample wants it.

    Sums alone: a product of matrices could be rounded otherwise by another number of threads.
    """
    places = []
    for k in range(3):
        x, y, z = (float(steps[k, axis]) * torch.arange(length, device=device) for axis, length in enumerate(size))
        places.append((float(first[k]) + x)[:, None, None] + y[:, None] + z)
    return torch.stack(places[::-1], dim=-1)
