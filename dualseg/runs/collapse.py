"""Whether a run's pseudo-labels have won over its labels, which no loss shows. No torch: sweeps and tables ask too."""

import re
from pathlib import Path
from statistics import mean

ENOUGH = 5  # points of the curves in the last tenth of a run, below which chance decides what its patches hold
COLLAPSED = 0.25  # a run is told of when its share of foreground is below that part of the labels'
FLOODED = 3.0  # or above as many times of it
LOW, HIGH = (
    0.25,
    4.0,
)  # the same of a class, averaged over iterations: those of the guard, which needs torch


def collapse(path: Path) -> str | None:
    """What to say of a run whose pseudo-labels had far less or more foreground than the labels.

    One class everywhere minimises every unlabeled loss, so no loss shows it; see docs/method.md. Of a run with a guard:
    whether that had to act. Of others: whether over the last tenth of the run the shares were unlike those of the
    labels, of all foreground for each network where a method logs them, else of each class.

    Args:
        path: curves.csv of the run.
    """
    guard = [(iteration, state) for iteration, name, state in _rows(path, "guard/") if name == "open"]
    if guard:
        return _held_back(path, guard)
    rows = _rows(path, "foreground/")
    if not rows:
        shares = _at_the_end(_rows(path, "pseudo_share/"))
        lost = _outside(shares)
        return f"the pseudo-labels have won over the labels: at the end they have {lost}" if lost else None
    shares = _at_the_end(rows)
    labels = shares.pop("labels", 0.0)
    # others were never near: the run was too short
    learned = {name for _, name, share in rows if labels / 2 < share < 2 * labels}
    unlike = [n for n in shares if n in learned and not COLLAPSED <= shares[n] / labels <= FLOODED]
    if not unlike:
        return None
    found = " and ".join(f"{name} {100 * shares[name]:.1f} %" for name in unlike)
    return (
        f"the pseudo-labels have won over the labels: at the end network {found} of the unlabeled voxels are "
        f"foreground, of the labeled ones {100 * labels:.1f} %"
    )


def advice(guarded: bool, dual: bool) -> str:
    """What to try after such a run.

    Args:
        guarded: whether its guard acts; dual: whether `dual_gentle` is a gentler form of its method.
    """
    if guarded:
        return "Look at the pseudo-labels' shares in the report; docs/dual-mix.md says what may be wrong."
    gentle = "method=dual_gentle" if dual else "method.guard=true"
    return f"Try {gentle}, smaller weights of the unlabeled terms, or more labels; docs/method.md says why."


def _held_back(path: Path, guard: list[tuple[int, float]]) -> str | None:
    closed = {iteration for iteration, state in guard if not state}
    if not closed:
        return None
    ratios: dict[str, list[float]] = {}
    for iteration, name, ratio in _rows(path, "pseudo_share/"):
        if iteration in closed and not LOW <= ratio <= HIGH:
            ratios.setdefault(name, []).append(ratio)
    found = _outside({name: mean(values) for name, values in ratios.items()})
    share = max(100 * len(closed) / len(guard), 1)
    return f"the guard left pseudo-labels without weight in {share:.0f} % of the run, in which they had {found}"


def _outside(ratios: dict[str, float]) -> str:
    return " and ".join(
        f"{r:.2g} times as much {name} as the labels" for name, r in ratios.items() if not LOW <= r <= HIGH
    )


def _rows(path: Path, prefix: str) -> list[tuple[int, str, float]]:
    """(iteration, name without the prefix, value) of the curves of that prefix; these rows alone are parsed, for the
    sake of collecting many runs."""
    if not path.is_file():
        return []
    pattern = rb'^(\d+),"?' + prefix.encode() + rb'([^\r\n]+?)"?,([0-9.e+-]+)\r?$'
    found = re.findall(pattern, path.read_bytes(), re.MULTILINE)
    return [(int(iteration), name.decode(), float(value)) for iteration, name, value in found]


def _at_the_end(rows: list[tuple[int, str, float]]) -> dict[str, float]:
    """Name -> mean over the last tenth of the run; empty where that is fewer than `ENOUGH` points."""
    last = [row for row in rows if row[0] > 0.9 * rows[-1][0]] if rows else []
    if len({iteration for iteration, _, _ in last}) < ENOUGH:
        return {}
    return {name: mean(v for _, other, v in last if other == name) for name in sorted({row[1] for row in last})}
