"""What a dataset on disk offers, whatever its files are: ordered case names, images and labels."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from dualseg.data.problems import Problem
from dualseg.errors import DualsegError
from dualseg.names import check_printable

MOST_CHANNELS = 1000  # of an image; more are damage

MOST_CLASSES = 1 << 15


def label_dtype(num_classes: int) -> np.dtype[Any]:
    """The type of label maps of K classes, 0..K-1: uint8 or, of more than 256 classes, int16.

    Not uint16: torch has few operations for it.

    Raises:
        DualsegError: more classes than int16 holds.
    """
    if num_classes > MOST_CLASSES:
        raise DualsegError(f"{num_classes} classes: label maps hold at most {MOST_CLASSES}; join some of them.")
    return np.dtype(np.uint8 if num_classes <= 256 else np.int16)


class Image(NamedTuple):
    """One image volume. `array`: (C, W, H, D) float32. `affine`: (4, 4) voxel indices -> millimetres (RAS+)."""

    array: np.ndarray
    affine: np.ndarray


class Grid(NamedTuple):
    """How a file lays its voxels out, by its header.

    Attributes:
        shape: (W, H, D).
        affine: (4, 4), voxel indices -> millimetres (RAS+).
        channels: how many the file has.
        unit: that the file itself counts lengths in.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    channels: int = 1
    unit: str = "mm"

    @property
    def spacing(self) -> np.ndarray:
        """(3,) edges of a voxel in mm, along the voxel axes."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def edges(self) -> str:
        """`spacing` for messages, with the unit of the file where that is an unusual one."""
        unit = "" if self.unit == "mm" else f" (its header counts in {self.unit})"
        return " x ".join(f"{edge:.4g}" for edge in self.spacing) + f" mm{unit}"

    def voxels_of(self, spacing: Sequence[float]) -> int:
        """How many voxels with these three edges in mm have its volume."""
        volume = math.prod(self.shape) * abs(float(np.linalg.det(self.affine[:3, :3])))
        return max(1, round(volume / math.prod(spacing)))


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
        not_read: sentences, each of which names files that lie among those of the dataset and are not read.
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
    not_read: tuple[str, ...] = ()
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

        `dualseg-check` compares the two; it asks for a label's where `read_label` may be called, and for no other. What
        a volume will take of memory is worked out from its image's. Override it where the files have headers, reading
        these alone. None: they have none, and a volume that is too large is noticed once it is read.
        """
        return None

    def stored_files(self, case: str, kind: Literal["image", "label"]) -> Sequence[Path]:
        """The NIfTI files of a case's image or label: their headers are looked at for contradictions.

        Asked for as `stored_grid` is. Empty: the format has no such headers.
        """
        return ()

    def read_stored(self, case: str) -> Image | None:
        """The image as its files have it, where `read_image` is `prepare_scan` of that; None: it is not.

        What its values show, see `scan_doubts`, can be checked before they are normalised.
        """
        return None

    @property
    def display_window(self) -> tuple[float, float] | None:
        """Values of a scan's first channel between which the networks tell tissues apart, as of CT; None: all."""
        return None

    def scan_doubts(self, scan: Image) -> list[Problem]:
        """What makes the values of a scan doubtful before `prepare_scan`: warned of, in training and prediction."""
        return []

    @abstractmethod
    def read_label(self, case: str) -> np.ndarray:
        """Read one label map (W, H, D), values 0..K-1. Called for labeled, validation and test cases only.

        Return the values in a type that holds all of the file's, such as float32, and leave it to the caller to check
        them and to store them in `label_dtype`: a cast to uint8 would turn 257 into 1 before anybody sees it.
        """

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
        """How many voxels of a channel `read_image` and `prepare_scan` make of a volume on this grid, about.

        Memory is foreseen by it.

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
            DualsegError: the record lacks an attribute that the class has no value for, or has an impossible value, or
                the class does not let an attribute be set to another value.
        """
        for name in self.scan_attributes:
            if name in record:
                value = record[name]
                self._set_scan_attribute(name, tuple(value) if isinstance(value, list) else value)
            elif hasattr(type(self), name):
                vars(self).pop(name, None)  # what the dataset on disk says is not what the run knew
            else:
                raise DualsegError(
                    f"{type(self).__name__}: the run folder does not record its {name}, so it cannot prepare a scan; "
                    "the run is older than that, or its preprocessing.json is lost. Put it back, or train again."
                )
        self.check_scan_record()

    def _set_scan_attribute(self, name: str, value: Any) -> None:
        try:
            setattr(self, name, value)
        except AttributeError as error:  # a property, or a frozen dataclass, which may well say the same
            try:
                own = getattr(self, name)
            except AttributeError:  # made by `for_scans`, it lacks what the property reads
                own = None
            if json.dumps(own, default=str) != json.dumps(value, default=str):  # lists and tuples are the same
                raise DualsegError(
                    f"{type(self).__name__}: {name} cannot be set ({error}), but the run knows {value} and the dataset "
                    f"has {own}; let the class keep {name} as an attribute that can be set."
                ) from error

    @classmethod
    def for_scans(cls, record: Mapping[str, Any]) -> Self:
        """A source that has its `scan_attributes` and `prepare_scan`, and no cases: the dataset need not be there.

        Args and errors as of `prepare_as`.
        """
        source = cls.__new__(cls)  # not by __init__, which may look for the files
        source.prepare_as(record)
        return source

    def check_scan_record(self) -> None:
        """Raise a DualsegError for a value of `scan_attributes` that cannot be one: they may come from a damaged file.

        Override it, and call this one first, where `prepare_scan` reads further attributes.
        """
        names = self.class_names
        whole = isinstance(names, tuple) and len(names) > 1 and all(isinstance(name, str) for name in names)
        if not whole or len({*names}) < len(names):
            raise DualsegError("class_names is damaged: it has the names of two classes at least, each once.")
        check_printable("class_names", names)
        if type(self.channels) is not int or not 1 <= self.channels <= MOST_CHANNELS:
            raise DualsegError(f"channels is damaged: it is a whole number from 1 to {MOST_CHANNELS}.")
        named = self.channel_names
        if not isinstance(named, tuple) or not all(isinstance(name, str) for name in named):
            raise DualsegError("channel_names is damaged: it is a list of names, or empty.")
