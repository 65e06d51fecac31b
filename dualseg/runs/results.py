"""Scores -> metrics.json and cases.csv; their contract is docs/run-folder.md."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dualseg.files import write_text
from dualseg.metrics.segmentation import Summary
from dualseg.record import Roles
from dualseg.runs.reading import CASE_COLUMNS, METRICS


def metrics_of(results: Mapping[str, Mapping[str, Summary]], iterations: int, roles: Roles) -> dict[str, Any]:
    """stage -> network -> Summary, as metrics.json holds it; with K > 2 the classes stand beside their mean.

    Args:
        roles: of the networks.
    """
    metrics: dict[str, Any] = {"status": "finished", "iterations": iterations, "record": roles.record}
    if roles.averages:
        metrics["averages"] = dict(roles.averages)
    for stage, networks in results.items():
        metrics[stage] = {
            name: {**summary.mean, **({"classes": summary.classes} if len(summary.classes) > 1 else {})}
            for name, summary in networks.items()
        }
    return metrics


def write_cases(path: Path, results: Mapping[str, Mapping[str, Summary]], cases: Mapping[str, Sequence[str]]) -> None:
    """One row per volume x network x class. `cases`: stage -> case names in the order of their indices."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(CASE_COLUMNS)
    for stage, networks in results.items():
        for name, summary in networks.items():
            for index, class_name, scores in summary.rows:
                numbers = [f"{getattr(scores, metric):.6f}" for metric in METRICS]
                rows.writerow([cases[stage][index], stage, name, class_name, *numbers, scores.empty])
    write_text(path, text.getvalue())
