"""Voxels of the foreground around which labeled patches are cut."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

MOST_POSITIONS = 10_000  # of a class in a case: memory stays flat, however large the class is


def positions_of(label: np.ndarray) -> list[np.ndarray]:
    """Flat indices of the voxels of each foreground class that a label map (W, H, D) has, by rising class.

    Of a class with more than `MOST_POSITIONS` voxels, one voxel each from as many equal stretches: at a place drawn
    with a fixed seed, since equal steps could hit the same row of every slice.
    """
    flat = label.reshape(-1)
    rng = np.random.default_rng(0)
    dtype = np.int32 if label.size <= np.iinfo(np.int32).max else np.int64
    present = np.flatnonzero(np.bincount(flat))
    # class by class: all indices of a large label at once would take several times its memory
    return [_thinned(np.flatnonzero(flat == value), rng).astype(dtype) for value in present if value]


def _thinned(places: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if len(places) <= MOST_POSITIONS:
        return places
    within = np.arange(MOST_POSITIONS) + rng.random(MOST_POSITIONS)
    return places[(within * len(places) / MOST_POSITIONS).astype(np.int64)]


class ForegroundSampling:
    """Around which voxel a labeled patch is cut.

    Args:
        labels: case -> (W, H, D), looked through once, here.
        share: of the patches that are cut around a voxel of the foreground.
    """

    def __init__(self, labels: Mapping[str, Tensor], share: float) -> None:
        self.share = share
        self.shapes = {case: tuple(label.shape) for case, label in labels.items()}
        self.positions = {case: positions_of(label.numpy()) for case, label in labels.items()}

    def draw(self, case: str, rng: np.random.Generator) -> tuple[int, ...] | None:
        """A voxel: a class first, uniformly among those of the case, then one of its voxels, uniformly.

        Returns:
            Three indices; None: the patch is cut anywhere, since that was drawn or the case has no foreground.
        """
        classes = self.positions[case]
        if rng.random() >= self.share or not classes:
            return None
        positions = classes[rng.integers(len(classes))]
        place = positions[rng.integers(len(positions))]
        return tuple(int(index) for index in np.unravel_index(place, self.shapes[case]))
