"""All DICOM of a folder: its volumes, what is damaged, and what belongs to no volume."""

import gzip
import zlib
from collections.abc import Container, Hashable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dualseg.data.dicom.headers import PACKED, Flawed, Other, Slice, looks_like_dataset, read_header
from dualseg.data.dicom.series import Series, volumes_of
from dualseg.files import files_below

_HIDDEN = "hidden slice"


class SeriesFound(NamedTuple):
    """What a folder holds.

    Attributes:
        series: volumes, also those that `read_series` refuses, in the order of their first files.
        damaged: files that may be slices, whose header does not say of which series.
        left_out: kind, such as `single slice`, `repeated slice` or `RT Structure Set` -> files that add to no volume.
        files: all of these, and slices that make their series unusable.
    """

    series: list[Series]
    damaged: list[Path]
    left_out: dict[str, list[Path]]
    files: frozenset[Path]


def left_out_line(left_out: Mapping[str, int]) -> str:
    """A line on the files of each kind that add to no volume; empty where there are none."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))
    return f"Left out of volumes: {sum(left_out.values())} DICOM files ({kinds})" if left_out else ""


def find_series(folder: Path) -> SeriesFound:
    """Every volume in a folder and below, found by headers alone. Files that are not DICOM are passed over.

    Beside slices, a file that has their suffix and is not DICOM counts as damaged: it may have been the last slice,
    which no gap would tell of. Of files without a suffix, only one that is empty or begins as DICOM does. A slice that
    is compressed as a file, such as a.dcm.gz, counts as damaged too. A hidden slice is not read: unless it repeats one
    that is read, it makes its series unusable.
    """
    slices: dict[str, list[Slice]] = {}
    flawed: dict[str, list[Flawed]] = {}
    damaged: list[Path] = []
    left_out: dict[str, list[Path]] = {}
    unknown: list[Path] = []
    order: dict[Path, int] = {}
    hidden: list[Slice] = []
    for path in files_below(folder, hidden=True):
        if path.name.startswith("._") or path.name == ".DS_Store":  # what macOS leaves beside files
            continue
        order[path] = len(order)
        match read_header(path):
            case None:
                unknown.append(path)
            case Other(kind=kind):
                left_out.setdefault(kind, []).append(path)
            case Flawed(series=""):
                damaged.append(path)
            case Flawed() as flaw:
                flawed.setdefault(flaw.series, []).append(flaw)
            case own if path.name.startswith("."):
                hidden.append(own)
            case own:
                slices.setdefault(own.series, []).append(own)
    read = {_identity(own) for alike in slices.values() for own in alike}
    for own in hidden:
        if _identity(own) in read:
            left_out.setdefault(_HIDDEN, []).append(own.path)
        else:
            problem = f"{own.path}: is a slice and hidden; rename it, so that it is read, or move it away."
            flawed.setdefault(own.series, []).append(Flawed(own.path, own.series, problem, _HIDDEN))
    series: list[Series] = []
    for uid in dict.fromkeys((*slices, *flawed)):
        found, single = volumes_of(slices.get(uid, []), flawed.get(uid, []))
        repeated = [path for own in found for path, _ in own.doubles]
        for kind, paths in (("single slice", single), ("repeated slice", repeated)):
            if paths:
                left_out.setdefault(kind, []).extend(paths)
        series += found
        if not found and uid in flawed:
            flaws = flawed[uid]
            if len(flaws) == 1 and flaws[0].kind:
                left_out.setdefault(flaws[0].kind, []).append(flaws[0].path)
            else:
                files = tuple(flaw.path for flaw in flaws)
                series.append(Series(uid, "", (0, 0), files, (), np.eye(4), flaws[0].problem))
    beside = {(path.parent, path.suffix) for own in series for path in own.files}
    folders = {path.parent for own in series for path in own.files}
    damaged += [path for path in unknown if path.parent in folders and _may_be_slice(path, beside)]
    series.sort(key=lambda own: min(order[path] for path in own.files))
    return SeriesFound(series, sorted(damaged), left_out, frozenset({*order} - {*unknown} | {*damaged}))


def _identity(own: Slice) -> tuple[Hashable, ...]:
    return own.series, own.instance, own.traits, tuple(own.position)


def _may_be_slice(path: Path, beside: Container[tuple[Path, str]]) -> bool:
    """Whether a file beside slices that is not DICOM may have been one: by its name or its beginning.

    Args:
        beside: folders and the suffixes of the slices in them.
    """
    if path.suffix.lower() in PACKED:
        inner = Path(path.stem).suffix
        return (inner != "" and (path.parent, inner) in beside) or _holds_dicom(path)
    if (path.parent, path.suffix) not in beside:
        return False
    return bool(path.suffix) or (not path.name.startswith(".") and _breaks_off(path))


def _holds_dicom(path: Path) -> bool:
    """Whether gzip has written a file, and what it holds begins as DICOM."""
    try:
        with gzip.open(path) as file:
            start = file.read(132)
    except (OSError, EOFError, zlib.error):
        return False
    return start[128:] == b"DICM" or looks_like_dataset(start)


def _breaks_off(path: Path) -> bool:
    """Whether what is not DICOM is empty, zeros as a preamble is, the beginning of DICOM, or a link to nothing."""
    if not path.is_file():
        return path.is_symlink()
    with path.open("rb") as file:
        start = file.read(132)
    return not start.strip(b"\0") or looks_like_dataset(start)
