"""NIfTI files in and out: clear failures on bad files, and no half-written file under a final name."""

import gzip
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from dualseg.data.problems import VolumeError, is_invertible
from dualseg.data.volumes import Grid
from dualseg.errors import DualsegError
from dualseg.files import replacing

MILLIMETRES = {1: 1000.0, 2: 1.0, 3: 0.001}  # of NIfTI's codes for metre, millimetre, micrometre; unknown is mm
_UNREADABLE = (
    ImageFileError,
    HeaderDataError,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    OverflowError,
)


def read_nifti(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a 3-D volume, or a 4-D file whose last axis is channels.

    Args:
        path: a .nii or .nii.gz file.

    Returns:
        array: (C, W, H, D) float32, C-contiguous, the file's scale and offset applied; C = 1 for a 3-D file.
        affine: (4, 4) float64, voxel indices -> millimetres (RAS+), whatever the file's unit of length.

    Raises:
        DualsegError: the file is missing, truncated, unreadable or not NIfTI; is not a 3-D volume; holds NaN or
            infinity; or its affine is not invertible.
    """
    path = Path(path)
    image = _opened(path)
    try:
        array = np.asarray(image.dataobj, dtype=np.float32)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    if array.ndim not in (3, 4) or min(array.shape[:3]) < 2:
        shape = " x ".join(map(str, array.shape))
        raise VolumeError(
            "shape", f"{path}: a volume W x H x D or W x H x D x channels is needed, this file is {shape}"
        )
    if not np.isfinite(array).all():
        raise VolumeError("NaN", f"{path}: holds NaN or infinite voxels; replace them by numbers")
    array = array[None] if array.ndim == 3 else np.moveaxis(array, -1, 0)
    return np.ascontiguousarray(array), _checked_affine(path, affine_in_mm(image.header))


def read_grid(path: str | Path) -> Grid:
    """Shape and affine, in millimetres, as the file's header has them; no voxel is read.

    Raises:
        DualsegError: the file is missing or not NIfTI, or its affine is not invertible.
    """
    path = Path(path)
    image = _opened(path)
    return Grid(tuple(map(int, image.shape[:3])), _checked_affine(path, affine_in_mm(image.header)))


def affine_in_mm(header: nib.Nifti1Header) -> np.ndarray:
    """(4, 4) float64, voxel indices -> millimetres (RAS+), by a header whose unit of length may be another."""
    scale = MILLIMETRES.get(int(header["xyzt_units"]) & 7, 1.0)
    return np.diag([scale, scale, scale, 1.0]) @ header.get_best_affine()


def write_nifti(path: str | Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write a volume atomically: a temporary file in the target folder, synced, then renamed. Same input, same bytes.

    Args:
        path: target, ending in .nii or .nii.gz; missing parent folders are made, an existing file is replaced.
        array: (W, H, D) or (C, W, H, D), stored in its own type (bool as uint8); channels become the file's last axis.
        affine: (4, 4), voxel indices -> millimetres (RAS+).

    Raises:
        DualsegError: wrong suffix or shape, affine not invertible, or the file cannot be written.
    """
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise DualsegError(f"{path}: the name of a NIfTI file must end in .nii or .nii.gz")
    if array.ndim not in (3, 4):
        raise DualsegError(f"{path}: a NIfTI volume is (W, H, D) or (C, W, H, D), not {array.shape}")
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if array.ndim == 4:
        array = np.moveaxis(array, 0, -1)
    image = nib.Nifti1Image(array, _checked_affine(path, np.asarray(affine)), dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    with replacing(path) as temporary:
        nib.save(image, temporary)  # gzip level 1, no timestamp


def _opened(path: Path) -> nib.Nifti1Pair:
    if not path.is_file():
        raise DualsegError(f"{path}: no such file; check the data root and the case name")
    try:
        image = nib.load(path)
        if not isinstance(image, nib.Nifti1Pair):  # NIfTI-2 included
            raise ImageFileError(f"a {type(image).__name__}, not NIfTI")
        if image.get_data_dtype().kind not in "uif":
            raise ImageFileError(f"voxels of type {image.get_data_dtype()} are not plain numbers")
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    return image


def _unreadable(path: Path, error: Exception) -> DualsegError:
    return DualsegError(f"{path}: cannot be read as NIfTI ({error}); copy or convert the file again")


def _checked_affine(path: Path, affine: np.ndarray) -> np.ndarray:
    """The affine in float64, or DualsegError: without an invertible one, spacing and millimetres mean nothing."""
    affine = affine.astype(np.float64)
    if is_invertible(affine):
        return affine
    raise VolumeError(
        "affine", f"{path}: its affine is not invertible ({affine.tolist()}); set the header's qform or sform"
    )
