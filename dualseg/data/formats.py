"""Every volume file is read here: NIfTI, .img with .hdr, NRRD and MetaImage, in capitals too."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from dualseg.data.metaimage import stored_metaimage
from dualseg.data.nifti import partner, stored_nifti
from dualseg.data.nrrd import stored_nrrd
from dualseg.data.volumes import Grid
from dualseg.data.voxels import Stored, read_voxels
from dualseg.errors import DualsegError

SUFFIX = re.compile(r"\.(?:(?:nii|img|hdr)(?:\.gz)?|nrrd|nhdr|mha|mhd)$", re.IGNORECASE)
READ = ".nii.gz, .nii, .nrrd, .mha, .mhd or .img with .hdr"  # for messages

_HEADERS: dict[str, Callable[[Path], Stored]] = {
    **dict.fromkeys(("nii", "nii.gz", "img", "img.gz", "hdr", "hdr.gz"), stored_nifti),
    **dict.fromkeys(("nrrd", "nhdr"), stored_nrrd),
    **dict.fromkeys(("mha", "mhd"), stored_metaimage),
}


def read_volume(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a 3-D volume, with or without channels, to the last byte of its file.

    Returns:
        array: (C, W, H, D) float32, C-contiguous, scale and offset of the file applied; C = 1 where it has no channels.
        affine: (4, 4) float64, voxel indices -> millimetres (RAS+).

    Raises:
        DualsegError: the file is missing, damaged (by its checksum, where its format has one), shorter or longer than
            its header says, of another format, no volume; it holds NaN or infinity; or its affine is not invertible.
    """
    stored = stored_volume(path)
    return read_voxels(stored), stored.affine


def read_grid(path: str | Path) -> Grid:
    """Shape and affine, as the file's header has them; no voxel is read.

    Raises:
        DualsegError: as `read_volume`, where the header shows it.
    """
    return stored_volume(path).grid


def stored_volume(path: str | Path) -> Stored:
    """What the header of a file says of its volume; no voxel is read.

    Raises:
        DualsegError: as `read_volume`, where the header shows it.
    """
    path = Path(path)
    suffix = SUFFIX.search(path.name)
    if suffix is None:
        raise DualsegError(f"{path}: is of a kind that is not read; convert it to {READ}")
    return _HEADERS[suffix[0][1:].lower()](path)


def stem_of(name: str) -> str:
    """Name of a volume's file without its suffix."""
    return SUFFIX.sub("", name)


def one_file_each(paths: Iterable[Path]) -> list[Path]:
    """The volumes among files, in their order: those with a suffix that is read, and of a pair the .img alone."""
    volumes = [path for path in paths if SUFFIX.search(path.name)]
    there = {*volumes}
    return [path for path in volumes if partner(path, "img") == path or partner(path, "img") not in there]
