"""One run of a sweep, as a launcher calls it: in processes of its own, whatever it does to the others."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dualseg.errors import Interrupted
from dualseg.processes import processes_of
from dualseg.runs.lock import is_locked
from dualseg.signals import Stop
from dualseg.studies.index import Sweep
from dualseg.training.group import run_group


@dataclass(frozen=True)
class Launch:
    """What is needed to start one run of a sweep.

    Attributes:
        run: name of its folder.
        sweep: where its console output goes, and why it failed.
        arguments: of the command line that trains it.
        processes: how many train it.
    """

    run: str
    sweep: Sweep
    arguments: tuple[str, ...]
    processes: int

    @classmethod
    def of(cls, config: Any, hydra: Any) -> "Launch":
        """That of a composed configuration and its node `hydra`.

        Raises:
            DualsegError: more devices than there are.
        """
        from dualseg.runs.folder import RunFolder
        from dualseg.training.settings import resolve

        settings = resolve(config)
        config_dirs = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
        arguments = [argument for path in config_dirs for argument in ("--config-dir", path)]
        arguments += [argument for argument in hydra.overrides.task if not argument.startswith("launcher=")]
        run = RunFolder.of(settings).path.name
        return cls(run, Sweep(hydra.sweep.dir), tuple(arguments), processes_of(settings["trainer"]))

    def __call__(self, stop: Stop | None = None) -> int | None:
        """Run it in fresh processes, so that nothing of it is left to the next one.

        A failure is recorded, not raised: the other runs go on. A run that another process is writing, such as a second
        sweep beside this one, is that one's: it is left to it.

        Args:
            stop: as `run_group` takes it.

        Returns:
            The signal that asked the sweep to stop, if one did.
        """
        folder = self.sweep.output / self.run
        if is_locked(folder):
            return None
        ended = run_group(self.arguments, self.processes, log=self.sweep.own_log_file(self.run), stop=stop)
        failed = ended.code and (ended.signal is None or ended.code != 128 + ended.signal)
        if failed and not is_locked(folder):  # else the other one was the first of two that started at the same time
            self.sweep.record_failure(self.run, ended.reason or f"exit code {ended.code}")
        return ended.signal


def run_job(config: Any, train: Callable[[Any], None]) -> None:
    """Train the composed configuration of one job of `dualseg-train -m`, and record how that ended.

    In a Slurm job the processes are fresh already, one a task.

    Args:
        config: the composed configuration.
        train: trains it in this process.

    Raises:
        Interrupted: Ctrl-C or SIGTERM, which end the sweep as well.
        Exception: in a Slurm job, whatever fails: its launcher collects it.
    """
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    if hydra.runtime.choices["hydra/launcher"] == "submitit_slurm":
        train(config)
        return
    asked = Launch.of(config, hydra)()
    if asked is not None:
        raise Interrupted(asked)
