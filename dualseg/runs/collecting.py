"""Run folders -> the tidy tables of a study: results.csv, cases.csv, runs.csv."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dualseg.errors import DualsegError
from dualseg.files import read_json, write_text
from dualseg.runs.folder import RunFolder, identity
from dualseg.runs.reading import CASE_COLUMNS, METRICS, case_row, read_rows
from dualseg.runs.tables import distance_unit

RESULT_COLUMNS = [
    "study", "variant", "dataset", "scale", "method", "objective", "architecture", "labeled", "unlabeled", "seed",
    "network", "split", *METRICS, "iterations", "run",
]  # fmt: skip
RUN_COLUMNS = [
    "run", "variant", "scale", "seed", "revision", "uncommitted", "fingerprint", "configuration", "dualseg", "torch",
    "hardware", "threads", "seconds", "started", "command",
]  # fmt: skip
CASES_COLUMNS = ["run", "variant", "scale", "seed", *CASE_COLUMNS]
FILES = {"results": RESULT_COLUMNS, "cases": CASES_COLUMNS, "runs": RUN_COLUMNS}


@dataclass(frozen=True)
class Member:
    """A run folder as a row of a study: the same run may be a row of several."""

    variant: str
    seed: int
    folder: RunFolder
    ensemble_alone: bool = False  # an evaluation of several runs, whose networks have rows of their own


@dataclass(frozen=True)
class Collected:
    """The tables of a study, and what could not be read.

    Attributes:
        results: one row a run x network x split, the columns of `RESULT_COLUMNS`.
        cases: one row a run x network x split x case x class.
        runs: one row a run: where it comes from.
        problems: one sentence for each run that was left out.
    """

    results: pd.DataFrame
    cases: pd.DataFrame
    runs: pd.DataFrame
    problems: tuple[str, ...] = ()

    def write(self, output: Path) -> None:
        """results.csv, cases.csv and runs.csv, each whole or not at all."""
        for name in FILES:
            write_text(output / f"{name}.csv", getattr(self, name).to_csv(index=False, lineterminator="\n"))


def collect(study: str, members: Mapping[str, Sequence[Member]], output: Path) -> Collected:
    """Add the finished `members` of each scale to the tables that are in `output`; rows of the same runs are replaced.

    Raises:
        DualsegError: a table in `output` is damaged.
    """
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in FILES}
    problems = []
    finished = [(scale, m) for scale, found in members.items() for m in found if m.folder.finished]
    for scale, member in finished:
        try:
            rows = _tables_of(study, scale, member)
        except (DualsegError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__} {error}" if not isinstance(error, DualsegError) else str(error)
            problems.append(f"{member.folder.path}: left out ({reason})")
            continue
        for name, found in rows.items():
            tables[name] += found
    merged = {name: _merged(output / f"{name}.csv", rows, FILES[name]) for name, rows in tables.items()}
    return Collected(**merged, problems=tuple(problems))


def _merged(path: Path, rows: Sequence[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    """The table at `path` without the runs of `rows`, then `rows`; sorted, numbers as they are written."""
    new = pd.DataFrame(rows, columns=columns).astype(str)
    if path.is_file():
        try:
            known = pd.read_csv(path, dtype=str, keep_default_na=False)[columns]
        except (ValueError, KeyError) as error:
            raise DualsegError(f"{path}: damaged ({error}); restore it, or delete it to collect anew.") from error
        new = pd.concat([known[~known["run"].isin(new["run"])], new])
    order = [
        column for column in ("scale", "variant", "seed", "split", "network", "case", "class") if column in columns
    ]
    return new.sort_values(order, kind="stable", ignore_index=True)


def _tables_of(study: str, scale: str, member: Member) -> dict[str, list[dict[str, Any]]]:
    folder = member.folder
    config, metrics, manifest = folder.config(), read_json(folder.metrics_file), read_json(folder.manifest_file)
    if distance_unit(config) != "voxels":
        raise DualsegError("its distances are in mm, the study's in voxels; evaluate it again in voxels")
    own = {"variant": member.variant, "scale": scale, "seed": member.seed, "run": folder.path.name}
    architectures = {name: network["architecture"] for name, network in config["networks"].items()}
    counts = manifest["data"]
    labeled = counts.get("labeled", config["data"]["labeled"])
    results = []
    for split in ("validation", "test"):
        for network, scores in metrics.get(split, {}).items():
            if member.ensemble_alone and network != "ensemble":
                continue
            results.append(
                {
                    **own,
                    "study": study,
                    "dataset": config["data"]["name"],
                    "method": config["method"]["name"],
                    "objective": config.get("objective", ""),
                    "architecture": architectures.get(network, "+".join(architectures.values())),
                    "labeled": labeled,
                    "unlabeled": counts.get("unlabeled", 0),
                    "network": network,
                    "split": split,
                    **{metric: f"{scores[metric]:.6f}" for metric in METRICS},
                    "iterations": metrics["iterations"],
                }
            )
    read, damaged = read_rows(folder.cases_file, case_row)
    if damaged:
        raise DualsegError(f"{folder.cases_file}: {damaged} damaged rows")
    cases = [
        {**own, **{column: getattr(row, "class_name" if column == "class" else column) for column in CASE_COLUMNS}}
        for row in read
        if not member.ensemble_alone or row.network == "ensemble"
    ]
    expected = len({(row["split"], row["network"]) for row in results})
    if len({(row["split"], row["network"]) for row in cases}) != expected:
        raise DualsegError(f"{folder.cases_file}: has not the networks of metrics.json; evaluate the run again")
    return {"results": results, "cases": cases, "runs": [{**own, **_provenance(config, manifest)}]}


def _provenance(config: dict[str, Any], manifest: dict[str, Any]) -> dict[str, Any]:
    digest = hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()
    hardware = manifest["hardware"]
    launches = [manifest["git"], *(resumed["git"] for resumed in manifest["resumed"])]
    return {
        "revision": " ".join(dict.fromkeys(str(git["revision"])[:12] for git in launches)),
        "uncommitted": "yes" if any(git["dirty"] for git in launches) else "no",
        "fingerprint": manifest["data"].get("fingerprint", ""),
        "configuration": digest,
        "dualseg": manifest["dualseg"],
        "torch": manifest["versions"]["torch"],
        "hardware": hardware["gpu"] or f"{hardware['cpu']} {hardware.get('instructions', '')}".strip(),
        "threads": hardware["threads"],
        "seconds": manifest["seconds"],
        "started": manifest["started"],
        "command": manifest["command"],
    }
