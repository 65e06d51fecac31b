"""Whether a run folder can take a run, asked before anything is computed. No torch here: it must answer fast."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dualseg.errors import DualsegError
from dualseg.files import refuse_links
from dualseg.runs.code import changed_code
from dualseg.runs.folder import RunFolder, checkpoint_of, noted_checkpoint
from dualseg.runs.identity import flatten, run_name
from dualseg.runs.lock import being_written, is_locked
from dualseg.runs.replaced import holds_no_work


def check_claim(folder: RunFolder, config: Mapping[str, Any]) -> None:
    """The folder can take the run that `config` describes.

    Raises:
        DualsegError: it belongs to another configuration, to other code of the user's, to other starting weights or
            to something else, it is finished on other data, another process is writing it, it cannot be written,
            W&B's part of it cannot, a folder in it is a link, or it is no run to continue.
    """
    parent = next(p for p in (folder.path, *folder.path.absolute().parents) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise DualsegError(f"output={config['output']}: {parent} is not writable; choose another with output=DIR.")
    if is_locked(folder.path):
        raise being_written(folder.path)
    if config.get("continue"):
        _check_continues(folder, config)
    if config["overwrite"]:
        if not (folder.launched or (holds_no_work(folder.path) and folder.is_of(config))):
            raise DualsegError(
                f"{folder.path}: overwrite=true empties run folders alone, and this is none (it has no manifest.json "
                "of dualseg-train); choose another name=..., or remove it yourself."
            )
        return
    latest = folder.latest_checkpoint()
    if latest is not None and not (folder.config_file.is_file() and folder.launched):
        raise DualsegError(
            f"{latest}: a checkpoint without the config.yaml and manifest.json of its run is not resumed; put them "
            "back, choose another name=..., or start another run from it with weights=FILE."
        )
    if not folder.finished or folder.changes_length(config):
        refuse_links(
            folder.checkpoints,
            folder.curves_file.parent,
            folder.wandb,
            folder.wandb / "artifacts",
            folder.slices,
            folder.components,
        )
        if config["logger"]:
            _check_wandb(folder)
    if not folder.config_file.is_file():
        return
    different = folder.differences(config)
    if different and not folder.changes_length(config):
        key, (there, now) = next(iter(different.items()))
        longer = "continue=true to train on, " if folder.is_of_another_length(config) else ""
        raise DualsegError(
            f"{folder.path}: holds a run of another configuration ({key}: {there} there, {now} now, {len(different)} "
            f"keys in all); choose {longer}name=... or overwrite=true."
        )
    if folder.finished:  # one that is not will compare the volumes themselves
        _check_same_roots(folder.path, folder.config(), config)
    if folder.finished or latest is not None:
        check_inputs(folder, config)


def _check_continues(folder: RunFolder, config: Mapping[str, Any]) -> None:
    """Raises: DualsegError where continue=true names no run."""
    if config["overwrite"]:
        raise DualsegError("overwrite=true continue=true: the one starts anew, the other goes on; give one of them.")
    if config["name"] is None:
        raise DualsegError(
            "continue=true: give name=..., the folder of the run that is trained on; a name made from the "
            "configuration is one of its length too."
        )
    if folder.latest_checkpoint() is None or not folder.config_file.is_file():
        raise DualsegError(f"{folder.path}: continue=true: there is no run with a checkpoint; leave it out.")
    if folder.path.name == run_name(folder.config()):
        raise DualsegError(
            f"{folder.path}: continue=true: the folder is named after its configuration, length included, by which "
            f"commands and studies find it. Start another run from its networks: weights={folder.path} name=..."
        )


def check_inputs(folder: RunFolder, config: Mapping[str, Any]) -> None:
    """The user's own code, and the weights to start from, that `config` names are those of the run here.

    Raises:
        DualsegError: they are not. Where an older version has noted none, or the weights are gone, that cannot be
            known.
    """
    _check_code(folder, config)
    _check_weights(folder, config)


def _check_code(folder: RunFolder, config: Mapping[str, Any]) -> None:
    noted = folder.noted_code()
    changed = [] if noted is None else changed_code(config, noted)
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise DualsegError(
            f"{folder.path}: {changed[0]}{more} changed since this run was started, or is not found, so its results "
            "are of other code; put the former file back, choose name=..., or give overwrite=true to start anew."
        )


def _check_weights(folder: RunFolder, config: Mapping[str, Any]) -> None:
    weights = config.get("weights")
    noted = folder.noted("weights")
    if not weights or noted is None:
        return
    try:
        checkpoint = checkpoint_of(weights)
    except DualsegError:  # a run folder without one
        return
    if checkpoint.is_file() and noted_checkpoint(checkpoint)["sha256"] != noted["sha256"]:
        raise DualsegError(
            f"{folder.path}: started from {noted['checkpoint']} of weights={weights}, and {checkpoint} is another "
            "file now, so its results are of other starting weights; put the former file back, choose name=..., or "
            "give overwrite=true to start anew."
        )


def _check_wandb(folder: RunFolder) -> None:
    """Raises: DualsegError where W&B would write into the temporary folder of the machine instead, in silence."""
    for place in (folder.wandb.parent, folder.wandb):
        if place.exists() and not (place.is_dir() and os.access(place, os.R_OK | os.W_OK | os.X_OK)):
            raise DualsegError(
                f"{place}: not a folder that can be written, so W&B cannot log there; correct its permissions, or "
                "leave logger=wandb out."
            )


def _check_same_roots(path: Path, earlier: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raises: DualsegError where the finished run at `path` read its data elsewhere than `config` does."""
    for key in ("data.root", "data.source.root"):
        there, now = flatten(earlier).get(key), flatten(config).get(key)
        if Path(str(there)).expanduser().resolve() != Path(str(now)).expanduser().resolve():
            raise DualsegError(
                f"{path}: finished, but with {key}={there}, not {now}, so its scores may be of other data; give "
                f"{key}={there} to see them, name=... for another run, or overwrite=true to start anew."
            )
