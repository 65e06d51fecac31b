"""The table of a study at one scale: a line for each variant and network, in Markdown and LaTeX."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from dualseg.names import as_markdown
from dualseg.reporting.contents import sort_networks
from dualseg.runs.reading import METRICS
from dualseg.studies.study_contents import StudyContents, scored_cases
from dualseg.studies.tidy import MEDIAN_DICE

COLUMNS = ("dice", MEDIAN_DICE, "jaccard", "hd95", "asd")
FACTOR = {"dice": 100, MEDIAN_DICE: 100, "jaccard": 100, "hd95": 1, "asd": 1}  # Dice and Jaccard in per cent
NOT_RUN, ABSENT = "not run", "\N{EN DASH}"
REPORTED = "reported: Dice / Jaccard / 95HD / ASD"
SPREAD_WORDS = "of each run the mean over cases, or their median; mean ± standard deviation (n - 1) over seeds"
BOLD_WORDS = "Bold: the best of the lines with the same number of labels, iterations, seeds and {split} cases"
UNKNOWN_WORDS = f"{ABSENT} the values of the cases are not recorded"
MARK_WORDS = "† a run of the line had uncommitted code"


@dataclass(frozen=True)
class Cell:
    """Mean and standard deviation (n - 1; None for one run) over seeds, in the table's unit; NaN where not known."""

    mean: float
    deviation: float | None
    best: bool = False


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
        variant: row of the study, or a method of the literature.
        network, labeled, iterations, runs: as shown; `runs` says how many were asked for where some are missing.
        cells: one for each of `COLUMNS`; None where no run is finished, and for the literature.
        reported: the literature's figures, with the number of their source; empty where there are none.
        uncommitted: a run's code was.
        own: a row of the study, and not of the literature.
    """

    variant: str
    network: str = ""
    labeled: str = ""
    iterations: str = ""
    runs: str = "0"
    cells: tuple[Cell, ...] | None = None
    reported: str = ""
    uncommitted: bool = False
    own: bool = True


@dataclass(frozen=True)
class Table:
    """The table of one scale. `sources`: of the reported figures, by their number from 1."""

    scale: str
    split: str
    unit: str
    lines: tuple[Line, ...]
    sources: tuple[str, ...]

    @property
    def heads(self) -> list[str]:
        """Of the columns."""
        scores = ["Dice %", "median Dice %", "Jaccard %", f"95HD ({self.unit})", f"ASD ({self.unit})"]
        heads = ["variant", "network", "labeled", "iterations", "runs", *scores]
        return [*heads, REPORTED] if self.sources else heads

    @property
    def title(self) -> str:
        """What the numbers are."""
        return f"{self.split.capitalize()} cases{f', scale={self.scale}' if self.scale else ''}; {SPREAD_WORDS}."

    @property
    def not_run(self) -> str:
        """A sentence in place of a table that would say `not run` and nothing else; empty where it says more."""
        if any(line.cells or line.reported for line in self.lines):
            return ""
        rows = ", ".join(line.variant for line in self.lines)
        return f"{f'scale={self.scale}: ' if self.scale else ''}{NOT_RUN} ({rows})."

    @property
    def legend(self) -> list[str]:
        """What the signs in the table mean, of those that it has."""
        cells = [cell for line in self.lines for cell in line.cells or ()]
        found = [BOLD_WORDS.format(split=self.split)] if any(cell.best for cell in cells) else []
        found += [UNKNOWN_WORDS] if any(math.isnan(cell.mean) for cell in cells) else []
        found += [MARK_WORDS] if any(line.uncommitted for line in self.lines) else []
        if self.sources:
            found.append("Reported figures are the literature's, of its own protocols and splits, and never bold")
        return found + [f"[{number}] {source}" for number, source in enumerate(self.sources, 1)]


def table_of(contents: StudyContents, scale: str) -> Table:
    """The table of one scale, every variant of the study in its order, then the literature's methods."""
    rows = contents.scored(scale).astype(dict.fromkeys(METRICS, float))
    rows = rows.merge(contents.pooled.median_dice(), how="left")
    by_variant = {str(variant): own for variant, own in rows.groupby("variant")}
    uncommitted = set(contents.tables.runs.loc[contents.tables.runs["uncommitted"] == "yes", "run"])
    cases = scored_cases(contents, scale)
    sources = list(dict.fromkeys(contents.literature["source"]))
    reported: dict[str, list[str]] = defaultdict(list)
    others = []
    for _, row in contents.literature.iterrows():
        figures = " / ".join(row[metric] or ABSENT for metric in METRICS)
        text = f"{figures} [{sources.index(row['source']) + 1}]"
        if row["variant"] in contents.variants:
            reported[row["variant"]].append(text)
        else:
            others.append(Line(row["method"], "", row["labeled"], "", "", None, text, own=False))
    asked = len(contents.study.seeds) * max(1, contents.tables.runs["fold"].nunique())
    lines: list[Line] = []
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for variant in contents.variants:
        words = "; ".join(reported[variant])
        if variant not in by_variant:
            # a row that results at another scale alone know is no row of this table
            lines += [Line(variant, reported=words)] if variant in contents.study.rows else []
            continue
        networks = sort_networks(set(by_variant[variant]["network"]))
        for network in networks:
            own = by_variant[variant][by_variant[variant]["network"] == network]
            shown = words if own["record"].iloc[0] == "1" else ""
            line = replace(_line(own, asked, uncommitted), reported=shown)
            known = cases.get(variant, frozenset()) if len(set(cases.values())) > 1 else frozenset()
            key = (line.labeled, line.iterations, tuple(sorted(set(own["seed"]))), known)
            groups[key].append(len(lines))
            lines.append(line)
    for group in groups.values():
        _embolden(lines, group)
    return Table(scale, contents.tables.split, contents.unit, (*lines, *others), tuple(sources))


