"""The scans that `input=` names, found and read."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, cast

import nibabel as nib
import numpy as np

from dualseg.data.checking.geometry import shear_problem
from dualseg.data.checking.header import header_problems
from dualseg.data.dicom import Series, files_below, find_series, read_series
from dualseg.data.layouts import CHANNEL, SUFFIX, stem_of
from dualseg.data.nifti import read_nifti
from dualseg.data.problems import Problem
from dualseg.data.volumes import Grid, Image
from dualseg.errors import DualsegError
from dualseg.names import check_printable
from dualseg.prediction.grid import ScanGrid


class Scan(NamedTuple):
    """A scan in memory: `image` with the affine in mm, and the grid that maps are written on."""

    image: Image
    grid: ScanGrid


@dataclass(frozen=True)
class NiftiScan:
    """A scan in one NIfTI file, or in one for each channel.

    Attributes:
        name: of its outputs.
        files: in the order of the channels.
    """

    name: str
    files: tuple[Path, ...]

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

    def read(self, channels: int) -> Scan:
        """Read it.

        Raises:
            DualsegError: a file is missing, damaged or no volume, or the channels do not number `channels`, are not
                0000, 0001, ... each once, or are not on one grid.
        """
        if len(self.files) > 1 and [_channel(file) for file in self.files] != list(range(len(self.files))):
            names = ", ".join(file.name for file in self.files)
            raise DualsegError(
                f"{self.where}: a scan's channels are _0000, _0001, ..., one file each; here are {names}. Give all "
                "channels, and each once."
            )
        arrays, grid = [], None
        for file in self.files:
            array, _ = read_nifti(file)
            own = ScanGrid.of_header(cast(nib.Nifti1Header, nib.load(file).header))
            if grid is None:
                grid = own
            elif own.shape != grid.shape or not np.allclose(own.affine, grid.affine, atol=1e-3):
                raise DualsegError(f"{file}: is on another grid than {self.files[0]}; bring the channels to one grid.")
            arrays.append(array)
        assert grid is not None
        volume = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        if len(volume) != channels:
            mend = "one 4-D file, or CASE_0000.nii.gz, CASE_0001.nii.gz, ... of its folder" if channels > 1 else "one"
            raise DualsegError(f"{self.where}: has {len(volume)} channels, the networks take {channels}: {mend}.")
        return Scan(Image(volume, grid.affine), grid)


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

    name: str
    folder: Path
    series: Series | None
    damaged: tuple[Path, ...]
    identified: bool

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

    def read(self, channels: int) -> Scan:
        """Read it.

        Raises:
            DualsegError: a file is damaged, the series is no volume, or the networks take several channels.
        """
        if self.damaged or self.series is None:
            mend = "slices of the series beside it may be missing; download them again"
            raise DualsegError(f"{self.damaged[0]}: is DICOM with a damaged header; {mend}.")
        if channels > 1:
            raise DualsegError(f"{self.where}: is one channel, the networks take {channels}; convert them to NIfTI.")
        image = read_series(self.series)
        width, height, depth = image.array.shape[1:]
        return Scan(image, ScanGrid.of_affine((width, height, depth), image.affine))


AnyScan = NiftiScan | DicomScan


def find_scans(inputs: Sequence[str | Path], channels: int, identifiers: bool = False) -> list[AnyScan]:
    """The scans that files and folders hold, in the order of `inputs`, in a folder by name, DICOM after NIfTI.

    Outputs are named after the files; those of subfolders after the path below the folder, a_b for a/b.nii.gz; those of
    DICOM series are series-001, series-002, ...; of two with one name the second is called NAME-2.

    Args:
        channels: that the networks take; if several, CASE_0000, CASE_0001, ... of a folder are one scan.
        identifiers: name the outputs of DICOM series after the patient's identifier and the folder.

    Raises:
        DualsegError: an input is not there, or holds no scan; a file with a line break in its name.
    """
    found: list[AnyScan] = []
    for given in inputs:
        path = Path(given).expanduser()
        if path.is_dir():
            below: list[AnyScan] = [*_nifti_below(path, channels), *_dicom_below(path, identifiers)]
            if not below:
                what = "holds neither .nii or .nii.gz files nor DICOM series of slices"
                raise DualsegError(f"input={given}: {what}; convert multi-frame DICOM to NIfTI.")
            found += below
        elif not path.exists():
            raise DualsegError(f"input={given}: no such file or folder.")
        elif not SUFFIX.search(path.name):
            raise DualsegError(f"input={given}: not a .nii or .nii.gz file; of DICOM give the folder.")
        else:
            found.append(NiftiScan(stem_of(path.name), (path,)))
    anonymous = 0
    taken: set[str] = set()
    scans = []
    for scan in found:
        stem = scan.name
        if isinstance(scan, DicomScan) and not identifiers:
            anonymous += 1
            stem = f"series-{anonymous:03d}"
        name, number = stem, 2
        while name in taken:
            name, number = f"{stem}-{number}", number + 1
        check_printable("scan", [name, scan.source or name])
        taken.add(name)
        scans.append(replace(scan, name=name))
    return scans


def _nifti_below(folder: Path, channels: int) -> Iterator[NiftiScan]:
    all_files = [file for file in files_below(folder) if SUFFIX.search(file.name)]
    # with one channel a number may be the case's own, as in PANCREAS_0001, unless it is 0000 everywhere
    numbered = channels > 1 or all(stem_of(file.name).endswith("_0000") for file in all_files)
    groups: dict[Path, list[Path]] = {}
    for file in all_files:
        match = CHANNEL.fullmatch(stem_of(file.name)) if numbered else None
        groups.setdefault(file.with_name(match[1]) if match else file, []).append(file)
    for case, files in groups.items():
        yield NiftiScan(stem_of("_".join(case.relative_to(folder).parts)), tuple(files))


def _dicom_below(folder: Path, identifiers: bool) -> Iterator[DicomScan]:
    """Its series of several slices; a single one, such as a scout view, is no volume and is passed over."""
    found = find_series(folder)
    damaged: dict[Path, list[Path]] = {}
    for path in found.damaged:
        damaged.setdefault(path.parent, []).append(path)
    told: set[Path] = set()
    for series in found.series:
        folders = dict.fromkeys(path.parent for path in series.files)
        if len(series.files) > 1:
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
