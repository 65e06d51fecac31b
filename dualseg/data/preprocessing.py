"""What is done to a volume before a network sees it: turned to RAS, resampled, its intensities normalised.

Pure functions of arrays and affines. None changes its argument.
"""

from collections.abc import Sequence
from typing import Literal

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from dualseg.data.volumes import Grid, Image

_DIAGONAL = 1e-6  # voxels of one grid per voxel of the other, below which an axis does not lean on another


def to_ras(image: Image) -> Image:
    """Flip and permute the voxel axes of (C, W, H, D) so that they run as near as can be to right, anterior, superior.

    No voxel changes its value or its place in millimetres.
    """
    turn = nib.io_orientation(image.affine)
    inverse = nib.orientations.inv_ornt_aff(turn, image.array.shape[1:])
    turned = np.stack([nib.apply_orientation(channel, turn) for channel in image.array])
    return Image(turned, image.affine @ inverse)


def to_lps(image: Image) -> Image:
    """As `to_ras`, with axes to the left, posterior and superior: those of DICOM and of the three benchmarks."""
    turned, affine = to_ras(image)
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    flip[:2, 3] = np.array(turned.shape[1:3]) - 1
    return Image(turned[:, ::-1, ::-1], affine @ flip)


def grid_of_spacing(grid: Grid, spacing: Sequence[float]) -> Grid:
    """The grid over the same field of view whose voxels have, but for rounding to whole voxels, the edges `spacing`.

    Args:
        grid: the field of view: the outer faces of its outermost voxels.
        spacing: three edges in mm, along the voxel axes of `grid`.

    Returns:
        round(extent / spacing) voxels along each axis, at least 1, whose outer faces are those of `grid`.
    """
    own = np.array(grid.shape)
    shape = np.maximum(1, np.round(own * voxel_sizes(grid.affine) / np.asarray(spacing))).astype(int)
    factor = own / shape
    to_own = np.diag([*factor, 1.0])
    to_own[:3, 3] = (factor - 1) / 2  # the centre of the first voxel, counted from the one of `grid`
    return Grid(tuple(map(int, shape)), grid.affine @ to_own)


def resample(array: np.ndarray, affine: np.ndarray, grid: Grid, order: Literal[0, 1], outside: float = 0) -> np.ndarray:
    """The values of a volume at the places of another grid's voxels.

    Args:
        array: (W, H, D) or (C, W, H, D), of any type; the result has the same.
        affine: (4, 4) of `array`, voxel indices -> mm.
        grid: where values are wanted; it may be turned, shifted or larger.
        order: 0, the nearest voxel: for labels. 1, trilinear, of the array smoothed as far as `grid` is coarser: for
            images, whose fine structure must not turn into a pattern.
        outside: value beyond the faces of the outermost voxels.

    Returns:
        (w, h, d) or (C, w, h, d).
    """
    to_array = np.linalg.inv(affine) @ grid.affine  # voxel indices of `grid` -> of `array`
    linear, offset = to_array[:3, :3], to_array[:3, 3]
    is_diagonal = np.abs(linear - np.diag(np.diag(linear))).max() < _DIAGONAL
    matrix = np.diag(linear) if is_diagonal else linear  # scipy is much faster along axes
    coarser = np.abs(linear).max(axis=1)  # voxels of `array` that a step of `grid` crosses, along each axis of `array`
    smooth = np.maximum(0, (coarser - 1) / 2) if order else np.zeros(3)
    channels = array[None] if array.ndim == 3 else array
    result = np.empty((len(channels), *grid.shape), array.dtype)
    for source, target in zip(channels, result, strict=True):
        smoothed = ndimage.gaussian_filter(source, smooth, mode="nearest") if smooth.any() else source
        ndimage.affine_transform(smoothed, matrix, offset, grid.shape, target, order=order, mode="nearest")
    beyond = _beyond(to_array, grid.shape, array.shape[-3:])
    if beyond is not None:
        result[:, beyond] = outside
    return result[0] if array.ndim == 3 else result


def _beyond(to_array: np.ndarray, shape: Sequence[int], sizes: Sequence[int]) -> np.ndarray | None:
    """Which voxels of a grid of `shape` have their centre beyond the faces of an array of `sizes`; None: not one."""
    beyond = np.zeros(shape, bool)
    for axis, size in enumerate(sizes):
        place = np.array(to_array[axis, 3]).reshape(1, 1, 1)
        for k, n in enumerate(shape):
            if abs(to_array[axis, k]) * n > _DIAGONAL:  # of parallel axes one counts, and takes next to no memory
                place = place + to_array[axis, k] * np.arange(n).reshape([-1 if i == k else 1 for i in range(3)])
        beyond |= (place < -0.5 - _DIAGONAL) | (place > size - 0.5 + _DIAGONAL)
    return beyond if beyond.any() else None


def resample_to_spacing(image: Image, spacing: Sequence[float]) -> Image:
    """`resample` an image to `grid_of_spacing`; the very same image where that changes nothing."""
    grid = Grid(image.array.shape[1:], image.affine)
    target = grid_of_spacing(grid, spacing)
    if target.shape == grid.shape:
        return image
    return Image(resample(image.array, image.affine, target, order=1), target.affine)


def z_score(channel: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    """One channel (W, H, D) with mean 0 and standard deviation 1, float32; a constant one becomes 0.

    Args:
        channel: any type.
        where: (W, H, D) bool, the voxels that count for mean and deviation, such as those of the body; the others
            become 0. None: all.
    """
    values = channel if where is None else channel[where]
    if not values.size:
        return np.zeros(channel.shape, np.float32)
    # floats of Python: NumPy's own would make a float64 array of the channel
    mean, deviation = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    with np.errstate(over="ignore", invalid="ignore"):  # whoever reads a volume checks that all is finite
        scaled = ((channel - mean) / (deviation if deviation > 0 else 1)).astype(np.float32, copy=False)
    return scaled if where is None else np.where(where, scaled, np.float32(0))


def window(channel: np.ndarray, low: float, high: float) -> np.ndarray:
    """One channel with [low, high] mapped to [0, 1] and everything beyond clipped, float32: for CT, in HU."""
    return ((np.clip(channel, low, high) - low) / (high - low)).astype(np.float32, copy=False)
