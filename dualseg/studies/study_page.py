"""The page of a study: one HTML file that needs nothing but itself."""

import base64
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from dualseg.names import as_markdown
from dualseg.reporting.html import render
from dualseg.runs.verdict import LEAST_CASES
from dualseg.studies.comparisons import CONFIDENCE, RESAMPLES, Comparison, by_scale
from dualseg.studies.study import as_word
from dualseg.studies.study_contents import StudyContents
from dualseg.studies.study_figures import Drawing
from dualseg.studies.study_tables import COLUMNS, NOT_RUN, Line, Table, spread
from dualseg.studies.study_verdict import LEVEL, class_rows

COMPARISON_HEADS = ("variant", "against", "seeds", "cases", "difference", "95 % interval", "effect", "p", "p (Holm)")
NOT_RECORDED = "not recorded"
VERDICT_WORDS = (
    "With unlabeled scans minus the same training without them: the mean over the held-out labeled cases, seeds "
    "averaged first, and its 95 % bootstrap interval over cases, widened by how much the seeds of a fold differ, since "
    "its cases share their runs. An answer takes an interval without 0, a sign-flip test over "
    f"cases with p of at most {LEVEL}, and at least {LEAST_CASES} cases."
)


def render_study(contents: StudyContents, tables: Sequence[Table], figures: Mapping[str, Drawing]) -> str:
    """The HTML page of a study."""
    runs = contents.tables.results.drop_duplicates(["scale", "variant", "run"])
    return render(
        Path(__file__).with_name("study.html.j2"),
        title=contents.study.name,
        summary=_summary(contents, len(runs)),
        verdict_words=VERDICT_WORDS,
        verdict_rows=class_rows(contents.verdict, contents.unit) if contents.verdict else [],
        contents=contents,
        tables=[_table(contents, table) for table in tables],
        figures={name: (_data_uri(drawing.png), drawing) for name, drawing in figures.items()},
        comparison_heads=COMPARISON_HEADS,
        comparisons=[(scale, _cells_of(own)) for scale, own in by_scale(contents.comparisons).items()],
        comparison_words=_comparison_words(contents.comparisons),
        provenance=_provenance(contents),
        finished=len(runs),
    )


def verdict_text(contents: StudyContents) -> str:
    """The verdict in Markdown; empty where there is none."""
    if contents.verdict is None:
        return ""
    heads, *rows = (f"| {' | '.join(map(as_markdown, row))} |" for row in class_rows(contents.verdict, contents.unit))
    return "\n".join(
        [
            f"**{as_markdown(contents.verdict.sentence)}**",
            "",
            *(f"- {as_markdown(sentence)}" for sentence in contents.verdict.details),
            "",
            as_markdown(VERDICT_WORDS),
            "",
            heads,
            "|---|---|---|",
            *rows,
        ]
    )


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """The comparisons in Markdown; empty where there are none."""
    if not comparisons:
        return ""
    parts = [as_markdown(_comparison_words(comparisons))]
    for scale, own in by_scale(comparisons).items():
        rows = [f"| {' | '.join(map(as_markdown, cells))} |" for cells in (COMPARISON_HEADS, *_cells_of(own))]
        title = [as_markdown(f"Differences{f', scale={scale}' if scale else ''}"), ""]
        parts.append("\n".join([*title, rows[0], f"|{'---|' * len(COMPARISON_HEADS)}", *rows[1:]]))
    return "\n\n".join(parts)


def _comparison_words(comparisons: Sequence[Comparison]) -> str:
    if not comparisons:
        return ""
    left_out = "; ".join(f"{c.variant} leaves out {c.left_out}" for c in comparisons if c.left_out)
    return (
        f"{comparisons[0].split.capitalize()} Dice of each variant minus that of the one it is against, in points, "
        "paired over cases: the mean over foreground classes of the prediction that stands for a run, averaged over "
        f"the seeds that both have. Interval: {100 * CONFIDENCE:.0f} % BCa bootstrap of the mean over cases, "
        f"{RESAMPLES:,} resamples. "
        "Effect: matched-pairs rank-biserial correlation, (W+ - W-) / (W+ + W-) with the sums of Wilcoxon's ranks of "
        "the cases that are better and worse; -1 to 1. p: two-sided Wilcoxon signed-rank test; Holm: corrected over "
        f"the study's {_count(len(comparisons), 'comparison')}." + (f" Unequal runs: {left_out}." if left_out else "")
    )


