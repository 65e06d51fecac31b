"""Arrays of a large volume: in memory while a budget lasts, then in files without a name."""

import mmap
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np

_BLOCK = bytes(1 << 24)


class Scratch:
    """Hands out arrays of zeros; each goes with its last reference, and the file behind it too, whatever happens.

    Args:
        folder: where the files lie; not a RAM disk, as /tmp is on many machines.
        room: bytes that may be taken from memory.
    """

    def __init__(self, folder: Path, room: int) -> None:
        self.folder, self.room = folder, room
        self._maps: list[mmap.mmap] = []

    def zeros(self, shape: tuple[int, ...], dtype: Any, order: Literal["C", "F"] = "C") -> np.ndarray:
        """An array of zeros.

        Raises:
            OSError: it does not fit into memory, nor the file onto the disk.
        """
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if size <= self.room:
            self.room -= size
            return np.zeros(shape, dtype, order)
        with tempfile.TemporaryFile(dir=self.folder) as file:
            # written, not truncated to its length: a full disk answers here, and not with SIGBUS in the middle
            for start in range(0, size, len(_BLOCK)):
                file.write(_BLOCK[: min(len(_BLOCK), size - start)])
            file.flush()
            mapped = mmap.mmap(file.fileno(), size)
        self._maps.append(mapped)
        return np.ndarray(shape, dtype, buffer=mapped, order=order)

    @property
    def on_disk(self) -> int:
        """Bytes in files."""
        return sum(len(mapped) for mapped in self._maps)

    def let_go(self) -> None:
        """Take what is in files out of this process's memory; the values stay, in the files."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for mapped in self._maps:
                mapped.madvise(mmap.MADV_DONTNEED)
