"""The run folder: where everything of one run lies (docs/run-folder.md). No torch here: it must answer fast."""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dualseg.errors import DualsegError
from dualseg.files import read_object, sha256_of, sweep_below, write_json, write_text
from dualseg.names import check_folder_name
from dualseg.runs.config_file import read_config
from dualseg.runs.defaults import with_defaults
from dualseg.runs.identity import identity, run_name
from dualseg.runs.replaced import recover, set_aside

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

    def manifest(self) -> dict[str, Any]:
        """What manifest.json holds. Raises: DualsegError where it is missing or damaged."""
        return read_object(self.manifest_file)

    def noted(self, key: str) -> Any:
        """What manifest.json says under a key; None where there is no such file or key.

        Raises:
            DualsegError: it is damaged.
        """
        return self.manifest().get(key) if self.manifest_file.is_file() else None

    def metrics(self) -> dict[str, Any]:
        """What metrics.json holds. Raises: DualsegError where it is missing or damaged."""
        return read_object(self.metrics_file)

    def differences(self, config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Key -> its values here and in `config`, of those that make it another run."""
        stored, ours = read_config(self.config_file), identity(config)
        # as it is stored: `config` may lack a key on purpose, ~key, and then its class has another default
        theirs = identity(stored) if identity(stored) == ours else identity(with_defaults(stored))
        values = {
            key: (theirs.get(key, "absent"), ours.get(key, "absent")) for key in sorted(ours.keys() | theirs.keys())
        }
        return {key: (there, now) for key, (there, now) in values.items() if there != now}

    def is_of(self, config: Mapping[str, Any]) -> bool:
        """No config.yaml here says that it is another run."""
        return not self.config_file.is_file() or not self.differences(config)

    def changes_length(self, config: Mapping[str, Any]) -> bool:
        """`config` says continue=true, and is of the run here but for the iterations, of which it wants more than the
        run has behind it."""
        return bool(config.get("continue")) and self.is_of_another_length(config)

    def is_of_another_length(self, config: Mapping[str, Any]) -> bool:
        latest = self.latest_checkpoint()
        if latest is None or not self.config_file.is_file() or self.differences(config).keys() != {LENGTH}:
            return False
        return bool(config["trainer"]["max_iterations"] > iteration_of(latest))

    @property
    def launched(self) -> bool:
        """dualseg-train has opened it: there is a manifest that it, and not dualseg-evaluate, wrote."""
        if not self.manifest_file.is_file():
            return False
        manifest = self.manifest()
        return "dualseg" in manifest and "evaluated" not in manifest

    def resumes_in_slurm(self, config: Mapping[str, Any]) -> bool:
        """Slurm started this job again, with the same arguments, and it has a checkpoint of this run here."""
        if int(os.environ.get("SLURM_RESTART_COUNT") or 0) == 0 or not self.launched or not self.latest_checkpoint():
            return False
        job = self.noted("slurm_job")
        return job is not None and job == os.environ.get("SLURM_JOB_ID") and not self.differences(config)

    @property
    def finished(self) -> bool:
        """Training and evaluation are complete: metrics.json is written last."""
        return self.metrics_file.is_file() and self.metrics().get("status") == "finished"

    def damage(self) -> str | None:
        """What is missing or cannot be read, without which it is neither resumed nor collected, and the fix, or None.

        Only of a folder that no process is writing.
        """
        try:
            if self.config_file.is_file():
                self.config()
            if self.manifest_file.is_file():
                self.manifest()
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

    def noted_code(self) -> dict[str, str] | None:
        """Module -> SHA-256 of the user's own code that the run was started with; None where nothing is noted.

        Raises:
            DualsegError: manifest.json is damaged.
        """
        noted = self.noted("code")
        if noted is not None and not isinstance(noted, dict):
            raise DualsegError(f"{self.manifest_file}: 'code' is no mapping of modules; restore it from a copy.")
        return noted

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
            if longer or self.is_of(config):
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
