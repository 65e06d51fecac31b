"""What a report shows of one run folder, whatever a killed run left of it; the files' readers are in dualseg.runs."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dualseg.errors import DualsegError
from dualseg.files import read_object
from dualseg.record import ENSEMBLE, record_of
from dualseg.runs.collapse import collapse_with_advice
from dualseg.runs.folder import RunFolder
from dualseg.runs.reading import PLANES, CaseRow, PlaneSlice, case_row, curve_row, read_rows, read_slices
from dualseg.runs.verdict import VERDICT, verification

NETWORK_ORDER = ("a", "b")
SPLIT_ORDER = ("test", "validation")

Row = TypeVar("Row")


@dataclass(frozen=True)
class Curve:
    """One logged quantity: iterations (n,) ascending, values (n,)."""

    iterations: np.ndarray
    values: np.ndarray


@dataclass
class RunContents:
    """What one run folder holds. A part that is absent or unreadable is empty here and named in `problems`."""

    folder: RunFolder
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
    def verification(self) -> str | None:
        """Whether its unlabeled scans are shown to help, in words; None where it has none, or nothing says so."""
        try:
            return verification(self.folder)
        except DualsegError as error:
            if (file := self.folder.verdict_file).is_file():
                self.problems[VERDICT] = _reason(error, file)
            return None

    @property
    def collapse(self) -> str | None:
        """Whether its pseudo-labels collapsed or flooded, and what to try then."""
        method = self.config.get("method")
        known = method if isinstance(method, dict) else {}
        return collapse_with_advice(self.folder.curves_file, known) if self.curves else None

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
        path = self.folder.slices / f"{case}.npz"
        name = f"slices/{case}.npz"
        if Path(case).name != case:  # a case name is data: it must not walk out of the folder
            self.problems[name] = "not read: the case's name is a path"
            return []
        try:
            planes = read_slices(path)
        except DualsegError as error:
            self.problems[name] = _reason(error, path)
            return []
        if len(planes) < len(PLANES):
            self.problems[name] = f"{len(planes)} of {len(PLANES)} planes are whole"
        return planes


def sort_networks(names: Iterable[str]) -> list[str]:
    """a, b, then others by name, the ensemble last."""
    return sorted(names, key=lambda n: (n == ENSEMBLE, NETWORK_ORDER.index(n) if n in NETWORK_ORDER else 2, n))


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


@dataclass(frozen=True)
class Examples:
    """The cases that stand for a run: best, median and worst by the network it is judged by.

    Attributes:
        split: that they are of, the test split where there is one.
        headline: the network.
        dice: network -> case -> Dice in 0..1, of all cases of the split.
        roles: case -> its roles, best first.
    """

    split: str
    headline: str
    dice: dict[str, dict[str, float]]
    roles: dict[str, list[str]]


def find_examples(run: RunContents) -> Examples | None:
    """The examples of a run, None where no case was evaluated."""
    split = next((s for s in run.splits if any(row.split == s for row in run.cases)), None)
    if split is None:
        return None
    networks = sort_networks({row.network for row in run.cases if row.split == split})
    dice = {network: case_dice(run.cases, split, network) for network in networks}
    headline = record_of(run.metrics.get("record"), networks)
    assert headline is not None  # there are rows, so there is a network
    return Examples(split, headline, dice, example_cases(dice[headline]))


def read_contents(path: Path) -> RunContents:
    """Read what a run folder holds.

    Raises:
        DualsegError: the folder or its config.yaml is missing, or config.yaml is not a YAML mapping.
    """
    folder = RunFolder.existing(path)
    config = folder.config()
    if not isinstance(config, dict):
        raise DualsegError(f"{folder.config_file}: not a mapping of keys; restore the file the run wrote.")
    run = RunContents(folder, config, folder.config_file.read_text())
    run.manifest = _read_object(run, folder.manifest_file)
    run.metrics = _read_object(run, folder.metrics_file)
    run.cases = _read_table(run, folder.cases_file, case_row)
    points: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for iteration, name, value in _read_table(run, folder.curves_file, curve_row):
        points[name].append((iteration, value))
    for name, pairs in points.items():
        iterations, values = zip(*sorted(pairs, key=lambda pair: pair[0]), strict=True)
        run.curves[name] = Curve(np.asarray(iterations), np.asarray(values))
    return run


def _reason(error: DualsegError, path: Path) -> str:
    """A reader's message without the path and the full stop: the page names the file and ends the sentence itself."""
    return str(error).removeprefix(f"{path}: ").removesuffix(".")


def _read_object(run: RunContents, path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except DualsegError as error:
        run.problems[path.name] = _reason(error, path)
        return {}


def _read_table(run: RunContents, path: Path, parse: Callable[[dict[str, str]], Row]) -> list[Row]:
    name = path.relative_to(run.folder.path).as_posix()
    try:
        rows, damaged = read_rows(path, parse)
    except DualsegError as error:
        run.problems[name] = _reason(error, path)
        return []
    if damaged:
        run.problems[name] = f"{damaged} damaged rows left out"
    return rows
