"""The folder that a prediction leaves: maps by kind, a table of the scans, a record of how they were made."""

import csv
import io
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualseg.errors import DualsegError
from dualseg.files import is_temporary, sweep_below, write_json, write_text
from dualseg.prediction.grid import ScanGrid
from dualseg.prediction.record import PredictionRecord
from dualseg.prediction.review import Row, reasons_to_look
from dualseg.runs.lock import LOCK

if TYPE_CHECKING:
    from dualseg.inference.predictor import Prediction

KINDS = ("probabilities", "entropy", "disagreement", "labels")  # of maps
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
        """`kind`: one of `KINDS`."""
        return self.path / kind / f"{scan}.nii.gz"

    def _names_file(self, scan: str) -> Path:
        return self.path / "labels" / f"{scan}.json"

    def check(self, inputs: Sequence[str | Path]) -> None:
        """It is a folder, and apart from the scans.

        Raises:
            DualsegError: it lies where an input lies, or is a file.
        """
        own = self.path.resolve()
        for given in inputs:
            path = Path(given).expanduser().resolve()
            folder = path if path.is_dir() else path.parent
            if own == folder or (path.is_dir() and own.is_relative_to(path)):
                fix = "give a folder of its own, so that scans and predictions are never mixed up"
                raise DualsegError(f"output={self.path}: is, or lies in, the folder of input={given}; {fix}.")
        if self.path.exists() and not self.path.is_dir():
            raise DualsegError(f"output={self.path}: is a file; give a folder.")

    def record(self, made_by: Mapping[str, Any]) -> PredictionRecord:
        """What is done of a prediction that goes on; the folder is cleared of what killed processes left.

        Args:
            made_by: what decides the maps now.

        Raises:
            DualsegError: the folder holds something else, or predictions that were made otherwise.
        """
        record = PredictionRecord(self.record_file)
        if (
            not record.content
            and self.path.is_dir()
            and any(path.name != LOCK and not is_temporary(path) for path in self.path.iterdir())
        ):
            raise DualsegError(f"output={self.path}: is not empty; predictions are never written over earlier ones.")
        record.check(made_by)
        sweep_below(self.path)
        return record

    def open(self) -> None:
        """Make the folder.

        Raises:
            DualsegError: it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DualsegError(f"output={self.path}: cannot be made ({error}); choose another.") from error

    def holds(self, scan: str, kinds: Collection[str]) -> bool:
        """These maps of a scan are there, and the names of its classes."""
        return all(path.is_file() for path in (self._names_file(scan), *(self.map_file(kind, scan) for kind in kinds)))

    def remove(self, scan: str) -> None:
        """Remove what there is of a scan.

        Raises:
            DualsegError: it cannot be removed.
        """
        try:
            for path in (*(self.map_file(kind, scan) for kind in KINDS), self._names_file(scan)):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise DualsegError(f"output={self.path}: cannot be written ({error}); check permissions.") from error

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
        try:
            for kind, array in maps.items():
                if array is not None:
                    grid.write(self.map_file(kind, scan), array)
            labels = {name: value for value, name in enumerate(self.class_names)}
            write_json(self._names_file(scan), {"labels": labels})
        except BaseException:
            self.remove(scan)
            raise

    def write_summary(self, rows: Sequence[Row]) -> None:
        """Write summary.csv, unless it says so already: one row a scan, those without a prediction too.

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
        if not self.summary_file.is_file() or self.summary_file.read_bytes() != text.getvalue().encode():
            write_text(self.summary_file, text.getvalue())


def _number(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"
