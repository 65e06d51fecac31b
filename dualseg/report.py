"""`dualseg-report`: run folders -> something to read: a run's page, a study's tables and page, how far a sweep is."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dualseg.command.start import Subcommand, run_subcommand, run_with_arguments
from dualseg.errors import DualsegError
from dualseg.files import read_json


@dataclass(frozen=True)
class RunReportOptions:
    """What `dualseg-report run` is asked for, read by `dualseg.command.grammar`; --help says the same.

    Attributes:
        run: a run folder
        output: file to write (default: RUN_FOLDER/report.html)
    """

    run: Path = field(metadata={"value": "RUN_FOLDER", "positional": True})
    output: Path | None = None


@dataclass(frozen=True)
class StudyOptions:
    """What `dualseg-report study` is asked for.

    Attributes:
        study: a study of conf/sweep, a sweep in runs, such as one of a study of your own, or any number of run folders
        runs: where the study's runs are
        output: folder to write into (default: experiments/STUDY; of a verdict, the folder of its sweep)
    """

    study: tuple[str, ...] = field(metadata={"value": "STUDY", "positional": True, "again": True})
    runs: Path = Path("runs")
    output: Path | None = None


@dataclass(frozen=True)
class StatusOptions:
    """What `dualseg-report status` is asked for.

    Attributes:
        sweep: a study, or the name or folder of a sweep
        runs: folder of run folders
    """

    sweep: str = field(metadata={"value": "SWEEP", "positional": True})
    runs: Path = Path("runs")


def report_run(run: Path, output: Path | None) -> None:
    """Write the page and print where it is."""
    from dualseg.reporting import write_run_report

    print(f"Report: {write_run_report(run, output)}")


def report_study(what: list[str], runs: Path, output: Path | None) -> None:
    """Collect a study, or loose run folders, and print what was collected.

    Raises:
        DualsegError: nothing can be collected; or, after all else is written, run folders had to be left out.
    """
    from dualseg.studies.index import Sweep
    from dualseg.studies.loose import loose_study, study_of_values
    from dualseg.studies.members import find_study, members_in, members_of
    from dualseg.studies.study import study_names
    from dualseg.studies.writing import write_study

    sweep = Sweep.of_study_without_scales(what[0], runs) if len(what) == 1 else None
    if sweep is not None:
        study = find_study(read_json(sweep.file)["study"], sweep.output)
        members = members_in(study, sweep)
        output = output or sweep.path
    elif len(what) == 1 and (values := Sweep.of_values(what[0], runs)):
        study, members = study_of_values(values)
        output = output or values.path
    elif len(what) > 1 or (what[0] not in study_names() and Path(what[0]).is_dir()):
        if output is None:
            raise DualsegError("output=DIR is required with run folders: where the tables of these runs belong.")
        study, members = loose_study(output.resolve().name, map(Path, what))
    else:
        study = find_study(what[0], runs)
        if not study.experiments:
            raise DualsegError(f"{what[0]}: give the sweep: {_sweeps_of(study.name, runs)}.")
        members = members_of(study, runs)
    output = output or Path("experiments") / study.name
    contents = write_study(study, members, output)
    results = contents.tables.results
    print(f"{study.name}: {results['run'].nunique()} finished runs of {results['variant'].nunique()} variants")
    if contents.unfinished:
        print(f"Not finished: {len(contents.unfinished)} runs", *contents.unfinished, sep="\n  ")
    if contents.remarks:
        print("To know:", *contents.remarks, sep="\n  ")
    if contents.verdict:
        print(contents.verdict.sentence, *contents.verdict.details, sep="\n  ")
    print(f"Table: {output / 'table.md'}\nReport: {output / 'report.html'}")
    if contents.problems:
        raise DualsegError(f"left out, all else is written: {' '.join(contents.problems)}")


def _sweeps_of(study: str, runs: Path) -> str:
    """The folders of a study's sweeps, in words."""
    found = sorted(str(path.parent) for path in (runs / "sweeps").glob(f"{study}-*/sweep.json"))
    return ", ".join(found) or f"{runs / 'sweeps' / study}-DATASET, of which there is none (runs=DIR: where it is)"


def report_status(sweep: str, runs: Path) -> None:
    """Print a line for each run of a sweep, and what is left."""
    from dualseg.studies.index import Sweep
    from dualseg.studies.timing import status

    print(status(Sweep.existing(sweep, runs)))


def main() -> None:
    """Console script."""

    def command(summary: str, usage: str, options: Any, task: Callable[[Any], None]) -> Subcommand:
        return Subcommand(summary, partial(run_with_arguments, task, options, f"dualseg-report {usage}", summary))

    commands = {
        "run": command(
            "one self-contained HTML page of a run",
            "run RUN_FOLDER [output=FILE]",
            RunReportOptions,
            lambda given: report_run(given.run, given.output),
        ),
        "study": command(
            "tables, figures, comparisons and a page of many runs",
            "study STUDY|SWEEP|RUN_FOLDER ... [runs=DIR] [output=DIR]",
            StudyOptions,
            lambda given: report_study(list(given.study), given.runs, given.output),
        ),
        "status": command(
            "how far the runs of a sweep are",
            "status SWEEP [runs=DIR]",
            StatusOptions,
            lambda given: report_status(given.sweep, given.runs),
        ),
    }
    run_subcommand("dualseg-report COMMAND: run folders -> pages to read.", commands)


if __name__ == "__main__":
    main()
