"""The run folder: where everything of one run lies (docs/run-folder.md). No torch here: it must answer fast."""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dualseg.errors import DualsegError
from dualseg.files import read_object, refuse_links, sha256_of, sweep_below, write_json, write_text
from dualseg.names import check_folder_name
from dualseg.runs.code import changed_code
from dualseg.runs.config_file import read_config
from dualseg.runs.defaults import with_defaults
from dualseg.runs.identity import flatten, identity, run_name
from dualseg.runs.lock import being_written, is_locked
from dualseg.runs.replaced import holds_no_work, recover, set_aside

CHECKPOINT = re.compile(r"iteration-(\d+)\.ckpt")
LENGTH = "trainer.max_iterations"
VERDICT = "verdict.json"  # of a study that gives one, and in the runs that it is of


class RunFolder:
    """One run's files. Creating the object touches nothing on disk.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.manifest_file = self.path / "manifest.json"
        self.preprocessing_file = self.path / "preprocessing.json"
        self.plan_file = self.path / "plan.yaml"
        self.metrics_file = self.path / "metrics.json"
        self.cases_file = self.path / "cases.csv"
        self.verdict_file = self.path / VERDICT
        self.curves_file = self.path / "logs" / "curves.csv"
        self.wandb = self.path / "logs" / "wandb"
        self.checkpoints = self.path / "checkpoints"
        self.slices = self.path / "slices"
        self.components = self.path / "components"
        self.evaluations = self.path / "evaluations"

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "RunFolder":
        """The folder of a resolved configuration: <output>/<name>, the name made from it where none is given.

        Raises:
            DualsegError: the name would lead out of `output`.
        """
        name = str(config["name"] or run_name(config))
        check_folder_name("name" if config["name"] else "name (of data.name, method.name, architectures)", name)
        return cls(Path(config["output"]).expanduser() / name)

    @classmethod
    def existing(cls, path: str | Path) -> "RunFolder":
        """The run at `path`, also where one that was to overwrite it was killed.

        Raises:
            DualsegError: there is no run folder.
        """
        folder = cls(recover(Path(path).expanduser()))
        if not folder.config_file.is_file():
            raise DualsegError(
                f"{path}: no run folder (it has no config.yaml). Give a folder that dualseg-train wrote."
            )
        return folder

    def config(self) -> dict[str, Any]:
        """The resolved configuration; a key that an older version did not write has its default.

        Raises:
            DualsegError: config.yaml is missing or damaged.
        """
        return with_defaults(read_config(self.config_file))

    def _differences(self, config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Key -> its values here and in `config`, of those that make it another run."""
        stored, ours = read_config(self.config_file), identity(config)
        # as it is stored: `config` may lack a key on purpose, ~key, and then its class has another default
        theirs = identity(stored) if identity(stored) == ours else identity(with_defaults(stored))
        values = {
            key: (theirs.get(key, "absent"), ours.get(key, "absent")) for key in sorted(ours.keys() | theirs.keys())
        }
        return {key: (there, now) for key, (there, now) in values.items() if there != now}

    def _is_of(self, config: Mapping[str, Any]) -> bool:
        """No config.yaml here says that it is another run."""
        return not self.config_file.is_file() or not self._differences(config)

    def changes_length(self, config: Mapping[str, Any]) -> bool:
        """`config` says continue=true, and is of the run here but for the iterations, of which it wants more than the
        run has behind it."""
        return bool(config.get("continue")) and self._is_of_another_length(config)

    def _is_of_another_length(self, config: Mapping[str, Any]) -> bool:
        latest = self.latest_checkpoint()
        if latest is None or not self.config_file.is_file() or self._differences(config).keys() != {LENGTH}:
            return False
        return bool(config["trainer"]["max_iterations"] > iteration_of(latest))

    @property
    def launched(self) -> bool:
        """dualseg-train has opened it: there is a manifest that it, and not dualseg-evaluate, wrote."""
        if not self.manifest_file.is_file():
            return False
        manifest = read_object(self.manifest_file)
        return "dualseg" in manifest and "evaluated" not in manifest

    def resumes_in_slurm(self, config: Mapping[str, Any]) -> bool:
        """Slurm started this job again, with the same arguments, and it has a checkpoint of this run here."""
        if int(os.environ.get("SLURM_RESTART_COUNT") or 0) == 0 or not self.launched or not self.latest_checkpoint():
            return False
        job = read_object(self.manifest_file).get("slurm_job")
        return job is not None and job == os.environ.get("SLURM_JOB_ID") and not self._differences(config)

    @property
    def finished(self) -> bool:
        """Training and evaluation are complete: metrics.json is written last."""
        return self.metrics_file.is_file() and read_object(self.metrics_file).get("status") == "finished"

    def damage(self) -> str | None:
        """What is missing or cannot be read, without which it is neither resumed nor collected, and the fix, or None.

        Only of a folder that no process is writing.
        """
        try:
            if self.config_file.is_file():
                self.config()
            if self.manifest_file.is_file():
                read_object(self.manifest_file)
            if self.finished:
                for path in (self.config_file, self.manifest_file, self.cases_file):
                    if not path.is_file():
                        raise DualsegError(f"{path}: missing, though the run is finished; restore it from a copy.")
        except DualsegError as error:
            return f"{str(error).removesuffix('.')}, or remove {self.path}: it is made anew then."
        return None

    def latest_checkpoint(self) -> Path | None:
        """The checkpoint with the most iterations."""
        found = [p for p in self.checkpoints.glob("iteration-*.ckpt") if CHECKPOINT.fullmatch(p.name)]
        return max(found, key=iteration_of, default=None)

    def checkpoint(self) -> Path:
        """`latest_checkpoint`, or a DualsegError that says how to make one."""
        latest = self.latest_checkpoint()
        if latest is None:
            raise DualsegError(f"{self.checkpoints}: holds no checkpoint; train the run first.")
        return latest

    def claim(self, config: Mapping[str, Any]) -> None:
        """Check, before anything is computed, that this folder can take the run; writes nothing.

        Raises:
            DualsegError: it belongs to another configuration, to other code of the user's, to other starting weights or
                to something else, it is finished on other data, another process is writing it, it cannot be written,
                W&B's part of it cannot, a folder in it is a link, or it is no run to continue.
        """
        parent = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise DualsegError(f"output={config['output']}: {parent} is not writable; choose another with output=DIR.")
        if is_locked(self.path):
            raise being_written(self.path)
        if config.get("continue"):
            self._check_continues(config)
        if config["overwrite"]:
            if not (self.launched or (holds_no_work(self.path) and self._is_of(config))):
                raise DualsegError(
                    f"{self.path}: overwrite=true empties run folders alone, and this is none (it has no manifest.json "
                    "of dualseg-train); choose another name=..., or remove it yourself."
                )
            return
        latest = self.latest_checkpoint()
        if latest is not None and not (self.config_file.is_file() and self.launched):
            raise DualsegError(
                f"{latest}: a checkpoint without the config.yaml and manifest.json of its run is not resumed; put them "
                "back, choose another name=..., or start another run from it with weights=FILE."
            )
        if not self.finished or self.changes_length(config):
            refuse_links(
                self.checkpoints,
                self.curves_file.parent,
                self.wandb,
                self.wandb / "artifacts",
                self.slices,
                self.components,
            )
            if config["logger"]:
                self._check_wandb()
        if not self.config_file.is_file():
            return
        different = self._differences(config)
        if different and not self.changes_length(config):
            key, (there, now) = next(iter(different.items()))
            longer = "continue=true to train on, " if self._is_of_another_length(config) else ""
            raise DualsegError(
                f"{self.path}: holds a run of another configuration ({key}: {there} there, {now} now, {len(different)} "
                f"keys in all); choose {longer}name=... or overwrite=true."
            )
        if self.finished:  # one that is not will compare the volumes themselves
            _check_same_roots(self.path, self.config(), config)
        if self.finished or latest is not None:
            self.check_inputs(config)

    def _check_continues(self, config: Mapping[str, Any]) -> None:
        """Raises: DualsegError where continue=true names no run."""
        if config["overwrite"]:
            raise DualsegError(
                "overwrite=true continue=true: the one starts anew, the other goes on; give one of them."
            )
        if config["name"] is None:
            raise DualsegError(
                "continue=true: give name=..., the folder of the run that is trained on; a name made from the "
                "configuration is one of its length too."
            )
        if self.latest_checkpoint() is None or not self.config_file.is_file():
            raise DualsegError(f"{self.path}: continue=true: there is no run with a checkpoint; leave it out.")
        if self.path.name == run_name(self.config()):
            raise DualsegError(
                f"{self.path}: continue=true: the folder is named after its configuration, length included, by which "
                f"commands and studies find it. Start another run from its networks: weights={self.path} name=..."
            )

    def noted_code(self) -> dict[str, str] | None:
        """Module -> SHA-256 of the user's own code that the run was started with; None where nothing is noted.

        Raises:
            DualsegError: manifest.json is damaged.
        """
        noted = read_object(self.manifest_file).get("code") if self.manifest_file.is_file() else None
        if noted is not None and not isinstance(noted, dict):
            raise DualsegError(f"{self.manifest_file}: 'code' is no mapping of modules; restore it from a copy.")
        return noted

    def check_inputs(self, config: Mapping[str, Any]) -> None:
        """The user's own code, and the weights to start from, that `config` names are those of the run here.

        Raises:
            DualsegError: they are not. Where an older version has noted none, or the weights are gone, that cannot be
                known.
        """
        self._check_code(config)
        self._check_weights(config)

    def _check_code(self, config: Mapping[str, Any]) -> None:
        noted = self.noted_code()
        changed = [] if noted is None else changed_code(config, noted)
        if changed:
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise DualsegError(
                f"{self.path}: {changed[0]}{more} changed since this run was started, or is not found, so its results "
                "are of other code; put the former file back, choose name=..., or give overwrite=true to start anew."
            )

    def _check_weights(self, config: Mapping[str, Any]) -> None:
        weights = config.get("weights")
        noted = read_object(self.manifest_file).get("weights") if self.manifest_file.is_file() else None
        if not weights or noted is None:
            return
        try:
            checkpoint = checkpoint_of(weights)
        except DualsegError:  # a run folder without one
            return
        if checkpoint.is_file() and noted_checkpoint(checkpoint)["sha256"] != noted["sha256"]:
            raise DualsegError(
                f"{self.path}: started from {noted['checkpoint']} of weights={weights}, and {checkpoint} is another "
                "file now, so its results are of other starting weights; put the former file back, choose name=..., or "
                "give overwrite=true to start anew."
            )

    def _check_wandb(self) -> None:
        """Raises: DualsegError where W&B would write into the temporary folder of the machine instead, in silence."""
        for folder in (self.wandb.parent, self.wandb):
            if folder.exists() and not (folder.is_dir() and os.access(folder, os.R_OK | os.W_OK | os.X_OK)):
                raise DualsegError(
                    f"{folder}: not a folder that can be written, so W&B cannot log there; correct its permissions, or "
                    "leave logger=wandb out."
                )

    def open(self, config: Mapping[str, Any]) -> None:
        """Make the folder and write config.yaml; `overwrite` sets a former run aside, see dualseg.runs.replaced.

        The config.yaml of a resumed run is written anew: later commands must look where its data lie now. The results
        of a finished run that is trained on move into evaluations/.
        """
        try:
            if config["overwrite"] and self.launched:
                set_aside(self.path)
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self.curves_file.parent.mkdir(exist_ok=True)
            sweep_below(self.path)
            longer = self.changes_length(config)
            if longer and self.finished:
                self._keep_results()
            if longer or self._is_of(config):
                write_text(self.config_file, yaml.safe_dump(dict(config), sort_keys=False))
        except OSError as error:
            raise DualsegError(f"{self.path}: cannot be written ({error}); choose another with output=DIR.") from error

    def _keep_results(self) -> None:
        """Move what the run has found into evaluations/NNN-iteration-NNNNNN. metrics.json goes first: from then on the
        run is not finished, and a kill leaves one that goes on."""
        kept = self.new_evaluation(f"iteration-{iteration_of(self.checkpoint()):06d}")
        kept.path.mkdir(parents=True)
        for file in (self.config_file, self.manifest_file):
            shutil.copy(file, kept.path)
        for path in (self.metrics_file, self.cases_file, self.slices, self.components, self.verdict_file):
            if path.exists():
                path.rename(kept.path / path.name)

    def remove_if_bare(self) -> None:
        """Remove the folder of a run that failed early, unless it holds a checkpoint or a point of a curve."""
        curves = self.curves_file.read_text().splitlines() if self.curves_file.is_file() else []
        if self.latest_checkpoint() is None and len(curves) <= 1:  # the first line is the header
            shutil.rmtree(self.path, ignore_errors=True)  # what made the run fail is what to tell

    def new_evaluation(self, label: str) -> "RunFolder":
        """A fresh folder for one more evaluation, beside earlier ones: evaluations/NNN-<label>."""
        taken = [int(p.name[:3]) for p in self.evaluations.glob("[0-9][0-9][0-9]-*")]
        return RunFolder(self.evaluations / f"{max(taken, default=0) + 1:03d}-{label}")

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Write metrics.json: from now on the run is finished."""
        write_json(self.metrics_file, metrics)


def _check_same_roots(path: Path, earlier: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raises: DualsegError where the finished run at `path` read its data elsewhere than `config` does."""
    for key in ("data.root", "data.source.root"):
        there, now = flatten(earlier).get(key), flatten(config).get(key)
        if Path(str(there)).expanduser().resolve() != Path(str(now)).expanduser().resolve():
            raise DualsegError(
                f"{path}: finished, but with {key}={there}, not {now}, so its scores may be of other data; give "
                f"{key}={there} to see them, name=... for another run, or overwrite=true to start anew."
            )


def checkpoint_of(weights: str) -> Path:
    """The checkpoint that `weights` names: a file, or the last one of a run folder.

    Raises:
        DualsegError: a folder without one.
    """
    path = Path(weights).expanduser()
    return RunFolder.existing(path).checkpoint() if path.is_dir() else path


def noted_checkpoint(path: Path) -> dict[str, str]:
    """Name and SHA-256 of a checkpoint that a run starts from, for manifest.json."""
    return {"checkpoint": path.name, "sha256": sha256_of(path)}


def iteration_of(checkpoint: Path) -> int:
    """Iterations that a checkpoint file has behind it, from its name."""
    match = CHECKPOINT.fullmatch(checkpoint.name)
    if match is None:
        raise DualsegError(f"{checkpoint}: not a checkpoint of a run folder (iteration-NNNNNN.ckpt).")
    return int(match.group(1))
