"""`dualseg-report`: run folders -> something to read: a run's page, a study's tables and page, how far a sweep is."""

import argparse
import sys
from pathlib import Path

from dualseg.cli import guarded
from dualseg.errors import DualsegError
from dualseg.files import read_json


def main() -> None:
    """Console script."""
    parser = argparse.ArgumentParser(prog="dualseg-report", description="Run folders -> pages to read.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="one self-contained HTML page of a run")
    run.add_argument("run", type=Path, metavar="RUN_FOLDER")
    run.add_argument("--output", type=Path, default=None, help="where to write it (default: RUN_FOLDER/report.html)")
    run.set_defaults(report=lambda given: report_run(given.run, given.output))
    study = commands.add_parser("study", help="tables, figures, comparisons and a page of many runs")
    what = "a study of conf/sweep, a sweep in --runs, such as one of a study of your own, or any number of run folders"
    study.add_argument("what", nargs="+", metavar="STUDY", help=what)
    study.add_argument("--runs", type=Path, default=Path("runs"), help="where the study's runs are (default: runs)")
    where = "folder to write into (default: experiments/STUDY; of a verdict, the folder of its sweep)"
    study.add_argument("--output", type=Path, default=None, help=where)
    study.set_defaults(report=lambda given: report_study(given.what, given.runs, given.output))
    status = commands.add_parser("status", help="how far the runs of a sweep are")
    status.add_argument("sweep", metavar="SWEEP", help="a study, or the name or folder of a sweep")
    status.add_argument("--runs", type=Path, default=Path("runs"), help="folder of run folders (default: runs)")
    status.set_defaults(report=lambda given: report_status(given.sweep, given.runs))
    arguments = parser.parse_args(sys.argv[1:])
    guarded(lambda: arguments.report(arguments))


def report_run(run: Path, output: Path | None) -> None:
    """Write the page and print where it is."""
    from dualseg.reporting import write_run_report

    print(f"Report: {write_run_report(run, output)}")


def report_study(what: list[str], runs: Path, output: Path | None) -> None:
    """Collect a study, or loose run folders, and print what was collected.

    Raises:
        DualsegError: nothing can be collected; or, after all else is written, run folders had to be left out.
    """
    from dualseg.reporting.studies import write_study
    from dualseg.sweeps.index import Sweep
    from dualseg.sweeps.loose import loose_study, study_of_values
    from dualseg.sweeps.members import find_study, members_in, members_of
    from dualseg.sweeps.study import study_names

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
            raise DualsegError("--output DIR is required with run folders: where the tables of these runs belong.")
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
    return ", ".join(found) or f"{runs / 'sweeps' / study}-DATASET, of which there is none (--runs DIR: where it is)"


def report_status(sweep: str, runs: Path) -> None:
    """Print a line for each run of a sweep, and what is left."""
    from dualseg.sweeps.index import Sweep
    from dualseg.sweeps.timing import status

    print(status(Sweep.existing(sweep, runs)))


if __name__ == "__main__":
    main()
