"""Whether a run's pseudo-labels have won over its labels, which no loss shows. No torch: sweeps and tables ask too."""

import re
from pathlib import Path
from statistics import mean

ENOUGH = 5  # points of the curves in the last tenth of a run, below which chance decides what its patches hold
COLLAPSED = 0.25  # a run is told of when its share of foreground is below that part of the labels'
FLOODED = 3.0  # or above as many times of it
ADVICE = "Try method=dual_gentle, smaller weights of the unlabeled terms, or more labels; docs/method.md says why."


def collapse(path: Path) -> str | None:
    """What to say of a run whose pseudo-labels end with far less or more foreground than the labels.

    One class everywhere minimises every unlabeled loss, so no loss shows it; see docs/method.md. None where the shares,
    over the last tenth of the run, are alike: those of all foreground for each network, where a method logs them, else
    those of each class.

    Args:
        path: curves.csv of the run.
    """
    rows = _rows(path, "foreground/")
    if rows:
        shares = _at_the_end(rows)
        labels = shares.pop("labels", 0.0)
        learned = {name for _, name, share in rows if labels / 2 < share < 2 * labels}
        lost = [n for n in shares if n in learned and not COLLAPSED <= shares[n] / labels <= FLOODED]
        named = " and ".join(f"{name} {100 * shares[name]:.1f} %" for name in lost)
        found = (
            f"at the end network {named} of the unlabeled voxels are foreground, of the labeled ones "
            f"{100 * labels:.1f} %"
        )
    else:
        rows = _rows(path, "pseudo_share/")
        shares = _at_the_end(rows)
        learned = {name for _, name, share in rows if 1 / 2 < share < 2}
        lost = [name for name in shares if name in learned and not COLLAPSED <= shares[name] <= FLOODED]
        found = "at the end pseudo-labels have " + " and ".join(
            f"{shares[n]:.2g} times the {n} of labels" for n in lost
        )
    # others were never near: the run was too short
    return f"the pseudo-labels have won over the labels: {found}" if lost else None


def held_back(path: Path) -> str | None:
    """What to say of a run whose guard was not always open; None: it was, or there is none."""
    states = [state for _, _, state in _rows(path, "guard/")]
    if not states or min(states) == 1:
        return None
    return (
        f"the guard left the unlabeled terms without weight in {100 * (1 - mean(states)):.0f} % of the run, since the "
        "pseudo-labels had far more or less of a class than the labels; see the shares in the report"
    )


def _rows(path: Path, prefix: str) -> list[tuple[int, str, float]]:
    """(iteration, name without the prefix, value) of the curves of that prefix; these rows alone are parsed, for the
    sake of collecting many runs."""
    if not path.is_file():
        return []
    found = re.findall(
        rb"^(\d+)," + prefix.encode() + rb"([^,\r\n]+),([0-9.e+-]+)\r?\n", path.read_bytes(), re.MULTILINE
    )
    return [(int(iteration), name.decode(), float(value)) for iteration, name, value in found]


def _at_the_end(rows: list[tuple[int, str, float]]) -> dict[str, float]:
    """Name -> mean over the last tenth of the run; empty where that is fewer than `ENOUGH` points."""
    last = [row for row in rows if row[0] > 0.9 * rows[-1][0]]
    if len({iteration for iteration, _, _ in last}) < ENOUGH:
        return {}
    return {name: mean(v for _, other, v in last if other == name) for name in sorted({row[1] for row in last})}
