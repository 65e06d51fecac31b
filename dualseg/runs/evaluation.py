"""Evaluations of finished runs: what may be changed, and what is written."""

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from dualseg.data.split_file import place_of
from dualseg.data.splits import split_source
from dualseg.data.volumes import VolumeSource
from dualseg.errors import DualsegError, nearest
from dualseg.files import is_temporary, refuse_links, sha256_of, sweep_below, write_text
from dualseg.record import Roles
from dualseg.runs.cases import images_of, refuse_trained, trained_on
from dualseg.runs.code import code_hashes, user_code
from dualseg.runs.folder import RunFolder, iteration_of
from dualseg.runs.identity import flatten
from dualseg.runs.lock import LOCK, is_locked, writing
from dualseg.runs.trusted import Trust

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


def checkpoints_of(runs: Sequence[RunFolder]) -> dict[str, dict[str, Any]]:
    """Run folder -> name and SHA-256 of the checkpoint that is taken, and of the modules of the user's own behind it.

    A module of networks or dataset that has changed since the run was trained is told of on stderr.
    """
    found = {}
    for run in runs:
        path = run.checkpoint()
        found[str(run.path)] = {"checkpoint": path.name, "sha256": sha256_of(path), "code": _code_of(run)}
    return found


@contextmanager
def writing_evaluation(run: RunFolder, label: str, output: str | None) -> Iterator[RunFolder]:
    """The folder of an evaluation, locked in the block, and cleared of what one that was stopped has left there.

    The block writes manifest.json first: by it the folder is known as that of an evaluation. Where the block fails,
    what it has written is removed.

    Args:
        run: the first one to evaluate.
        label: where `output` is None the folder is evaluations/NNN-<label> of `run`: that of an evaluation that was
            stopped, or a new one.
        output: the folder that the user wants.

    Raises:
        DualsegError: `output` is a file or not empty, another process is writing it, or what would be written in is a
            link in the run folder.
    """
    with ExitStack() as stack:
        if output is None:
            target = _next_evaluation(run, label, stack)
        else:
            target = RunFolder(output)
            if target.path.exists() and not target.path.is_dir():
                raise DualsegError(f"output={target.path}: is a file; give a folder.")
            stack.enter_context(writing(target.path, "choose another output=..."))
            if not _is_unfinished(target):
                fix = "evaluations are never written over earlier ones"
                raise DualsegError(f"output={target.path}: is not empty; {fix}.")
        refuse_links(target.slices)
        sweep_below(target.path)
        _clear(target)
        try:
            yield target
        except Exception:
            _clear(target)
            raise


def _next_evaluation(run: RunFolder, label: str, stack: ExitStack) -> RunFolder:
    """Choose evaluations/NNN-<label>, and let `stack` hold its lock."""
    refuse_links(run.evaluations)
    stack.callback(_remove_if_empty, run.evaluations)  # where nothing is written
    with writing(run.evaluations):  # of evaluations that start together, one chooses after the other
        # where there are no locks, nobody can tell one that was stopped from one that runs
        known = run.evaluations.glob(f"[0-9][0-9][0-9]-{label}") if is_locked(run.evaluations) else ()
        stopped = (one for one in map(RunFolder, sorted(known)) if not is_locked(one.path) and _is_unfinished(one))
        target = next(stopped, None) or run.new_evaluation(label)
        refuse_links(target.path)
        stack.enter_context(writing(target.path))
    return target


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _clear(target: RunFolder) -> None:
    """Remove what an evaluation that is not finished has left; manifest.json, by which it is known, last."""
    shutil.rmtree(target.slices, ignore_errors=True)  # perhaps of other cases
    for file in (target.config_file, target.cases_file, target.manifest_file):
        file.unlink(missing_ok=True)


def _is_unfinished(target: RunFolder) -> bool:
    """The folder is empty, or its manifest.json says that an evaluation was stopped here, and nothing else is there."""
    if not target.path.exists():
        return True
    content = {path for path in target.path.iterdir() if path.name != LOCK and not is_temporary(path)}
    if not content:
        return True
    own = {target.manifest_file, target.config_file, target.cases_file, target.slices}
    with suppress(DualsegError):
        return target.manifest_file in content <= own and "evaluated" in target.manifest()
    return False


def _code_of(run: RunFolder) -> dict[str, str]:
    config = run.config()
    used = {"networks": config["networks"], "data": config["data"]["source"]}
    noted = run.noted_code() or {}
    files, hashes = user_code(used), code_hashes(used)
    for module, file in files.items():
        if noted.get(module, hashes[module]) != hashes[module]:
            print(f"warning: {run.path}: {file} has changed since this run was trained.", file=sys.stderr)
    return hashes


def data_of(run: RunFolder) -> dict[str, Any]:
    """On which data a run was trained: name, place and fingerprint."""
    noted = run.noted("data")
    data = run.config()["data"]
    fingerprint = noted.get("fingerprint") if isinstance(noted, dict) else None
    return {"dataset": data["name"], "root": data["root"], "fingerprint": fingerprint}


def write_evaluation(
    target: RunFolder,
    results: Mapping[str, Any],
    cases: Mapping[str, Sequence[str]],
    evaluated: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
    roles: Roles,
) -> None:
    """config.yaml, cases.csv and, last, metrics.json. `evaluated`: see `checkpoints_of`, `roles`: of the networks."""
    from dualseg.runs.results import metrics_of, write_cases

    checkpoints = {run: taken["checkpoint"] for run, taken in evaluated.items()}
    write_text(target.config_file, yaml.safe_dump({**settings, "evaluated": checkpoints}, sort_keys=False))
    write_cases(target.cases_file, results, cases)
    target.finish(metrics_of(results, min(iteration_of(Path(name)) for name in checkpoints.values()), roles))
