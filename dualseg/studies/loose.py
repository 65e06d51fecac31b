"""Run folders that belong to no study, as rows of a table: what they are called there."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dualseg.errors import DualsegError
from dualseg.runs.folder import RunFolder
from dualseg.runs.identity import flatten, identity
from dualseg.studies.collecting import Member
from dualseg.studies.index import Job, Sweep
from dualseg.studies.study import Study, as_word

FOLDS = ("data.fold", "data.source.fold")
NO_ROW = ("seed", *FOLDS)  # in which the runs of one row differ


def study_of_values(sweep: Sweep) -> tuple[Study, list[Member]]:
    """The runs of a sweep of values as a study, whose rows are named by the sweep's own arguments.

    Raises:
        DualsegError: sweep.json is damaged, or no run is finished.
    """
    jobs = sweep.jobs()
    done = [job for job in jobs if sweep.run_folder(job).finished]
    if not done:
        raise DualsegError(f"{sweep.path}: no run of it is finished; see dualseg-report status {sweep.path}.")
    study, members = loose_study(sweep.name, [sweep.run_folder(job).path for job in done], [_row(job) for job in done])
    scale = members[0].scale
    others = [Member(_row(job), scale, job.seed, sweep.run_folder(job), job.fold) for job in jobs if job not in done]
    return study, [*members, *others]


def _row(job: Job) -> str:
    return " ".join(argument for argument in job.label.split(" ") if argument.partition("=")[0] not in NO_ROW)


def loose_study(name: str, paths: Iterable[Path], labels: Sequence[str] | None = None) -> tuple[Study, list[Member]]:
    """The study `name` of the given run folders, and these as its rows, in the order they are given.

    A row is named by its runs' label `variant`. Runs without one, or with one label and several configurations, are
    named by what tells them from the others: `method.name=dual,data.labeled=8`. Runs that differ in nothing but the
    seed or the fold of a cross-validation are one row. An evaluation of several runs is named by its folder, without
    -seed<seed> at the end.

    Args:
        name: of the study.
        paths: of the run folders.
        labels: of their rows, where they are known.

    Raises:
        DualsegError: one of them is no run folder, or is given twice.
    """
    folders = [RunFolder.existing(path) for path in paths]
    places = [folder.path.resolve() for folder in folders]
    for index, place in enumerate(places):
        if place in places[:index]:
            raise DualsegError(f"{folders[index].path}: given twice.")
    configs = [folder.config() for folder in folders]
    settings = [_settings(config) for config in configs]
    names = _names(settings, [config.get("variant") or "" for config in configs])
    if labels is not None:
        names = [label or str(own.get("method.name", "run")) for label, own in zip(labels, settings, strict=True)]
    members = [
        Member(
            _evaluation_name(folder, config) if "evaluated" in config else name,
            str(config.get("scale") or ""),
            int(config["seed"]),
            folder,
            None if "evaluated" in config else _fold_of(config),
        )
        for folder, config, name in zip(folders, configs, names, strict=True)
    ]
    variants: dict[str, dict[str, Any]] = {member.variant: {} for member in members}
    scales = {member.scale: "" for member in members}
    return Study(name, scales, tuple(sorted({member.seed for member in members})), variants), members


def _evaluation_name(folder: RunFolder, config: Mapping[str, Any]) -> str:
    return folder.path.resolve().name.removesuffix(f"-seed{config['seed']}")


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    settings = identity(config)
    return {key: value for key, value in settings.items() if key not in NO_ROW}


def _fold_of(config: Mapping[str, Any]) -> int | None:
    flat = flatten(config)
    return next((flat[key] for key in FOLDS if flat.get(key) is not None), None)


def _names(settings: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> list[str]:
    by_label: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for label, own in zip(labels, settings, strict=True):
        by_label[label].append(own)
    names = []
    for label, own in zip(labels, settings, strict=True):
        alike = by_label[label]
        keys = dict.fromkeys(key for other in alike for key in other)
        differing = [key for key in keys if any(other.get(key) != alike[0].get(key) for other in alike)]
        changes = ",".join(f"{key}={as_word(own[key])}" for key in differing if key in own)
        names.append(" ".join(part for part in (label, changes) if part) or str(own.get("method.name", "run")))
    return names
