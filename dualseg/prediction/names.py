"""Names of outputs: each scan keeps its own, however often a prediction is started, and whatever was added since."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from dualseg.names import LONGEST, check_printable, shortened
from dualseg.prediction.origin import Entry, Origin, origin_of

if TYPE_CHECKING:
    from dualseg.prediction.scans import AnyScan

    Scan = TypeVar("Scan", bound=AnyScan)

NAMELESS = re.compile(r"(series|unread)-(\d+)")


def name_scans(found: "Sequence[Scan]", known: Mapping[str, Entry]) -> "list[Scan]":
    """Give each scan a name of its own.

    One that is `known` keeps its name. Others are called what they are called here, those whose name may not be written
    KIND-001, KIND-002, ...; of two with one name the second is called NAME-2. Names too long for a file are shortened.

    Args:
        found: named after their files and folders.
        known: name -> scan of an earlier start. The name of one that is not found, and not predicted, is free, but for
            KIND-001: only what was printed tells which one it was.

    Raises:
        DualsegError: a file with a line break in its name.
    """
    names = _recognised([origin_of(scan) for scan in found], {name: entry.origin for name, entry in known.items()})
    taken = {name for name, entry in known.items() if entry.row or NAMELESS.match(name)} | {*names.values()}
    numbers: dict[str, int] = defaultdict(int)
    for match in filter(None, map(NAMELESS.match, taken)):
        numbers[match[1]] = max(numbers[match[1]], int(match[2]))
    named = []
    for index, scan in enumerate(found):
        if index not in names:
            stem = shortened(scan.name, LONGEST)
            if not scan.source:
                numbers[scan.kind] += 1
                stem = f"{scan.kind}-{numbers[scan.kind]:03d}"
            name, count = stem, 2
            while name in taken:
                name, count = f"{stem}-{count}", count + 1
            check_printable("scan", [name, scan.source or name])
            taken.add(name)
            names[index] = name
        named.append(replace(scan, name=names[index]))
    return named


def _recognised(origins: Sequence[Origin], known: Mapping[str, Origin]) -> dict[int, str]:
    """Index -> name. Unchanged scans first: of several in one place, changed ones could take their names."""
    names: dict[int, str] = {}
    for kind in ("state", "place"):
        free, used = defaultdict(list), {*names.values()}
        for name, origin in known.items():
            if name not in used:
                free[getattr(origin, kind)].append(name)
        for index, origin in enumerate(origins):
            same = free[getattr(origin, kind)]
            if index not in names and same:
                names[index] = same.pop(0)
    return names
