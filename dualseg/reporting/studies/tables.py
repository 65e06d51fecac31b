"""The table of a study: a line for each variant and network, in Markdown and LaTeX."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from dualseg.errors import DualsegError
from dualseg.runs.reading import METRICS

HEADINGS = {"dice": "Dice %", "jaccard": "Jaccard %", "hd95": "95HD (voxels)", "asd": "ASD (voxels)"}
LARGER_IS_BETTER = ("dice", "jaccard")


@dataclass(frozen=True)
class Line:
    """One variant's network: mean and standard deviation (n - 1) over seeds of each metric, in the table's units.

    `values` is None where no run is finished. `remarks` say what keeps the line from being compared as it is.
    """

    variant: str
    network: str
    runs: int
    iterations: tuple[int, ...]
    values: dict[str, tuple[float, float | None]] | None
    remarks: tuple[str, ...] = ()


def lines_of(
    results: pd.DataFrame, uncommitted: Sequence[str], rows: Sequence[str], seeds: int, only: Sequence[str] = ()
) -> list[Line]:
    """The lines of one scale, in the order of `rows`.

    Args:
        results: results.csv, of one scale.
        uncommitted: runs whose code was not committed.
        rows: variants of the study; one without a finished run is a line that says so.
        seeds: how many the study asks for.
        only: variants that the results may have beside `rows`.

    Raises:
        DualsegError: several datasets.
    """
    datasets = sorted(set(results["dataset"]))
    if len(datasets) > 1:
        raise DualsegError(f"results.csv: mixes the datasets {', '.join(datasets)}; give each a study of its own.")
    test = results[results["split"] == "test"]
    known = list(dict.fromkeys([*rows, *only, *test["variant"]]))
    lines = []
    for variant in known:
        own = test[test["variant"] == variant]
        if own.empty:
            lines.append(Line(variant, "", 0, (), None))
        for network in sorted(set(own["network"])):
            lines.append(_line(own[own["network"] == network], variant, network, seeds, uncommitted))
    return lines


def _line(own: pd.DataFrame, variant: str, network: str, seeds: int, uncommitted: Sequence[str]) -> Line:
    values: dict[str, tuple[float, float | None]] = {}
    for metric in METRICS:
        numbers = own[metric].astype(float) * (100 if metric in LARGER_IS_BETTER else 1)
        values[metric] = (float(numbers.mean()), float(numbers.std(ddof=1)) if len(numbers) > 1 else None)
    iterations = tuple(sorted(set(own["iterations"].astype(int))))
    remarks = []
    if len(own) < seeds:
        remarks.append(f"{len(own)} of {seeds} seeds")
    if len(iterations) > 1:
        remarks.append("runs of different length")
    if set(own["run"]) & set(uncommitted):
        remarks.append("uncommitted code")
    return Line(variant, network, len(own), iterations, values, tuple(remarks))


def best(lines: Sequence[Line]) -> dict[str, float]:
    """The best mean of each metric among lines of equal numbers of runs and iterations as most lines have."""
    shown = [line for line in lines if line.values]
    if not shown:
        return {}
    kinds = [(line.runs, line.iterations) for line in shown]
    usual = max(kinds, key=kinds.count)
    alike = [line.values for line in shown if (line.runs, line.iterations) == usual and line.values]
    return {
        metric: (max if metric in LARGER_IS_BETTER else min)(values[metric][0] for values in alike)
        for metric in METRICS
    }


def markdown(lines: Sequence[Line], title: str) -> str:
    """A Markdown table below `title`."""
    top = best(lines)
    heads = ["", "network", "iterations", "runs", *HEADINGS.values(), ""]
    text = [title, "", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for line in lines:
        text.append(f"| {' | '.join([_name(line), *_cells(line, top, '**{}**', '±')])} |")
    return "\n".join(text) + "\n"


def latex(lines: Sequence[Line]) -> str:
    """A booktabs tabular."""
    top = best(lines)
    heads = " & ".join(["", "network", "iterations", "runs", *(h.replace("%", r"\%") for h in HEADINGS.values()), ""])
    body = []
    for line in lines:
        cells = [_name(line).replace("_", r"\_"), *_cells(line, top, r"\textbf{{{}}}", r"$\pm$")]
        body.append(" & ".join(cells) + r" \\")
    columns = "ll" + "r" * (2 + len(HEADINGS)) + "l"
    head = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", heads + r" \\", r"\midrule"]
    return "\n".join([*head, *body, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _name(line: Line) -> str:
    return line.variant.replace("_", " ")


def _cells(line: Line, top: dict[str, float], bold: str, sign: str) -> list[str]:
    if line.values is None:
        return ["", "", "0", *["not run" for _ in HEADINGS], ""]
    numbers = []
    for metric in METRICS:
        mean, deviation = line.values[metric]
        text = f"{mean:.2f}" if deviation is None else f"{mean:.2f} {sign} {deviation:.2f}"
        numbers.append(bold.format(text) if mean == top.get(metric) else text)
    lengths = ", ".join(f"{n:,}" for n in line.iterations)
    return [line.network, lengths, str(line.runs), *numbers, "; ".join(line.remarks)]
