"""Left Atrium (2018 Atrial Segmentation Challenge) in the layout of UA-MT: <root>/<case>/mri_norm2.h5."""

from importlib.resources import files
from pathlib import Path

import h5py
import numpy as np

from dualseg.data.volumes import Image, VolumeSource
from dualseg.errors import DualsegError

SPACING_MM = 0.625
_UNREADABLE = (OSError, RuntimeError, KeyError, TypeError, ValueError)  # h5py's, depending on where the damage is


def case_list(name: str) -> tuple[str, ...]:
    """The official case names in their official order; `name` is train or test."""
    return tuple(files("dualseg.data").joinpath("lists", f"left_atrium_{name}.txt").read_text().split())


class LeftAtrium(VolumeSource):
    """80 training and 20 test volumes, 0.625 mm isotropic, already cropped and normalised (method.md section 5).

    Args:
        root: folder of the case folders.

    Raises:
        DualsegError: `root` is missing.
    """

    name = "la"
    class_names = ("background", "atrium")
    channels = 1

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise DualsegError(f"data.root={root}: no such folder. Give the one that holds <case>/mri_norm2.h5.")
        self.train_cases = case_list("train")
        self.test_cases = case_list("test")

    def read_image(self, case: str) -> Image:
        array = self._read(case, "image").astype(np.float32, copy=False)
        return Image(array[None], np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0]))

    def read_label(self, case: str) -> np.ndarray:
        return self._read(case, "label")

    def where(self, case: str, kind: str) -> str:
        return f"{self._path(case)}: {kind}"

    def _path(self, case: str) -> Path:
        return self.root / case / "mri_norm2.h5"

    def _read(self, case: str, key: str) -> np.ndarray:
        path = self._path(case)
        if not path.is_file():
            alone = ", or give data.held_out_test=20 if you have the 80 training volumes alone"
            raise DualsegError(
                f"{path}: missing, but {case} is in the list of cases. Put the file there or check data.root"
                f"{alone if case in self.test_cases else ''}."
            )
        try:
            with h5py.File(path, "r") as h5:
                keys = sorted(h5)
                array = h5[key][()] if key in keys else None
        except _UNREADABLE as error:
            raise DualsegError(f"{path}: cannot be read ({error}). Truncated? Copy or unpack it again.") from error
        if array is None:
            raise DualsegError(f"{path}: has no dataset '{key}', only {keys}. Write the file again.")
        return array
