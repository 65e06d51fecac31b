"""What resampling a label leaves nothing of: whole classes, and separate pieces of a class."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy import ndimage

from dualseg.data.problems import Problem

_TOUCHING = np.ones((3, 3, 3), bool)  # by a face, an edge or a corner


def lost_classes(stored: np.ndarray, seen: np.ndarray, class_names: Sequence[str]) -> list[Problem]:
    """The classes that a label file has and training does not see.

    Args:
        stored: (W, H, D) integers 0..K-1, as the file has them.
        seen: (w, h, d), the same, as training reads it.
        class_names: of all K classes.
    """
    grid = " x ".join(map(str, seen.shape))
    there, left = (_counts(label, len(class_names)) for label in (stored, seen))
    return [
        Problem(
            "lost class",
            f"has {there[value]} voxels of {name}, of which resampling leaves none on the {grid} voxels that training "
            "reads; choose a finer grid (data.source.spacing, data.downsample).",
        )
        for value, name in enumerate(class_names)
        if value > 0 and there[value] > 0 and left[value] == 0
    ]


def lost_pieces(stored: np.ndarray, seen: np.ndarray) -> dict[int, tuple[int, int]]:
    """Class -> how many of its connected pieces have no voxel left, and how many it has; 0 of them where none is lost.

    Both arrays cover one field of view. A piece is left where a voxel of `seen` that has its class contains the centre
    of one of its own.
    """
    if (np.array(seen.shape) >= stored.shape).all():
        return {}
    sizes = zip(stored.shape, seen.shape, strict=True)
    inside = [np.minimum(((np.arange(n) + 0.5) * m / n).astype(int), m - 1) for n, m in sizes]
    found = {}
    for value, box in enumerate(ndimage.find_objects(stored), start=1):
        if box is not None:
            pieces, count = ndimage.label(stored[box] == value, _TOUCHING)
            kept = seen[np.ix_(*(places[own] for places, own in zip(inside, box, strict=True)))] == value
            left = np.unique(pieces[kept])
            found[value] = (count - np.count_nonzero(left), count)
    return found


def lost_note(labels: Iterable[Mapping[int, tuple[int, int]]], class_names: Sequence[str]) -> list[str]:
    """A sentence for each class that loses pieces. `labels`: `lost_pieces` of each."""
    by_class: dict[int, list[tuple[int, int]]] = {}
    for label in labels:
        for value, pieces in label.items():
            by_class.setdefault(value, []).append(pieces)
    said = []
    for value, cases in sorted(by_class.items()):
        lost, total = (sum(column) for column in zip(*cases, strict=True))
        if lost:
            of = f"{lost} of {total} separate pieces of {class_names[value]}"
            where = f"in {sum(own > 0 for own, _ in cases)} of {len(cases)} labels that have it"
            said.append(f"Resampling for training leaves no voxel of {of}, {where}.")
    return said


def _counts(label: np.ndarray, classes: int) -> np.ndarray:
    """(K,) voxels of each class; slab by slab, for numpy counts a copy in 8 bytes a voxel."""
    return sum((np.bincount(slab.ravel(), minlength=classes) for slab in label), np.zeros(classes, int))
