"""The scans that `input=` names, found and read."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import nibabel as nib
import numpy as np

from dualseg.data.nifti import read_nifti
from dualseg.data.volumes import Image
from dualseg.errors import DualsegError
from dualseg.prediction.grid import ScanGrid

SUFFIX = re.compile(r"\.nii(\.gz)?$")
CHANNEL = re.compile(r"^(.+)_(\d{4})$")  # nnU-Net's: CASE_0000.nii.gz, CASE_0001.nii.gz, ...


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

    def read(self, channels: int) -> Scan:
        """Read it.

        Raises:
            DualsegError: a file is missing, damaged or no volume, or the channels do not number `channels` or are not
                on one grid.
        """
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


def find_scans(inputs: Sequence[str | Path], channels: int) -> list[NiftiScan]:
    """The scans that files and folders hold, in the order of `inputs`, in a folder by name.

    Outputs are named after the files; those of subfolders after the path below the folder, a_b for a/b.nii.gz; of two
    with one name the second is called NAME-2.

    Args:
        channels: that the networks take; if several, CASE_0000, CASE_0001, ... of a folder are one scan.

    Raises:
        DualsegError: an input is not there, or holds no scan.
    """
    found: list[tuple[str, tuple[Path, ...]]] = []
    for given in inputs:
        path = Path(given).expanduser()
        if path.is_dir():
            below = list(_by_channels(list(_nifti_below(path)), channels))
            if not below:
                raise DualsegError(f"input={given}: holds no .nii or .nii.gz file.")
            found += [(_stem("_".join(files[0].relative_to(path).parts), len(files)), files) for files in below]
        elif not path.exists():
            raise DualsegError(f"input={given}: no such file or folder.")
        elif not SUFFIX.search(path.name):
            raise DualsegError(f"input={given}: not a .nii or .nii.gz file; of DICOM give the folder.")
        else:
            found.append((_stem(path.name), (path,)))
    scans: dict[str, NiftiScan] = {}
    for stem, files in found:
        name, number = stem, 2
        while name in scans:
            name, number = f"{stem}-{number}", number + 1
        scans[name] = NiftiScan(name, files)
    return list(scans.values())


def _nifti_below(folder: Path) -> Iterator[Path]:
    """Without hidden files and folders: unfinished ones, and those that macOS leaves beside each file."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(names) if SUFFIX.search(name) and not name.startswith("."))


def _by_channels(files: Sequence[Path], channels: int) -> Iterator[tuple[Path, ...]]:
    groups: dict[Path, list[Path]] = {}
    for file in files:
        match = CHANNEL.match(_stem(file.name)) if channels > 1 else None
        groups.setdefault(file.with_name(match[1]) if match else file, []).append(file)
    yield from map(tuple, groups.values())


def _stem(name: str, files: int = 1) -> str:
    stem = SUFFIX.sub("", name)
    match = CHANNEL.match(stem) if files > 1 else None
    return match[1] if match else stem
