"""Collects a study's finished runs into its folder: tables, figures, page."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dualseg.errors import DualsegError
from dualseg.files import replacing, sweep, write_json, write_text
from dualseg.runs.folder import RunFolder
from dualseg.runs.lock import writing
from dualseg.runs.verdict import VERDICT, carry, classes_to_clean, training_of
from dualseg.studies.collecting import Member, RunRows, read_run
from dualseg.studies.study import Study
from dualseg.studies.study_contents import StudyContents, check_comparable, compared, read_literature, remarks_on
from dualseg.studies.study_figures import FIGURES, draw_all
from dualseg.studies.study_page import comparison_table, render_study, verdict_text
from dualseg.studies.study_tables import latex, markdown, table_of
from dualseg.studies.study_verdict import Verdict, verdict_of
from dualseg.studies.tidy import StudyTables


def write_study(study: Study, members: Iterable[Member], output: Path) -> StudyContents:
    """Add the finished `members` to what `output` has of earlier runs, and write the study's files there anew.

    results.csv, cases.csv and runs.csv (one row a result, a case, a run), table.md, table.tex, figure.png and further
    figures, report.html, of a study that gives a verdict verdict.json; each appears whole or not at all. Nothing is
    written before all of it is made; a figure of `FIGURES` or a table that there is nothing for any more is removed. A
    reported.csv in `output` is read. Rows of runs that are not among the members stay.

    Returns:
        What was written. Runs whose folder is damaged are not in it, but named in its `problems`.

    Raises:
        DualsegError: no run is finished; a table that is there is damaged; the runs are of several datasets or units;
            another process is writing into `output`.
    """
    with writing(output, "choose another output=DIR"):
        sweep(output)
        return _write_study(study, list(members), output)


def _write_study(study: Study, members: Sequence[Member], output: Path) -> StudyContents:
    collected, unfinished, problems = collect(study.name, members)
    # a verdict is of the runs that belong together now: rows of others would be paired with them
    earlier = StudyTables.empty() if study.verdict else StudyTables.read(output)
    tables, replaced = earlier.updated(collected)
    if tables.results.empty:
        raise DualsegError(_nothing(study, unfinished, problems))
    check_comparable(study.name, tables)
    settings: dict[str, dict[str, Any]] = {run.run["run"]: run.settings for run in collected}
    literature = read_literature(output / "reported.csv")
    contents = StudyContents(study, tables, literature, settings, unfinished, problems)
    comparisons, impossible = compared(contents)
    verdict = verdict_of(study, tables)
    contents = replace(
        contents, comparisons=comparisons, verdict=verdict, remarks=[*replaced, *remarks_on(contents), *impossible]
    )
    shown = [table_of(contents, scale) for scale in contents.scales]
    notes = [*contents.remarks, *(f"left out: {problem.removesuffix('.')}" for problem in problems)]
    figures = draw_all(contents)
    page = render_study(contents, shown, figures)
    kept = _kept(verdict, study, collected, members) if verdict else None
    tables.write(output)
    parts = (verdict_text(contents), comparison_table(contents.comparisons))
    write_text(output / "table.md", markdown(shown, notes, *parts))
    write_text(output / "table.tex", latex(shown, notes))
    for name, drawing in figures.items():
        with replacing(output / name) as temporary:
            temporary.write_bytes(drawing.png)
    for name in set(FIGURES) - set(figures):
        (output / name).unlink(missing_ok=True)  # of rows that are gone: it would show what results.csv does not hold
    write_text(output / "report.html", page)
    if kept is not None:
        content, runs = kept
        write_json(output / VERDICT, content)
        for run in runs:
            carry(run, content)
    else:
        (output / VERDICT).unlink(missing_ok=True)
    return contents


def _kept(
    verdict: Verdict, study: Study, collected: Sequence[RunRows], members: Sequence[Member]
) -> tuple[dict[str, Any], list[RunFolder]]:
    """The content of verdict.json, and the runs that carry what it says.

    Raises:
        DualsegError: a file that a run wrote on the components of a case is damaged.
    """
    names = {run.run["run"] for run in collected}
    folders = {member.name: member for member in members if member.name in names}
    recommended = [folders[name].folder for name in verdict.runs]
    own = [member.folder for member in folders.values() if member.variant == study.verdict["with_unlabeled"]]
    content = verdict.as_json() | {"keep_largest": classes_to_clean(recommended)}
    return content | {"training": training_of(own[0].config())}, own


def collect(study: str, members: Iterable[Member]) -> tuple[list[RunRows], list[str], list[str]]:
    """The rows of the finished members, and a sentence for each that is not finished, or damaged and left out."""
    rows, unfinished, problems = [], [], []
    for member in members:
        if not member.folder.metrics_file.is_file():
            state = "not finished" if member.folder.path.is_dir() else "not started"
            scale = f", scale={member.scale}" if member.scale else ""
            unfinished.append(f"{member.variant}{scale}, seed {member.seed}: {state} ({member.name})")
            continue
        try:
            rows.append(read_run(study, member))
        except DualsegError as error:
            problems.append(str(error))
    return rows, unfinished, problems


def _nothing(study: Study, unfinished: Sequence[str], problems: Sequence[str]) -> str:
    if problems:
        return f"{study.name}: no finished run can be read: {' '.join(problems)}"
    if unfinished:
        return f"{study.name}: no finished run; of {len(unfinished)} none is, for one {unfinished[0]}."
    return f"{study.name}: no finished run, and no sweep of it in the folder of runs; start one, or give runs=DIR."
