"""The scans that `input=` names, found and read."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import numpy as np

from dualseg.data.checking.geometry import grid_problem, shear_problem
from dualseg.data.checking.header import header_problems
from dualseg.data.dicom import Series, SeriesFound, damage_of, find_series, left_out_line, read_series
from dualseg.data.formats import READ, SUFFIX, one_file_each, stem_of, stored_volume
from dualseg.data.layouts import CHANNEL
from dualseg.data.not_read import PICTURES, is_document, parts_of, some, unread
from dualseg.data.problems import Problem
from dualseg.data.volumes import Grid, Image
from dualseg.data.voxels import Stored, read_voxels
from dualseg.errors import DualsegError
from dualseg.files import files_below
from dualseg.prediction.grid import ScanGrid
from dualseg.prediction.names import name_scans
from dualseg.prediction.record import Entry

# names that DICOM files have, which often name the patient too
_DICOM_NAME = re.compile(r"\.(dcm|dicom|ima|\d+)$|^[^.]*$", re.IGNORECASE)


class Scan(NamedTuple):
    """A scan in memory: `image` with the affine in mm, and the grid that maps are written on."""

    image: Image
    grid: ScanGrid


@dataclass(frozen=True)
class FileScan:
    """A scan in one file, or in one for each channel.

    Attributes:
        kind: what it is called where its name may not be written.
        name: of its outputs.
        files: in the order of the channels.
    """

    kind: ClassVar = "file"
    name: str
    files: tuple[Path, ...]

    @property
    def parts(self) -> tuple[Path, ...]:
        """All files that it is read from."""
        return tuple(part for file in self.files for part in (file, *parts_of(file)))

    @property
    def place(self) -> tuple[str, ...]:
        """What tells it from other scans also when its files change."""
        return str(self.files[0].parent.resolve()), stem_of(self.files[0].name)

    @property
    def where(self) -> str:
        """What messages call it."""
        return str(self.files[0])

    @property
    def source(self) -> str:
        """What is written of where it lies."""
        return self.where

    def doubts(self, grid: ScanGrid) -> list[Problem]:
        """What makes the place of its voxels doubtful. `grid`: as `read` gives it."""
        sheared = shear_problem(Grid(grid.shape, grid.affine))
        found = [problem for file in self.files for problem in header_problems(file)]
        return list(dict.fromkeys([*([sheared] if sheared else []), *found]))

    def grid(self, channels: int) -> Grid:
        """Its grid by the headers alone, with the channels of all files.

        Raises:
            DualsegError: as `read`, where the headers show it.
        """
        return self._stored(channels)[0].grid._replace(channels=channels)

    def read(self, channels: int) -> Scan:
        """Read it.

        Raises:
            DualsegError: a file is missing, damaged or no volume, or the channels do not number `channels`, are not
                0000, 0001, ... each once, or are not on one grid.
        """
        stored = self._stored(channels)
        arrays = [read_voxels(one) for one in stored]
        volume = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        return Scan(Image(volume, stored[0].affine), ScanGrid.of_stored(stored[0]))

    def _stored(self, channels: int) -> list[Stored]:
        """What the headers say, after a check that they fit together."""
        if len(self.files) > 1 and [_channel(file) for file in self.files] != list(range(len(self.files))):
            names = ", ".join(file.name for file in self.files)
            raise DualsegError(
                f"{self.where}: a scan's channels are _0000, _0001, ..., one file each; here are {names}. Give all "
                "channels, and each once."
            )
        stored = [stored_volume(file) for file in self.files]
        for one in stored[1:]:
            if problem := grid_problem(stored[0].grid, one.grid):
                raise DualsegError(f"{one.path}: is on another grid than {self.files[0]}: {problem.text}")
        count = sum(one.channels for one in stored)
        if count != channels:
            mend = "one 4-D file, or CASE_0000.nii.gz, CASE_0001.nii.gz, ... of its folder" if channels > 1 else "one"
            raise DualsegError(f"{self.where}: has {count} channels, the networks take {channels}: {mend}.")
        return stored


@dataclass(frozen=True)
class DicomScan:
    """A DICOM series.

    Attributes:
        name: of its outputs; made from a number, unless identifiers were asked for.
        folder: of its first file.
        series: its files; None: there are damaged ones alone.
        damaged: files beside them whose header cannot be read, so that nobody knows whether slices are missing.
        identified: what is written may name the patient.
    """

    kind: ClassVar = "series"
    name: str
    folder: Path
    series: Series | None
    damaged: tuple[Path, ...]
    identified: bool

    @property
    def parts(self) -> tuple[Path, ...]:
        """All files that it is read from."""
        return (*(self.series.files if self.series else ()), *self.damaged)

    @property
    def place(self) -> tuple[str, ...]:
        """What tells it from other scans also when its files change; nothing where there is no series yet."""
        return (self.series.uid, str(self.folder.resolve())) if self.series else ()

    @property
    def where(self) -> str:
        """What messages call it: its folder, and of the several series that this may hold the one with that file."""
        return f"{self.folder} (series of {self.series.files[0].name})" if self.series else str(self.folder)

    def doubts(self, grid: ScanGrid) -> list[Problem]:
        """As of a NIfTI file; `read` refuses what would make a series doubtful."""
        return []

    @property
    def source(self) -> str:
        """What may be written of where it lies: folders and files of DICOM often bear the name of the patient."""
        return str(self.folder) if self.identified else ""

    def grid(self, channels: int) -> Grid:
        """Its grid by the headers alone.

        Raises:
            DualsegError: as `read`, where the headers show it.
        """
        return self._volume(channels).grid

    def read(self, channels: int) -> Scan:
        """Read it.

        Raises:
            DualsegError: a file is damaged, the series is no volume, or the networks take several channels.
        """
        image = read_series(self._volume(channels))
        width, height, depth = image.array.shape[1:]
        return Scan(image, ScanGrid.of_affine((width, height, depth), image.affine))

    def _volume(self, channels: int) -> Series:
        if self.damaged or self.series is None:
            raise DualsegError(damage_of(self.damaged[0]))
        if channels > 1:
            raise DualsegError(f"{self.where}: is one channel, the networks take {channels}; convert them to NIfTI.")
        return self.series


@dataclass(frozen=True)
class UnreadFile:
    """A file of a folder that may be a scan, and is of a kind that is not read.

    Attributes:
        name: of its row; made from a number where the file may be called after the patient.
        file: where it lies.
        identified: what is written may name it.
    """

    kind: ClassVar = "unread"
    name: str
    file: Path
    identified: bool

    @property
    def parts(self) -> tuple[Path, ...]:
        """It alone."""
        return (self.file,)

    @property
    def place(self) -> tuple[str, ...]:
        """What tells it from others also when it changes."""
        return str(self.file.parent.resolve()), self.file.name

    @property
    def where(self) -> str:
        """What messages call it."""
        return str(self.file)

    @property
    def source(self) -> str:
        """What may be written of where it lies."""
        return self.where if self.identified else ""

    def doubts(self, grid: ScanGrid) -> list[Problem]:
        """As of a file that is read; nobody gets so far."""
        return []

    def grid(self, channels: int) -> Grid:
        """Raises: DualsegError."""
        raise self._refusal()

    def read(self, channels: int) -> Scan:
        """Raises: DualsegError."""
        raise self._refusal()

    def _refusal(self) -> DualsegError:
        what = "is hidden" if self.file.name.startswith(".") else "is of a kind that is not read"
        return DualsegError(
            f"{self.file}: {what}; make it {READ}, or name the files to predict in place of the folder."
        )


AnyScan = FileScan | DicomScan | UnreadFile


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
        match = CHANNEL.fullmatch(stem_of(file.name)) if numbered else None
        groups.setdefault(file.with_name(match[1]) if match else file, []).append(file)
    for case, files in groups.items():
        yield FileScan(_name_below(folder, case), tuple(files))


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


def _channel(file: Path) -> int | None:
    match = CHANNEL.fullmatch(stem_of(file.name))
    return int(match[2]) if match else None
