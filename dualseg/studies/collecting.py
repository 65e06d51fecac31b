"""A finished run folder -> its rows in the tables of a study. No torch here: a thousand folders are read in seconds."""

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualseg.errors import DualsegError
from dualseg.record import ENSEMBLE, averages_of, record_of
from dualseg.runs.collapse import collapse
from dualseg.runs.folder import RunFolder
from dualseg.runs.identity import identity
from dualseg.runs.reading import CASE_COLUMNS, METRICS, CaseRow, case_row, read_rows
from dualseg.runs.tables import distance_unit

RESULT_COLUMNS = (
    "study", "variant", "dataset", "scale", "method", "objective", "architecture", "labeled", "unlabeled", "seed",
    "fold", "network", "record", "split", *METRICS, "iterations", "run",
)  # fmt: skip
STUDY_CASE_COLUMNS = ("run", "variant", "scale", "seed", "fold", *CASE_COLUMNS)
RUN_COLUMNS = (
    "run", "variant", "scale", "seed", "fold", "evaluated", "revision", "uncommitted", "fingerprint", "configuration",
    "dualseg", "torch", "hardware", "threads", "distance_unit", "seconds", "seconds_per_iteration", "started",
    "command", "warning",
)  # fmt: skip
SPLITS = ("validation", "test")
FIX = "restore it, or train the run again with overwrite=true"
_ITERATION_SECONDS = re.compile(rb"^\d+,time/seconds_per_iteration,([0-9.e+-]+)$", re.MULTILINE)


@dataclass(frozen=True)
class Member:
    """A run folder, finished or not, as a row of a study; the same run may be a row of several studies.

    `fold`: which part of the labeled cases validated it, in a study of folds.
    """

    variant: str
    scale: str
    seed: int
    folder: RunFolder
    fold: int | None = None

    @property
    def name(self) -> str:
        return self.folder.path.name


@dataclass(frozen=True)
class RunRows:
    """What one run adds to the tables of a study: texts, by column.

    Attributes:
        results: one row a network x split, `RESULT_COLUMNS`.
        cases: one row a network x split x case x class, `STUDY_CASE_COLUMNS`.
        run: where it comes from, `RUN_COLUMNS`.
        settings: the flattened configuration that decides the result, without the seed.
    """

    results: list[dict[str, str]]
    cases: list[dict[str, str]]
    run: dict[str, str]
    settings: dict[str, Any]


def read_run(study: str, member: Member) -> RunRows:
    """The rows of a finished run, or of an evaluation of several runs, of which the ensemble alone counts.

    Raises:
        DualsegError: a file of the folder, or of one that was evaluated, is missing, cut off or contradicts another.
    """
    folder = member.folder
    config, metrics, manifest = folder.config(), folder.metrics(), folder.manifest()
    trained = [_trained(folder, path) for path in config.get("evaluated", {})]
    facts = trained[0].manifest() if trained else manifest  # how many labels, which data
    networks = {
        f"{index}.{name}": _need(network, folder.config_file, "architecture")
        for index, source in enumerate([run.config() for run in trained] or [config])
        for name, network in _need(source, folder.config_file, "networks").items()
    }
    scores = {
        (split, network): values
        for split in SPLITS
        for network, values in metrics.get(split, {}).items()
        if not trained or network == ENSEMBLE
    }
    averages = averages_of(metrics, str(folder.metrics_file))
    rows = _checked_cases(folder.cases_file, scores)
    data_file = (trained[0] if trained else folder).manifest_file
    own = {key: getattr(member, key) for key in ("variant", "scale", "seed", "fold")} | {"run": member.name}
    about = {
        **own,
        "study": study,
        "dataset": _need(config, folder.config_file, "data", "name"),
        "method": _need(config, folder.config_file, "method", "name"),
        "objective": config.get("objective", ""),
        "labeled": _need(facts, data_file, "data", "labeled"),
        "unlabeled": _need(facts, data_file, "data", "unlabeled"),
        "iterations": _need(metrics, folder.metrics_file, "iterations"),
    }
    results = [
        {
            **about,
            "architecture": networks.get(f"0.{averages.get(network, network)}") or "+".join(networks.values()),
            "network": network,
            "record": int(network == record_of(metrics.get("record"), metrics[split])),
            "split": split,
            **{metric: f"{_need(values, folder.metrics_file, metric):.6f}" for metric in METRICS},
        }
        for (split, network), values in scores.items()
    ]
    cases = [
        {
            **own,
            "case": row.case,
            "split": row.split,
            "network": row.network,
            "class": row.class_name,
            **{metric: f"{getattr(row, metric):.6f}" for metric in METRICS},
            "empty": row.empty,
        }
        for row in rows
    ]
    settings = identity({key: value for key, value in config.items() if key != "evaluated"})
    run = {**own, **_provenance(folder, manifest, trained), "distance_unit": distance_unit(config)}
    for manifest_of in [one.manifest() for one in trained] or [manifest]:
        settings |= {f"code.{module}": sha256 for module, sha256 in manifest_of.get("code", {}).items()}
    run["configuration"] = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    run["fingerprint"] = _need(facts, data_file, "data", "fingerprint")
    settings.pop("seed", None)
    return RunRows([_texts(row) for row in results], [_texts(row) for row in cases], _texts(run), settings)


