"""The files of a run folder, read back; what is damaged is left out. No torch here: a report must be quick."""

import csv
import math
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from dualseg.errors import DualsegError

METRICS = ("dice", "jaccard", "hd95", "asd")  # again, for dualseg.metrics brings torch along
CASE_COLUMNS = ("case", "split", "network", "class", *METRICS, "empty")
PLANES = ("axial", "coronal", "sagittal")  # in the order they are shown

# What np.load and reading a member raise on a damaged archive.
_DAMAGED_ARCHIVE = (OSError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error)

Row = TypeVar("Row")


@dataclass(frozen=True)
class CaseRow:
    """One row of cases.csv: a volume x network x class. Dice and Jaccard in 0..1, distances in the run's own unit."""

    case: str
    split: str
    network: str
    class_name: str
    dice: float
    jaccard: float
    hd95: float
    asd: float
    empty: str  # "", "prediction", "reference" or "both": which mask is empty


@dataclass(frozen=True)
class PlaneSlice:
    """One stored slice; all arrays (rows, columns), to be shown as they lie."""

    plane: str
    image: np.ndarray  # uint8
    reference: np.ndarray  # labels
    prediction: np.ndarray  # labels
    entropy: np.ndarray  # uint8, 0..255 = 0..log K
    disagreement: np.ndarray | None  # bool; None where no voxel of the slice has any
    aspect: float  # height of a pixel over its width

    @property
    def ratio(self) -> float:
        """Height over width as shown."""
        return self.image.shape[0] * self.aspect / self.image.shape[1]


def read_rows(path: Path, parse: Callable[[dict[str, str]], Row]) -> tuple[list[Row], int]:
    """The rows of a CSV file, as `parse` makes them of {column: text}, and how many damaged ones were left out.

    A last line without its line end was cut off by a kill: it is left out, and not counted.

    Raises:
        DualsegError: the file is missing or cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise DualsegError(f"{path}: missing.") from None
    except OSError as error:
        raise DualsegError(f"{path}: cannot be read ({error}).") from error
    head, *lines = text.split("\n")[:-1] or [""]
    columns = next(csv.reader([head]))
    rows, damaged = [], 0
    for line in lines:  # each on its own, so that a stray quote does not swallow those below
        try:
            rows.append(parse(dict(zip(columns, next(csv.reader([line])), strict=True))))
        except (KeyError, ValueError, csv.Error):
            damaged += 1
    return rows, damaged


def case_row(record: dict[str, str]) -> CaseRow:
    """A row of cases.csv; a score that is not there is NaN. Raises: KeyError or ValueError on a damaged one."""
    dice, jaccard, hd95, asd = (float(record[metric] or math.nan) for metric in METRICS)
    case, split, network, class_name = (record[column] for column in CASE_COLUMNS[:4])
    return CaseRow(case, split, network, class_name, dice, jaccard, hd95, asd, record["empty"])


def curve_row(record: dict[str, str]) -> tuple[int, str, float]:
    """(iteration, name, value) of a row of logs/curves.csv. Raises: KeyError or ValueError on a damaged one."""
    return int(record["iteration"]), record["name"], float(record["value"])


def read_slices(path: Path) -> list[PlaneSlice]:
    """The planes that a slices/<case>.npz holds whole, in the order of `PLANES`.

    Raises:
        DualsegError: the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except FileNotFoundError:
        raise DualsegError(f"{path}: missing.") from None
    except _DAMAGED_ARCHIVE as error:
        raise DualsegError(f"{path}: cannot be read ({type(error).__name__}).") from error
    return [found for plane in PLANES if (found := _plane(plane, arrays))]


def _plane(plane: str, arrays: dict[str, np.ndarray]) -> PlaneSlice | None:
    layers = [arrays.get(f"{plane}_{layer}") for layer in ("image", "reference", "prediction", "entropy")]
    whole = [layer for layer in layers if layer is not None and layer.ndim == 2 and layer.size]
    if len(whole) < len(layers) or len({layer.shape for layer in whole}) > 1:
        return None
    disagreement = arrays.get(f"{plane}_disagreement")
    if disagreement is not None and (disagreement.shape != whole[0].shape or not disagreement.any()):
        disagreement = None
    aspect = float(arrays.get(f"aspect_{plane}", np.ones(())))
    if not 0 < aspect < math.inf:
        aspect = 1.0
    image, reference, prediction, entropy = whole
    disagreed = None if disagreement is None else disagreement > 0
    return PlaneSlice(plane, image, reference, prediction, entropy, disagreed, aspect)
