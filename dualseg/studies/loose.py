"""Run folders that belong to no study, as rows of a table: what they are called there."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dualseg.errors import DualsegError
from dualseg.runs.folder import RunFolder
from dualseg.runs.identity import identity
from dualseg.studies.collecting import Member
from dualseg.studies.study import Study, as_word


def loose_study(name: str, paths: Iterable[Path]) -> tuple[Study, list[Member]]:
    """The study `name` of the given run folders, and these as its rows, in the order they are given.

    A row is named by its runs' label `variant`. Runs without one, or with one label and several configurations, are
    named by what tells them from the others: `method.name=dual,data.labeled=8`. Runs that differ in nothing but the
    seed are one row. An evaluation of several runs is named by its folder, without -seed<seed> at the end.

    Raises:
        DualsegError: one of them is no run folder, or is given twice.
    """
    folders = [RunFolder.existing(path) for path in paths]
    places = [folder.path.resolve() for folder in folders]
    for index, place in enumerate(places):
        if place in places[:index]:
            raise DualsegError(f"{folders[index].path}: given twice.")
    configs = [folder.config() for folder in folders]
    names = _names([_settings(config) for config in configs], [config.get("variant") or "" for config in configs])
    members = [
        Member(
            _evaluation_name(folder, config) if "evaluated" in config else name,
            str(config.get("scale") or ""),
            int(config["seed"]),
            folder,
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
    settings.pop("seed", None)
    return settings


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
