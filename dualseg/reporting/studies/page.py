"""What `dualseg-report study` writes: tables, figures, comparisons and one page that opens offline."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from dualseg.errors import DualsegError
from dualseg.files import replacing, write_text
from dualseg.reporting.studies import figures
from dualseg.reporting.studies.comparisons import Comparison, compare
from dualseg.reporting.studies.tables import HEADINGS, Line, latex, lines_of, markdown
from dualseg.runs.collecting import RUN_COLUMNS, Collected

SCALE_TITLE = "{study}, scale={scale}, test cases; mean ± standard deviation over seeds."


@dataclass(frozen=True)
class Scale:
    """One scale of a study, ready to be shown."""

    name: str
    lines: list[Line]
    comparisons: list[Comparison]
    figures: dict[str, Figure]  # name -> drawing
    runs: pd.DataFrame
    untraced: list[str]  # runs of the table that left no provenance here


def write_study(
    study: str, collected: Collected, rows: Sequence[str], seeds: int, against: str | None, output: Path
) -> Path:
    """Write the three CSV files, table.md, table.tex, a PNG for each figure and report.html into `output`.

    Args:
        study: its name.
        collected: its tables.
        rows: variants in the order of the table.
        seeds: how many the study asks for.
        against: the variant that the others are compared with.
        output: folder, experiments/<study> as a rule.

    Returns:
        The page.

    Raises:
        DualsegError: no finished run; several datasets in one table.
    """
    names = sorted(set(collected.results["scale"]))
    if not names:
        raise DualsegError(f"{study}: no finished run, so there is nothing to show; run the study first.")
    scales = [_scale(name, collected, rows, seeds, against) for name in names]
    collected.write(output)
    titles = [SCALE_TITLE.format(study=study, scale=scale.name) for scale in scales]
    tables = [markdown(scale.lines, title) for scale, title in zip(scales, titles, strict=True)]
    comparisons = [_comparisons_table(scale.comparisons) for scale in scales]
    parts = [part for pair in zip(tables, comparisons, strict=True) for part in pair if part]
    write_text(output / "table.md", "\n".join(parts))
    write_text(output / "table.tex", "\n".join(latex(scale.lines) for scale in scales))
    for scale in scales:
        for name, drawing in scale.figures.items():
            with replacing(output / f"{name}-{scale.name}.png") as temporary:
                drawing.savefig(temporary, dpi=130)
    write_text(output / "report.html", _page(study, scales, collected.problems, output))
    return output / "report.html"


def _scale(name: str, collected: Collected, rows: Sequence[str], seeds: int, against: str | None) -> Scale:
    results, cases, runs = (
        table[table["scale"] == name] for table in (collected.results, collected.cases, collected.runs)
    )
    lines = lines_of(results, list(runs.loc[runs["uncommitted"] == "yes", "run"]), rows, seeds)
    comparisons = compare(cases, rows, against) if against and len(cases) else []
    shown = {"runs": figures.runs_figure(results, [*dict.fromkeys([*rows, *results["variant"]])])}
    if results["labeled"].nunique() > 2:
        shown["labels"] = figures.labels_figure(results)
    if comparisons:
        shown["differences"] = figures.differences_figure(comparisons)
    untraced = sorted(set(results["run"]) - set(runs["run"]))
    return Scale(name, lines, comparisons, shown, runs, untraced)


def _comparisons_table(comparisons: Sequence[Comparison]) -> str:
    """Markdown; empty without comparisons."""
    if not comparisons:
        return ""
    against = comparisons[0].against.replace("_", " ")
    lines = [
        f"Test Dice minus that of {against}, each case averaged over the seeds that both have. Interval: percentile",
        "bootstrap over cases, 95 %; p: Wilcoxon signed-rank over cases, two-sided, Holm-corrected; effect:",
        "matched-pairs rank-biserial correlation.",
        "",
        "| | seeds | cases | difference (points) | interval | p | effect |",
        "|---|---|---|---|---|---|---|",
    ]
    for c in comparisons:
        numbers = f"{100 * c.difference:+.2f} | {100 * c.low:+.2f} to {100 * c.high:+.2f} | {c.p:.3g} | {c.effect:+.2f}"
        lines.append(f"| {c.variant.replace('_', ' ')} | {c.seeds} | {c.cases} | {numbers} |")
    return "\n".join(lines) + "\n"


def _page(study: str, scales: Sequence[Scale], problems: Sequence[str], output: Path) -> str:
    reported = output / "reported.csv"
    literature = pd.read_csv(reported, dtype=str, keep_default_na=False) if reported.is_file() else pd.DataFrame()
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("study.html.j2").render(
        study=study,
        scales=scales,
        problems=problems,
        headings=HEADINGS,
        run_columns=RUN_COLUMNS,
        literature=literature,
        picture=_picture,
    )


def _picture(drawing: Figure) -> str:
    """A PNG as a data URI."""
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", dpi=130)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
