"""Scans that show the same image though their voxels differ: resampled, with another intensity scale, or mirrored."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dualseg.data.checking.look import Look

# Correlation of `Look.detail`. By benchmarks/near_duplicates.py, scans of two patients reach 0.70 (head-and-neck CT),
# 0.48 (hippocampus MR) and 0.42 (Left Atrium MR); copies have 0.93 and more.
SAME = 0.85
TOGETHER = 64  # scans in one matrix product: memory does not grow with the dataset
MIRRORS = (*itertools.product((1, -1), repeat=3),)
DIRECTIONS = ("left-right", "back-front", "feet-head")


class Near(NamedTuple):
    """Two cases that show one image: `case` and `other`; `how`: mirrored along which directions, empty if not."""

    case: str
    other: str
    correlation: float
    how: str


def near_duplicates(looks: Mapping[str, Look], cases: Sequence[str], others: Sequence[str]) -> Iterator[Near]:
    """All pairs of one of `cases` and one of `others` that show the same image.

    Args:
        looks: case -> what is kept of it.
        cases: in memory 64 at a time.
        others: the same.
    """
    for some in _batches(cases):
        left = _details(looks, some)
        turned = [left[:, :, ::x, ::y, ::z].reshape(len(some), -1) for x, y, z in MIRRORS]
        for against in _batches(others):
            right = _details(looks, against).reshape(len(against), -1).T
            correlations = np.stack([own @ right for own in turned])  # (8, some, against)
            for i, j in np.argwhere(correlations.max(axis=0) > SAME):
                best = int(correlations[:, i, j].argmax())
                how = ", ".join(name for name, sign in zip(DIRECTIONS, MIRRORS[best], strict=True) if sign < 0)
                yield Near(some[i], against[j], float(correlations[best, i, j]), how)


def _batches(cases: Sequence[str]) -> Iterator[Sequence[str]]:
    return (cases[start : start + TOGETHER] for start in range(0, len(cases), TOGETHER))


def _details(looks: Mapping[str, Look], cases: Sequence[str]) -> np.ndarray:
    return np.stack([looks[case].detail for case in cases]).astype(np.float32)
