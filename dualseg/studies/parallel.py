"""Several runs of a sweep at a time on this machine (`launcher=joblib`). No torch here.

hydra-joblib-launcher calls Hydra's jobs in worker processes, since Hydra's state is one a process: a signal to the
command would not reach the runs through them, and they would outlive it. Here the jobs are composed one after the
other; threads do no more than wait for the processes of a run.
"""

from collections.abc import Sequence
from typing import Any

from dualseg.errors import Interrupted
from dualseg.signals import Stop
from dualseg.studies.job import Launch


def launch(launcher: Any, job_overrides: Sequence[Sequence[str]]) -> list[Any]:
    """Run all of `job_overrides`, arguments of the command line of each run, `hydra.launcher.n_jobs` at a time.

    Args:
        launcher: Hydra's for joblib, set up by Hydra.

    Returns:
        Hydra's `JobReturn` of each; that of a job that could not be started is failed, with its exception.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the runs have written a checkpoint by then.
    """
    from joblib import Parallel, delayed

    started = [_Job(launcher, overrides) for overrides in job_overrides]
    with Stop.heard() as stop:
        Parallel(**{**launcher.joblib, "backend": "threading"})(delayed(job)(stop) for job in started)
    if stop.signals:
        raise Interrupted(stop.signals[0])
    return [job.returned for job in started]


class _Job:
    """One run: composed where Hydra's state may be touched, in the main thread, and called in another one."""

    def __init__(self, launcher: Any, overrides: Sequence[str]) -> None:
        from hydra.core.utils import JobReturn
        from omegaconf import open_dict

        self.returned = JobReturn(overrides=list(overrides))
        config = launcher.hydra_context.config_loader.load_sweep_config(launcher.config, list(overrides))
        self.hydra, self.config = config.hydra, config.copy()
        with open_dict(self.config):
            del self.config["hydra"]

    def __call__(self, stop: Stop) -> None:
        from hydra.core.utils import JobStatus

        try:
            self.returned.return_value = Launch.of(self.config, self.hydra)(stop)
            self.returned.status = JobStatus.COMPLETED
        except Exception as error:
            self.returned.return_value = error
            self.returned.status = JobStatus.FAILED
