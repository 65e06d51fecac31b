"""How much memory a process may take on this machine; sizes and times as people write them. No torch here."""

import math
import os
import re
import resource
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple, Self

from dualseg.errors import DualsegError

SHARE = 0.9  # of what the machine has; the rest is for the system and whatever else runs
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_TOO_LITTLE = re.compile(r"out of memory|not enough memory|can't allocate memory", re.IGNORECASE)


def bytes_of(key: str, text: object) -> int:
    """8GiB, 900 MB, ... as a number of bytes. Raises: DualsegError naming `key` where it is no such size."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?I?B)", str(text).upper())
    if match is None or match[2] not in _UNITS or float(match[1]) == 0:
        raise DualsegError(f"{key}={text}: give a size such as 8GiB or 900MiB.")
    return int(float(match[1]) * _UNITS[match[2]])


def size_text(size: float) -> str:
    """A number of bytes for messages: 13.2 GiB."""
    power = next(power for power in (4, 3, 2) if size >= 1024**power or power == 2)
    number = size / 1024**power
    return (f"{number:.3g}" if number < 1000 else f"{number:,.0f}") + " " + ("MiB", "GiB", "TiB")[power - 2]


def duration(seconds: float) -> str:
    """3 h 20 min, 7 min 12 s, 45 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class MemoryLimit(NamedTuple):
    """How many bytes of RAM may be taken.

    Attributes:
        size: in bytes.
        said: what messages say of it, after "and".
        key: what a user sets to allow more.
    """

    size: int
    said: str
    key: str

    @classmethod
    def of(cls, key: str, given: object = None) -> Self:
        """The limit that `key` gives; None: `SHARE` of what this machine has for the process.

        Raises:
            DualsegError: no size.
        """
        if given is None:
            size = int(SHARE * machine_memory())
            return cls(size, f"this machine offers {size_text(size)}", key)
        return cls(bytes_of(key, given), f"{key}={given} is given", key)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether Python, NumPy or torch could not have the memory that they asked for; also where another wraps that."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _TOO_LITTLE.search(str(error))):
            return True
        error = error.__cause__
    return False


def machine_memory(root: Path = Path("/")) -> int:
    """Bytes: the least of the RAM, the limits of this process's cgroups (a container's, a Slurm job's) and `ulimit -v`.

    Args:
        root: of the file system.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_cgroup_limits(root)]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft)
    return min(limits)


def file_problem(shape: Sequence[int]) -> str | None:
    """What keeps a file whose header says this shape from being read at all: as float32 it does not fit this machine.

    Readers ask before they allocate: a small file can say anything.
    """
    needed, limit = 4 * math.prod(shape), MemoryLimit.of("memory")
    if needed <= limit.size:
        return None
    size = " x ".join(map(str, shape))
    return f"its header says {size} voxels, {size_text(needed)}, and {limit.said}; correct the header or the file."


@cache  # asked for each file that is read
def _cgroup_limits(root: Path) -> list[int]:
    """Of the process's own cgroup and those around it, version 1 or 2; empty where there are none."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    limits = []
    for line in lines:  # hierarchy:controllers:path; of version 2 the controllers are empty
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            mount, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        # a container may see its own cgroup as the mount itself, under a path that is only there outside it
        own = mount / path.lstrip("/")
        for folder in (own, *(parent for parent in own.parents if parent.is_relative_to(mount))):
            try:
                limits.append(int((folder / name).read_text()))
            except (OSError, ValueError):  # not there, or "max"
                continue
    return limits
