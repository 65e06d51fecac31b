"""Where Hydra looks for sweepers: it takes none from elsewhere. The code is dualseg/studies/sweeper.py."""

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper


class StudySweeper(BasicSweeper):
    """`dualseg-train -m`: see `dualseg.studies.sweeper.sweep`."""

    def sweep(self, arguments: list[str]) -> Any:
        # here: Hydra imports every plugin at every start
        from dualseg.studies.sweeper import sweep

        return sweep(self, arguments)
