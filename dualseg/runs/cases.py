"""Which cases a run was trained on, as its manifest.json says: no evaluation may score one of them. No torch here.

Its checkpoints say it as well, for they may be copied out of the run folder. The split file may have been made anew
since, and the volumes may bear other names or lie elsewhere.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from dualseg.errors import DualsegError
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
    manifest = run.manifest()
    own, before = manifest.get("data"), manifest.get("started_from", [])
    if not isinstance(own, dict) or "cases" not in own or "evaluated" in manifest:
        return []
    return as_records([own, *(before if isinstance(before, list) else [before])], run.manifest_file)


def as_records(found: Any, file: str | Path) -> list[Record]:
    """The records that a file holds, in plain containers, without what else stands beside them.

    Raises:
        DualsegError: naming the file, where they are damaged.
    """
    if not isinstance(found, list) or not all(map(_is_whole, found)):
        raise DualsegError(f"{file}: what the run was trained on is damaged; restore it from a copy.")
    kept = [{"dataset": one["dataset"], "cases": one["cases"], "images": one.get("images", {})} for one in found]
    return cast(list[Record], json.loads(json.dumps(kept)))


def _is_whole(record: Any) -> bool:
    if not isinstance(record, dict) or "dataset" not in record:
        return False
    cases, images = record.get("cases"), record.get("images", {})
    if not isinstance(cases, dict) or not isinstance(images, dict):
        return False
    names = [cases.get("labeled"), cases.get("unlabeled")]
    return all(isinstance(own, list) and all(isinstance(name, str) for name in own) for own in names)


def trained_before(weights: str, noted: Any) -> list[Record]:
    """What the weights that a run starts from were trained on; where nothing says it, a warning on stderr.

    Args:
        weights: the checkpoint.
        noted: its own records; None in one of an older version, of which the manifest.json of its run may say it.

    Raises:
        DualsegError: the records, or manifest.json, are damaged.
    """
    if noted is not None:
        return as_records(noted, weights)
    records = trained_on(RunFolder(Path(weights).expanduser().resolve().parent.parent))
    if not records and rank() == 0:
        print(
            f"warning: weights={weights}: unknown what these were trained on: neither they nor a manifest.json beside "
            "them say it; make sure that no case to be scored was among it.",
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
                f"{len(seen)} of the cases to evaluate were trained on, {seen[0]} for one, as {where} says; choose "
                "others. If this is another dataset, whose cases have the same names, give it a "
                "name of its own: data.name=NAME."
            )


def images_of(records: Iterable[Record]) -> dict[str, str]:
    """Hash of each image that was trained on -> what messages call it."""
    return {image: f"{case} of {record['dataset']}" for record in records for case, image in record["images"].items()}
