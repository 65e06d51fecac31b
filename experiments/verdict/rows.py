"""A CSV of rows that are added as they finish."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path


def rows_of(table: Path) -> list[dict[str, str]]:
    """The rows that are there."""
    if not table.is_file():
        return []
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def add(table: Path, columns: Sequence[str], row: Mapping[str, object]) -> None:
    """Append a row, and print it."""
    new = not table.is_file()
    with table.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(*(f"{key}={value}" for key, value in row.items() if key != "words"))
