"""What a prepared dataset holds: a row for each case, and lines to read."""

from pathlib import Path
from typing import Any

import pandas as pd

from dualseg.files import replacing
from dualseg.preparation.base import Preparation
from dualseg.preparation.writing import read_record

AXES = ("left", "posterior", "superior")


def write_summary(path: Path, preparation: Preparation, out: Path, cases: list[str]) -> str:
    """Write a CSV with a row for each case, and give the spread over the cases as lines.

    Raises:
        DualsegError: a record is damaged, or the file cannot be written.
    """
    table = pd.DataFrame([_row(read_record(preparation.file(out, case))) for case in cases])
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False)
    spread = table.drop(columns=["case", "remarks"]).quantile([0, 0.5, 1]).T
    spread.columns = pd.Index(["lowest", "median", "highest"])
    lines = spread.to_string(float_format=lambda value: f"{value:.4g}")
    remarks = [f"{row.case}: {row.remarks}" for row in table.itertuples() if row.remarks]
    return "\n".join([lines, *remarks])


def _row(record: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"case": record["case"]}
    for kind in ("raw", "prepared"):
        own = record[kind]
        for what in ("shape", "spacing"):
            row |= {f"{kind} {what} {axis}": value for axis, value in zip(AXES, own[what], strict=True)}
        row |= {f"{kind} {what}": own[what] for what in ("min", "max", "mean", "std")}
    row["raw mean inside label"] = record["raw_inside_label"]
    row |= {f"{name} ml": value for name, value in record["label_ml"].items()}
    row["remarks"] = "; ".join(record["remarks"])
    return row
