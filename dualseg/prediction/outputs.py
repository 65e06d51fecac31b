"""The folder that a prediction leaves: maps by kind, a table of the scans, a record of how they were made."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualseg.errors import DualsegError
from dualseg.files import write_json, write_text
from dualseg.prediction.grid import ScanGrid
from dualseg.prediction.review import Row, reasons_to_look

if TYPE_CHECKING:
    from dualseg.inference.predictor import Prediction

MEASURES = ("mean_entropy", "mean_entropy_foreground", "disagreement", "disagreement_foreground")


class PredictionFolder:
    """Where results lie; creating the object touches nothing on disk.

    Args:
        path: the folder.
        class_names: of all K classes, background first.
    """

    def __init__(self, path: Path, class_names: Sequence[str]) -> None:
        self.path = path
        self.class_names = tuple(class_names)
        self.summary_file = path / "summary.csv"
        self.record_file = path / "prediction.json"
        self.report_file = path / "report.html"

    def map_file(self, kind: str, scan: str) -> Path:
        """`kind`: labels, probabilities, entropy or disagreement."""
        return self.path / kind / f"{scan}.nii.gz"

    def check(self, inputs: Sequence[str | Path]) -> None:
        """It can take the results, and is apart from the scans.

        Raises:
            DualsegError: it lies where an input lies, is not empty, or is a file.
        """
        own = self.path.resolve()
        for given in inputs:
            path = Path(given).expanduser().resolve()
            folder = path if path.is_dir() else path.parent
            if own == folder or (path.is_dir() and own.is_relative_to(path)):
                mend = "give a folder of its own, so that scans and predictions are never mixed up"
                raise DualsegError(f"output={self.path}: is, or lies in, the folder of input={given}; {mend}.")
        if self.path.exists() and not self.path.is_dir():
            raise DualsegError(f"output={self.path}: is a file; give a folder.")
        if self.path.exists() and any(self.path.iterdir()):
            raise DualsegError(f"output={self.path}: is not empty; predictions are never written over earlier ones.")

    def open(self, record: dict[str, Any]) -> None:
        """Make the folder and write prediction.json.

        Raises:
            DualsegError: it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DualsegError(f"output={self.path}: cannot be made ({error}); choose another.") from error
        write_json(self.record_file, record)

    def write(self, scan: str, prediction: "Prediction", grid: ScanGrid) -> None:
        """Write the maps of a scan and the names of its classes, all of them or none.

        Raises:
            DualsegError: one cannot be written.
        """
        maps = {
            "probabilities": prediction.probabilities,
            "entropy": prediction.entropy,
            "disagreement": prediction.disagreement,
            "labels": prediction.label,
        }
        names = self.map_file("labels", scan).with_name(f"{scan}.json")
        try:
            for kind, array in maps.items():
                if array is not None:
                    grid.write(self.map_file(kind, scan), array)
            write_json(names, {"labels": {name: value for value, name in enumerate(self.class_names)}})
        except BaseException:
            for path in (*(self.map_file(kind, scan) for kind in maps), names):
                path.unlink(missing_ok=True)
            raise

    def write_summary(self, rows: Sequence[Row]) -> None:
        """Write summary.csv: one row a scan, those without a prediction too.

        Raises:
            DualsegError: it cannot be written.
        """
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        foreground = self.class_names[1:]
        volumes = [f"{name}_ml" for name in foreground]
        table.writerow(["scan", "status", "look_at", *volumes, *MEASURES, "seconds", "source", "problem"])
        for row, look_at in zip(rows, reasons_to_look(rows), strict=True):
            status = "failed" if row.problem else "predicted"
            ml = [_number(row.volumes.get(name, math.nan), 4) for name in foreground]
            measures = [_number(row.measures.get(name, math.nan), 6) for name in MEASURES]
            ends = [f"{row.seconds:.1f}", row.source, row.problem]
            table.writerow([row.scan, status, "; ".join(look_at), *ml, *measures, *ends])
        write_text(self.summary_file, text.getvalue())


def _number(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"
