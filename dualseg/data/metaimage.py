"""MetaImage files, .mha and .mhd: what their headers say.

Read here, not by ITK, which takes compressed data whose checksum is wrong for good.
"""

import math
from pathlib import Path

import numpy as np

from dualseg.data.voxels import Stored, check_is_file, unreadable
from dualseg.errors import DualsegError

_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
# other names of one field
_SYNONYMS = {
    "Orientation": "TransformMatrix",
    "Rotation": "TransformMatrix",
    "Position": "Offset",
    "Origin": "Offset",
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
}
_LAST = "ElementDataFile"  # field of the header, after which the voxels follow
_LONGEST_HEADER = 1 << 16
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def stored_metaimage(path: Path) -> Stored:
    """What the header says; no voxel is read.

    Channels are those of a voxel, or a fourth axis.

    Raises:
        DualsegError: the file is missing or no MetaImage, it is of a form that is not read, or no volume.
    """
    check_is_file(path)
    try:
        fields, end = _header(path)
        axes = [int(size) for size in fields["DimSize"].split()]
        count = int(fields.get("ElementNumberOfChannels", 1))
        given = fields[_LAST]
        if given.startswith("LIST") or "%" in given:
            raise ValueError("its voxels lie in several files")
        local = given.upper() == "LOCAL"
        file = path if local else path.parent / given
        dtype = np.dtype(_TYPES[fields["ElementType"]])
        packed, skip = _is_true(fields.get("CompressedData")), int(fields.get("HeaderSize", 0))
        start = end if local else 0
        if skip == -1 and not packed:
            start = max(start, file.stat().st_size - math.prod(axes) * count * dtype.itemsize)
        return Stored(
            path=path,
            kind="MetaImage",
            file=file,
            start=start + max(0, skip),
            packing="zlib" if packed else "",
            skip=0,
            dtype=dtype.newbyteorder(">" if _is_true(fields.get("BinaryDataByteOrderMSB")) else "<"),
            shape=tuple(axes) if count == 1 else (count, *axes),
            affine=_affine(fields, len(axes)),
            channels_first=count > 1,
            missing=tuple(field for field, given in _placing(fields).items() if not given),
        )
    except DualsegError:
        raise
    except KeyError as error:
        raise unreadable(path, "MetaImage", f"its header lacks {error}, or that is unknown") from error
    except (ValueError, OSError, OverflowError) as error:
        raise unreadable(path, "MetaImage", error) from error


def _header(path: Path) -> tuple[dict[str, str], int]:
    """The fields, and where what follows the header begins."""
    with path.open("rb") as file:
        head = file.read(_LONGEST_HEADER)
    fields: dict[str, str] = {}
    end = 0
    for line in head.splitlines(keepends=True):
        end += len(line)
        name, equals, value = line.decode("latin-1").partition("=")
        if not equals:
            raise ValueError(f"a line of its header is no NAME = VALUE: {name.strip()[:40]!r}")
        fields[_SYNONYMS.get(name.strip(), name.strip())] = value.strip()
        if name.strip() == _LAST:
            break
    else:
        raise ValueError(f"its header has no {_LAST}")
    if not _is_true(fields.get("BinaryData", "True")):
        raise ValueError("its voxels are text")
    if fields.get("DistanceUnits", "mm") not in ("mm", "?"):
        raise ValueError(f"its DistanceUnits are {fields['DistanceUnits']}, not mm")
    for name, neutral in (("ElementToIntensityFunctionSlope", 1), ("ElementToIntensityFunctionOffset", 0)):
        if float(fields.get(name, neutral)) != neutral:
            raise ValueError(f"it has {name}, which other programs leave out")
    return fields, end


def _is_true(value: str | None) -> bool:
    return value is not None and value[:1] in ("T", "t", "1")


def _affine(fields: dict[str, str], axes: int) -> np.ndarray:
    """(4, 4) voxel indices of the first three axes -> millimetres (RAS+), from a header in LPS."""
    affine = np.eye(4)
    if axes < 3:  # no volume, which its shape will tell
        return affine
    placing = _placing(fields)
    spacing = _numbers(placing["ElementSpacing"], np.ones(axes))
    if not (spacing > 0).all():
        raise ValueError(f"its ElementSpacing is {placing['ElementSpacing']}; edges of voxels are above 0")
    directions = _numbers(placing["TransformMatrix"], np.eye(axes))  # a row an axis
    affine[:3, :3] = directions[:3, :3].T * spacing[:3]
    affine[:3, 3] = _numbers(fields.get("Offset", ""), np.zeros(axes))[:3]
    return _LPS_TO_RAS @ affine


def _placing(fields: dict[str, str]) -> dict[str, str]:
    """What says how the voxels lie: field -> its text, "" where it is missing."""
    spacing = fields.get("ElementSpacing", fields.get("ElementSize", ""))
    return {"ElementSpacing": spacing, "TransformMatrix": fields.get("TransformMatrix", "")}


def _numbers(text: str, default: np.ndarray) -> np.ndarray:
    """As many as `default` has, in its shape; `default` where there are none."""
    return np.array(text.split(), float).reshape(default.shape) if text else default
