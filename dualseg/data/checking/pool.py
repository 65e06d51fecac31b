"""Which unlabeled scans are unlike every labeled one, by plain statistics of the images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dualseg.data.checking.look import Look

# A scan is unlike the labeled ones where its distance to the nearest of them is above both of these:
TIMES = float(np.log(1.5))  # a voxel, a field of view or a range of values 1.5 times another
CORRELATION = 0.4  # of two scans' coarse block means
USUALLY = 2.0  # times the median distance of a labeled scan to the nearest other one
LEAST_LABELED = 4  # below which labeled scans do not say what is usual, and the unlabeled ones have to
SHOWN = 20  # scans on the page
LEAST_RANGE = 1e-9  # of how far values are apart: that of a constant scan is 0
TINY = 1e-300
NAMED = 3  # scans in a note


def _in_ranges(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Of quantiles (C, 5): log of 1 + how many ranges (1 to 99 %) of the narrower scan apart; the farthest counts."""
    ranges = np.minimum(np.ptp(own, axis=-1), np.ptp(others, axis=-1))
    apart = np.abs(others - own).max(axis=-1)
    return np.log1p(apart / np.maximum(ranges, np.maximum(LEAST_RANGE * apart, TINY))).max(axis=1)


def _in_times(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Of edges (3,) in mm: log of how many times larger or smaller, in the direction that differs most."""
    return np.abs(np.log(others / own)).max(axis=1)


def _uncorrelated(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Of block means with mean 0 and norm 1: 1 - their correlation."""
    return 1 - others @ own


class _Part(NamedTuple):
    of: str  # attribute of a look
    least: float  # distance that is never unlike
    distance: Callable[[np.ndarray, np.ndarray], np.ndarray]  # of one scan to n others: (n,)


PARTS = {
    "intensity": _Part("quantiles", TIMES, _in_ranges),
    "spacing": _Part("spacing", TIMES, _in_times),
    "field of view": _Part("extent", TIMES, _in_times),
    "content": _Part("content", 1 - CORRELATION, _uncorrelated),
}


@dataclass(frozen=True)
class Unlike:
    """An unlabeled scan beside the labeled ones.

    Attributes:
        case: its name.
        parts: part -> distance to the labeled scan that is nearest in it, in limits: above 1 it is unlike them all.
        nearest: the labeled scan that is nearest over all parts.
        look: what is kept of it.
        nearest_look: the same of `nearest`.
    """

    case: str
    parts: dict[str, float]
    nearest: str
    look: Look
    nearest_look: Look

    @property
    def distance(self) -> float:
        """Of the part that is most unlike, in limits."""
        return max(self.parts.values())


def unlike_scans(looks: Mapping[str, Look], labeled: Sequence[str], unlabeled: Sequence[str]) -> list[Unlike]:
    """Every unlabeled scan, the most unlike one first; none where there is no labeled one."""
    if not labeled:
        return []
    known, pool = (
        {name: _values(looks, cases, part) for name, part in PARTS.items()} for cases in (labeled, unlabeled)
    )
    limits = {name: _limit(part, known[name], pool[name]) for name, part in PARTS.items()}
    found = []
    for number, case in enumerate(unlabeled):
        distances = {n: part.distance(pool[n][number], known[n]) / limits[n] for n, part in PARTS.items()}
        nearest = labeled[int(np.max([*distances.values()], axis=0).argmin())]
        parts = {name: float(own.min()) for name, own in distances.items()}
        found.append(Unlike(case, parts, nearest, looks[case], looks[nearest]))
    return sorted(found, key=lambda scan: -scan.distance)


def _values(looks: Mapping[str, Look], cases: Sequence[str], part: _Part) -> np.ndarray:
    """(n, ...) of n cases."""
    return np.array([getattr(looks[case], part.of) for case in cases])


def _limit(part: _Part, known: np.ndarray, pool: np.ndarray) -> float:
    """The distance above which an unlabeled scan is unlike."""
    if len(known) >= LEAST_LABELED:
        usual = [part.distance(own, np.delete(known, number, axis=0)).min() for number, own in enumerate(known)]
    else:
        usual = [part.distance(own, known).min() for own in pool]
    return max(part.least, USUALLY * float(np.median(usual))) if usual else part.least


def unlike_notes(pool: Sequence[Unlike], labeled: int) -> list[str]:
    """A sentence for each part that scans are unlike in, and one on how that was judged if labeled scans are few."""
    said = []
    for name in PARTS:
        far = [scan.case for scan in sorted(pool, key=lambda scan: -scan.parts[name]) if scan.parts[name] > 1]
        if far:
            scans = f"scans {'is' if len(far) == 1 else 'are'} unlike every labeled one"
            said.append(f"{len(far)} of {len(pool)} unlabeled {scans} in {name}: {first(far)}.")
    if said and labeled < LEAST_LABELED:
        said.append(
            f"With {labeled} labeled scan{'s' if labeled > 1 else ''}, unlike means far beyond what is usual among the "
            "unlabeled ones: a pool that is unlike as a whole is not seen."
        )
    return said


def first(texts: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(texts) - NAMED} more" if len(texts) > NAMED else ""
    return f"{', '.join(texts[:NAMED])}{more}"
