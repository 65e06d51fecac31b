"""Which predictions somebody should look at."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

DISAGREEMENT = 0.2  # of the voxels that any network calls foreground
OUTLIER = 3.5  # deviations from the median, in median absolute deviations scaled to a standard deviation
LEAST_SCANS = 8  # for a median to mean something
TO_STANDARD_DEVIATION = 1.4826  # of a normal distribution's median absolute deviation


@dataclass
class Row:
    """What summary.csv says of a scan.

    Attributes:
        scan: name of its outputs.
        source: where it was read; empty where that may name a patient.
        problem: why there is no prediction, empty if there is one.
        doubts: kinds of what makes the scan itself doubtful, the rows of dualseg-check's table.
        volumes: ml of each foreground class.
        measures: see `dualseg.inference.predictor.Prediction`.
        seconds: that it took.
    """

    scan: str
    source: str
    problem: str = ""
    doubts: tuple[str, ...] = ()
    volumes: dict[str, float] = field(default_factory=dict)
    measures: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


def reasons_to_look(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """For each scan, why somebody should look at its prediction; a failed scan has no reason.

    - what makes the scan itself doubtful, such as `shear`.
    - `no CLASS`: a class was not found.
    - `networks disagree`: on more than `DISAGREEMENT` of the voxels that any of them calls foreground.
    - `unusual volume of CLASS`, `unusually uncertain`: far from the median of these scans (from `LEAST_SCANS` on). An
      absolute limit on the entropy would mean something else for each run, since networks are calibrated differently.
    """
    reasons: list[list[str]] = [[] for _ in rows]
    done = [index for index, row in enumerate(rows) if not row.problem]
    for index in done:
        row = rows[index]
        reasons[index] += row.doubts
        reasons[index] += [f"no {name}" for name, ml in row.volumes.items() if ml == 0]
        if row.measures["disagreement_foreground"] > DISAGREEMENT:
            reasons[index].append("networks disagree")
    if len(done) >= LEAST_SCANS:
        for name in rows[done[0]].volumes:
            for index, deviation in zip(done, _deviations([rows[i].volumes[name] for i in done]), strict=True):
                if abs(deviation) > OUTLIER:
                    reasons[index].append(f"unusual volume of {name}")
        entropies = [rows[i].measures["mean_entropy_foreground"] for i in done]
        for index, deviation in zip(done, _deviations(entropies), strict=True):
            if deviation > OUTLIER:
                reasons[index].append("unusually uncertain")
    return [tuple(own) for own in reasons]


def _deviations(values: Sequence[float]) -> np.ndarray:
    """Of each value from the median of those that are no NaN, in robust standard deviations; 0 where there is none."""
    numbers = np.array(values)
    if np.isnan(numbers).all():
        return np.zeros(len(numbers))
    off = numbers - np.nanmedian(numbers)
    spread = TO_STANDARD_DEVIATION * np.nanmedian(abs(off))
    return np.nan_to_num(off / spread) if spread else np.zeros(len(numbers))
