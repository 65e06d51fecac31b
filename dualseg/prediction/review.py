"""Which predictions somebody should look at."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

DISAGREEMENT = 0.2  # of the voxels that any network calls foreground
OUTLIER = 3.5  # deviations from the median, in median absolute deviations scaled to a standard deviation
LEAST_SCANS = 8  # for a median to mean something
BEYOND = 2  # times the largest volume of the labels, or the smallest divided by it
TO_STANDARD_DEVIATION = 1.4826  # of a normal distribution's median absolute deviation


@dataclass
class Row:
    """What summary.csv says of a scan.

    Attributes:
        scan: name of its outputs.
        source: where it was read; empty where that may name a patient.
        problem: why there is no prediction, empty if there is one.
        doubts: what makes it doubtful without a look at the others: kinds of dualseg-check's table, `unlike_labels`.
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


def unlike_labels(volumes: Mapping[str, float], labeled: Iterable[Mapping[str, tuple[float, float]]]) -> list[str]:
    """`little CLASS`, `much CLASS`: under half the smallest volume in the labels, or over twice the largest one.

    A class that was not found is told of by `reasons_to_look`.

    Args:
        volumes: class -> ml.
        labeled: of each run, class -> smallest and largest ml among the labels that its plan measured.
    """
    ranges = [*labeled]
    found = []
    for name, ml in volumes.items():
        known = [own[name] for own in ranges if name in own]
        if known and 0 < ml < min(low for low, _ in known) / BEYOND:
            found.append(f"little {name}")
        elif known and ml > max(high for _, high in known) * BEYOND:
            found.append(f"much {name}")
    return found


def reasons_to_look(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """For each scan, why somebody should look at its prediction; a failed scan has no reason.

    - what makes it doubtful by itself, such as `shear` or `little CLASS`.
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
