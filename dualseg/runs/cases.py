"""Which cases a run was trained on, as its manifest.json says: no evaluation may score one of them. No torch here.

The split file may have been made anew since, and the volumes may bear other names or lie elsewhere.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dualseg.errors import DualsegError
from dualseg.files import read_object
from dualseg.processes import rank
from dualseg.runs.folder import RunFolder

Record = Mapping[str, Any]  # `dataset`; `cases`: role -> names; `images`: case that was trained on -> hash of its image


def trained_on(run: RunFolder) -> list[Record]:
    """What its networks were trained on: the run's own cases, then those of the run whose weights it started from.

    Empty where an older version, or no training, wrote the folder.

    Raises:
        DualsegError: manifest.json is damaged.
    """
    if not run.manifest_file.is_file():
        return []
    manifest = read_object(run.manifest_file)
    own, before = manifest.get("data"), manifest.get("started_from", [])
    if not isinstance(own, dict) or "cases" not in own or "evaluated" in manifest:
        return []
    records = [own, *(before if isinstance(before, list) else [before])]
    if not all(map(_is_whole, records)):
        raise DualsegError(f"{run.manifest_file}: what the run was trained on is damaged; restore it from a copy.")
    return [{"dataset": one["dataset"], "cases": one["cases"], "images": one.get("images", {})} for one in records]


def _is_whole(record: Any) -> bool:
    if not isinstance(record, dict) or "dataset" not in record:
        return False
    cases, images = record.get("cases"), record.get("images", {})
    if not isinstance(cases, dict) or not isinstance(images, dict):
        return False
    names = [cases.get("labeled"), cases.get("unlabeled")]
    return all(isinstance(own, list) and all(isinstance(name, str) for name in own) for own in names)


def trained_before(weights: str | None) -> list[Record]:
    """`trained_on` of the run whose checkpoint `weights` is; where that does not say it, a warning on stderr."""
    records = trained_on(RunFolder(Path(weights).expanduser().resolve().parent.parent)) if weights else []
    if weights and not records and rank() == 0:
        print(
            f"warning: weights={weights}: unknown what these were trained on: no manifest.json beside them says it; "
            "make sure that no case to be scored was among it.",
            file=sys.stderr,
        )
    return records


def refuse_trained(records: Iterable[Record], dataset: str, cases: Sequence[str], where: str) -> None:
    """None of `cases`, which are to be scored, bears the name of one that was trained on in the same dataset.

    Args:
        records: see `trained_on`.
        dataset: `data.name` of the cases.
        cases: their names.
        where: what messages call the record.

    Raises:
        DualsegError: one does.
    """
    for record in records:
        trained = {*record["cases"]["labeled"], *record["cases"]["unlabeled"]}
        seen = [case for case in cases if case in trained and record["dataset"] == dataset]
        if seen:
            raise DualsegError(
                f"{len(seen)} of the cases to evaluate were trained on, {seen[0]} for one, as {where} says under "
                "data.cases; choose others. If this is another dataset, whose cases have the same names, give it a "
                "name of its own: data.name=NAME."
            )


def images_of(records: Iterable[Record]) -> dict[str, str]:
    """Hash of each image that was trained on -> what messages call it."""
    return {image: f"{case} of {record['dataset']}" for record in records for case, image in record["images"].items()}
