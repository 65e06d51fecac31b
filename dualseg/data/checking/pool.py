"""Which unlabeled scans are unlike every labeled one, by plain statistics of the images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

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


def _of_values(one: Look, others: Sequence[Look]) -> np.ndarray:
    """Of the quantiles: log of 1 + how many ranges (1 to 99 %) of the narrower scan apart; the farthest one counts."""
    own, theirs = one.quantiles, np.array([other.quantiles for other in others])
    ranges = np.minimum(np.ptp(own, axis=-1), np.ptp(theirs, axis=-1))
    apart = np.abs(theirs - own).max(axis=-1)
    return np.log1p(apart / np.maximum(ranges, np.maximum(LEAST_RANGE * apart, TINY))).max(axis=1)


def _of_edges(name: str) -> Callable[[Look, Sequence[Look]], np.ndarray]:
    """Of `spacing` or `extent`: log of how many times larger or smaller, in the direction that differs most."""

    def distance(one: Look, others: Sequence[Look]) -> np.ndarray:
        theirs = np.array([getattr(other, name) for other in others])
        return np.abs(np.log(theirs / getattr(one, name))).max(axis=1)

    return distance


def _of_content(one: Look, others: Sequence[Look]) -> np.ndarray:
    """1 - the correlation of coarse block means."""
    return 1 - np.array([other.content for other in others]) @ one.content


@dataclass(frozen=True)
class _Part:
    least: float  # distance that is never unlike
    distance: Callable[[Look, Sequence[Look]], np.ndarray]  # (others,)


PARTS = {
    "intensity": _Part(TIMES, _of_values),
    "spacing": _Part(TIMES, _of_edges("spacing")),
    "field of view": _Part(TIMES, _of_edges("extent")),
    "content": _Part(1 - CORRELATION, _of_content),
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
    known = [looks[case] for case in labeled]
    if not known:
        return []
    limits = {}
    for name, part in PARTS.items():
        # one row at a time: memory does not grow with labeled times unlabeled
        if len(known) >= LEAST_LABELED:
            usual = [_others(part.distance(look, known), k).min() for k, look in enumerate(known)]
        else:
            usual = [part.distance(looks[case], known).min() for case in unlabeled]
        limits[name] = max(part.least, USUALLY * float(np.median(usual))) if usual else part.least
    found = []
    for case in unlabeled:
        distances = {name: part.distance(looks[case], known) / limits[name] for name, part in PARTS.items()}
        nearest = int(np.max([*distances.values()], axis=0).argmin())
        parts = {name: float(own.min()) for name, own in distances.items()}
        found.append(Unlike(case, parts, labeled[nearest], looks[case], known[nearest]))
    return sorted(found, key=lambda scan: -scan.distance)


def _others(distances: np.ndarray, own: int) -> np.ndarray:
    return np.delete(distances, own)


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
