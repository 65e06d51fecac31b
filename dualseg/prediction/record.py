"""prediction.json: how the maps of a folder are made, and which scans are done. By it a killed prediction goes on."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualseg.errors import DualsegError
from dualseg.files import read_object, write_json
from dualseg.prediction.names import NAMELESS
from dualseg.prediction.options import PredictionOptions
from dualseg.prediction.origin import Entry, Origin, origin_of
from dualseg.prediction.review import Row
from dualseg.runs.evaluation import checkpoints_of
from dualseg.runs.folder import RunFolder
from dualseg.runs.identity import flatten

if TYPE_CHECKING:
    from dualseg.prediction.scans import AnyScan

# of a run's configuration, what its networks and the way to them are made of; the checkpoint has the rest
OF_A_RUN = (
    *("networks", "data.source._target_", "data.patch_size", "data.downsample"),
    *("inference.batch_size", "trainer.channels_last"),
)
SAME_MAPS = ("memory", "device")  # settings that may change: out of memory, a prediction goes on with less


def made_by(options: PredictionOptions, runs: Sequence[RunFolder], class_names: Sequence[str]) -> dict[str, Any]:
    """What decides the maps. Neither inputs nor the command line, which may name patients."""
    digests = []
    for run in runs:
        config = {k: v for k, v in flatten(run.config()).items() if k.startswith(OF_A_RUN)}
        # as the run has recorded it: a newer version may know more of it
        prepared = read_object(run.preprocessing_file) if run.preprocessing_file.is_file() else {}
        facts = json.dumps([config, prepared], sort_keys=True, default=str)
        digests.append(hashlib.sha256(facts.encode()).hexdigest())
    settings = {key: value for key, value in asdict(options).items() if key not in ("run", "input", "output", "trust")}
    return {
        "predicted_by": checkpoints_of(runs),
        "run_settings_sha256": digests,
        "labels": {name: value for value, name in enumerate(class_names)},
        "settings": {**settings, "keep_largest": list(options.keep_largest or ()), "memory": options.memory_limit},
    }


class PredictionRecord:
    """What prediction.json holds; empty where there is none.

    Args:
        file: prediction.json; only `write` writes it.

    Attributes:
        content: all but the scans.
        scans: name -> scan, in the order of summary.csv.

    Raises:
        DualsegError: the file is damaged.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.content: dict[str, Any] = read_object(file) if file.is_file() else {}
        if self.content and "scans" not in self.content:
            what = "is not empty; an earlier version made its predictions, and did not record which scans are done"
            raise DualsegError(f"output={file.parent}: {what}. Choose another output=...")
        try:
            self.scans = {name: _entry(name, facts) for name, facts in self.content.pop("scans", {}).items()}
            self._made_by = _comparable(self.content) if self.content else {}
        except (AttributeError, KeyError, TypeError) as error:
            raise DualsegError(f"{file}: damaged ({error!r}); restore it, or choose another output=...") from error

    @property
    def kinds(self) -> list[str]:
        """Of the maps of every scan."""
        settings, networks = self.content.get("settings", {}), self.content.get("networks", ())
        kinds = ["labels", *(["probabilities"] if settings.get("probabilities") else [])]
        if settings.get("uncertainty"):
            kinds += ["entropy", *(["disagreement"] if len(networks) > 1 else [])]
        return kinds

    @property
    def kept(self) -> dict[str, Row]:
        """Name -> row of each scan that is predicted."""
        return {name: entry.row for name, entry in self.scans.items() if entry.row}

    def rows(self, failed: Mapping[str, Row]) -> list[Row]:
        """What is known of the scans so far, in their order."""
        known = {**self.kept, **failed}
        return [known[name] for name in self.scans if name in known]

    def check(self, wanted: Mapping[str, Any]) -> None:
        """Raises: DualsegError where there are maps that were not made by what `made_by` says now."""
        if not self.content:
            return
        now = _comparable(wanted)  # without a module that is lost: who needs it will say so
        different = [
            f"{key}: {self._made_by.get(key)} there, {now[key]} now"
            for key in now
            if self._made_by.get(key) != now[key] and (key, now[key]) != ("report", "True")  # a page may be added
        ]
        if different:
            raise DualsegError(
                f"output={self.file.parent}: is not empty; its predictions were made otherwise "
                f"({'; '.join(different)}). Choose another output=..., or give what they were made with, to go on."
            )

    def check_device(self, device: str) -> None:
        """Raises: DualsegError where there are maps of another kind of device, which rounds differently."""
        there = str(self.content["settings"]["device"]) if self.content else device
        if there.partition(":")[0] != device.partition(":")[0]:
            raise DualsegError(
                f"output={self.file.parent}: is not empty; its predictions were made on device={there}, and this is "
                f"{device}. Give device={there} to go on with them, or choose another output=..."
            )

    def take(self, scans: "Sequence[AnyScan]", is_whole: Callable[[str], bool]) -> None:
        """Take the scans of this start, which `name_scans` has named by those of the record.

        `kept` then leaves out new ones, those that failed, and those whose files, or maps, have changed since.

        Args:
            is_whole: name -> whether all is there that was written of that scan.

        Raises:
            DualsegError: a scan that is predicted is not among them.
        """
        entries = {}
        for scan in scans:
            entries[scan.name] = entry = Entry(origin_of(scan))
            known = self.scans.get(scan.name)
            if known and known.row and known.origin.state == entry.origin.state and is_whole(scan.name):
                entry.row = replace(known.row, source=scan.source)
        if lost := [name for name in self.kept if name not in entries]:
            raise DualsegError(
                f"output={self.file.parent}: is not empty; it holds predictions of {len(lost)} scans that are not "
                f"among the inputs now, {lost[0]} for one. Give them as well, or choose another output=..."
            )
        # a number is given once, also where what it stands for is gone
        gone = {name: known for name, known in self.scans.items() if name not in entries and NAMELESS.match(name)}
        self.scans = entries | gone

    def write(self) -> None:
        """Raises: DualsegError where it cannot be written."""
        write_json(self.file, {**self.content, "scans": {name: _facts(entry) for name, entry in self.scans.items()}})


def _comparable(content: Mapping[str, Any]) -> dict[str, str]:
    checkpoints = [f"{one['checkpoint']} {one['sha256'][:16]}" for one in content["predicted_by"].values()]
    code = {module: digest for one in content["predicted_by"].values() for module, digest in one["code"].items()}
    return {
        "checkpoint": ", ".join(checkpoints),
        **{f"code of {module}": digest[:16] for module, digest in code.items()},
        "config.yaml and preprocessing.json": ", ".join(digest[:16] for digest in content["run_settings_sha256"]),
        "classes": ", ".join(content["labels"]),
        **{key: str(value) for key, value in content["settings"].items() if key not in SAME_MAPS},
    }


def _entry(name: str, facts: Mapping[str, Any]) -> Entry:
    if Path(name).name != name:  # files are called so
        raise KeyError(name)
    row = facts.get("row")
    if row is not None:
        measures = {key: math.nan if value is None else value for key, value in row["measures"].items()}
        row = Row(name, "", **{**row, "measures": measures})
    return Entry(Origin(facts["place"], facts["state"]), row)


def _facts(entry: Entry) -> dict[str, Any]:
    facts: dict[str, Any] = entry.origin._asdict()
    if entry.row:
        row = {key: value for key, value in asdict(entry.row).items() if key not in ("scan", "source", "problem")}
        # JSON has no NaN
        row["measures"] = {key: None if math.isnan(value) else value for key, value in row["measures"].items()}
        facts["row"] = row
    return facts
