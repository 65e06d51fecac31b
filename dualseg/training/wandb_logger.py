"""The curves of a run in Weights & Biases, beside logs/curves.csv: offline unless told otherwise."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger, rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only

from dualseg.errors import DualsegError
from dualseg.runs.folder import LENGTH, RunFolder
from dualseg.runs.identity import identity
from dualseg.training.curves import read_curves

STEP = "iteration"  # x axis of every curve
TAG_LENGTH = 64  # W&B's limit


class WandbLogger(Logger):
    """One W&B run for each run folder, however often that is launched again.

    Lightning's WandbLogger counts W&B's steps by calls, so that what a killed run repeats appears twice, and starts
    a second, partial record at each offline launch. Here W&B's step is the iteration. A resumed run first repeats the
    rows of curves.csv up to its checkpoint: an offline record is complete, and takes the place of the former launch's;
    of an online run, W&B keeps what it has.

    Args:
        folder: of the run, with its config.yaml and manifest.json; W&B's files go to logs/wandb.
        resumed_at: iterations behind the checkpoint that the run starts from.
        project, entity: where W&B shows the run; entity None: the account's own.
        offline: write files for `wandb sync`; no account, no prompt, no network.

    Raises:
        DualsegError: W&B refuses the project, or there is no account for a run that is not offline.
    """

    def __init__(
        self,
        folder: RunFolder,
        resumed_at: int = 0,
        project: str = "dualseg",
        entity: str | None = None,
        offline: bool = True,
    ) -> None:
        super().__init__()
        self.folder, self.resumed_at = folder, resumed_at
        # a name of digits arrives as a number
        self.project, self.entity = str(project), None if entity is None else str(entity)
        self.offline = offline
        self._run: Any = None
        self._check()  # here, while nothing is written yet

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str:
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The open W&B run. Lightning asks for it when the fit starts.

        Raises:
            DualsegError: W&B cannot start it.
        """
        if self._run is None:
            self._run = self._start()
            self._run.define_metric(STEP, hidden=True)
            self._run.define_metric("*", step_metric=STEP)
            if self.resumed_at:
                rows = [row for row in read_curves(self.folder.curves_file) if row[0] <= self.resumed_at]
                for iteration, points in groupby(rows, key=lambda row: row[0]):
                    self.log_metrics({name: value for _, name, value in points}, iteration)
        return self._run

    @rank_zero_only
    def _check(self) -> None:
        if self.offline:
            os.environ["WANDB_ERROR_REPORTING"] = "false"  # W&B's telemetry looks for the network offline, too
        import wandb

        with _explained():
            wandb.Settings(project=self.project, entity=self.entity)
            if not self.offline and not wandb.login(prompt=False):
                raise DualsegError(
                    "logger.offline=false: there is no W&B account on this machine, or WANDB_MODE forbids it; run "
                    "`wandb login` or set WANDB_API_KEY, or leave logger.offline at true."
                )

    def _start(self) -> Any:
        import wandb

        config, data = self.folder.config(), self.folder.manifest()["data"]
        # else the files of tables wait for `wandb sync` in the home folder
        os.environ["WANDB_DATA_DIR"] = str(self.folder.wandb.absolute())
        former = [*self.folder.wandb.glob("offline-run-*"), *self.folder.wandb.glob("artifacts")]
        with _explained():
            run = wandb.init(
                dir=str(self.folder.wandb.parent.absolute()),
                project=self.project,
                entity=self.entity,
                id=run_id(self.folder, config),
                name=self.folder.path.resolve().name,
                group=config["study"],
                tags=tags(config, data),
                config={**facts(config, data), "config": config},
                mode="offline" if self.offline else "online",
                resume="allow" if self.resumed_at and not self.offline else None,
                reinit="create_new",  # never into a run that is open already
                settings=wandb.Settings(silent=self.offline, console="off"),  # a progress bar is no log
            )
        for path in former:
            shutil.rmtree(path)
        return run

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        run = self.experiment
        if step is not None and step >= run.step:  # what W&B has of a former launch is not taken again
            run.log({**metrics, STEP: step}, step=step)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the W&B run has the configuration from its start."""

    @rank_zero_only
    def close(self, failed: bool) -> None:
        """End the W&B run, and W&B's own process: `finish` alone does not wait until the record is written whole."""
        if self._run is not None:
            import wandb

            folder = Path(self._run.dir).parent
            self._run.finish(exit_code=int(failed))
            wandb.teardown()
            self._run = None
            if self.offline:
                print(f"W&B, offline; to send it: wandb sync {folder}")


@contextmanager
def _explained() -> Iterator[None]:
    """Raises: DualsegError in place of W&B's own errors."""
    import wandb

    try:
        yield
    except wandb.Error as error:
        reason = " ".join(str(error).split()).rstrip(".")
        fix = "correct logger.project or logger.entity, or leave logger.offline at true"
        raise DualsegError(f"logger=wandb: W&B cannot start: {reason}; {fix}.") from error


def run_id(folder: RunFolder, config: Mapping[str, Any]) -> str:
    """The W&B run of a folder and a configuration: the same at every launch, on one machine.

    A run that was trained on (continue=true) keeps that of its first length.
    """
    iterations = folder.noted("iterations")
    first = {} if iterations is None else {LENGTH: iterations}
    content = json.dumps([str(folder.path.absolute()), identity(config) | first], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def facts(config: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """What runs are told apart by, under the names of a study's results.csv; None where it does not apply.

    Args:
        config: of the run.
        data: of its manifest.json, which knows the numbers of volumes.
    """
    return {
        "study": config["study"],
        "variant": config["variant"],
        "dataset": config["data"]["name"],
        "scale": config["scale"],
        "method": config["method"]["name"],
        "objective": config.get("objective"),
        "architecture": "+".join(network["architecture"] for network in config["networks"].values()),
        "labeled": data["labeled"],
        "unlabeled": data["unlabeled"],
        "seed": config["seed"],
    }


def tags(config: Mapping[str, Any], data: Mapping[str, Any]) -> list[str]:
    """Method, objective, dataset, scale, variant and labels: those that are set."""
    known = facts(config, data)
    words = [known[key] for key in ("method", "objective", "dataset", "scale", "variant")]
    words.append(f"{known['labeled']} labels")
    return list(dict.fromkeys(str(word)[:TAG_LENGTH] for word in words if word))
