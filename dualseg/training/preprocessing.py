"""What turns a scan into what a run's networks read, from its run folder alone. No torch here."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from dualseg.data.volumes import VolumeSource
from dualseg.errors import DualsegError
from dualseg.files import read_json
from dualseg.runs.folder import RunFolder
from dualseg.training.settings import check_for_scans
from dualseg.training.trusted import Trust

KNOWN_BY_NAME = ("class_names", "channels", "channel_names")  # of a dataset: what no preparation changes


def scan_record(run: RunFolder) -> dict[str, Any]:
    """What the run has recorded of its source; nothing where it is older than that, for which the class may do.

    Raises:
        DualsegError: the record is damaged.
    """
    record = read_json(run.preprocessing_file) if run.preprocessing_file.exists() else {}
    if not isinstance(record, dict):
        raise DualsegError(f"{run.preprocessing_file}: is damaged; restore the file that the run wrote.")
    return record


def scan_source(run: RunFolder, trust: Trust) -> VolumeSource:
    """The dataset's class with what the run has recorded of it; the dataset itself need not be there.

    Raises:
        DualsegError: the class is not trusted or cannot be imported; the record, or what else prediction reads, is
            damaged or not enough.
    """
    check_for_scans(run.config(), run.config_file)
    return _with_record(trust.source_class(run), run)


def _with_record(kind: type[VolumeSource], run: RunFolder) -> VolumeSource:
    record = scan_record(run)
    try:
        return kind.for_scans(record)
    except (DualsegError, TypeError) as error:  # the latter where the class lacks a method
        raise DualsegError(f"{run.preprocessing_file}: {error}") from error


def prepare_as_trained(source: VolumeSource, runs: Sequence[RunFolder], changes: Mapping[str, Any]) -> None:
    """Let the dataset of an evaluation give volumes as the runs were trained on them, whatever it says itself.

    So that its scores are those of what dualseg-predict writes.

    Args:
        source: the dataset; what it differs in is said on stderr.
        runs: at least one.
        changes: what the command line changes: key of the configuration -> value.

    Raises:
        DualsegError: other classes or channels; runs that prepare volumes differently; a change that contradicts them;
            a record that is not enough.
    """
    first, config = scan_record(runs[0]), runs[0].config()["data"]["source"]
    for run in runs:
        record = scan_record(run)
        _with_record(type(source), run)  # is it whole?
        for key in dict.fromkeys([*first, *record]):
            ours, theirs = (_plain(known.get(key, getattr(type(source), key, None))) for known in (first, record))
            if ours != theirs:
                with_other = f"was trained with {key}={theirs}, {runs[0].path} with {ours}"
                raise DualsegError(f"{run.path}: {with_other}; they cannot be ensembled.")
    for key, value in changes.items():
        name = key.removeprefix("data.source.")
        if name != key and name in first and _plain(value) not in (_plain(first[name]), _plain(config.get(name))):
            raise DualsegError(
                f"{key}={value}: {runs[0].path} was trained with {name}={first[name]}, and its networks know no other "
                "volumes; leave it out."
            )
    _check_same_kind(source, first, runs[0])
    own = source.scan_record()
    source.prepare_as({**{key: own[key] for key in KNOWN_BY_NAME if key in own}, **first})
    for key, value in source.scan_record().items():
        if _plain(value) != _plain(own[key]) and key not in KNOWN_BY_NAME:
            print(
                f"note: {key} is {own[key]} for this dataset, {value} for the run; volumes are read as the run's were, "
                "as far as their files allow.",
                file=sys.stderr,
            )


def check_same_preparation(run: RunFolder, source: VolumeSource) -> None:
    """Raises: DualsegError where the dataset of a run that is to be resumed is prepared otherwise than at its start."""
    own = source.scan_record()
    for key, value in scan_record(run).items():
        if _plain(own.get(key)) != _plain(value):
            raise DualsegError(
                f"{run.path}: was started with {key}={value}, and the dataset now has {own.get(key)}. Give the former "
                "one, or start anew with overwrite=true or another name=..."
            )


def _check_same_kind(source: VolumeSource, record: Mapping[str, Any], run: RunFolder) -> None:
    """Raises: DualsegError where the dataset has other classes or channels than the record."""
    ours, theirs = list(source.class_names), list(record.get("class_names", source.class_names))
    if ours != theirs:
        order = ", in another order" if sorted(ours) == sorted(theirs) else ""
        raise DualsegError(
            f"class_names: the dataset has {', '.join(ours)}; {run.path} was trained on {', '.join(theirs)}{order}. "
            "Scores would be of other classes: give the dataset the run's names and label values."
        )
    named, known = list(source.channel_names), list(record.get("channel_names") or [])
    several = len(named) > 1 and [name.lower() for name in named] != [str(name).lower() for name in known]
    if source.channels != record.get("channels", source.channels) or (known and several):
        here, there = (", ".join(map(str, names)) or "unnamed" for names in (named, known))
        raise DualsegError(
            f"channels: the dataset has {source.channels} ({here}); {run.path} was trained on {record['channels']} "
            f"({there}). Give the dataset the run's channels, in their order and under their names."
        )


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(value, default=str))
