"""`dualseg-report run RUN_FOLDER`: one self-contained HTML page of a run."""

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
    arguments = parser.parse_args(sys.argv[1:])
    guarded(lambda: report_run(arguments.run, arguments.output))


def report_run(run: Path, output: Path | None) -> None:
    """Write the page and print where it is."""
    from dualseg.reporting import write_run_report

    print(f"Report: {write_run_report(run, output)}")


if __name__ == "__main__":
    main()