def _texts(row: Mapping[str, Any]) -> dict[str, str]:
    return {key: "" if value is None else str(value) for key, value in row.items()}


def _need(tree: Any, path: Path, *keys: str) -> Any:
    """The value under nested keys of what `path` holds. Raises: DualsegError where there is none."""
    for key in keys:
        if not isinstance(tree, Mapping) or key not in tree:
            raise DualsegError(f"{path}: has no {'.'.join(keys)}; {FIX}.")
        tree = tree[key]
    return tree


def _trained(evaluation: RunFolder, path: str) -> RunFolder:
    """A run that was evaluated: where the evaluation found it, or beside the evaluation."""
    for place in (Path(path), evaluation.path.parent / Path(path).name):
        if (place / "config.yaml").is_file():
            return RunFolder(place)
    raise DualsegError(f"{evaluation.path}: evaluated {path}, which is not there; put it beside the evaluation.")


def _checked_cases(path: Path, scores: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[CaseRow]:
    """The rows of cases.csv of every (split, network) of `scores`, after checking that they give these scores.

    Raises:
        DualsegError: rows are damaged or missing.
    """
    found, damaged = read_rows(path, case_row)
    if damaged:
        raise DualsegError(f"{path}: {damaged} damaged rows; {FIX}.")
    groups: dict[tuple[str, str], list[CaseRow]] = defaultdict(list)
    for row in found:
        groups[row.split, row.network].append(row)
    cases = {split: {row.case for row in found if row.split == split} for split, _ in scores}
    classes = {row.class_name for row in found}
    for (split, network), values in scores.items():
        rows = groups[split, network]
        expected = len(cases[split]) * len(classes)
        if not rows or len(rows) != expected or len({(row.case, row.class_name) for row in rows}) != expected:
            raise DualsegError(f"{path}: cut off: {len(rows)} of {expected} rows of {split} {network}; {FIX}.")
        for metric in METRICS:
            mean, told = math.fsum(getattr(row, metric) for row in rows) / len(rows), values.get(metric)
            # cases.csv has six digits after the point
            if not isinstance(told, int | float) or not math.isclose(mean, told, rel_tol=1e-5, abs_tol=1e-5):
                wrong = f"{split} {network} has a mean {metric} of {mean:.6f}, in metrics.json {told}"
                raise DualsegError(f"{path}: cut off or changed: {wrong}; {FIX}.")
    return [row for key in scores for row in groups[key]]


def _provenance(folder: RunFolder, manifest: Mapping[str, Any], trained: Sequence[RunFolder]) -> dict[str, Any]:
    """Where a run comes from. What was resumed or evaluated lists every revision, and is uncommitted if one was."""
    path, hardware = folder.manifest_file, _need(manifest, folder.manifest_file, "hardware")
    launches = _launches(manifest, path)
    for run in trained:
        launches += _launches(run.manifest(), run.manifest_file)
    known = [git["dirty"] for git in launches if git["dirty"] is not None]
    return {
        "evaluated": " ".join(run.path.name for run in trained),
        "revision": " ".join(dict.fromkeys(git["revision"] or "unknown" for git in launches)),
        "uncommitted": "yes" if any(known) else "no" if len(known) == len(launches) else "unknown",
        "dualseg": _need(manifest, path, "dualseg"),
        "torch": _need(manifest, path, "versions", "torch"),
        "hardware": hardware["gpu"] or f"{hardware['cpu']}, {hardware['cores']} cores",
        "threads": hardware.get("threads"),
        "seconds": _need(manifest, path, "seconds"),
        "seconds_per_iteration": None if trained else _seconds_per_iteration(folder.curves_file),
        "started": _need(manifest, path, "started"),
        "command": _need(manifest, path, "command"),
        "warning": collapse(folder.curves_file),
    }


def _launches(manifest: Mapping[str, Any], path: Path) -> list[Mapping[str, Any]]:
    """The `git` of the first start and of each resumption."""
    states = [_need(manifest, path, "git"), *(_need(resumed, path, "git") for resumed in manifest.get("resumed", []))]
    return [{"revision": git.get("revision"), "dirty": git.get("dirty")} for git in states]


def _seconds_per_iteration(path: Path) -> str | None:
    """Mean of the curve, so without validation and evaluation; None without one. Only this curve is parsed: speed."""
    try:
        found = [float(value) for value in _ITERATION_SECONDS.findall(path.read_bytes())]
    except (OSError, ValueError):
        return None
    return f"{math.fsum(found) / len(found):.4g}" if found else None
