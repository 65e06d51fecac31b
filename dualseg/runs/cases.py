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
    if "cases" not in manifest.get("data", {}) or "evaluated" in manifest:
        return []
    try:
        return [_record(facts) for facts in (manifest["data"], *manifest.get("started_from", []))]
    except (AttributeError, KeyError, TypeError) as error:
        raise DualsegError(
            f"{run.manifest_file}: damaged, so it is unknown what the run was trained on ({error!r}); restore it."
        ) from error


def _record(facts: Mapping[str, Any]) -> Record:
    cases = {role: list(facts["cases"][role]) for role in ("labeled", "unlabeled")}
    return {"dataset": facts["dataset"], "cases": {**facts["cases"], **cases}, "images": dict(facts.get("images", {}))}


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
