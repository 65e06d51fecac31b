"""Training curves: one tidy CSV, `iteration,name,value`, complete and without duplicates across resumes."""

import csv
import io
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger, rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only

from dualseg.files import write_text
from dualseg.runs.reading import curve_row, read_rows

HEADER = ["iteration", "name", "value"]


def read_curves(path: Path) -> list[tuple[int, str, float]]:
    """Whole rows of a curves file, none where there is no file."""
    return read_rows(path, curve_row)[0] if path.is_file() else []


class CurveLogger(Logger):
    """Appends to `path` as the run goes on. Lightning's CSVLogger starts a new file at each launch, and loses the old.

    Args:
        path: the CSV file.
        resumed_at: iterations behind the checkpoint that the run starts from: later rows are dropped, since they come
            again; 0 starts the file anew.
    """

    def __init__(self, path: Path, resumed_at: int = 0) -> None:
        super().__init__()
        self.path = path
        self.resumed_at = resumed_at
        self._known: set[str] = set()
        self._prepared = False
        self._file: io.TextIOWrapper | None = None

    @property
    def name(self) -> str:
        return "curves"

    @property
    def version(self) -> str:
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> io.TextIOWrapper:
        """The open file."""
        if self._file is None and self._prepared:  # closed by `finalize` at the end of the fit
            self._file = self.path.open("a")
        elif self._file is None:
            kept = [row for row in read_curves(self.path) if row[0] <= self.resumed_at] if self.resumed_at else []
            self._known = {name for iteration, name, _ in kept if iteration == self.resumed_at}
            lines = io.StringIO()
            csv.writer(lines, lineterminator="\n").writerows([HEADER, *([i, n, repr(v)] for i, n, v in kept)])
            write_text(self.path, lines.getvalue())
            self._file = self.path.open("a")
            self._prepared = True
        return self._file

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        file = self.experiment
        # an evaluation at the very iteration of the checkpoint may be in the file already
        repeated = self._known if step == self.resumed_at else ()
        rows = [[step, name, repr(float(value))] for name, value in metrics.items() if name not in repeated]
        csv.writer(file, lineterminator="\n").writerows(rows)
        file.flush()

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: config.yaml has them."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
