"""Slices that are alike -> one volume, or the several that a trait of their headers tells apart.

Phases, echoes and the like of one series lie at the same places. Of slices that lie on one regular grid none are taken
out, whatever their traits: a volume of every second slice is none.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from contextlib import suppress
from itertools import combinations, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dualseg.data.dicom.headers import TRAITS, Slice
from dualseg.data.dicom.stacks import SAME_PLACE, Stack, axes_of, stack_of

SORT = "sort the files of each scan into a folder of its own, and give these one by one"
_ECHO = 0.05  # of the echo time and the like; scanners write small differences between slices
_CONSTANT = TRAITS[:6]  # a volume has one value of each
# Values of these may follow each other along a volume, but not take turns. Times do in interleaved 2-D acquisitions.
_IN_BLOCKS = (
    *TRAITS[6:15],
    *("SliceThickness", "SeriesNumber", "SeriesDescription", "ContrastBolusAgent"),
)
_NUMBERS = ("InversionTime", "FlipAngle", "KVP", "SliceThickness")  # as echo times: small differences are none
_OVERLAPPING = 1.5  # of the distance of slices: so thick are those of scans that lie half a step apart
_LEAST_OVERLAP = 0.5  # of the extents of two phases


class Part(NamedTuple):
    """Slices that could be one volume.

    Attributes:
        affine: as of `Stack`.
        mixed: they lie on one grid, but are of several scans.
        loose: a slice alone, which is no volume.
    """

    slices: tuple[Slice, ...]
    doubles: tuple[tuple[Path, Path], ...]
    affine: np.ndarray
    problem: str
    mixed: bool = False

    @property
    def loose(self) -> bool:
        return len(self.slices) == 1 and not self.problem


def volumes_among(slices: list[Slice]) -> list[Part]:
    """Volumes of slices that are alike: one, or several that a trait tells apart, or none."""
    once, doubles = _once(slices, same_instance=True)
    whole = _part(once, doubles)
    if not whole.problem or whole.mixed:  # slices that take turns on one grid are not torn apart
        return [whole]
    split = _split(once)
    if split:
        names = {s.path: number for number, own in enumerate(split) for s in own.slices}
        return [
            own._replace(doubles=tuple(pair for pair in doubles if names.get(pair[1]) == number))
            for number, own in enumerate(split)
        ]
    # perhaps files that repeat others under names of their own, which only pixels can tell
    once, doubles = _once(slices, same_instance=False)
    part = _part(once, doubles)
    apart = _numbered_apart(stack_of(once)) if part.problem and not part.mixed else ""
    return [part._replace(problem=apart or part.problem)]


def _once(slices: Sequence[Slice], same_instance: bool) -> tuple[list[Slice], list[tuple[Path, Path]]]:
    """Slices without those that lie where another does, and these with that other.

    Args:
        same_instance: only those with its SOPInstanceUID and traits.
    """
    normal = axes_of(slices)[2]
    kept: list[Slice] = []
    doubles: list[tuple[Path, Path]] = []
    latest: dict[Hashable, Slice] = {}  # of those at about the same place
    for own in sorted(slices, key=lambda s: float(s.position @ normal)):
        key = (own.instance or own.path, own.traits) if same_instance else None
        other = latest.get(key)
        if other is not None and np.abs(own.position - other.position).max() <= SAME_PLACE:
            doubles.append((own.path, other.path))
        else:
            kept.append(own)
            latest[key] = own
    return kept, doubles


def _part(slices: Sequence[Slice], doubles: Sequence[tuple[Path, Path]] = ()) -> Part:
    if len(slices) == 1:
        return Part(tuple(slices), tuple(doubles), np.eye(4), "")
    stack = stack_of(slices)
    mixed = "" if stack.problem else _mixed(stack)
    return Part(stack.slices, tuple(doubles), stack.affine, stack.problem or mixed, bool(mixed))


def _mixed(stack: Stack) -> str:
    """Slices on one grid may be of two scans all the same."""
    for number, tag in enumerate(TRAITS):
        own = [one.traits[number] for one in stack.slices]
        values = _levels([_number(value) for value in own] if tag in _NUMBERS else own)
        changes = [k for k in range(1, len(values)) if values[k] != values[k - 1]]
        if changes and (tag in _CONSTANT or (tag in _IN_BLOCKS and _take_turns(values, tag == "AcquisitionNumber"))):
            before, after = stack.slices[changes[0] - 1].path, stack.slices[changes[0]].path
            name = tag if isinstance(tag, str) else "b-value (private element {:04X},{:04X})".format(*tag)
            return (
                f"{after}: its {name} is another than that of the slice before it ({before.name}), so that two scans "
                f"seem to be in one series; {SORT}."
            )
    return _numbered_apart(stack)


def _take_turns(values: Sequence[Hashable], lone: bool) -> bool:
    """Whether values come back after others. Args: lone: one that only a single slice has counts too."""
    counts = Counter(values)
    told = [value for value in values if lone or counts[value] > 1]
    return sum(a != b for a, b in pairwise(told)) >= max(2, len(set(told)))


def _numbered_apart(stack: Stack) -> str:
    """The problem where the InstanceNumbers are those of several scans whose slices take turns."""
    numbers = [_number(own.number) for own in stack.slices]
    counts = Counter(number for number in numbers if number is not None)
    times = max(counts.values(), default=0)
    if len({*numbers}) == 1 or (times and _monotone_runs(numbers) <= times):  # one block after another
        return ""
    again = sum(count for count in counts.values() if count > 1)
    scans = times if again > len(numbers) / 2 else _turns(stack, numbers)
    if scans < 2:
        return ""
    same = f", {again} have the number of another" if again else ""
    return (
        f"{min(own.path for own in stack.slices)}: the InstanceNumbers of the {len(numbers)} slices of its series take "
        f"turns as those of {scans} scans do{same}; {SORT}."
    )


def _monotone_runs(numbers: Sequence[Hashable]) -> float:
    """The blocks of growing or of falling numbers that follow each other; infinity where some are no numbers."""
    runs, way = 1, 0.0
    for before, after in pairwise(numbers):
        if not (isinstance(before, float) and isinstance(after, float)):
            return np.inf
        step = np.sign(after - before)
        if step == 0 or way not in (0, step):
            runs, way = runs + 1, 0.0
        else:
            way = step
    return runs


def _turns(stack: Stack, numbers: Sequence[Hashable]) -> int:
    """How many scans take turns slice by slice, by numbers that most slices have alone; 0: none do.

    In one scan odd slices may have been acquired after even ones, but then slices are no thicker than their distance.
    """
    thick = [_number(own.traits[TRAITS.index("SliceThickness")]) for own in stack.slices]
    known = [value for value in thick if isinstance(value, float)]
    overlap = bool(known) and np.median(known) > _OVERLAPPING * np.linalg.norm(stack.affine[:3, 2])
    for scans in range(2, len(numbers) // 3 + 1):
        turns = [numbers[first::scans] for first in range(scans)]
        bare = [{number is None for number in own} for own in turns]
        if {True} in bare and {False} in bare and {True, False} not in bare:
            return scans
        shared = len({number for own in turns for number in {*own}}) < sum(len({*own}) for own in turns)
        if (shared or overlap) and all(_monotone_runs(own) == 1 for own in turns):
            return scans
    return 0


def _number(value: Hashable) -> Hashable:
    """What is written, as a number if it is one."""
    if isinstance(value, bytes):
        with suppress(ValueError):
            return float(value)
    return value


def _levels(values: Sequence[Hashable]) -> list[Hashable]:
    """Values; in the place of a number, such as an echo time, the number of its level."""
    levels: dict[float, int] = {}
    level, latest = 0, None
    for time in sorted({value for value in values if isinstance(value, float)}):
        level += latest is not None and time > latest * (1 + _ECHO)
        levels[time], latest = level, time
    return [levels[value] if isinstance(value, float) else value for value in values]


def _split(slices: list[Slice]) -> list[Part]:
    """Volumes that one trait or up to three together tell apart, and the rest, which is refused; empty: none do."""
    along = np.array([own.position for own in slices]) @ axes_of(slices)[2]
    columns = [_levels([own.traits[k] for own in slices]) for k in range(len(TRAITS))]
    columns.append([own.path.parent for own in slices])
    varying = [values for values in columns if 1 < len(set(values)) <= len(slices) // 2]
    best: list[Part] = []
    for count in (1, 2, 3):
        for chosen in combinations(varying, count):
            groups: dict[Hashable, list[int]] = {}
            for index, key in enumerate(zip(*chosen, strict=True)):
                groups.setdefault(key, []).append(index)
            found = _longest([*groups.values()], slices, along)
            covered = sum(len(part.slices) for part in found)
            if covered == len(slices):
                return found
            if covered > sum(len(part.slices) for part in best):
                best = found
    return [*best, _rest(slices, best)] if best else []


def _longest(groups: list[list[int]], slices: Sequence[Slice], along: np.ndarray) -> list[Part]:
    """The groups that are volumes, if they are as long as any and all groups cover much the same extents.

    Two halves of a volume between which a slice is missing are no such groups.
    """
    longest = max(len(group) for group in groups)
    low, high = (np.array([reach(along[group]) for group in groups]) for reach in (np.min, np.max))
    full = np.array([len(group) == longest for group in groups])
    if longest < 2:
        return []
    shared = np.minimum(high, high[full].min()) - np.maximum(low, low[full].max())
    if (shared < _LEAST_OVERLAP * (high - low)).any():
        return []
    parts = [_part([slices[k] for k in group]) for group, own in zip(groups, full, strict=True) if own]
    return [part for part in parts if not part.problem]


def _rest(slices: Sequence[Slice], volumes: Sequence[Part]) -> Part:
    taken = {own.path for part in volumes for own in part.slices}
    rest = [own for own in slices if own.path not in taken]
    first = volumes[0].slices[0].path
    problem = (
        f"{rest[0].path}: is of {len(rest)} slices that are no volume as complete as that of {first}, which has "
        f"{len(volumes[0].slices)}; download the series again, or {SORT}."
    )
    part = _part(rest)
    return part._replace(problem=part.problem or problem)
