"""Copies of a scan and its prediction that are small enough to travel inside a page."""

import base64
import gzip
from dataclasses import dataclass
from typing import NamedTuple

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes

from dualseg.data.volumes import Image

MAX_VOXELS = 20_000_000  # a browser holds each several times, in 4 bytes; a CT of 512 x 512 x 300, halved in plane
CLIPPED = 0.5  # per cent of the voxels around the label that are shown black, and white
MARGIN = 0.25  # of the label's extent: what counts as around it
_SAMPLE = 1 << 20  # voxels for which percentiles are taken


@dataclass(frozen=True)
class DisplayCopy:
    """Three 8-bit NIfTI files on one grid, whose voxel axes run as near as can be to right, anterior, superior.

    Attributes:
        image, label, uncertainty: base64 of the gzipped files. Image: black to white over `window`; uncertainty: 0..255
            for an entropy of 0..1.
        shape: voxels.
        spacing: mm of a voxel.
        scan_spacing: mm of a voxel of the scan, along the same axes.
        window: values of the scan shown as black and as white.
        start: voxel in the three slices that hold the most uncertainty.
    """

    image: str
    label: str
    uncertainty: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    scan_spacing: tuple[float, ...]
    window: tuple[float, float]
    start: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes in the page."""
        return len(self.image) + len(self.label) + len(self.uncertainty)


def display_copy(
    scan: Image, label: np.ndarray, entropy: np.ndarray, limit: int, window: tuple[float, float] | None = None
) -> DisplayCopy:
    """The finest copy of at most `limit` bytes, made of whole blocks of the scan's voxels.

    A block has the mean intensity of its voxels, their largest uncertainty, so that no doubtful spot is lost, and their
    most frequent class, of two that are equally frequent the higher one.

    Args:
        scan: (C, W, H, D), of which the first channel is shown; affine in mm.
        label: (W, H, D), of at most 256 classes.
        entropy: (W, H, D), 0..1.
        limit: bytes of the three files in base64.
        window: values shown as black and white; None: those around the label.
    """
    turn = nib.io_orientation(scan.affine)
    full = _Full(
        image=nib.apply_orientation(scan.array[0], turn),
        label=nib.apply_orientation(label, turn),
        entropy=nib.apply_orientation(entropy, turn),
        affine=scan.affine @ nib.orientations.inv_ornt_aff(turn, label.shape),
    )
    shape, spacing = np.array(full.label.shape), voxel_sizes(full.affine)
    block = np.ones(3, int)
    room = float(MAX_VOXELS)
    while True:
        while np.prod(-(-shape // block)) > room and (block < shape).any():
            # the finest axis that is left: blocks come as near to cubes as they can
            block[np.argmin(np.where(block < shape, spacing * block, np.inf))] += 1
        copy = _copy(full, block, window)
        if copy.size <= limit or (block >= shape).all():
            return copy
        # what is left shrinks at best in proportion; a little less, since a coarser image compresses worse
        room = 0.95 * np.prod(copy.shape) * limit / copy.size


class _Full(NamedTuple):
    """Scan and prediction, turned; no copies."""

    image: np.ndarray
    label: np.ndarray
    entropy: np.ndarray
    affine: np.ndarray


def _copy(full: _Full, block: np.ndarray, window: tuple[float, float] | None = None) -> DisplayCopy:
    means = _over_blocks(full.image, block, np.add, np.float32)
    for axis, (n, size) in enumerate(zip(full.label.shape, block, strict=True)):
        if size > 1:  # the blocks at the far ends may be partial
            voxels = np.diff([*range(0, n, size), n]).astype(np.float32)
            means /= voxels.reshape([-1 if k == axis else 1 for k in range(3)])
    labels = _frequent(full.label, block)
    doubt = np.round(255 * _over_blocks(full.entropy, block, np.maximum)).astype(np.uint8)
    low, high = window or _window(means, labels)
    grey = np.round(np.clip((means - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    to_scan = np.diag([*block, 1.0])
    to_scan[:3, 3] = (block - 1) / 2  # the centre of the first block
    affine = full.affine @ to_scan
    others = [tuple(k for k in range(3) if k != axis) for axis in range(3)]
    start = tuple(int(doubt.sum(axis=axes, dtype=np.int64).argmax()) for axes in others)
    return DisplayCopy(
        image=_file(grey, affine),
        label=_file(labels, affine),
        uncertainty=_file(doubt, affine),
        shape=doubt.shape,
        spacing=tuple(voxel_sizes(affine).tolist()),
        scan_spacing=tuple(voxel_sizes(full.affine).tolist()),
        window=(low, high),
        start=start if doubt.any() else tuple(n // 2 for n in doubt.shape),
    )


def _over_blocks(array: np.ndarray, block: np.ndarray, ufunc: np.ufunc, dtype: type | None = None) -> np.ndarray:
    """`ufunc` over blocks of voxels; those at the far ends may be partial ones."""
    for axis, size in enumerate(block):
        if size > 1:
            array = ufunc.reduceat(array, np.arange(0, array.shape[axis], size), axis=axis, dtype=dtype)
    return array


def _frequent(label: np.ndarray, block: np.ndarray) -> np.ndarray:
    if (block == 1).all():
        return np.asarray(label, np.uint8)
    best, most = None, None
    for value in range(int(label.max()) + 1):
        count = _over_blocks((label == value).view(np.uint8), block, np.add, np.uint16)
        if best is None or most is None:
            best, most = np.zeros(count.shape, np.uint8), count
        else:
            best[count >= most] = value
            most = np.maximum(most, count)
    assert best is not None
    return best


def _window(image: np.ndarray, label: np.ndarray) -> tuple[float, float]:
    """Values for black and white: those around the label, of which the contour must be judged; else all."""
    box = []
    for axis, size in enumerate(label.shape):
        inside = np.flatnonzero(label.any(axis=tuple(k for k in range(3) if k != axis)))
        first, last = (int(inside[0]), int(inside[-1])) if len(inside) else (0, size - 1)
        margin = 1 + int(MARGIN * (last - first + 1))
        box.append(slice(max(0, first - margin), last + 1 + margin))
    around = image[tuple(box)]
    step = max(1, int(np.ceil((around.size / _SAMPLE) ** (1 / 3))))
    low, high = np.percentile(around[::step, ::step, ::step], (CLIPPED, 100 - CLIPPED))
    return float(low), float(high) if high > low else float(low) + 1


def _file(array: np.ndarray, affine: np.ndarray) -> str:
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    return base64.b64encode(gzip.compress(image.to_bytes(), 6, mtime=0)).decode("ascii")