def _line(own: pd.DataFrame, asked: int, uncommitted: set[str]) -> Line:
    """The line of one network's rows."""
    cells = []
    for column in COLUMNS:
        values = FACTOR[column] * own[column].to_numpy(float)
        cells.append(Cell(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None))
    runs = [run for joined in own["run"] for run in joined.split("/")]  # of folds several
    lengths = sorted({int(n) for n in own["iterations"]})
    return Line(
        variant=own["variant"].iloc[0],
        network=own["network"].iloc[0],
        labeled=", ".join(sorted(set(own["labeled"]), key=int)),
        iterations=", ".join(f"{n:,}" for n in lengths),
        runs=str(len(runs)) if len(runs) >= asked else f"{len(runs)} of {asked}",
        cells=tuple(cells),
        uncommitted=bool(uncommitted & set(runs)),
    )


def _embolden(lines: list[Line], group: Sequence[int]) -> None:
    """Mark the best cells of lines that can be compared, where they are of at least two variants."""
    if len({lines[index].variant for index in group}) < 2:
        return
    for column, name in enumerate(COLUMNS):
        means = {index: round(cells[column].mean, 2) for index in group if (cells := lines[index].cells)}
        known = [mean for mean in means.values() if not math.isnan(mean)]
        best = (max if FACTOR[name] == 100 else min)(known, default=None)
        for index, mean in means.items():
            cells = lines[index].cells
            if mean == best and cells:
                marked = replace(cells[column], best=True)
                lines[index] = replace(lines[index], cells=(*cells[:column], marked, *cells[column + 1 :]))


def spread(cell: Cell) -> str:
    """78.33 ± 0.57"""
    if math.isnan(cell.mean):
        return ABSENT
    return f"{cell.mean:.2f}" if cell.deviation is None else f"{cell.mean:.2f} ± {cell.deviation:.2f}"


def markdown(tables: Sequence[Table], notes: Sequence[str], verdict: str, comparisons: str) -> str:
    """table.md: the verdict, the tables, the comparisons, what has to be said about them; each where there is one."""
    parts = [verdict] if verdict else []
    for table in tables:
        if table.not_run:
            parts.append(as_markdown(table.not_run))
            continue
        width = len(table.heads)
        text = [as_markdown(table.title), "", _row(table.heads), f"|{'---|' * width}"]
        text += [_row(_texts(table, line, "**{}**")) for line in table.lines]
        parts.append("\n".join([*text, *_listed(table.legend)]))
    if comparisons:
        parts.append(comparisons)
    if notes:
        parts.append("\n".join(["Notes", *_listed(notes)]))
    return "\n\n".join(parts) + "\n"


def _listed(sentences: Sequence[str]) -> list[str]:
    return ["", *(f"- {as_markdown(sentence)}." for sentence in sentences)] if sentences else []


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _texts(table: Table, line: Line, bold: str, escape: Callable[[str], str] = as_markdown) -> list[str]:
    """The cells of a line as texts."""
    name = line.variant + (" †" if line.uncommitted else "")
    before = [name, line.network, line.labeled, line.iterations, line.runs]
    if line.cells is None:
        numbers = [NOT_RUN if line.own else "" for _ in COLUMNS]
    else:
        numbers = [bold.format(escape(spread(cell))) if cell.best else escape(spread(cell)) for cell in line.cells]
    after = [line.reported] if table.sources else []
    return [*map(escape, before), *numbers, *map(escape, after)]


def latex(tables: Sequence[Table], notes: Sequence[str]) -> str:
    r"""table.tex: one `table` environment a scale, for a document that loads booktabs."""
    text = [r"% needs \usepackage{booktabs}; made by dualseg-report study"]
    for table in tables:
        if table.not_run:
            text += ["", _latex_comment(table.not_run)]
            continue
        columns = "ll" + "r" * (len(table.heads) - 2)
        text += ["", r"\begin{table}", r"\centering", rf"\caption{{{_escape(table.title)}}}"]
        text += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _latex_row(map(_escape, table.heads)), r"\midrule"]
        text += [_latex_row(_texts(table, line, r"\textbf{{{}}}", _escape)) for line in table.lines]
        text += [r"\bottomrule", r"\end{tabular}"]
        text += [rf"\par\footnotesize {_escape(sentence)}." for sentence in table.legend]
        text += [r"\end{table}"]
    return "\n".join([*text, *map(_latex_comment, notes)]) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "†": r"\textsuperscript{\dag}",
    ABSENT: "--",
}  # fmt: skip


def _escape(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))


def _latex_comment(text: str) -> str:
    return f"% {' '.join(text.split())}"


def _latex_row(cells: Iterable[str]) -> str:
    row = " & ".join(cells)
    # after the \\ of the row above, LaTeX would take these for its arguments
    return ("{}" if row.startswith(("[", "*")) else "") + row + r" \\"
