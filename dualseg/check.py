"""`dualseg-check`: what is wrong with a dataset, before a training finds out; exit code 1 if anything is."""

from typing import Any

from dualseg.cli import run_with_hydra

HELP = """dualseg-check [any words of dualseg-train; see dualseg-train --help]

  Reads every volume that a training with these words could read, once, and prints what is wrong: one line a problem,
  with its file. The exit code is 0 where nothing is, 1 where something is, 2 where the words themselves cannot work.
  Labels of unlabeled volumes are not opened.

    dualseg-check data=la data.root=DIR data.labeled=8 data.held_out_test=20
"""

OUT_OF_MEMORY = (
    "One volume is in memory at a time. Give less in data.memory=... than there is: a volume that takes more by its "
    "header is then named, and not read."
)


def check_config(config: Any) -> None:
    """Check the dataset of a composed configuration and print the table.

    Raises:
        DualsegError: there is no such dataset, or it cannot be split as asked.
        SystemExit: something is wrong with a volume (exit code 1).
    """
    from dualseg.data.checking import check_dataset, findings_table
    from dualseg.machine import MemoryLimit
    from dualseg.runs.settings import resolve, source_and_split

    settings = resolve(config, planning=False)
    limit = MemoryLimit.of("data.memory", settings["data"].get("memory"))
    findings = check_dataset(*source_and_split(settings), settings["data"]["downsample"], limit)
    print(findings_table(findings))
    if findings.found:
        raise SystemExit(1)


def main() -> None:
    """Console script."""
    run_with_hydra(check_config, "train", help_text=HELP, out_of_memory=OUT_OF_MEMORY)


if __name__ == "__main__":
    main()
