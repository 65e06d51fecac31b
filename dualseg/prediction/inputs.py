"""The scans that `input=` names: found in files and folders, none of them lost."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from dualseg.data.dicom import Series, SeriesFound, find_series, left_out_line
from dualseg.data.formats import READ, SUFFIX, one_file_each, stem_of, stored_volume
from dualseg.data.layouts import CHANNEL
from dualseg.data.not_read import PICTURES, is_document, some, unread
from dualseg.errors import DualsegError
from dualseg.files import files_below
from dualseg.prediction.names import name_scans
from dualseg.prediction.origin import Entry
from dualseg.prediction.scans import AnyScan, DicomScan, FileScan, UnreadFile

# names that DICOM files have, which often name the patient too
_DICOM_NAME = re.compile(r"\.(dcm|dicom|ima|\d+)$|^[^.]*$", re.IGNORECASE)


class Found(NamedTuple):
    """What the inputs hold.

    Attributes:
        scans: to be predicted, or to be told of.
        passed_over: files that are obviously none.
        left_out: kind of DICOM file -> how many add to no scan.
    """

    scans: list[AnyScan]
    passed_over: list[Path]
    left_out: Counter[str]


def find_scans(
    inputs: Sequence[str | Path],
    channels: int,
    identifiers: bool = False,
    known: Mapping[str, Entry] = MappingProxyType({}),
) -> Found:
    """The scans that files and folders hold, in the order of `inputs`, in a folder by name, DICOM after other files.

    No file of a folder is lost: one that may be a scan and is not read counts as a scan, whose reading fails.

    Outputs are named after the files; those of subfolders after the path below the folder, a_b for a/b.nii.gz; those of
    DICOM series are series-001, series-002, ...; see `name_scans`.

    Args:
        channels: that the networks take; if several, CASE_0000, CASE_0001, ... of a folder are one scan.
        identifiers: name the outputs of DICOM series after the patient's identifier and the folder.
        known: scans of an earlier start, which keep their names.

    Raises:
        DualsegError: an input is not there, or holds no scan; a file with a line break in its name.
    """
    found: list[AnyScan] = []
    passed_over: list[Path] = []
    left_out: Counter[str] = Counter()
    paths = [Path(given).expanduser() for given in inputs]
    files = {*one_file_each(path for path in paths if not path.is_dir())}
    for given, path in zip(inputs, paths, strict=True):
        if path.is_dir():
            below = _below(path, channels, identifiers)
            found += below.scans
            passed_over += below.passed_over
            left_out += below.left_out
        elif not path.exists():
            raise DualsegError(f"input={given}: no such file or folder.")
        elif not SUFFIX.search(path.name):
            raise DualsegError(f"input={given}: is of a kind that is not read; give {READ}, of DICOM the folder.")
        elif path in files:  # else the header of one that is given too
            found.append(FileScan(stem_of(path.name), (path,)))
    return Found(name_scans(found, known), passed_over, left_out)


def _below(folder: Path, channels: int, identifiers: bool) -> Found:
    """Raises: DualsegError where there is no scan that can be read."""
    files = list(files_below(folder, hidden=True))
    volumes = one_file_each(file for file in files if not file.name.startswith("."))
    series = find_series(folder)
    left_out = Counter({kind: len(paths) for kind, paths in series.left_out.items()})
    dicom = list(_dicom_scans(folder, series, identifiers, {*volumes}))
    left = unread(files, {*volumes, *series.files})
    passed_over = [file for file in left if PICTURES.fullmatch(file.suffix) or is_document(file)]
    others = sorted({*left} - {*passed_over})
    if not volumes and not dicom:
        held = f"; files not read: {len(left)} ({some([*others, *passed_over])})" if left else ""
        what = f"holds neither {READ} nor DICOM series of slices"
        if left_out:
            held = f". {left_out_line(left_out)}{held}"
        raise DualsegError(f"input={folder}: {what}{held}; convert scans to NIfTI.")
    unread_files = [
        UnreadFile(_name_below(folder, file), file, identifiers or not _DICOM_NAME.search(file.name)) for file in others
    ]
    return Found([*_file_scans(folder, volumes, channels), *dicom, *unread_files], passed_over, left_out)


def _file_scans(folder: Path, volumes: Sequence[Path], channels: int) -> Iterator[FileScan]:
    # with one channel a number may be the case's own, as in PANCREAS_0001, unless it is 0000 everywhere
    numbered = channels > 1 or all(stem_of(file.name).endswith("_0000") for file in volumes)
    groups: dict[Path, list[Path]] = {}
    for file in volumes:
        match = CHANNEL.fullmatch(stem_of(file.name)) if numbered and not _is_whole(file, channels) else None
        groups.setdefault(file.with_name(match[1]) if match else file, []).append(file)
    for case, files in groups.items():
        yield FileScan(_name_below(folder, case), tuple(files))


def _is_whole(file: Path, channels: int) -> bool:
    """One file has all of several channels, so that a number at the end of its name is the case's own."""
    with suppress(DualsegError):  # reading it will say what is wrong with it
        return channels > 1 and stored_volume(file).channels == channels
    return False


def _name_below(folder: Path, file: Path) -> str:
    """Of outputs: a_b for a/b.nii.gz."""
    return stem_of("_".join(file.relative_to(folder).parts))


def _dicom_scans(folder: Path, found: SeriesFound, identifiers: bool, volumes: Collection[Path]) -> Iterator[DicomScan]:
    """Args: volumes: files of other formats, which are no damaged DICOM either."""
    damaged: dict[Path, list[Path]] = {}
    for path in found.damaged:
        if path not in volumes:
            damaged.setdefault(path.parent, []).append(path)
    told: set[Path] = set()
    for series in found.series:
        folders = dict.fromkeys(path.parent for path in series.files)
        beside = tuple(path for own in folders for path in damaged.get(own, []))
        told.update(beside)
        yield _dicom_scan(folder, next(iter(folders)), series, beside, identifiers)
    for own, paths in damaged.items():
        if not told.issuperset(paths):
            yield _dicom_scan(folder, own, None, tuple(paths), identifiers)


def _dicom_scan(
    root: Path, folder: Path, series: Series | None, damaged: tuple[Path, ...], identifiers: bool
) -> DicomScan:
    words = [series.patient if series else "", *folder.relative_to(root).parts]
    name = re.sub(r"[^\w.-]+", "-", "_".join(word for word in words if word)) or "series"
    return DicomScan(name, folder, series, damaged, identifiers)
