"""Where Hydra looks for launchers: it takes none from elsewhere. The code is dualseg/studies/parallel.py."""

from collections.abc import Sequence
from typing import Any

from hydra_plugins.hydra_joblib_launcher.joblib_launcher import JoblibLauncher


class DualsegJoblibLauncher(JoblibLauncher):
    """`launcher=joblib`: see `dualseg.studies.parallel.launch`."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        # here: Hydra imports every plugin at every start
        from dualseg.studies.parallel import launch

        return launch(self, job_overrides)
