"""The runs of a sweep as Slurm jobs (`launcher=slurm`): submitted, waited for and collected, whatever becomes of each.

submitit writes the jobs and requeues them; `dualseg.training.callbacks.Checkpoints` says what a run does on its signal.
No torch here.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dualseg.errors import DualsegError, Interrupted

POLL_SECONDS = 10.0
SETTLE_SECONDS = 30.0  # a result may take that long to show on a network file system after its job has ended
# of a job that Slurm does not start again; every other state is one of waiting, running or being requeued
ENDED = {
    "BOOT_FAIL": "its node did not start",
    "CANCELLED": "it was cancelled",
    "COMPLETED": "it left no result",
    "DEADLINE": "it reached its deadline",
    "FAILED": "it died",
    "NODE_FAIL": "its node failed",
    "OUT_OF_MEMORY": "it used more memory than it had asked for; raise hydra.launcher.mem_gb",
    "PREEMPTED": "another job took its place, and this cluster does not requeue",
    "TIMEOUT": "it reached its time limit; raise hydra.launcher.timeout_min or hydra.launcher.signal_delay_s",
}
FORGOTTEN = "Slurm knows it no longer and it left no result"


class Processes(NamedTuple):
    """What a job asks for: `devices` tasks on each of `nodes`, each with a GPU or without."""

    nodes: int
    devices: int
    gpus: bool

    @classmethod
    def of(cls, trainer: Mapping[str, Any]) -> "Processes":
        """Those of the `trainer` of a composed configuration.

        Raises:
            DualsegError: `devices` leaves the number to the machine.
        """
        devices = trainer["devices"]
        if devices in ("auto", -1):
            fix = "Slurm must be told how many GPUs a run gets; give a number"
            raise DualsegError(f"trainer.devices={devices}: {fix}.")
        count = devices if isinstance(devices, int) else len(devices)
        return cls(trainer["num_nodes"], count, trainer["accelerator"] != "cpu")

    def parameters(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of submitit for such jobs, `given` those of `hydra.launcher`."""
        # one dead task ends them all; and since Slurm 22.05 srun does not take sbatch's number of CPUs over
        srun = ["--kill-on-bad-exit=1"]
        if given["cpus_per_task"]:
            srun.append(f"--cpus-per-task={given['cpus_per_task']}")
        gpus = self.devices if self.gpus and not given["gres"] else None
        return {"nodes": self.nodes, "tasks_per_node": self.devices, "gpus_per_node": gpus, "srun_args": srun}


@dataclass
class _Waiting:
    """A submitted job without a result so far."""

    job: Any
    overrides: list[str]
    ended_at: float | None = None  # since when Slurm says so
    reason: str = ""


