"""Where Hydra looks for launchers: it takes none from elsewhere. The code is dualseg/studies/slurm.py."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher


class DualsegSlurmLauncher(SlurmLauncher):
    """`launcher=slurm`: see `dualseg.studies.slurm.launch`; within a job, `dualseg.studies.slurm.in_task`."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        # here: Hydra imports every plugin at every start
        from dualseg.studies.slurm import launch

        return launch(self, job_overrides, initial_job_idx)

    def __call__(self, sweep_overrides: list[str], *args: Any) -> Any:
        from dualseg.studies.slurm import in_task

        return in_task(partial(super().__call__, sweep_overrides, *args), sweep_overrides)
