"""`dualseg-report`: a run, a study, or how far a sweep is, as something to read."""

import argparse
import sys
from pathlib import Path

from dualseg.cli import guarded


def main() -> None:
    """Console script."""
    parser = argparse.ArgumentParser(prog="dualseg-report", description="Run folders -> pages to read.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="one self-contained HTML page of a run")
    run.add_argument("run", type=Path, metavar="RUN_FOLDER")
    run.add_argument("--output", type=Path, default=None, help="where to write it (default: RUN_FOLDER/report.html)")
    run.set_defaults(report=lambda given: report_run(given.run, given.output))
    study = commands.add_parser("study", help="tables, figures, comparisons and a page of a study's finished runs")
    study.add_argument("study", metavar="STUDY", help="a name of conf/sweep")
    study.add_argument("--runs", type=Path, default=Path("runs"), help="folder of run folders (default: runs)")
    study.add_argument("--output", type=Path, default=None, help="where to write (default: experiments/STUDY)")
    study.set_defaults(report=lambda given: report_study(given.study, given.runs, given.output))
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


def report_study(name: str, runs: Path, output: Path | None) -> None:
    """Collect the finished runs of a study's sweeps, add them to its tables, and print the table.

    Raises:
        DualsegError: no such study, no finished run, a damaged table.
        SystemExit: a run had to be left out.
    """
    from dualseg.reporting.studies.page import write_study
    from dualseg.runs.collecting import collect
    from dualseg.sweeps.members import members_of
    from dualseg.sweeps.study import read_study

    study = read_study(name)
    target = output or Path("experiments") / study.name
    collected = collect(study.name, members_of(study, runs), target)
    page = write_study(study.name, collected, study.rows, len(study.seeds), study.against, target)
    print((target / "table.md").read_text())
    print(f"Page: {page}")
    if collected.problems:
        print("error: left out:", *collected.problems, sep="\n  ", file=sys.stderr)
        raise SystemExit(1)


def report_status(sweep: str, runs: Path) -> None:
    """Print a line for each run of a sweep, and what is left."""
    from dualseg.sweeps.index import Sweep
    from dualseg.sweeps.timing import status

    print(status(Sweep.existing(sweep, runs)))


if __name__ == "__main__":
    main()
