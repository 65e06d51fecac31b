"""The report of one run: one HTML page that needs nothing but itself."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dualseg.files import sweep, write_text
from dualseg.machine import duration
from dualseg.record import record_of
from dualseg.reporting import figures
from dualseg.reporting.contents import (
    RunContents,
    case_dice,
    find_examples,
    read_contents,
)
from dualseg.reporting.curve_panels import curve_networks, loss_panels, schedule_panels
from dualseg.reporting.html import render
from dualseg.runs.identity import flatten
from dualseg.runs.reading import METRICS, CaseRow, PlaneSlice
from dualseg.runs.tables import distance_unit, nothing_scored, poorly_found

ABSENT = "\N{EN DASH}"
UNREADABLE = ("data.images.", "started_from")  # of the manifest: one hash a case


def write_run_report(run: Path, output: Path | None = None) -> Path:
    """Write the report of a run folder as one self-contained HTML page, and return the page's path.

    The page is written to `output`, by default `<run>/report.html`, and appears there whole or not at all. Parts that
    the run folder lacks (a killed run's) are named on the page.

    Raises:
        DualsegError: `run` is no run folder, or the page cannot be written.
    """
    run, output = Path(run), Path(output) if output else Path(run) / "report.html"
    page = render_run(read_contents(run))
    sweep(output.parent, output.name)
    write_text(output, page)
    return output


def render_run(run: RunContents) -> str:
    """The HTML page of a run."""
    splits = [_split(run, split) for split in run.splits]
    return render(
        Path(__file__).with_name("run.html.j2"),
        title=str(run.config.get("name") or run.folder.path.resolve().name),
        summary=_summary(run),
        status=_status(run),
        splits=splits,
        unit=distance_unit(run.config),
        nothing_scored=nothing_scored(run.config),
        losses=loss_panels(run),
        schedules=schedule_panels(run),
        curve_networks=curve_networks(run),
        examples=_examples(run),
        problems=run.problems,
        warnings=[*filter(None, (poorly_found(run.metrics, run.cases), run.collapse))],
        architectures=_architectures(run),
        facts=[(key, _text(value)) for key, value in flatten(run.manifest).items() if not key.startswith(UNREADABLE)],
        duration=_duration(run.manifest.get("seconds")),
        config_text=run.config_text,
        colour=figures.network_colour,
        colours=figures,
        entropy_stops=", ".join(figures.entropy_gradient()),
    )


# --- head of the page ---


def _get(tree: Any, *keys: str) -> Any:
    """The value under nested keys, None where there is none."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _label(node: Any) -> str | None:
    """What a configured object is called: its name, or the class it is made from."""
    if isinstance(node, str):
        return node
    name = _get(node, "name") or _get(node, "architecture") or _get(node, "_target_")
    return str(name).rsplit(".", 1)[-1] if name else None


def _architectures(run: RunContents) -> dict[str, str]:
    networks = run.config.get("networks")
    found = {str(k): _label(v) for k, v in networks.items()} if isinstance(networks, Mapping) else {}
    return {k: v for k, v in found.items() if v and not k.startswith("_")}


def _last_iteration(run: RunContents) -> int | None:
    done = run.metrics.get("iterations")
    if isinstance(done, int):
        return done
    return max((int(c.iterations[-1]) for c in run.curves.values()), default=None)


def _status(run: RunContents) -> dict[str, Any]:
    done, planned = _last_iteration(run), _get(run.config, "trainer", "max_iterations")
    progress = f"{done:,}" if done is not None else "an unknown number"
    progress += f" of {planned:,} iterations" if isinstance(planned, int) else " iterations"
    state = "finished" if run.finished else str(run.metrics.get("status") or "not finished")
    return {"finished": run.finished, "state": state, "progress": progress}


def _summary(run: RunContents) -> str:
    config, data = run.config, run.manifest.get("data")
    method = _label(config.get("method"))
    objective = _get(config, "method", "objective")
    parts = [f"{method} ({objective})" if method and objective else method]
    parts += [" + ".join(_architectures(run).values())]
    dataset = _get(data, "dataset") or _label(config.get("data"))
    parts += [f"on {dataset}" if dataset else None]
    counts = [f"{_get(data, key)} {key}" for key in ("labeled", "unlabeled") if _get(data, key) is not None]
    parts += [" + ".join(counts) + " volumes" if counts else None]
    seed = run.manifest.get("seed", config.get("seed"))
    parts += [f"seed {seed}" if seed is not None else None]
    parts += ["starts from the weights of another run" if run.manifest.get("weights") else None]
    parts += [f"unlabeled scans {run.verification}" if run.verification else None]
    return " · ".join(part for part in parts if part)


# --- results and cases ---


def _percent(value: Any) -> str:
    return f"{100 * value:.2f}" if isinstance(value, int | float) and math.isfinite(value) else ABSENT


def _distance(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, int | float) and math.isfinite(value) else ABSENT


def _cells(values: Any) -> list[str]:
    """Dice and Jaccard in per cent, 95HD and ASD in the run's unit, as text."""
    show = (_percent, _percent, _distance, _distance)
    return [f(_get(values, metric)) for f, metric in zip(show, METRICS, strict=True)]


def _split(run: RunContents, split: str) -> dict[str, Any]:
    networks = run.networks(split)
    rows = [row for row in run.cases if row.split == split]
    results = []
    for network in networks:
        values = _get(run.metrics, split, network)
        own = [row for row in rows if row.network == network]
        results.append({"network": network, "class": None, "cells": _cells(values), "empty": _empties(own)})
        classes = _get(values, "classes")
        for name, inner in classes.items() if isinstance(classes, Mapping) else ():
            empty = _empties([row for row in own if row.class_name == str(name)])
            results.append({"network": network, "class": str(name), "cells": _cells(inner), "empty": empty})
    headline = record_of(run.metrics.get("record"), networks)
    return {
        "name": split,
        "networks": networks,
        "headline": headline,
        "summarised": isinstance(run.metrics.get(split), Mapping),
        "headline_cells": _cells(_get(run.metrics, split, headline or "")),
        "results": results,
        "counts": _empties(rows),
        "rows": len(rows),
        "cases": len({row.case for row in rows}),
        "distributions": _distributions(rows, split, networks),
        "table": _case_table(rows, networks, headline),
        "classes": len({row.class_name for row in rows}),
    }


def _empties(rows: list[CaseRow]) -> dict[str, int] | None:
    """How many rows have an empty mask, by which one; None where there are no rows to count."""
    if not rows:
        return None
    return {kind: sum(row.empty == kind for row in rows) for kind in ("prediction", "reference", "both")}


def _distributions(rows: list[CaseRow], split: str, networks: list[str]) -> list[dict[str, str]]:
    if not rows:
        return []
    classes = list(dict.fromkeys(row.class_name for row in rows))
    groups = [("mean over classes" if len(classes) > 1 else "", rows)]
    if len(classes) > 1:
        groups += [(name, [row for row in rows if row.class_name == name]) for name in classes]
    panels = []
    for name, group in groups:
        dice = {network: list(case_dice(group, split, network).values()) for network in networks}
        words = [
            f"{network}: median {_percent(np.median(v))}, lowest {_percent(min(v))}, highest {_percent(max(v))}"
            for network, v in dice.items()
            if v
        ]
        alt = f"Dice of each {split} case in per cent{', ' + name if name else ''}. " + "; ".join(words)
        panels.append({"title": name, "source": figures.dice_distribution(dice), "alt": alt, "words": "; ".join(words)})
    return panels


def _case_table(rows: list[CaseRow], networks: list[str], headline: str | None) -> list[dict[str, Any]]:
    """One entry a case and class, the headline network's lowest Dice first."""
    entries: dict[tuple[str, str], dict[str, CaseRow]] = {}
    for row in rows:
        entries.setdefault((row.case, row.class_name), {})[row.network] = row

    def order(item: tuple[tuple[str, str], dict[str, CaseRow]]) -> tuple[float, tuple[str, str]]:
        row = item[1].get(headline or "")
        return (row.dice if row and math.isfinite(row.dice) else math.inf), item[0]

    return [
        {
            "case": case,
            "class": class_name,
            "networks": [
                {"cells": _cells(vars(found[n]) if n in found else None), "empty": found[n].empty if n in found else ""}
                for n in networks
            ],
        }
        for (case, class_name), found in sorted(entries.items(), key=order)
    ]


# --- examples ---


def _examples(run: RunContents) -> dict[str, Any]:
    found = find_examples(run)
    if found is None:
        return {"split": None, "cases": [], "disagreement": False, "classes": []}
    cases: list[dict[str, Any]] = []
    for case, roles in found.roles.items():
        scores = ", ".join(f"{n} {_percent(dice.get(case))}" for n, dice in found.dice.items())
        planes = _pictures(run.slices(case), case)
        cases.append({"case": case, "roles": " and ".join(roles), "scores": scores, "planes": planes})
    shown = [plane for example in cases for plane in example["planes"]]
    classes = list(dict.fromkeys(row.class_name for row in run.cases if row.split == found.split))
    return {
        "split": found.split,
        "headline": found.headline,
        "cases": cases,
        "disagreement": any(plane["disagreement"] for plane in shown),
        "classes": list(zip(classes, figures.CLASS_STYLES * len(classes), strict=False)) if len(classes) > 1 else [],
    }


def _pictures(slices: list[PlaneSlice], case: str) -> list[dict[str, Any]]:
    """The two pictures of each stored plane, all in frames of one shape: as tall as the tallest, within reason."""
    ratio = figures.frame_ratio(slices)
    pictures = []
    for found in slices:
        reference, prediction = found.reference > 0, found.prediction > 0
        disagreement = found.disagreement
        outlined = "" if disagreement is None else f"; the networks disagree on {disagreement.mean():.1%} of the pixels"
        pictures.append(
            {
                "plane": found.plane,
                "contours": figures.contour_slice(found, ratio),
                "contours_alt": f"{found.plane} slice of {case} with the contours of the reference "
                f"({np.sum(reference)} pixels) and the prediction ({np.sum(prediction)} pixels, "
                f"{np.sum(reference & prediction)} in common)",
                "uncertainty": figures.uncertainty_slice(found, ratio),
                "uncertainty_alt": f"{found.plane} slice of {case}: entropy map, mean "
                f"{found.entropy.mean() / 255:.1%} of log K{outlined}",
                "disagreement": disagreement is not None,
            }
        )
    return pictures


# --- provenance ---


def _text(value: Any) -> str:
    """A value of the manifest as the page shows it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or ABSENT
    return ABSENT if value in (None, {}) else str(value)


def _duration(seconds: Any) -> str | None:
    return duration(seconds) if isinstance(seconds, int | float) and math.isfinite(seconds) else None
