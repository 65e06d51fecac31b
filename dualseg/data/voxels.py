"""The voxels of a file, whatever its format: unpacked as a stream, compared with checksums, no more than promised."""

import bz2
import io
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import nibabel as nib
import numpy as np
from nibabel.volumeutils import apply_read_scaling

from dualseg.data.problems import VolumeError, is_invertible
from dualseg.data.volumes import Grid
from dualseg.errors import DualsegError
from dualseg.machine import file_problem

Packing = Literal["", "gzip", "zlib", "bzip2"]

_CHUNK = 1 << 18  # packed bytes that are read at once
_SLAB = 1 << 21  # bytes of voxels that are unpacked at once
_MOST_ZEROS = 4095  # bytes that may follow the last voxel of a NIfTI file: some programs fill up a block
_SLICES = 8  # of them, at least
_DAMAGE = (zlib.error, EOFError, OSError, ValueError)


@dataclass(frozen=True)
class Stored:
    """A volume as the header of its file describes it; no voxel has been read.

    Attributes:
        path: what messages call it.
        kind: of file, for messages.
        file: where the voxels lie, which may be another file than that of the header.
        start: bytes of `file` before what is packed.
        packing: how the voxels are packed.
        skip: unpacked bytes before the first voxel.
        dtype: of a voxel.
        shape: (W, H, D) or (W, H, D, C), first index fastest in the file; with `channels_first` (C, W, H, D).
        affine: (4, 4) float64, voxel indices -> millimetres (RAS+).
        slope, intercept: value = slope * stored + intercept.
        header: that of a NIfTI file.
        unit: that the file counts lengths in.
        missing: fields of a header that is not NIfTI's, without which its spacing or orientation is a guess.

    Raises:
        DualsegError: it is no 3-D volume, with or without channels, or its affine is not invertible.
    """

    path: Path
    kind: str
    file: Path
    start: int
    packing: Packing
    skip: int
    dtype: np.dtype
    shape: tuple[int, ...]
    affine: np.ndarray
    channels_first: bool = False
    slope: float = 1.0
    intercept: float = 0.0
    header: nib.Nifti1Header | None = None
    unit: str = "mm"
    missing: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.shape) > 4 or len(self.grid.shape) != 3 or min(self.shape) < 1 or min(self.grid.shape) < 2:
            shape = " x ".join(map(str, self.shape))
            needed = "a volume W x H x D or W x H x D x channels is needed"
            raise VolumeError("shape", f"{self.path}: {needed}, this file is {shape}")
        check_affine(self.path, self.affine)

    @property
    def grid(self) -> Grid:
        """Where the voxels lie."""
        shape = self.shape[1:] if self.channels_first else self.shape[:3]
        return Grid(shape, self.affine, self.channels, self.unit)

    @property
    def channels(self) -> int:
        """C."""
        return self.shape[0] if self.channels_first else math.prod(self.shape[3:])

    @property
    def length(self) -> int:
        """Unpacked bytes, up to the end of the last voxel."""
        return self.skip + math.prod(self.shape) * self.dtype.itemsize


def check_affine(path: Path, affine: np.ndarray) -> None:
    """Raises: DualsegError where spacing and millimetres mean nothing, for the affine is not invertible."""
    if not is_invertible(affine):
        raise VolumeError(
            "affine", f"{path}: its affine is not invertible ({affine.tolist()}); set it in the file's header"
        )


def check_is_file(path: Path) -> None:
    """Raises: DualsegError where there is no file to open."""
    if path.is_file():
        return
    if path.is_symlink():
        raise DualsegError(f"{path}: is a link to {path.readlink()}, where no file is; put it there")
    what = "is a folder, not a file" if path.is_dir() else "no such file"
    raise DualsegError(f"{path}: {what}; check the data root and the case name")


def unreadable(path: Path, kind: str, why: Exception | str) -> DualsegError:
    """What is said of a damaged file, or of one that its suffix misnames."""
    return DualsegError(f"{path}: cannot be read as {kind} ({why}); copy or convert the file again")


def read_voxels(stored: Stored) -> np.ndarray:
    """Read the voxels; memory is taken once the file is known to hold as many as its header promises.

    The file is read to its end: gzip, zlib and bzip2 compare their checksums there.

    Returns:
        (C, W, H, D) float32, C-contiguous; slope and intercept are applied in float64, as nibabel does.

    Raises:
        DualsegError: the file is missing, damaged, shorter or longer than its header says, or holds NaN or infinity; or
            this machine cannot hold what its header says.
    """
    if not stored.file.is_file():
        raise DualsegError(f"{stored.path}: its voxels are in {stored.file}, but there is no such file; put it there")
    if problem := file_problem(stored.shape):
        raise VolumeError("memory", f"{stored.path}: {problem}")
    try:
        _check_length(stored)
        array, finite = _read(stored)
    except _DAMAGE as error:
        raise unreadable(stored.path, stored.kind, error) from error
    if not finite:
        raise VolumeError("NaN", f"{stored.path}: holds NaN or infinite voxels; replace them by numbers")
    return array


@contextmanager
def unpacked(file: Path, packing: Packing, start: int = 0) -> Iterator[BinaryIO]:
    """The bytes of a file from `start` on, as they were before they were packed."""
    with file.open("rb") as packed:
        packed.seek(start)
        if packing == "bzip2":
            yield bz2.BZ2File(packed)  # type: ignore[misc]
        else:
            yield _Inflated(packed) if packing else packed  # type: ignore[misc]


