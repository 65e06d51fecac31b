"""Read what a report needs from one run folder (design.md, "A run folder"), whatever a killed run left of it."""

import csv
import json
import math
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dualseg.errors import DualsegError

NETWORK_ORDER = ("a", "b", "ensemble")
SPLIT_ORDER = ("test", "validation")
METRICS = ("dice", "jaccard", "hd95", "asd")
PLANES = ("axial", "coronal", "sagittal")

# What np.load and reading a member raise on a damaged archive.
_DAMAGED_ARCHIVE = (OSError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class CaseRow:
    """One row of cases.csv: a volume x network x class. Dice and Jaccard in 0..1, distances in voxels."""

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
class Curve:
    """One logged quantity: iterations (n,) ascending, values (n,)."""

    iterations: np.ndarray
    values: np.ndarray


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


@dataclass
class RunFolder:
    """What one run folder holds. A part that is absent or unreadable is empty here and named in `problems`."""

    path: Path
    config: dict[str, Any]
    config_text: str
    manifest: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    cases: list[CaseRow] = field(default_factory=list)
    curves: dict[str, Curve] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)  # file name -> what is wrong with it

    @property
    def finished(self) -> bool:
        return self.metrics.get("status") == "finished"

    @property
    def splits(self) -> list[str]:
        """Splits with any result, test first."""
        with_rows = {row.split for row in self.cases}
        return [s for s in SPLIT_ORDER if isinstance(self.metrics.get(s), dict) or s in with_rows]

    def networks(self, split: str) -> list[str]:
        """Networks with any result in a split, in the order a, b, others, ensemble."""
        summary = self.metrics.get(split)
        names = {row.network for row in self.cases if row.split == split}
        return sort_networks(names | (set(summary) if isinstance(summary, dict) else set()))

    def slices(self, case: str) -> list[PlaneSlice]:
        """The planes that slices/<case>.npz holds whole; what is missing is named in `problems`."""
        name = f"slices/{case}.npz"
        if Path(case).name != case:  # a case name is data: it must not walk out of the folder
            self.problems[name] = "not read: the case's name is a path"
            return []
        try:
            with np.load(self.path / name, allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files}
        except FileNotFoundError:
            self.problems[name] = "missing"
            return []
        except _DAMAGED_ARCHIVE as error:
            self.problems[name] = f"unreadable ({type(error).__name__})"
            return []
        planes = [found for plane in PLANES if (found := _plane(plane, arrays))]
        if len(planes) < len(PLANES):
            self.problems[name] = f"{len(planes)} of {len(PLANES)} planes are whole"
        return planes


def sort_networks(names: Iterable[str]) -> list[str]:
    """a, b, then others by name, the ensemble last."""
    return sorted(names, key=lambda n: (n == "ensemble", NETWORK_ORDER.index(n) if n in NETWORK_ORDER else 2, n))


def headline_network(networks: Sequence[str]) -> str | None:
    """The network a run is judged by: the ensemble, or the first network of a run without one."""
    if "ensemble" in networks:
        return "ensemble"
    return networks[0] if networks else None


def case_dice(rows: Iterable[CaseRow], split: str, network: str) -> dict[str, float]:
    """Dice of each case in 0..1, the mean over its classes."""
    by_case: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.split == split and row.network == network:
            by_case[row.case].append(row.dice)
    return {case: float(np.mean(values)) for case, values in by_case.items()}


def example_cases(dice: dict[str, float]) -> dict[str, list[str]]:
    """Choose the best, the (lower) median and the worst case: {case: its roles}, best first.

    Few cases share roles; ties go by name, so that the choice is the same everywhere.
    """
    ranked = sorted((case for case in dice if math.isfinite(dice[case])), key=lambda case: (dice[case], case))
    chosen: dict[str, list[str]] = {}
    if ranked:
        for role, index in (("best", -1), ("median", (len(ranked) - 1) // 2), ("worst", 0)):
            chosen.setdefault(ranked[index], []).append(role)
    return chosen


def read_run_folder(path: Path) -> RunFolder:
    """Read a run folder.

    Raises:
        DualsegError: the folder or its config.yaml is missing, or config.yaml is not a YAML mapping.
    """
    if not path.is_dir():
        raise DualsegError(f"{path}: no such folder; give the folder of a run (it holds config.yaml)")
    config_file = path / "config.yaml"
    if not config_file.is_file():
        raise DualsegError(f"{path} is not a run folder: config.yaml is missing; give the folder dualseg-train wrote")
    try:
        config_text = config_file.read_text(encoding="utf-8")
        config = yaml.safe_load(config_text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DualsegError(f"{config_file}: unreadable ({error}); restore the file the run wrote") from error
    if not isinstance(config, dict):
        raise DualsegError(f"{config_file}: not a mapping of keys; restore the file the run wrote")

    run = RunFolder(path, config, config_text)
    run.manifest = _read_json(run, "manifest.json")
    run.metrics = _read_json(run, "metrics.json")
    run.cases = _read_cases(run)
    run.curves = _read_curves(run)
    return run


def _read_json(run: RunFolder, name: str) -> dict[str, Any]:
    try:
        content = json.loads((run.path / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        run.problems[name] = "missing"
        return {}
    except (OSError, ValueError) as error:
        run.problems[name] = f"unreadable ({error})"
        return {}
    if not isinstance(content, dict):
        run.problems[name] = "not a JSON object"
        return {}
    return content


def _read_lines(run: RunFolder, name: str) -> list[str]:
    """Whole lines of a text file; a last line without its newline was cut off by a kill and is dropped."""
    try:
        text = (run.path / name).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        run.problems[name] = "missing"
        return []
    except OSError as error:
        run.problems[name] = f"unreadable ({error})"
        return []
    lines = text.splitlines(keepends=True)
    return lines if text.endswith(("\n", "\r")) else lines[:-1]


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


def _number(text: str) -> float:
    return float(text) if text else math.nan


def _read_cases(run: RunFolder) -> list[CaseRow]:
    rows, damaged = [], 0
    for record in csv.DictReader(_read_lines(run, "cases.csv")):
        try:
            if None in record.values():
                raise ValueError("short row")
            case, split, network, class_name = (record[key] for key in ("case", "split", "network", "class"))
            dice, jaccard, hd95, asd = (_number(record[metric]) for metric in METRICS)
            empty = record.get("empty") or ""
            rows.append(CaseRow(case, split, network, class_name, dice, jaccard, hd95, asd, empty))
        except (KeyError, ValueError):
            damaged += 1
    if damaged:
        run.problems["cases.csv"] = f"{damaged} damaged rows left out"
    return rows


def _read_curves(run: RunFolder) -> dict[str, Curve]:
    name, damaged = "logs/curves.csv", 0
    points: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for record in csv.reader(_read_lines(run, name)[1:]):  # the first line is the header
        try:
            iteration, quantity, value = record
            points[quantity].append((int(iteration), float(value)))
        except ValueError:
            damaged += 1
    if damaged:
        run.problems[name] = f"{damaged} damaged rows left out"
    curves = {}
    for quantity, pairs in points.items():
        pairs.sort(key=lambda pair: pair[0])
        iterations, values = zip(*pairs, strict=True)
        curves[quantity] = Curve(np.asarray(iterations), np.asarray(values))
    return curves
