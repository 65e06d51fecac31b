"""What an evaluation of finished runs may change and score."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dualseg.data.split_file import place_of
from dualseg.data.splits import split_source
from dualseg.data.volumes import VolumeSource
from dualseg.errors import DualsegError, nearest
from dualseg.runs.cases import images_of, refuse_trained, trained_on
from dualseg.runs.folder import RunFolder
from dualseg.runs.identity import flatten
from dualseg.training.trusted import Trust

CHANGEABLE = ("data.", "inference.", "trainer.")


def settings_of_evaluation(configs: Sequence[Mapping[str, Any]], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The first run's configuration with `changes` to existing keys under data, inference and trainer.

    Another data.root moves every path of data.source that lies in the former one, and names a dataset that is called
    after its folder.

    Raises:
        DualsegError: an unknown key, one that makes the networks see volumes otherwise than in training, or runs that
            see the data differently and so cannot be ensembled.
    """
    if not all(isinstance(config.get("data"), Mapping) for config in configs):
        raise DualsegError("data.source: config.yaml of a run has none; restore the file that the run wrote.")
    settings: dict[str, Any] = yaml.safe_load(yaml.safe_dump(dict(configs[0])))
    for config in configs[1:]:
        for key in ("patch_size", "downsample"):
            if config["data"][key] != settings["data"][key]:
                ours, theirs = settings["data"][key], config["data"][key]
                raise DualsegError(f"data.{key}: {ours} in one run, {theirs} in another; they cannot be ensembled.")
        kinds = [_class_of(own["data"]["source"]) for own in (settings, config)]
        if kinds[0] != kinds[1]:
            raise DualsegError(f"data.source: {' in one run, '.join(kinds)} in another; they cannot be ensembled.")
    downsample = settings["data"]["downsample"]
    if changes.get("data.downsample", downsample) != downsample:
        raise DualsegError(
            f"data.downsample={changes['data.downsample']}: the networks were trained with {downsample}; leave it out."
        )
    settings["data"]["memory"] = None  # that of the training was of its machine
    known = [key for key in flatten(settings) if key.startswith(CHANGEABLE)]
    if "data.root" in changes:  # before the changes to data.source itself, which say where they mean
        new = Path(str(changes["data.root"])).expanduser().absolute()
        old = Path(settings["data"]["root"])
        settings["data"]["source"] = _moved(settings["data"]["source"], old, new)
        if settings["data"]["name"] == old.name:  # as `resolve` names a dataset after its folder
            settings["data"]["name"] = new.name
        changes = {**changes, "data.root": str(new)}
    for key, value in changes.items():
        if key not in known:
            raise DualsegError(f"{key}: no such key of this run's configuration.{nearest(key, known)}")
        *parents, last = key.split(".")
        node = settings
        for parent in parents:
            node = node[parent]
        node[last] = value
    return settings


def _class_of(source: Mapping[str, Any]) -> str:
    """Without its module, which may have been renamed since."""
    return str(source["_target_"]).rpartition(".")[2]


def places_to_write(changes: Mapping[str, Any], source: Mapping[str, Any]) -> list[Path]:
    """Where a dataset may write its split file or what else is missing of it.

    That is what the command line itself names, and the split file of the dataset that the run names.

    Args:
        changes: of the command line.
        source: `data.source` of the run.
    """
    roots = [Path(str(changes[key])).expanduser() for key in ("data.root", "data.source.root") if key in changes]
    files = [Path(str(changes[key])) for key in ("data.source.splits",) if changes.get(key)]
    own, splits = Path(str(source.get("root"))).expanduser(), Path(str(source.get("splits"))).expanduser()
    recorded = [place_of(own, None)] if (own / "dataset.json").is_file() else []
    recorded += [splits] if splits.is_file() else []
    return [*roots, *(place_of(root, None) for root in roots), *files, *recorded]


def _moved(value: Any, old: Path, new: Path) -> Any:
    """`value` with `old` replaced by `new` in every string that is a path at or below it."""
    if isinstance(value, Mapping):
        return {key: _moved(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_moved(item, old, new) for item in value]
    if isinstance(value, str) and Path(value).is_relative_to(old):
        return str(new / Path(value).relative_to(old))
    return value


def check_unseen(
    runs: Sequence[RunFolder], data: Mapping[str, Any], source: VolumeSource, cases: Sequence[str], trust: Trust
) -> dict[str, str]:
    """No run has seen the cases to evaluate, by their names.

    Args:
        runs: what each was trained on its manifest.json says. Where an older version wrote it, that is worked out from
            today's split.
        data: the evaluation's `data`. Names are compared where its `name` is that of the run's dataset.
        source: what `data` describes.
        cases: to evaluate.
        trust: what may be built from the run folders.

    Returns:
        The images that the runs were trained on, for `refuse_seen`: a volume may bear another name.

    Raises:
        DualsegError: a run was trained, with or without labels, on one of the cases.
    """
    images: dict[str, str] = {}
    for run in runs:
        records = trained_on(run)
        refuse_trained(records, data["name"], cases, f"data.cases of {run.manifest_file}")
        images |= images_of(records)
        if not records:
            _check_todays_split(run.config(), data, source, cases, trust)
    return images


def _check_todays_split(
    config: Mapping[str, Any], data: Mapping[str, Any], source: VolumeSource, cases: Sequence[str], trust: Trust
) -> None:
    """As `check_unseen`, of a run that has not recorded its cases.

    It is of the same dataset where its data.name or the class of its source is the same: `source.name` need be neither.
    """
    its = config["data"]
    if its["name"] != data["name"] and its["source"]["_target_"] != data["source"]["_target_"]:
        return
    own = split_source(_source_of(its, data, source, trust), its)
    trained = {*own.labeled, *(own.unlabeled if config["batch"]["unlabeled"] else ())}
    seen = [case for case in cases if case in trained]
    if seen:
        raise DualsegError(f"{len(seen)} of the cases to evaluate were trained on, {seen[0]} for one; choose others.")


def _source_of(its: Mapping[str, Any], data: Mapping[str, Any], source: VolumeSource, trust: Trust) -> VolumeSource:
    """The source of a run's `data`: `source`, unless the run was given other arguments, such as another split."""
    moved = _moved(its["source"], Path(its["root"]), Path(data["root"]))
    here = {key: data["source"][key] for key in ("_target_", "root") if key in data["source"]}
    arguments = {**moved, **here}  # the class may have been renamed since, and the volumes lie where `data` says
    return source if arguments == data["source"] else trust.source(arguments, "data.source of a run to evaluate")
