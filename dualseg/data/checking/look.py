"""What is kept of a scan to compare it with others, some 30 kB a channel: statistics and block means, never voxels."""

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy import ndimage

from dualseg.data.checking.content import sample
from dualseg.data.checking.geometry import spacing_by_direction
from dualseg.data.volumes import Image

QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
VOXELS = 1 << 17  # that quantiles are taken of
BLOCKS = 24  # along each axis: fine enough to tell one patient from another
COARSE = 8  # along each axis: coarse enough that scans of one body part agree
PIXELS = 128  # the longer side of a kept slice, at most


@dataclass(frozen=True)
class Picture:
    """A middle slice. `grey`: (rows, columns) uint8, rows downwards. `mm`: its height and width."""

    plane: str
    grey: np.ndarray
    mm: tuple[float, float]


@dataclass(frozen=True)
class Look:
    """One scan, its axes turned to right, anterior, superior.

    Attributes:
        spacing: (3,) edges of a voxel, mm.
        extent: (3,) field of view, mm.
        quantiles: (C, 5) of the values, see `QUANTILES`.
        content: (C * 8**3,) coarse block means, each channel with mean 0, all with norm 1 (0 for a constant scan).
        detail: (C, 24, 24, 24) float16, fine block means less those around them, with norm 1 as well.
        pictures: three middle slices of the first channel, where they were asked for.
    """

    spacing: np.ndarray
    extent: np.ndarray
    quantiles: np.ndarray
    content: np.ndarray
    detail: np.ndarray
    pictures: tuple[Picture, ...] = ()


def look_at(scan: Image, pictures: bool = False) -> Look:
    """What is kept of a scan.

    Args:
        scan: (C, W, H, D), finite, with an affine that can be inverted.
        pictures: keep slices too.
    """
    turn = nib.io_orientation(scan.affine)
    spacing = spacing_by_direction(scan.affine)
    shape = np.empty(3)
    shape[turn[:, 0].astype(int)] = scan.array.shape[1:]
    fine = np.stack([nib.apply_orientation(_clipped(_block_means(c)), turn) for c in scan.array])
    size = BLOCKS // COARSE
    coarse = fine.reshape(-1, *(COARSE, size) * 3).mean(axis=(2, 4, 6))
    around = np.stack([ndimage.uniform_filter(c, 3, mode="nearest") for c in fine])
    quantiles = np.array([np.quantile(sample(c, VOXELS).astype(np.float64), QUANTILES) for c in scan.array])
    return Look(
        spacing,
        spacing * shape,
        quantiles,
        _unit(coarse - coarse.mean(axis=(1, 2, 3), keepdims=True)).ravel(),
        _unit(fine - around).astype(np.float16),
        _pictures(scan.array[0], turn, spacing, quantiles[0]) if pictures else (),
    )


def _block_means(channel: np.ndarray) -> np.ndarray:
    """(24, 24, 24) means over equal shares of the field of view; a voxel between two counts by its share."""
    means = channel
    for _ in range(3):  # each axis in turn becomes the last
        means = np.tensordot(_shares(len(means)), means, (1, 0)).transpose(1, 2, 0)
    return means


def _shares(voxels: int) -> np.ndarray:
    """(24, voxels) weights of the voxels along an axis, float32."""
    edges = np.linspace(0, voxels, BLOCKS + 1)
    first = np.arange(voxels)
    inside = np.minimum(edges[1:, None], first + 1) - np.maximum(edges[:-1, None], first)
    return (np.maximum(inside, 0) * BLOCKS / voxels).astype(np.float32)


def _clipped(means: np.ndarray) -> np.ndarray:
    """From 0 to 1 between the 1st and the 99th percentile: metal and other far values must not be all that counts."""
    low, high = np.quantile(means.astype(np.float64), (0.01, 0.99))
    return np.clip((means - low) / (high - low), 0, 1) if high > low else np.zeros(means.shape)


def _unit(channels: np.ndarray) -> np.ndarray:
    """(C, ...) of which each channel counts the same, with norm 1 together; channels of zeros stay as they are."""
    norms = np.sqrt((channels**2).sum(axis=(1, 2, 3), keepdims=True))
    return channels / np.where(norms > 0, norms, 1) / np.sqrt(max(1, int(np.count_nonzero(norms))))


def _pictures(channel: np.ndarray, turn: np.ndarray, spacing: np.ndarray, quantiles: np.ndarray) -> tuple[Picture, ...]:
    """Axial, coronal and sagittal, the patient's left on the right and the front, or the head, on top."""
    low, high = quantiles[0], quantiles[-1]
    found = []
    for direction, plane in ((2, "axial"), (1, "coronal"), (0, "sagittal")):
        axis = int(np.flatnonzero(turn[:, 0] == direction)[0])
        slab = channel.take([channel.shape[axis] // 2], axis=axis).astype(np.float64)
        middle = nib.apply_orientation(slab, turn).squeeze(axis=direction)
        across, up = (k for k in range(3) if k != direction)
        mm = (float(spacing[up] * middle.shape[1]), float(spacing[across] * middle.shape[0]))
        step = -(-max(middle.shape) // PIXELS)
        grey = np.clip((middle[::step, ::step] - low) / max(high - low, 1e-12), 0, 1) * 255
        found.append(Picture(plane, np.flip(grey.T).round().astype(np.uint8), mm))
    return tuple(found)
