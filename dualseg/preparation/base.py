"""What the preparation of one dataset offers, whichever it is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from dualseg.data.cropping import Box
from dualseg.data.h5 import Crop, H5Source
from dualseg.data.volumes import Image
from dualseg.errors import DualsegError


class Volume(NamedTuple):
    """One case, raw or prepared.

    Attributes:
        image: (C, W, H, D) float32, axes to the left, posterior and superior; affine into mm (RAS+).
        label: (W, H, D) uint8, values 0..K-1, on the image's grid.
        remarks: what a reader of the record should know of the case.
    """

    image: Image
    label: np.ndarray
    remarks: tuple[str, ...] = ()


@dataclass
class Found:
    """What lies in the raw folder.

    Attributes:
        cases: name -> its files, as `read` takes them.
        failed: name -> why it cannot be prepared, where that is known without reading volumes.
        problems: files that nothing can be done with, one sentence each.
        left_out: kind of DICOM file -> how many add to no volume.
    """

    cases: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Preparation(ABC):
    """How one dataset is prepared (method.md section 5).

    Attributes:
        crop: around the label, or by intensity alone.
        source: what reads the result; gives its file names.
        crops: possible values, the usual protocol's first.
        not_in_download: listed cases that today's public download lacks.
    """

    crop: Crop
    source: ClassVar[type[H5Source]]
    crops: ClassVar[Sequence[Crop]] = ("ground_truth", "foreground")
    not_in_download: ClassVar[Sequence[str]] = ()

    def settings(self) -> dict[str, Any]:
        """What decides the result; the record of the output folder."""
        return {"data": self.source.name, "crop": self.crop}

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    def file(self, out: Path, case: str) -> Path:
        """Where a case's volumes go."""
        return out / self.source.file.format(case=case)

    @abstractmethod
    def listed(self) -> tuple[str, ...]:
        """The cases of the dataset's lists."""

    @abstractmethod
    def find(self, raw: Path) -> Found:
        """Look for cases in a folder and below."""

    @abstractmethod
    def read(self, case: str, files: Mapping[str, Any]) -> Volume:
        """Read a raw case. Raises: DualsegError naming the file."""

    @abstractmethod
    def prepare(self, case: str, raw: Volume) -> Volume:
        """Resample, crop, normalise, as `prepare_scan` of the source does but for the crop."""


def check_pair(image: Image, label: np.ndarray, where: str) -> None:
    """Raises: DualsegError unless the label has the image's grid size and is not empty, and all voxels are numbers."""
    if label.shape != image.array.shape[1:]:
        raise DualsegError(f"{where}: the label has shape {label.shape}, its image {image.array.shape[1:]}.")
    if not np.isfinite(image.array).all():
        raise DualsegError(f"{where}: its image holds NaN or infinite voxels; download it again.")
    if not label.any():
        raise DualsegError(f"{where}: the label is empty; download it again.")


def check_values(label: np.ndarray, allowed: Sequence[int], where: str) -> None:
    """Raises: DualsegError where a label has other values."""
    values = np.unique(label)
    if not np.isin(values, allowed).all():
        shown = ", ".join(f"{value:g}" for value in values[:8])
        raise DualsegError(f"{where}: holds the values {shown}; expected {', '.join(map(str, allowed))}.")


def once(found: dict[str, list[Path]], failed: dict[str, str]) -> dict[str, Path]:
    """The one file of each case; a case with several goes to `failed`."""
    for case, paths in found.items():
        if len(paths) > 1:
            failed[case] = f"found more than once: {', '.join(map(str, paths))}; keep one of them below raw."
    return {case: paths[0] for case, paths in found.items() if len(paths) == 1}


def cut(label: np.ndarray, box: Box) -> np.ndarray:
    """The part of a label in a box, as a copy."""
    return np.ascontiguousarray(label[box.region])
