"""A scan to predict: in files, a DICOM series, or a file that is not read; what its headers say, and its voxels."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from dualseg.data.checking.geometry import grid_problem, shear_problem
from dualseg.data.checking.header import header_problems
from dualseg.data.dicom import Series, damage_of, read_series
from dualseg.data.formats import READ, stem_of, stored_volume
from dualseg.data.layouts import CHANNEL
from dualseg.data.not_read import parts_of
from dualseg.data.problems import Problem
from dualseg.data.volumes import Grid, Image
from dualseg.data.voxels import Stored, read_voxels
from dualseg.errors import DualsegError
from dualseg.prediction.grid import ScanGrid


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
            fix = "one 4-D file, or CASE_0000.nii.gz, CASE_0001.nii.gz, ... of its folder" if channels > 1 else "one"
            raise DualsegError(f"{self.where}: has {count} channels, the networks take {channels}: {fix}.")
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


def _channel(file: Path) -> int | None:
    match = CHANNEL.fullmatch(stem_of(file.name))
    return int(match[2]) if match else None
