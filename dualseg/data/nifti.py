"""NIfTI files in and out: clear failures on bad files, and no half-written file under a final name."""

import re
import zlib
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Header, Nifti1PairHeader
from nibabel.nifti2 import Nifti2Header, Nifti2PairHeader
from nibabel.spatialimages import HeaderDataError
from nibabel.spm2analyze import Spm2AnalyzeHeader

from dualseg.data.volumes import Grid
from dualseg.data.voxels import Stored, check_affine, check_is_file, fill, read_voxels, unpacked, unreadable
from dualseg.errors import DualsegError
from dualseg.files import replacing

MILLIMETRES = {1: 1000.0, 2: 1.0, 3: 0.001}  # of NIfTI's codes for metre, millimetre, micrometre; unknown is mm
_UNITS = {1: "metres", 3: "micrometres"}  # their names where they are not mm
_PAIR = re.compile(r"\.(?:img|hdr)(\.gz)?$", re.IGNORECASE)  # one file for the voxels, one for the header
_LONGEST_HEADER = 1 << 26  # bytes of a .hdr file, with its extensions
UNREADABLE = (ImageFileError, HeaderDataError, zlib.error, EOFError, OSError, ValueError, OverflowError)


def read_nifti(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a 3-D volume, or a 4-D file whose last axis is channels.

    Args:
        path: a .nii or .nii.gz file, or either file of a pair .img and .hdr.

    Returns:
        array: (C, W, H, D) float32, C-contiguous, the file's scale and offset applied; C = 1 for a 3-D file.
        affine: (4, 4) float64, voxel indices -> millimetres (RAS+), whatever the file's unit of length.

    Raises:
        DualsegError: the file is missing, truncated, longer than its header says, unreadable or not NIfTI; the checksum
            of its compressed data is wrong; it is not a 3-D volume; holds NaN or infinity; or its affine is not
            invertible.
    """
    stored = stored_nifti(Path(path))
    return read_voxels(stored), stored.affine


def read_grid(path: str | Path) -> Grid:
    """Shape and affine, in millimetres, as the file's header has them; no voxel is read.

    Raises:
        DualsegError: the file is missing, not NIfTI or no 3-D volume, or its affine is not invertible.
    """
    return stored_nifti(Path(path)).grid


def stored_nifti(path: Path) -> Stored:
    """What the header says, of a pair the .hdr file; no voxel is read.

    Raises:
        DualsegError: as `read_grid`.
    """
    file = partner(path, "img")
    check_is_file(partner(path, "hdr"))
    try:
        header = header_of(path)
        if header.get_data_dtype().kind not in "uif":
            raise ImageFileError(f"voxels of type {header.get_data_dtype()} are not plain numbers")
        slope, intercept = header.get_slope_inter()
        return Stored(
            path=path,
            kind="NIfTI",
            file=file,
            start=0,
            packing="gzip" if file.suffix.lower() == ".gz" else "",
            skip=header.get_data_offset(),
            dtype=header.get_data_dtype(),
            shape=tuple(map(int, header.get_data_shape())),
            affine=affine_in_mm(header).astype(np.float64),
            slope=1.0 if slope is None else slope,
            intercept=0.0 if intercept is None else intercept,
            header=header,
            unit=_UNITS.get(int(header["xyzt_units"]) & 7, "mm"),
        )
    except DualsegError:
        raise
    except UNREADABLE as error:
        raise unreadable(path, "NIfTI", error) from error


def partner(path: Path, suffix: str) -> Path:
    """The file of a pair whose suffix is img or hdr, in the case of `path`; `path` itself where it is of no pair."""
    match = _PAIR.search(path.name)
    if match is None:
        return path
    own = match[0].split(".")[1]
    return path.with_name(f"{path.name[: match.start()]}.{suffix.upper() if own.isupper() else suffix}{match[1] or ''}")


def header_of(path: Path, corrected: bool = True) -> Nifti1Header:
    """The header of a file, of a pair the .hdr; that of Analyze as of NIfTI with neither qform nor sform: it has none.

    Args:
        corrected: nibabel puts other values in the place of some that cannot be, such as 1 for a pixdim of 0.

    Raises:
        `UNREADABLE`: it cannot be read, or is not NIfTI.
    """
    file = partner(path, "hdr")
    is_pair = file != partner(path, "img")
    with unpacked(file, "gzip" if file.suffix.lower() == ".gz" else "") as stream:
        buffer = bytearray(Nifti2Header.sizeof_hdr)
        block = bytes(buffer[: fill(stream, memoryview(buffer))])
        if is_pair:  # no voxels follow: to the end of the stream, where gzip's checksum is compared
            _exhaust(stream)
    for kind in (Nifti1PairHeader, Nifti2PairHeader) if is_pair else (Nifti1Header, Nifti2Header):
        if kind.may_contain_header(block):
            header = kind(block[: kind.sizeof_hdr], check=corrected)
            if not is_pair and header["magic"] == kind.pair_magic:
                raise ImageFileError("its header says that the voxels are in another file; name the two .hdr and .img")
            return header
    if is_pair and Spm2AnalyzeHeader.may_contain_header(block):
        return _of_analyze(Spm2AnalyzeHeader(block[: Spm2AnalyzeHeader.sizeof_hdr]))
    raise ImageFileError("its header is not NIfTI")


def _exhaust(stream: BinaryIO) -> None:
    """Read on to the end. Raises: ImageFileError where that is further than any header's."""
    buffer = memoryview(bytearray(1 << 16))
    left = _LONGEST_HEADER
    while some := fill(stream, buffer):
        left -= some
        if left < 0:
            raise ImageFileError(f"its header file is longer than {_LONGEST_HEADER} bytes")


def _of_analyze(given: Spm2AnalyzeHeader) -> Nifti1Header:
    header = Nifti1PairHeader.from_header(given).as_byteswapped(given.endianness)
    slope, intercept = given.get_slope_inter()
    header["scl_slope"], header["scl_inter"] = slope or 0, intercept or 0
    header["vox_offset"] = given.get_data_offset()
    return header


def affine_in_mm(header: Nifti1Header) -> np.ndarray:
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
    affine = np.asarray(affine, np.float64)
    check_affine(path, affine)
    image = nib.Nifti1Image(array, affine, dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    with replacing(path) as temporary:
        nib.save(image, temporary)  # gzip level 1, no timestamp
