"""What a dataset on disk offers, whatever its files are: ordered case names, images and labels."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from dualseg.errors import DualsegError


class Image(NamedTuple):
    """One image volume. `array`: (C, W, H, D) float32. `affine`: (4, 4) voxel indices -> millimetres (RAS+)."""

    array: np.ndarray
    affine: np.ndarray


class Grid(NamedTuple):
    """How a file lays its voxels out. `shape`: (W, H, D). `affine`: (4, 4) voxel indices -> millimetres (RAS+)."""

    shape: tuple[int, ...]
    affine: np.ndarray

    def voxels_of(self, spacing: Sequence[float]) -> int:
        """How many voxels with these three edges in mm have its volume."""
        volume = math.prod(self.shape) * abs(float(np.linalg.det(self.affine[:3, :3])))
        return math.ceil(volume / math.prod(spacing))


class Reference(NamedTuple):
    """A label map to score against. `array`: (W, H, D), values 0..K-1. `affine`: (4, 4), voxel indices -> mm (RAS+)."""

    array: np.ndarray
    affine: np.ndarray


class VolumeSource(ABC):
    """A dataset on disk. Subclass it, and every command can train on your files.

    Attributes:
        name: short name used in run folders and tables.
        class_names: name of every class, index 0 is background; K = len(class_names).
        channels: image channels C.
        train_cases: case names in the order in which labels are granted: N labels means the first N.
        test_cases: case names of the dataset's own test split (may be empty).
        validation_cases: the same of its own validation split; most datasets have none.
        regions: name -> labels whose union is scored under that name, in the place of the classes, which are trained;
            most datasets have none.
        unlabeled_cases: further training cases, which have no labels; they are neither counted nor held out.
        unscored_cases: cases of the test set that have no label: neither trained on nor scored, but dualseg-check looks
            whether other cases are copies of them.
        scan_attributes: names of the attributes that prediction reads: the classes, the channels, and whatever
            `prepare_scan` reads of the object. Their values are numbers, text, None, or lists and mappings of such.
        channel_names: name of every channel, so that evaluation notices those in another order; empty: unknown.
    """

    name: str
    class_names: tuple[str, ...]
    channels: int
    train_cases: tuple[str, ...]
    test_cases: tuple[str, ...]
    validation_cases: tuple[str, ...] = ()
    regions: Mapping[str, Sequence[int]] = MappingProxyType({})
    unlabeled_cases: tuple[str, ...] = ()
    unscored_cases: tuple[str, ...] = ()
    scan_attributes: tuple[str, ...] = ("class_names", "channels", "channel_names")
    channel_names: tuple[str, ...] = ()

    def check_cases(self) -> None:  # noqa: B027 - most sources know nothing before they read
        """Raise a DualsegError for a case of the split that is known to be unusable before any volume is read.

        Training calls it first; dualseg-check does not, but finds the same error on reading the case.
        """

    @abstractmethod
    def read_image(self, case: str) -> Image:
        """Read one image. Must not touch the label file. Raises DualsegError naming the file if it cannot."""

    def where(self, case: str, kind: str) -> str:
        """What messages call an `image` or `label` of a case; override it to name the file."""
        return f"{self.name} case {case}: {kind}"

    def stored_grid(self, case: str, kind: Literal["image", "label"]) -> Grid | None:
        """The grid of a case's image or label as its file has it, before reading turns or resamples it.

        `dualseg-check` compares the two; it asks for a label's where `read_label` may be called, and for no other.
        Override it where the files have affines, reading headers alone. None: the format has none.
        """
        return None

    @abstractmethod
    def read_label(self, case: str) -> np.ndarray:
        """Read one label map (W, H, D) uint8, values 0..K-1. Called for labeled, validation and test cases only."""

    def read_reference(self, case: str) -> Reference | None:
        """The label on the volume's own grid, for the metrics, where `read_image` and `read_label` resample.

        Both grids have the same orientation and field of view (the outer faces of the outermost voxels), so that
        probabilities are interpolated from one to the other. Called as `read_label` is. None: they are one grid.
        """
        return None

    def prepare_scan(self, scan: Image) -> Image:
        """Turn a scan from elsewhere into what `read_image` gives: oriented, resampled, cropped, normalised.

        Prediction calls it. The affine of the result says where its voxels lie in the scan's own space, so that a
        prediction finds its way back. A source whose files are read as they are returns the scan unchanged.
        """
        return scan

    def prepared_voxels(self, grid: Grid) -> int:
        """How many voxels of a channel `prepare_scan` makes of a scan on this grid, about: memory is foreseen by it.

        As many as the scan has or, where `scan_attributes` has a `spacing` (three edges in mm), as that makes. Override
        it where something else makes a scan finer.
        """
        spacing = self.scan_record().get("spacing")
        return math.prod(grid.shape) if spacing is None else grid.voxels_of(spacing)

    def scan_record(self) -> dict[str, Any]:
        """The values of `scan_attributes`: training leaves them in the run folder."""
        return {name: getattr(self, name) for name in self.scan_attributes}

    def prepare_as(self, record: Mapping[str, Any]) -> None:
        """Take over the `scan_attributes` of a run: volumes are then read as its networks know them.

        Args:
            record: what `scan_record` gave, or what JSON has left of it; an attribute of the class may be missing.

        Raises:
            DualsegError: the record lacks an attribute that the class has no value for.
        """
        for name in self.scan_attributes:
            if name in record:
                value = record[name]
                setattr(self, name, tuple(value) if isinstance(value, list) else value)
            elif hasattr(type(self), name):
                vars(self).pop(name, None)  # what the dataset on disk says is not what the run knew
            else:
                raise DualsegError(
                    f"{type(self).__name__}: the run folder does not record its {name}, so it cannot prepare a scan; "
                    "the run is older than that, or its preprocessing.json is lost. Put it back, or train again."
                )

    @classmethod
    def for_scans(cls, record: Mapping[str, Any]) -> Self:
        """A source that has its `scan_attributes` and `prepare_scan`, and no cases: the dataset need not be there.

        Args and errors as of `prepare_as`.
        """
        source = cls.__new__(cls)  # not by __init__, which may look for the files
        source.prepare_as(record)
        return source
