"""NRRD files, .nrrd and .nhdr: what their headers say."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import nrrd
import numpy as np

from dualseg.data.voxels import Packing, Stored, check_is_file, unreadable
from dualseg.errors import DualsegError

# of the axes of `space` -> RAS
_SPACES = {
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
}
_PACKINGS: dict[str, Packing] = {"raw": "", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}
_NAMES = {
    "i1": "signed char, int8, int8_t",
    "u1": "uchar, unsigned char, uint8, uint8_t",
    "i2": "short, short int, signed short, signed short int, int16, int16_t",
    "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
    "i4": "int, signed int, int32, int32_t",
    "u4": "uint, unsigned int, uint32, uint32_t",
    "i8": "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t",
    "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
    "f4": "float",
    "f8": "double",
}
_TYPES = {name: np.dtype(dtype) for dtype, names in _NAMES.items() for name in names.split(", ")}
_ENDIAN: dict[str, Literal["<", ">"]] = {"little": "<", "big": ">"}
_SPATIAL = ("domain", "space", "none", "???")  # kinds of axes that may be space
_MILLIMETRES = ("mm", "millimeter", "millimeters", "millimetre", "millimetres", "")
_LONGEST_HEADER = 1 << 20


def stored_nrrd(path: Path) -> Stored:
    """What the header says; no voxel is read.

    A fourth axis is one of channels, first or last in the file. Without a `space`, axes are those of DICOM (LPS).

    Raises:
        DualsegError: the file is missing or no NRRD, it is of a form that is not read, no volume, or does not say where
            its voxels lie.
    """
    check_is_file(path)
    try:
        header, end = _header(path)
        shape = tuple(map(int, header["sizes"]))
        axis = _channel_axis(header, shape)
        given = str(header.get("data file", header.get("datafile", "")))
        if given.startswith("LIST") or "%" in given:
            raise ValueError("its voxels lie in several files")
        if header["encoding"] not in _PACKINGS:
            raise ValueError(f"its encoding is {header['encoding']}; {', '.join(_PACKINGS)} are read")
        dtype = _TYPES[header["type"]]
        stored = Stored(
            path=path,
            kind="NRRD",
            file=path.parent / given if given else path,
            start=0 if given else end,
            packing=_PACKINGS[header["encoding"]],
            skip=0,
            dtype=dtype if dtype.itemsize == 1 else dtype.newbyteorder(_ENDIAN[header["endian"]]),
            shape=shape,
            affine=_affine(header, [k for k in range(len(shape)) if k != axis]),
            channels_first=axis == 0,
            missing=tuple(field for field in ("space", "space directions") if field not in header),
        )
        return _skipping(stored, header)
    except DualsegError:
        raise
    except KeyError as error:
        raise unreadable(path, "NRRD", f"its header lacks {error}, or that is unknown") from error
    except Exception as error:  # pynrrd raises whatever a damaged header leads to
        raise unreadable(path, "NRRD", error) from error


def _header(path: Path) -> tuple[Mapping[str, Any], int]:
    """The fields, and where what follows the header begins."""
    with path.open("rb") as file:
        head = file.read(_LONGEST_HEADER)
    end = re.search(rb"\r?\n\r?\n", head)
    if end is None and path.suffix.lower() != ".nhdr":
        raise ValueError("its header has no end")
    lines = head[: end.end() if end else None].splitlines(keepends=True)
    return nrrd.read_header(lines), end.end() if end else len(head)


def _channel_axis(header: Mapping[str, Any], shape: Sequence[int]) -> int | None:
    """The first or last of four axes that is not space; None: there are no four.

    Raises:
        ValueError: an axis in between is not space, or one of three.
    """
    kinds = header.get("kinds", ["domain"] * len(shape))
    directions = header.get("space directions", np.zeros((len(shape), 1)))
    others = [k for k in range(len(shape)) if kinds[k] not in _SPATIAL or np.isnan(directions[k]).any()]
    if others not in ([], [0], [len(shape) - 1]) or (others and len(shape) < 4):
        raise ValueError(f"its axes are {' x '.join(kinds)}; three of space, and channels first or last, are read")
    return others[0] if others else 3 if len(shape) == 4 else None


def _affine(header: Mapping[str, Any], axes: Sequence[int]) -> np.ndarray:
    """(4, 4) voxel indices of the three axes of space -> millimetres (RAS+)."""
    space = str(header.get("space", "left-posterior-superior")).lower()
    if space not in _SPACES:
        raise ValueError(f"its space is {space}; {', '.join(list(_SPACES)[::2])} are known")
    units = header.get("space units", [])
    if not {*map(str.lower, units[:3])} <= {*_MILLIMETRES}:
        raise ValueError(f"its space is in {', '.join(units)}, not in mm")
    affine = np.eye(4)
    if len(axes) != 3:  # no volume, which its shape will tell
        return affine
    if "space directions" in header:
        affine[:3, :3] = np.asarray(header["space directions"], float)[axes, :3].T
        affine[:3, 3] = np.asarray(header.get("space origin", (0, 0, 0)), float)[:3]
    elif "spacings" in header:
        spacings = np.asarray(header["spacings"], float)[axes]
        if not (spacings > 0).all():
            raise ValueError(f"its spacings are {spacings.tolist()}; edges of voxels are above 0")
        affine[:3, :3] = np.diag(spacings)
    return np.diag([*_SPACES[space], 1.0]) @ affine


def _skipping(stored: Stored, header: Mapping[str, Any]) -> Stored:
    """Without the bytes that the header says lie before the voxels; -1: as many as there are."""
    skip = int(header.get("byte skip", header.get("byteskip", 0)))
    if header.get("line skip", header.get("lineskip", 0)) or (skip and stored.packing):
        raise ValueError("it skips lines, or bytes of compressed data")
    if skip == -1:
        return replace(stored, start=max(0, stored.file.stat().st_size - stored.length))
    return replace(stored, start=stored.start + skip)
