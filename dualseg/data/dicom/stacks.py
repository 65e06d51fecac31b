"""Whether slices lie on a regular grid, and on which.

Positions are fitted, not compared pair by pair: headers may give them with few digits, so that slices 0.625 mm apart
look 0.6 and 0.7 mm apart. A position may be off the grid by what its last digit can hide, but only while a missing
slice cannot hide there too; or by a share of the distance of slices, as scanners are.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog

from dualseg.data.dicom.headers import Slice

SAME_PLACE = 1e-3  # mm
_UNEVEN = 0.05  # of the distance of slices: how far a slice may be off the grid
_SHIFTED = 0.05  # of a pixel: the same within its plane
_TILT = 1e-3  # sine of the angle between the slices' normal and the way from slice to slice
_SLACK = 1e-6  # mm, of arithmetic
_CONVERT = "convert it with a tool that {} (dcm2niix does), and give the NIfTI file"


class Stack(NamedTuple):
    """Slices of one orientation in the order of their positions.

    Attributes:
        affine: (4, 4) column, row, slice -> mm, LPS; its axes are perpendicular to each other.
        problem: why they are no volume, one sentence with a file and the fix; empty: they are one.
    """

    slices: tuple[Slice, ...]
    affine: np.ndarray
    problem: str


def axes_of(slices: Sequence[Slice]) -> np.ndarray:
    """(3, 3): unit vectors of growing columns, rows and slices, perpendicular to each other, in rows; LPS."""
    across, down = np.median([s.orientation for s in slices], axis=0)
    across = across / np.linalg.norm(across)
    down = down - (down @ across) * across
    down = down / np.linalg.norm(down)
    return np.stack([across, down, np.cross(across, down)])


def stack_of(slices: Sequence[Slice]) -> Stack:
    """Lay two or more slices on a regular grid; they share shape, and orientation and spacing within tolerances."""
    axes = axes_of(slices)
    ordered = tuple(sorted(slices, key=lambda s: (float(s.position @ axes[2]), s.path)))
    positions = np.array([s.position for s in ordered])
    own = positions @ axes.T  # mm along the three axes
    # a writer may drop trailing zeros, so the finest digit is the one that all have
    digit = np.abs(axes) @ np.min([s.digit for s in ordered], axis=0)
    middle, index = own.mean(axis=0), np.arange(len(ordered)) - (len(ordered) - 1) / 2
    way = index @ own / (index @ index)  # from slice to slice, least squares
    affine = np.eye(4)
    affine[:3, :2] = axes[:2].T * np.median([s.spacing for s in ordered], axis=0)
    affine[:3, 2] = axes[2] * way[2]
    affine[:3, 3] = (middle + index[0] * np.array([0, 0, way[2]])) @ axes
    problem = (
        _uneven(ordered, own[:, 2], digit[2])
        or _tilted(ordered, way, digit)
        or _shifted(ordered, own[:, :2] - middle[:2] - np.outer(index, way[:2]), digit)
        or _thinned(ordered, way[2])
    )
    return Stack(ordered, affine, problem)


def is_regular(along: np.ndarray, digit: float) -> bool:
    """Whether growing positions lie on a regular grid.

    Args:
        along: (N,) mm, N >= 2.
        digit: mm, the value of the last digit of the positions.
    """
    count = len(along)
    index = np.arange(count)
    step, start = np.polyfit(index, along, 1)
    if step <= SAME_PLACE:
        return False
    allowed = _UNEVEN * step
    # Positions with one missing are at least (1/2 - 1/N) steps off any regular grid. Rounding moves both them and
    # the grid's own by half a digit, so up to half of that many steps the two cannot be mistaken for each other.
    if digit / 2 < (0.25 - 0.5 / count) * step:
        allowed = max(allowed, digit / 2)
    if np.abs(along - start - step * index).max() <= allowed + _SLACK:
        return True
    if digit / 2 < allowed:
        return False  # no line is so much closer than the one of least squares
    # the line whose largest distance is smallest
    ones = np.ones(count)
    above, below = np.stack([ones, index, -ones], axis=1), np.stack([-ones, -index, -ones], axis=1)
    bounds = np.concatenate([along, -along])
    best = linprog([0, 0, 1], np.concatenate([above, below]), bounds, bounds=[(None, None)] * 3)
    return bool(best.success and best.x[2] <= allowed + _SLACK)


def _uneven(slices: Sequence[Slice], along: np.ndarray, digit: float) -> str:
    if is_regular(along, digit):
        return ""
    gaps = np.diff(along)
    usual = float(np.median(gaps))
    worst = int(np.abs(gaps - usual).argmax())
    gap, before, after = float(gaps[worst]), slices[worst], slices[worst + 1]
    if gap <= SAME_PLACE:
        return f"{after.path}: lies where {before.path} does but differs from it; two scans in one? Take one out."
    times = gaps / usual if usual > 0 else gaps * 0
    if times.round().min() >= 1 and np.abs(times - times.round()).max() < 2 * _UNEVEN + digit / usual:
        what, fix = f"{round(gap / usual) - 1} missing", "download the series again"
    else:
        what = f"uneven, {gaps.min():.4g} to {gaps.max():.4g} mm apart"
        fix = _CONVERT.format("makes slices even")
    return (
        f"{after.path}: lies {gap:.4g} mm from the slice before it ({before.path.name}), others {usual:.4g} mm: "
        f"slices {what}; {fix}."
    )


def _tilted(slices: Sequence[Slice], way: np.ndarray, digit: np.ndarray) -> str:
    steps = len(slices) - 1
    if np.hypot(*way[:2]) * steps <= max(_TILT * way[2] * steps, np.hypot(*digit[:2])):
        return ""
    fix = _CONVERT.format("straightens a tilted gantry")
    return f"{slices[0].path}: the gantry was tilted, so slices are shifted against each other; {fix}."


def _shifted(slices: Sequence[Slice], off: np.ndarray, digit: np.ndarray) -> str:
    worst = int(np.abs(off).max(axis=1).argmax())
    pixel = float(np.min([s.spacing for s in slices]))
    if (np.abs(off[worst]) <= np.maximum(digit[:2], _SHIFTED * pixel) + _SLACK).all():
        return ""
    distance = np.hypot(*off[worst])
    return f"{slices[worst].path}: lies {distance:.4g} mm beside its neighbours; download the series again."


def _thinned(slices: Sequence[Slice], step: float) -> str:
    """Slices that were lost evenly leave a regular grid."""
    for own in slices:
        times = step / own.distance if own.distance else 1.0
        if round(times) > 1 and abs(times - round(times)) < _UNEVEN:
            return (
                f"{own.path}: SpacingBetweenSlices is {own.distance:.4g} mm, but slices lie {step:.4g} mm apart: "
                f"{round(times) - 1} of {round(times)} missing; download the series again, or give it as NIfTI."
            )
    return ""
