"""What the prepared benchmarks share: one HDF5 file per case with `image` and `label`, isotropic voxels."""

import math
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

import h5py
import numpy as np

from dualseg.data.problems import VolumeError
from dualseg.data.volumes import Grid, Image, VolumeSource
from dualseg.errors import DualsegError
from dualseg.files import read_json
from dualseg.machine import file_problem

Crop = Literal["ground_truth", "foreground"]
RECORD = "prepared.json"  # what dualseg-prepare leaves in the folder: how, and which cases the download lacks

# h5py's, depending on where the damage is
_UNREADABLE = (OSError, RuntimeError, KeyError, TypeError, ValueError, AttributeError)


def shipped_list(name: str) -> tuple[str, ...]:
    """The case names of dualseg/data/lists/<name>.txt, in their order."""
    return tuple(files("dualseg.data").joinpath("lists", f"{name}.txt").read_text().split())


def preparation_record(root: Path, data: str) -> dict[str, Any]:
    """What dualseg-prepare has recorded in a folder; empty where it did not make the folder.

    Raises:
        DualsegError: the record is damaged, or that of another dataset than `data`.
    """
    path = root / RECORD
    if not path.is_file():
        return {}
    record = read_json(path)
    if not isinstance(record, dict) or record.get("data") != data:
        held = record.get("data") if isinstance(record, dict) else "nothing that dualseg-prepare writes"
        raise DualsegError(f"{path}: says {held}, not {data}; check data and data.root.")
    return record


class H5Source(VolumeSource):
    """Volumes in HDF5 files with the datasets `image` (W, H, D) and `label` (W, H, D), already cropped and normalised.

    `image` is (C, W, H, D) where there are several channels. A subclass gives the file of a case, the size of its
    voxels and the lists. The axes are those of the file: left, posterior, superior.

    Attributes:
        file: path of a case's file below the root, with {case} in the place of its name.
        spacing: edge of a voxel in mm.
        crop: what the volumes were cropped around, as dualseg-prepare has recorded it in the folder; where the folder
            is somebody else's preparation, what the class says. `prepare_scan` always crops by intensity.

    Args:
        root: folder that holds the files.

    Raises:
        DualsegError: `root` is missing; on reading, a file that is missing or damaged, or lacks a dataset.
    """

    channels = 1
    file: str
    spacing: float
    crop: Crop = "ground_truth"
    scan_attributes = (*VolumeSource.scan_attributes, "crop")

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            layout = self.file.format(case="<case>")
            raise DualsegError(f"data.root={root}: no such folder. Give the one that holds {layout}.")
        self.record = preparation_record(self.root, self.name)
        self.crop = self.record.get("crop", self.crop)

    def check_scan_record(self) -> None:
        super().check_scan_record()
        if self.crop not in get_args(Crop):
            raise DualsegError(f"crop is damaged: it is {' or '.join(get_args(Crop))}.")

    def prepared_voxels(self, grid: Grid) -> int:
        return grid.voxels_of((self.spacing,) * 3)

    def read_image(self, case: str) -> Image:
        array = self._read(case, "image").astype(np.float32, copy=False)
        return Image(array[None] if array.ndim == 3 else array, self._affine())

    def stored_grid(self, case: str, kind: Literal["image", "label"]) -> Grid | None:
        """The shape is that of the file; the affine is not in it, but the protocol's."""
        shape = self._open(case, kind, lambda dataset: dataset.shape)
        if len(shape) not in (3, 4):  # no volume, as reading it will say
            return None
        return Grid(tuple(map(int, shape[-3:])), self._affine(), math.prod(shape[:-3]))

    def read_label(self, case: str) -> np.ndarray:
        return self._read(case, "label")

    def where(self, case: str, kind: str) -> str:
        return f"{self._path(case)}: {kind}"

    def fix_of_missing(self, case: str) -> str:
        """What to do about a listed case that has no file, as the last sentence of the message."""
        return "Put the file there or check data.root."

    def _path(self, case: str) -> Path:
        return self.root / self.file.format(case=case)

    def _affine(self) -> np.ndarray:
        return np.diag([self.spacing, self.spacing, self.spacing, 1.0])

    def _read(self, case: str, key: str) -> np.ndarray:
        if problem := file_problem(self._open(case, key, lambda dataset: dataset.shape)):
            raise VolumeError("memory", f"{self.where(case, key)}: {problem}")
        return self._open(case, key, lambda dataset: dataset[()])

    def _open(self, case: str, key: str, read: Callable[[h5py.Dataset], Any]) -> Any:
        """What `read` gives of a dataset of the case's file."""
        path = self._path(case)
        if not path.is_file():
            raise DualsegError(f"{path}: missing, but {case} is in the list of cases. {self.fix_of_missing(case)}")
        try:
            with h5py.File(path, "r") as h5:
                keys = sorted(h5)
                held = h5[key] if key in keys else None
                if (problem := _no_numbers(held)) is None:
                    return read(held)
        except _UNREADABLE as error:
            raise DualsegError(f"{path}: cannot be read ({error}). Truncated? Copy or unpack it again.") from error
        if key not in keys:
            raise DualsegError(f"{path}: has no dataset '{key}', only {keys}. Write the file again.")
        raise DualsegError(f"{path}: '{key}' {problem}, not an array of real numbers. Write the file again.")


def _no_numbers(held: Any) -> str | None:
    """What something in an HDF5 file is where it is no dataset of real numbers, such as text or complex numbers."""
    if not isinstance(held, h5py.Dataset):
        return f"is a {type(held).__name__.lower()}"
    if held.shape is None:
        return "is empty"
    return None if held.dtype.kind in "biuf" else f"holds {held.dtype}"
