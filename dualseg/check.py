"""`dualseg-check`: what is wrong with a dataset, before a training finds out; exit code 1 if anything is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualseg.command.help import help_of
from dualseg.command.start import run_with_hydra
from dualseg.errors import DualsegError

USAGE = "dualseg-check [any key=value of dualseg-train; see dualseg-train --help] [page=FILE]"
ABOUT = """\
Reads every volume that a training with these settings could read, once, and prints what is wrong: a line for each
problem, with its file. The exit code is 0 where nothing is, 1 where something is, 2 where the settings cannot work.
Labels of unlabeled volumes are not opened. What is unusual among the unlabeled scans is told below the table."""
NOTE = """  dualseg-check data=la data.root=DIR data.labeled=8 data.held_out_test=20
  dualseg-check data=folder data.root=DIR page=pool.html"""

OUT_OF_MEMORY = (
    "One volume is in memory at a time. Give less in data.memory=... than there is: a volume that takes more by its "
    "header is then named, and not read."
)


@dataclass(frozen=True)
class CheckOptions:
    """What the command line asks for beside the configuration, read by `dualseg.command.grammar`; --help says the same.

    Attributes:
        page: HTML page to write: the twenty unlabeled scans that are most unlike the labeled ones, as pictures

    Raises:
        DualsegError: the page is a folder.
    """

    page: Path | None = None

    def __post_init__(self) -> None:
        if self.page is not None and self.page.is_dir():
            raise DualsegError(f"page={self.page}: give a file, for example page=pool.html.")


def check_config(config: Any, options: CheckOptions) -> None:
    """Check the dataset of a composed configuration and print the table.

    Args:
        config: composed by Hydra.
        options: of the command's own.

    Raises:
        DualsegError: there is no such dataset, or it cannot be split as asked; no page can be made or written.
        SystemExit: something is wrong with a volume (exit code 1).
    """
    from dualseg.data.checking import check_dataset, findings_table
    from dualseg.machine import MemoryLimit
    from dualseg.training.dataset import source_and_split
    from dualseg.training.settings import resolve

    page = options.page
    settings = resolve(config, planning=False)
    limit = MemoryLimit.of("data.memory", settings["data"].get("memory"))
    source, split = source_and_split(settings)
    if page and not (split.labeled and split.unlabeled):
        raise DualsegError(
            f"page={page}: compares unlabeled scans with labeled ones; there are {len(split.unlabeled)} and "
            f"{len(split.labeled)}. Give data.labeled=N, or leave page out."
        )
    findings = check_dataset(source, split, settings["data"]["downsample"], limit, pictures=page is not None)
    print(findings_table(findings))
    if page:
        from dualseg.reporting.pool import write_pool_page

        write_pool_page(findings.pool, settings["data"]["name"], findings.images["labeled"], findings.notes, page)
        print(f"Page: {page}")
    elif any(scan.distance > 1 for scan in findings.pool):
        print("Unlike scans need not be wrong: look at them with page=pool.html, and exclude what does not belong.")
    if findings.found:
        raise SystemExit(1)


def main() -> None:
    """Console script."""
    text = help_of(USAGE, CheckOptions, ABOUT, NOTE)
    run_with_hydra(check_config, "train", help_text=text, out_of_memory=OUT_OF_MEMORY, options=CheckOptions)


if __name__ == "__main__":
    main()
