"""All DICOM of a folder: its volumes, what is damaged, and what belongs to no volume."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dualseg.data.dicom.headers import Flawed, Other, Slice, looks_like_dataset, read_header
from dualseg.data.dicom.series import Series, volumes_of
from dualseg.files import files_below


class SeriesFound(NamedTuple):
    """What a folder holds.

    Attributes:
        series: volumes, also those that `read_series` refuses, in the order of their first files.
        damaged: DICOM files whose header does not say which series they belong to.
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
    which no gap would tell of. Of files without a suffix, only one that is empty or begins as DICOM does.
    """
    slices: dict[str, list[Slice]] = {}
    flawed: dict[str, list[Flawed]] = {}
    damaged: list[Path] = []
    left_out: dict[str, list[Path]] = {}
    unknown: list[Path] = []
    order: dict[Path, int] = {}
    for path in files_below(folder):
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
            case own:
                slices.setdefault(own.series, []).append(own)
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
    damaged += [path for path in unknown if (path.parent, path.suffix) in beside and (path.suffix or _breaks_off(path))]
    series.sort(key=lambda own: min(order[path] for path in own.files))
    return SeriesFound(series, sorted(damaged), left_out, frozenset({*order} - {*unknown} | {*damaged}))


def _breaks_off(path: Path) -> bool:
    """Whether what is not DICOM is empty, zeros as a preamble is, the beginning of DICOM, or a link to nothing."""
    if not path.is_file():
        return path.is_symlink()
    with path.open("rb") as file:
        start = file.read(132)
    return not start.strip(b"\0") or looks_like_dataset(start)
