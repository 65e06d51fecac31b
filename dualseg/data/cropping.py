"""Boxes of voxels: around a label or around what the intensities show, and what is cut out with them."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from scipy import ndimage

from dualseg.data.volumes import Image


class Box(NamedTuple):
    """The voxels start <= index < stop along W, H, D."""

    start: tuple[int, ...]
    stop: tuple[int, ...]

    @classmethod
    def around(cls, mask: np.ndarray) -> Self:
        """The tightest box around the true voxels of (W, H, D); the whole volume where there are none."""
        spans = []
        for axis in range(3):
            hit = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
            spans.append((int(hit[0]), int(hit[-1]) + 1) if hit.size else (0, mask.shape[axis]))
        start, stop = zip(*spans, strict=True)
        return cls(start, stop)

    def widened(self, shape: Sequence[int], size: Sequence[int], margins: Sequence[tuple[int, int]]) -> "Box":
        """Grown evenly to at least `size`, then by margins (before, after) of each axis, within a volume of `shape`."""
        start, stop = [], []
        for axis, (before, after) in enumerate(margins):
            short = max(0, size[axis] - (self.stop[axis] - self.start[axis]))
            start.append(max(0, self.start[axis] - short // 2 - before))
            stop.append(min(shape[axis], self.stop[axis] + short - short // 2 + after))
        return Box(tuple(start), tuple(stop))

    @property
    def region(self) -> tuple[Any, ...]:
        """Index of the voxels in an array whose last three axes are W, H, D."""
        return (..., *(slice(a, b) for a, b in zip(self.start, self.stop, strict=True)))


def cropped(image: Image, box: Box) -> Image:
    """The part of an image in a box, as a copy; its voxels stay where they are in millimetres."""
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.asarray(box.start)
    return Image(np.ascontiguousarray(image.array[box.region]), affine)


def largest_above(channel: np.ndarray, threshold: float) -> np.ndarray:
    """(W, H, D) bool: the largest piece, connected through faces, of the voxels above a threshold."""
    pieces, count = ndimage.label(channel > threshold)
    if count < 2:
        return pieces > 0
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return pieces == sizes.argmax()


def otsu(channel: np.ndarray) -> float:
    """Threshold that parts the intensities into two classes of the least variance (Otsu 1979), from 256 bins."""
    counts, edges = np.histogram(channel, bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums[:-1] / below - (sums[-1] - sums[:-1]) / above) ** 2
    return float(edges[1:-1][np.nan_to_num(between).argmax()])
