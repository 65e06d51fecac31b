"""Which scan is which, however it is called: where its files lie and what state they are in."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dualseg.prediction.review import Row

if TYPE_CHECKING:
    from dualseg.prediction.scans import AnyScan


class Origin(NamedTuple):
    """Which scan it is. Digests, for folders and files may bear the name of the patient.

    Attributes:
        place: of where it lies; the same where its files have changed.
        state: of its files: where they lie, their sizes and times of change.
    """

    place: str
    state: str


def origin_of(scan: "AnyScan") -> Origin:
    """What its files are now."""
    folder = cache(os.path.realpath)  # of a DICOM series, hundreds of files have one
    state = _digest([[folder(file.parent), file.name, *_size_and_time(file)] for file in scan.parts])
    return Origin(_digest(scan.place) if scan.place else state, state)


def _size_and_time(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError:  # reading it will say so
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _digest(facts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@dataclass
class Entry:
    """A scan. `row`: what summary.csv says of it once its maps are written, until then None."""

    origin: Origin
    row: Row | None = None
