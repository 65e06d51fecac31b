"""`dualseg-check`: what is wrong with a dataset, before a training finds out; exit code 1 if anything is."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dualseg.cli import run_with_hydra
from dualseg.errors import DualsegError

HELP = """dualseg-check [any words of dualseg-train; see dualseg-train --help] [page=FILE]

  Reads every volume that a training with these words could read, once, and prints what is wrong: one line a problem,
  with its file. The exit code is 0 where nothing is, 1 where something is, 2 where the words themselves cannot work.
  Labels of unlabeled volumes are not opened. What is unusual among the unlabeled scans is told below the table.

  page     HTML page to write: the twenty unlabeled scans that are most unlike the labeled ones, as pictures

    dualseg-check data=la data.root=DIR data.labeled=8 data.held_out_test=20
    dualseg-check data=folder data.root=DIR page=pool.html
"""

OUT_OF_MEMORY = (
    "One volume is in memory at a time. Give less in data.memory=... than there is: a volume that takes more by its "
    "header is then named, and not read."
)


def check_config(config: Any, pages: Sequence[str] = ()) -> None:
    """Check the dataset of a composed configuration and print the table.

    Args:
        config: composed by Hydra.
        pages: the values of page=..., of which there is one at most.

    Raises:
        DualsegError: there is no such dataset, or it cannot be split as asked; no page can be made or written.
        SystemExit: something is wrong with a volume (exit code 1).
    """
    from dualseg.data.checking import check_dataset, findings_table
    from dualseg.machine import MemoryLimit
    from dualseg.training.settings import resolve, source_and_split

    page = _page(pages)
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
    if findings.found:
        raise SystemExit(1)


def _page(pages: Sequence[str]) -> Path | None:
    if not pages:
        return None
    if len(pages) > 1:
        raise DualsegError("page: is given twice.")
    page = Path(pages[0]).expanduser()
    if not pages[0] or page.is_dir():
        raise DualsegError(f"page={pages[0]}: give a file, for example page=pool.html.")
    return page


def pages_and_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The values of page=..., which is this command's own, and the words that are dualseg-train's too."""
    pages = [word.removeprefix("page=") for word in words if word.startswith("page=")]
    return pages, [word for word in words if not word.startswith("page=")]


def main() -> None:
    """Console script."""
    pages, sys.argv[1:] = pages_and_words(sys.argv[1:])
    run_with_hydra(lambda config: check_config(config, pages), "train", help_text=HELP, out_of_memory=OUT_OF_MEMORY)


if __name__ == "__main__":
    main()
