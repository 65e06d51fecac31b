"""What a plan is made of: all headers, and the labels that a run may read."""

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np

from dualseg.data.checking.geometry import spacing_by_direction
from dualseg.data.folder import Folder
from dualseg.data.progress import with_bar
from dualseg.data.volumes import Grid
from dualseg.errors import DualsegError

MOST_LABELS = 50  # that are opened, evenly chosen: enough for percentiles, and seconds rather than minutes
MOST_VOXELS = 10_000  # of the foreground of a case, drawn at random
PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class Foreground:
    """Values of one channel within the labels: percentiles 0.5 and 99.5; mean and deviation once clipped to them."""

    low: float
    high: float
    mean: float
    deviation: float


@dataclass(frozen=True)
class DatasetFingerprint:
    """The dataset as a run may know it.

    Attributes:
        spacings: (n, 3) mm towards right, anterior, superior, of every image that is trained on.
        shapes: (n, 3) their voxels in these directions.
        labels: the cases whose labels were opened.
        volumes: class name -> ml in each of these labels.
        foreground: of each CT channel; of others, None.
        class_names: background first.
    """

    spacings: np.ndarray
    shapes: np.ndarray
    labels: tuple[str, ...]
    volumes: dict[str, list[float]]
    foreground: tuple[Foreground | None, ...]
    class_names: tuple[str, ...]

    @property
    def median_spacing(self) -> list[float]:
        return [_rounded(edge) for edge in np.median(self.spacings, axis=0)]


def fingerprint_of(source: Folder, labeled: Sequence[str], unlabeled: Sequence[str]) -> DatasetFingerprint:
    """Read every header, and the labels of at most `MOST_LABELS` of the labeled cases; of CT their images as well.

    One volume is in memory at a time.

    Args:
        source: with neither spacing nor intensities of its own: volumes as they are.
        labeled, unlabeled: the cases that the run trains on.

    Raises:
        DualsegError: a header or label cannot be read; no label has any foreground.
    """
    source.check_cases()
    cases = [*labeled, *unlabeled]
    grids = [_of_header(source, case) for case in with_bar(cases, "Reading headers")]
    step = max(1, -(-len(labeled) // MOST_LABELS))
    opened = tuple(labeled[::step])
    volumes: dict[str, list[float]] = {name: [] for name in source.class_names[1:]}
    samples: list[list[np.ndarray]] = [[] for _ in range(source.channels)]
    for case in with_bar(opened, "Reading labels"):
        label = source.read_label(case)
        ml = float(np.prod(spacing_by_direction(source.stored_grid(case, "image").affine))) / 1000
        counts = np.bincount(label.ravel(), minlength=len(source.class_names))
        for name, count in zip(source.class_names[1:], counts[1:], strict=True):
            volumes[name].append(round(float(count) * ml, 3))
        if source.ct_channels and counts[1:].any():
            _sample(source, case, label, samples)
    if not any(map(any, volumes.values())):
        raise DualsegError(
            f"{source.where(opened[0], 'label')}: has no foreground, and neither has any other of the {len(opened)} "
            "labels that this run may read; give labels with at least one class."
        )
    foreground = tuple(_statistics(np.concatenate(values)) if values else None for values in samples)
    spacings, shapes = (np.array(values) for values in zip(*grids, strict=True))
    return DatasetFingerprint(spacings, shapes, opened, volumes, foreground, source.class_names)


def _of_header(source: Folder, case: str) -> tuple[np.ndarray, np.ndarray]:
    """mm and voxels towards right, anterior, superior."""
    grid: Grid = source.stored_grid(case, "image")
    shape = np.ones(3, int)
    shape[nib.io_orientation(grid.affine)[:, 0].astype(int)] = grid.shape
    return spacing_by_direction(grid.affine), shape


def _sample(source: Folder, case: str, label: np.ndarray, samples: list[list[np.ndarray]]) -> None:
    """Add the values of CT channels at voxels of the foreground, the same at each call."""
    image = source.read_image(case).array
    places = np.flatnonzero(label.ravel())
    if len(places) > MOST_VOXELS:
        places = np.random.default_rng(0).choice(places, MOST_VOXELS, replace=False)
    for channel in source.ct_channels:
        samples[channel].append(image[channel].ravel()[places])


def _statistics(values: np.ndarray) -> Foreground:
    low, high = np.percentile(values, PERCENTILES)
    inside = values.clip(low, high).astype(np.float64)
    return Foreground(*map(_rounded, (low, high, inside.mean(), max(inside.std(), 1e-6))))


def _rounded(value: float) -> float:
    """To six digits: headers hold float32, and people read it."""
    return float(f"{value:.6g}")
