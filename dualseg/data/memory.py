"""What volumes will take of RAM, by their headers alone, before one is read or resampled."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dualseg.data.problems import Problem, VolumeError
from dualseg.data.progress import with_bar
from dualseg.data.volumes import Grid, VolumeSource, label_dtype
from dualseg.errors import DualsegError
from dualseg.machine import MemoryLimit, size_text

BASE_BYTES = 3 << 28  # Python, torch and its kernels
# Of a volume, or of what it becomes where that is larger, while it is read, turned, resampled, cropped and normalised.
# The copy of a scan for a page is made when all but the scan itself are gone, and takes less than these.
COPIES = 5
# Times the voxels of its file, and the other volumes' median, that a volume must become for its header to be wrong. A
# slice of 20 mm among volumes of 1 mm makes 20; edges of 10 mm instead of 1 mm make 1000.
MADE_UP = 64
_GROWN = 2  # times the voxels of its file, from which on it is the spacing that makes a volume large
_SHOWN = 3  # largest volumes that a message names


def preparing_bytes(grid: Grid, voxels: int) -> int:
    """What exists at once while a volume on this grid becomes one of `voxels` for each channel."""
    return COPIES * 4 * grid.channels * max(math.prod(grid.shape), voxels)  # float32


class Size(NamedTuple):
    """What one volume takes, by its header.

    Attributes:
        where: what messages call it.
        grid: of its file.
        channels: of its file, or of the dataset where that has more.
        voxels: of a channel, once prepared.
        spacing: edges in mm that it is resampled to; None: it is not, or its source does not say.
    """

    where: str
    grid: Grid
    channels: int
    voxels: int
    spacing: Sequence[float] | None

    @property
    def stored(self) -> int:
        """Voxels of a channel in the file."""
        return math.prod(self.grid.shape)

    @property
    def prepared_bytes(self) -> int:
        """As float32."""
        return 4 * self.channels * self.voxels

    @property
    def reading_bytes(self) -> int:
        """Of all that exists at once while it is read and prepared."""
        return preparing_bytes(self.grid._replace(channels=self.channels), self.voxels)

    def __str__(self) -> str:
        text = f"{' x '.join(map(str, self.grid.shape))} voxels of {self.grid.edges}"
        if self.voxels > self.stored:
            wanted = " of " + " x ".join(f"{edge:.4g}" for edge in self.spacing) + " mm" if self.spacing else ""
            text += f", which become {self.voxels:,} voxels{wanted}"
        return f"{text}, {size_text(self.prepared_bytes)}"


def size_of(source: VolumeSource, case: str) -> Size | None:
    """The size of a case's image; None where the source knows no header.

    Raises:
        DualsegError: the header cannot be read.
    """
    grid = source.stored_grid(case, "image")
    if grid is None:
        return None
    spacing = source.scan_record().get("spacing")
    channels = max(source.channels, grid.channels)
    return Size(source.where(case, "image"), grid, channels, source.prepared_voxels(grid), spacing)


def size_problems(sizes: Mapping[str, Size], limit: MemoryLimit) -> dict[str, Problem]:
    """Case -> why it must not be read: it takes more than the limit, or resampling blows it up as it does no other."""
    problems = {}
    for case, size in sizes.items():
        grown = size.voxels / max(size.stored, 1)
        times = 0.0
        if grown >= MADE_UP:
            others = [other.voxels for name, other in sizes.items() if name != case]
            times = size.voxels / max(float(np.median(others)), 1) if others else 0.0
        if size.reading_bytes <= limit.size and times < MADE_UP:
            continue
        text = f"has {size}, and {size_text(size.reading_bytes)} while they are prepared; "
        if times >= MADE_UP:
            text += f"the others become {size.voxels / times:,.0f} voxels in the median. "
        else:
            text += f"{limit.said}. "
        fix = "Correct its header or leave the case out"
        if size.spacing and grown > 1 and limit.key == "data.memory":  # an evaluation has its run's spacing
            fix = "Correct its header, leave the case out, or give a coarser data.source.spacing"
        problems[case] = Problem("spacing" if grown > _GROWN else "memory", f"{text}{fix}.")
    return problems


class MemoryCheck:
    """Volumes that stay in memory, and those that pass through it one at a time, against a limit.

    Args:
        source: the dataset.
        limit: of all processes on this machine together.
        downsample: as `VolumeReader` has it.
        segmenting: (channels, voxels that networks see, voxels of the own grid) -> bytes to segment and score such a
            volume; see `NetworkEvaluation.needs`. None: nothing is evaluated.
        processes: how many on this machine hold the volumes, each its own copy.
    """

    def __init__(
        self,
        source: VolumeSource,
        limit: MemoryLimit,
        downsample: float = 1.0,
        segmenting: Callable[[int, float, float], int] | None = None,
        processes: int = 1,
    ) -> None:
        self.source, self.limit = source, limit
        self.shrunk = 1 / downsample**3
        self.segmenting = segmenting
        self.processes = processes
        self.held = BASE_BYTES
        self._known: dict[str, Size] = {}

    def foresee(
        self,
        labeled: Iterable[str] = (),
        unlabeled: Iterable[str] = (),
        cached: Iterable[str] = (),
        evaluated: Iterable[str] = (),
    ) -> None:
        """Look at the headers of all cases, before the first volume is read.

        Args:
            labeled, unlabeled: cases that stay, with and without their labels.
            cached: cases that are evaluated and stay.
            evaluated: cases that are evaluated and go again.

        Raises:
            DualsegError: a header cannot be read; a volume, all that stay, or an evaluation take more than the limit.
        """
        labeled, unlabeled, cached, evaluated = map(list, (labeled, unlabeled, cached, evaluated))
        cases = [*labeled, *unlabeled, *cached, *evaluated]
        for case in with_bar(cases, "Reading headers"):
            size = size_of(self.source, case)
            if size is not None:
                self._known[case] = size
        for case, problem in size_problems(self._known, self.limit).items():
            raise VolumeError(problem.kind, f"{self._known[case].where} {problem.text}")
        kept = {case: self._shrunk_bytes(case) for case in (*labeled, *unlabeled, *cached) if case in self._known}
        label = np.dtype(label_dtype(len(self.source.class_names))).itemsize
        for case in labeled:
            if case in kept:
                kept[case] += int(self.shrunk * label * self._known[case].voxels)
        for case in cached:
            if case in kept:
                kept[case] += label * self._own(self._known[case])
        self.held += sum(kept.values())
        self._check_held(kept)
        for case in (*cached, *evaluated):
            if case in self._known:
                size = self._known[case]
                seen, own = self.shrunk * size.voxels, self._own(size)
                self._check_segmenting(case, str(size), size.channels, seen, own, size.reading_bytes)

    def check_batch(self, patch_size: Sequence[int], labeled: int, unlabeled: int) -> None:
        """Raises: DualsegError where the patches of a batch alone take more than the limit, without the networks."""
        label = np.dtype(label_dtype(len(self.source.class_names))).itemsize
        own = 4 * (labeled + unlabeled) * self.source.channels + labeled * label
        needed = math.prod(patch_size) * own
        if needed > self.limit.size:
            raise DualsegError(
                f"data.patch_size={[*patch_size]}: a batch of {labeled + unlabeled} patches takes {size_text(needed)} "
                f"without the networks, and {self.limit.said}; give a smaller one, or lower batch.labeled and "
                "batch.unlabeled."
            )

    def was_kept(self, case: str, size: int) -> None:
        """Count the bytes of a volume that was read and stays. Raises: DualsegError as `foresee`."""
        if case not in self._known:  # else it is counted already
            self.held += size
            self._check_held({})

    def was_read(self, case: str, channels: int, seen: int, own: int) -> None:
        """Check an evaluation, of `seen` voxels on a grid of `own`, once its volume is read. Raises: as `foresee`."""
        if case not in self._known:
            self._check_segmenting(case, f"{own:,} voxels", channels, seen, own, 0)

    def _own(self, size: Size) -> int:
        """Voxels of the grid that a volume is scored on."""
        has_own = type(self.source).read_reference is not VolumeSource.read_reference
        return size.stored if has_own else size.voxels

    def _shrunk_bytes(self, case: str) -> int:
        return int(self.shrunk * self._known[case].prepared_bytes)

    def _reading(self) -> int:
        """Bytes beside what stays while the volume that takes most is read."""
        most = max((size.reading_bytes for size in self._known.values()), default=0)
        if self.shrunk < 1:  # labels shrink as shares of one class after the other; fitted to measured peaks
            voxels = max((size.voxels for size in self._known.values()), default=0)
            most += int((8 + 24 * self.shrunk) * voxels)
        return most

    def _check_held(self, kept: Mapping[str, int]) -> None:
        needed = self.processes * (self.held + self._reading())
        if needed <= self.limit.size:
            return
        each = f" in {self.processes} processes" if self.processes > 1 else ""
        largest = sorted(kept, key=lambda case: -kept[case])[:_SHOWN]
        if self.limit.key == "data.memory":
            what = "the volumes that stay in memory take"
            coarser = ", give a coarser data.source.spacing" if self.source.scan_record().get("spacing") else ""
            fix = f"Raise data.downsample{coarser}, use fewer cases"
        else:  # an evaluation has its run's sizes, and keeps no volume
            what, fix = "reading the largest volume takes", "Leave its case out"
            most = max(self._known, key=lambda case: self._known[case].reading_bytes, default=None)
            largest = [] if most is None else [most]
        named = f" The largest: {'; '.join(f'{self._known[c].where} {self._known[c]}' for c in largest)}."
        raise DualsegError(
            f"{self.limit.key}: {what} {size_text(needed)}{each}, and {self.limit.said}.{named if largest else ''} "
            f"{fix}, or give {self.limit.key}={_enough(needed)} where there is as much."
        )

    def _check_segmenting(self, case: str, what: str, channels: int, seen: float, own: float, reading: int) -> None:
        if self.segmenting is None:
            return
        needed = self.processes * (self.held + max(self.segmenting(channels, seen, own), reading))
        if needed > self.limit.size:
            raise DualsegError(
                f"{self.source.where(case, 'image')} has {what}: to evaluate it takes {size_text(needed)} of RAM, and "
                f"{self.limit.said}. Lower inference.batch_size, leave the case out, or give "
                f"{self.limit.key}={_enough(needed)} where there is as much."
            )


def _enough(size: int) -> str:
    """A value of the key that allows it."""
    return f"{math.ceil(size / 2**30)}GiB"