def launch(launcher: Any, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
    """Submit a job for each of `job_overrides`, one job array for those with as many processes, and wait for all.

    Args:
        launcher: submitit's, set up by Hydra.
        job_overrides: arguments of the command line of each run.
        initial_job_idx: number of the first.

    Returns:
        Hydra's `JobReturn` of each; that of a job that died is failed, and its exception says why.

    Raises:
        DualsegError: no Slurm here, or it takes a job array for none of its own; no job is left behind then.
        Interrupted: Ctrl-C or SIGTERM. The jobs stay; how to cancel them is said.
    """
    missing = [command for command in ("sbatch", "srun", "squeue", "scancel") if shutil.which(command) is None]
    if missing:
        raise DualsegError(
            f"launcher=slurm: no {missing[0]} here. Start the sweep on a machine that submits to Slurm, or choose "
            "launcher=joblib or launcher=basic."
        )
    groups: dict[Processes, list[int]] = {}
    for index, overrides in enumerate(job_overrides):
        config = launcher.hydra_context.config_loader.load_sweep_config(launcher.config, list(overrides))
        groups.setdefault(Processes.of(config.trainer), []).append(index)
    waiting: dict[int, _Waiting] = {}
    for processes, indices in groups.items():
        try:
            jobs = _submit(launcher, processes, [(list(job_overrides[i]), initial_job_idx + i) for i in indices])
        except BaseException:
            _cancel(waiting.values())
            raise
        waiting |= {i: _Waiting(job, list(job_overrides[i])) for i, job in zip(indices, jobs, strict=True)}
    try:
        return _collect(waiting)
    except Interrupted:
        ids = sorted({one.job.job_id.partition("_")[0] for one in waiting.values()})
        print(f"The Slurm jobs go on. To cancel them: scancel {' '.join(ids)}", file=sys.stderr)
        raise


def _submit(launcher: Any, processes: Processes, runs: Sequence[tuple[list[str], int]]) -> list[Any]:
    """One job array: submitit's job of each of `runs`, (overrides, number).

    Raises:
        DualsegError: Slurm refuses it.
    """
    from hydra.core.singleton import Singleton
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError

    given = dict(launcher.params)
    folder, timeouts = given.pop("submitit_folder"), given.pop("max_num_timeout")
    executor = SlurmExecutor(folder, max_num_timeout=timeouts)
    wanted = {**given, **processes.parameters(given)}
    executor.update_parameters(**executor._convert_parameters({k: v for k, v in wanted.items() if v is not None}))
    state = Singleton.get_state()
    arguments = [(overrides, "hydra.sweep.dir", number, f"job_id_for_{number}", state) for overrides, number in runs]
    try:
        return executor.map_array(launcher, *zip(*arguments, strict=True))
    except FailedJobError as error:  # of sbatch, with what it printed
        raise DualsegError(
            f"launcher=slurm: sbatch refuses {processes.nodes} x {processes.devices} "
            f"{'GPUs' if processes.gpus else 'processes'} ({' '.join(str(error).split())}). Give what this cluster has "
            "in hydra.launcher.partition, account, timeout_min, mem_gb, cpus_per_task, gres; without GPUs "
            "trainer.accelerator=cpu."
        ) from error


def _cancel(waiting: Any) -> None:
    """Take back what was submitted."""
    if ids := sorted({one.job.job_id.partition("_")[0] for one in waiting}):
        subprocess.run(["scancel", *ids], check=False)


def _collect(submitted: Mapping[int, _Waiting]) -> list[Any]:
    """Wait until every job has a result or is lost.

    submitit asks sacct whether a job has ended, which clusters without accounting do not have, and without an answer it
    waits for ever; squeue is always there.
    """
    results: dict[int, Any] = {}
    while True:
        states = job_states()  # before the results: a job that has ended wrote its own before
        for index, one in submitted.items():
            if index not in results and (result := _result(one, states)) is not None:
                results[index] = result
        if len(results) == len(submitted):
            return [results[index] for index in sorted(results)]
        time.sleep(POLL_SECONDS)


def _result(one: _Waiting, states: Mapping[str, str] | None) -> Any:
    """Hydra's `JobReturn` of a job; None as long as there is none to be had."""
    first = one.job.task(0)  # the process that writes the run folder
    # listed, since a network file system may remember for a while that the file is not there
    if first.paths.folder.is_dir() and first.paths.result_pickle in first.paths.folder.iterdir():
        try:
            return first.result()
        except Exception as error:  # what the job raised, or whatever is wrong with its file
            return _failed(one, _raised(str(error)))
    if states is None:
        return None
    state = states.get(one.job.job_id)
    if state is not None and state not in ENDED:
        one.ended_at = None
        return None
    if one.ended_at is None:
        one.ended_at = time.monotonic()
        one.reason = f"{state}: {ENDED[state]}" if state else FORGOTTEN
    if time.monotonic() - one.ended_at < SETTLE_SECONDS:
        return None
    said = _last_line(first.stderr() or "")
    where = f"{said} " if said.startswith("error: ") else ""
    return _failed(one, f"Slurm job {one.job.job_id}, {one.reason}. {where}See {first.paths.stderr}")


def _failed(one: _Waiting, reason: str) -> Any:
    from hydra.core.utils import JobReturn, JobStatus

    returned = JobReturn(overrides=one.overrides, status=JobStatus.FAILED)
    returned.return_value = DualsegError(reason)
    return returned


def _raised(message: str) -> str:
    """What a job raised, of submitit's message, which has the traceback between two rules."""
    trace = message.partition("\n-----")[2].partition("\n-----")[0]
    return _last_line(trace or message).removeprefix(f"{DualsegError.__module__}.{DualsegError.__name__}: ")


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def job_states() -> dict[str, str] | None:
    """Slurm's state of each of this user's jobs, by its id, <array>_<task> in an array; None where Slurm is silent.

    Those that have ended stay listed for a while (MinJobAge, five minutes unless the cluster says otherwise).
    """
    # all of the user's: asked for one that it has forgotten, squeue fails, as it does when its server restarts
    command = ["squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", "--format=%i %T"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return None
    if asked.returncode:
        return None
    return dict(line.split(maxsplit=1) for line in asked.stdout.splitlines() if line.strip())


def in_task(job: Callable[[], Any], overrides: Sequence[str]) -> Any:
    """Call `job` in a task of a Slurm job, and give back Hydra's `JobReturn`.

    Raises:
        Exception: whatever failed in the run; the task ends with an exit code then, and srun ends those beside it.
    """
    from hydra.core.utils import filter_overrides

    sys.argv = ["dualseg-train", *filter_overrides(list(overrides))]  # for the manifest: not submitit's own command
    try:
        returned = job()
    except Interrupted as stop:  # which submitit takes for the death of the job
        raise DualsegError(str(stop)) from stop
    returned.return_value  # noqa: B018 - Hydra raises what the run raised
    return returned