def _cells_of(comparisons: Sequence[Comparison]) -> list[list[str]]:
    return [
        [
            c.variant,
            c.against,
            f"{len(c.seeds)} ({', '.join(c.seeds)})",
            str(len(c.differences)),
            f"{100 * c.mean:+.2f}",
            f"{100 * c.low:+.2f} to {100 * c.high:+.2f}",
            f"{c.effect:+.2f}",
            _p(c.p),
            _p(c.p_holm),
        ]
        for c in comparisons
    ]


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _p(p: float) -> str:
    return f"{p:.4f}" if p >= 0.0001 else "< 0.0001"


def _summary(contents: StudyContents, runs: int) -> str:
    results, study = contents.tables.results, contents.study
    with_rows = len(set(results["variant"]))
    seeds = ", ".join(sorted(set(results["seed"]), key=int))
    dataset = ", ".join(sorted(set(results["dataset"])))
    of = f" of {len(study.rows)}" if len(study.rows) > with_rows else ""
    return f"{_count(runs, 'finished run')} · {with_rows}{of} variants · seeds {seeds} · on {dataset}"


def _table(contents: StudyContents, table: Table) -> dict[str, Any]:
    """The table as the template shows it: a variant's lines together, each with its numbers as (text, bold)."""
    groups = []
    for _, own in groupby(table.lines, key=lambda line: (line.variant, line.own)):
        lines = list(own)
        link = _anchor(contents, table.scale, lines[0].variant) if lines[0].cells else None
        groups.append({"link": link, "lines": [(line, _numbers(line)) for line in lines]})
    return {"table": table, "groups": groups}


def _numbers(line: Line) -> list[tuple[str, bool]]:
    if line.cells is None:
        return [(NOT_RUN if line.own else "", False)] * len(COLUMNS)
    return [(spread(cell), cell.best) for cell in line.cells]


def _anchor(contents: StudyContents, scale: str, variant: str) -> str:
    return f"runs-{contents.scales.index(scale)}-{contents.variants.index(variant)}"


def _provenance(contents: StudyContents) -> list[dict[str, Any]]:
    """A group of runs for each scale and variant that has some, with the configuration where a run folder is here."""
    # one run may be the run of several variants
    known = contents.tables.runs.drop_duplicates("run").set_index("run").to_dict("index")
    results = contents.tables.results
    record = results[(results["split"] == contents.tables.split) & (results["record"] == "1")]
    dice = {(row.run, row.variant): f"{100 * float(row.dice):.2f}" for row in record.itertuples()}
    groups = []
    for scale in contents.scales:
        for variant in contents.variants:
            own = results[(results["scale"] == scale) & (results["variant"] == variant)].drop_duplicates("run")
            if own.empty:
                continue
            settings = next((contents.settings[run] for run in own["run"] if run in contents.settings), None)
            changes = contents.study.variants.get(variant, {})
            groups.append(
                {
                    "anchor": _anchor(contents, scale, variant),
                    "title": f"{variant}{f', scale={scale}' if scale else ''}",
                    "changes": " ".join(f"{key}={as_word(value)}" for key, value in changes.items()),
                    "together": " and ".join(contents.study.ensembles.get(variant, ())),
                    "settings": yaml.safe_dump(dict(settings), sort_keys=False, width=1000) if settings else "",
                    "runs": [
                        {
                            "run": row.run,
                            "seed": row.seed,
                            "fold": row.fold,
                            "dice": dice.get((row.run, variant), ""),
                            "iterations": f"{int(row.iterations):,}",
                            "facts": _facts(known[row.run]) if row.run in known else {},
                        }
                        for row in own.itertuples()
                    ],
                }
            )
    return groups


def _facts(run: Mapping[str, str]) -> dict[str, str]:
    """What is recorded of a run, as the page shows it."""
    seconds = f"{float(run['seconds']):,.0f} s" if run["seconds"] else ""
    per_iteration = f"{run['seconds_per_iteration']} s" if run["seconds_per_iteration"] else ""
    facts = {
        "revision": run["revision"],
        "uncommitted code": run["uncommitted"],
        "data fingerprint": run["fingerprint"],
        "configuration, SHA-256": run["configuration"],
        "evaluated runs": run["evaluated"],
        "versions": f"dualseg {run['dualseg']}, torch {run['torch']}",
        "hardware": run["hardware"] + (f", {run['threads']} threads" if run["threads"] else ""),
        "started": run["started"],
        "time": ", ".join(part for part in (seconds, per_iteration and f"{per_iteration} an iteration") if part),
        "command": run["command"],
    }
    return {key: value for key, value in facts.items() if value}


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
