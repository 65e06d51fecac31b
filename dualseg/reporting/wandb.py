"""The results of a finished run in its W&B run: what the report shows, under keys that are the same for every run."""

import io
import math
from pathlib import Path
from typing import Any

from dualseg.reporting import figures
from dualseg.reporting.contents import RunContents, find_examples, read_contents
from dualseg.runs.identity import flatten
from dualseg.runs.reading import CASE_COLUMNS, METRICS, CaseRow
from dualseg.training.wandb_logger import STEP

LEGEND = "left: reference orange, prediction blue; right: entropy, green where the networks disagree"


def log_results(path: Path, run: Any) -> None:
    """Add the results of a run folder to its open W&B run.

    The summary gets metrics.json, flattened with slashes (`test/ensemble/dice`), in place of the last values of curves
    of those names; `cases` is cases.csv as a table; `examples/best`, `examples/median` and `examples/worst` are the
    slices of the report, one picture a plane.

    Args:
        path: the run folder, with metrics.json.
        run: what wandb.init returned.

    Raises:
        DualsegError: there is no run folder.
    """
    import wandb

    contents = read_contents(path)
    values: dict[str, Any] = {STEP: contents.metrics["iterations"], **_examples(contents)}
    if contents.cases:
        values["cases"] = wandb.Table(columns=list(CASE_COLUMNS), data=[_cells(row) for row in contents.cases])
    run.log(values)
    run.summary.update(flatten(contents.metrics, separator="/"))  # the last word: after every curve


def _cells(row: CaseRow) -> list[Any]:
    """A row of cases.csv; a score that is not finite is an empty cell, since JSON has no number for it."""
    scores = [getattr(row, metric) for metric in METRICS]
    numbers = [score if math.isfinite(score) else None for score in scores]
    return [row.case, row.split, row.network, row.class_name, *numbers, row.empty]


def _examples(contents: RunContents) -> dict[str, list[Any]]:
    import wandb
    from PIL import Image

    found = find_examples(contents)
    if found is None:
        return {}
    pictures: dict[str, list[Any]] = {}
    for case, roles in found.roles.items():
        slices = contents.slices(case)
        ratio = figures.frame_ratio(slices)
        score = f"{found.split} Dice {100 * found.dice[found.headline][case]:.2f} % ({found.headline})"
        images = [Image.open(io.BytesIO(figures.overlay_png(plane, ratio))) for plane in slices]
        for role in roles:  # where there are few cases, one has several
            pictures[f"examples/{role}"] = [
                wandb.Image(image, caption=f"{case}, {plane.plane}: {score}; {LEGEND}")
                for image, plane in zip(images, slices, strict=True)
            ]
    return pictures