def fill(stream: BinaryIO, target: memoryview) -> int:
    """Read until `target` is full or the stream ends; returns how many bytes were read."""
    count = 0
    while count < len(target) and (some := stream.readinto(target[count:])):  # type: ignore[attr-defined]
        count += some
    return count


class _Inflated(io.RawIOBase):
    """gzip or zlib data. zlib compares checksum and length of each part of the stream when its end is read."""

    def __init__(self, packed: BinaryIO) -> None:
        self._packed = packed
        self._waiting = b""  # read and not yet unpacked
        self._part = _inflater()

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while len(target) and not (self._part.eof and self._is_end()):
            data = self._waiting or self._packed.read(_CHUNK)
            some = self._part.decompress(data, len(target))
            self._waiting = self._part.unused_data if self._part.eof else self._part.unconsumed_tail
            if some:
                target[: len(some)] = some
                return len(some)
            if not data and not self._part.eof:
                raise EOFError("it breaks off before its end")
        return 0

    def _is_end(self) -> bool:
        """Whether nothing follows but zeros, with which tapes are padded; another part of gzip is begun."""
        rest = self._waiting.lstrip(b"\0")
        while len(rest) < 2 and (more := self._packed.read(_CHUNK)):
            rest = (rest + more).lstrip(b"\0")
        self._waiting = rest
        if rest and not rest.startswith(b"\x1f\x8b"):
            raise ValueError("something follows the end of its compressed data")
        if rest:
            self._part = _inflater()
        return not rest


def _inflater() -> Any:
    return zlib.decompressobj(32 + zlib.MAX_WBITS)  # gzip or zlib, by its first bytes


def _check_length(stored: Stored) -> None:
    """Raises: ValueError, VolumeError where there are fewer or more bytes than the header promises."""
    if stored.packing == "gzip":
        with stored.file.open("rb") as file:
            file.seek(-4, io.SEEK_END)
            if int.from_bytes(file.read(4), "little") == stored.length % 2**32:  # unpacked length; zlib compares it
                return
    # several parts, padding or damage; zlib and bzip2 do not say how long they are
    there = _unpacked_length(stored) if stored.packing else stored.file.stat().st_size - stored.start
    most = stored.length + (_MOST_ZEROS if stored.kind == "NIfTI" else 0)
    if there < stored.length:
        raise ValueError(f"it holds {there} bytes, its header promises {stored.length}")
    if there > most:
        raise _too_long(stored, there - stored.length, "at least " if stored.packing else "")


def _unpacked_length(stored: Stored) -> int:
    """Of the whole stream, or of more than may be there."""
    buffer = memoryview(bytearray(_SLAB))
    count, most = 0, stored.length + _MOST_ZEROS + 1
    with unpacked(stored.file, stored.packing, stored.start) as stream:
        while count < most and (some := fill(stream, buffer[: most - count])):
            count += some
    return count


def _check_end(stream: BinaryIO, stored: Stored) -> None:
    """Read what follows the last voxel, to the checksum. Raises: VolumeError where it is no padding of a NIfTI file."""
    rest = bytearray(_MOST_ZEROS + 1)
    count = fill(stream, memoryview(rest))
    if count and (stored.kind != "NIfTI" or count > _MOST_ZEROS or any(rest)):
        raise _too_long(stored, count)


def _too_long(stored: Stored, count: int, least: str = "") -> VolumeError:
    text = f"holds {least}{count} bytes more than the {stored.length} that its header promises"
    return VolumeError("unreadable", f"{stored.path}: {text}; correct the header, or copy or convert the file again")


def _read(stored: Stored) -> tuple[np.ndarray, bool]:
    """The array, and whether all of it is finite."""
    shape = stored.grid.shape
    array = np.empty((stored.channels, *shape), np.float32)
    finite = True
    with unpacked(stored.file, stored.packing, stored.start) as stream:
        _pass(stream, stored.skip)
        for block in [array] if stored.channels_first else array:
            finite &= _read_block(stream, stored, block)
        _check_end(stream, stored)
    return array, finite


def _read_block(stream: BinaryIO, stored: Stored, block: np.ndarray) -> bool:
    """Fill `block` (..., D) with what the stream has, first index fastest; returns whether all of it is finite."""
    *in_slice, depth = block.shape
    slice_bytes = math.prod(in_slice) * stored.dtype.itemsize
    # several slices at once, since neighbours along the last axis lie side by side in `block`
    step = min(depth, max(_SLICES, _SLAB // slice_bytes))
    buffer = memoryview(bytearray(step * slice_bytes))
    always_finite = stored.dtype.kind in "ui" and (stored.slope, stored.intercept) == (1, 0)
    finite = True
    for first in range(0, depth, step):
        count = min(step, depth - first)
        part = buffer[: count * slice_bytes]
        if fill(stream, part) < len(part):
            raise EOFError("it breaks off before its last voxel")
        values = np.frombuffer(part, stored.dtype)
        with np.errstate(over="ignore", invalid="ignore"):  # infinite values are told of
            scaled = apply_read_scaling(values, np.float64(stored.slope), np.float64(stored.intercept))
            scaled = scaled.astype(np.float32, copy=False)
        finite = finite and (always_finite or bool(np.isfinite(scaled).all()))
        block[..., first : first + count] = scaled.reshape((*in_slice, count), order="F")
    return finite


def _pass(stream: BinaryIO, count: int) -> None:
    buffer = memoryview(bytearray(min(count, _SLAB)))
    while count > 0:
        some = fill(stream, buffer[: min(count, len(buffer))])
        if not some:
            raise EOFError("it breaks off before its first voxel")
        count -= some
