"""Whether a run's pseudo-labels collapsed or flooded, which no loss shows. No torch: sweeps and tables ask too."""

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from statistics import mean
from typing import Any

ENOUGH = 5  # points of the curves in the last tenth of a run, below which chance decides what its patches hold
COLLAPSED = 0.25  # a run is told of when its share of foreground is below that part of the labels'
FLOODED = 3.0  # or above as many times of it
TOLD = 0.05  # of a run: a guard that was closed for less, and is open at the end, is not told of
# the same of a class, averaged over iterations: those of the guard, which needs torch
LOW, HIGH = 0.25, 4.0
_CURVES = re.compile(rb'^(\d+),"?(foreground|pseudo_share|guard)/([^\r\n]+?)"?,([0-9.e+-]+)\r?\n', re.MULTILINE)

Rows = list[tuple[int, str, float]]  # iteration, name without its prefix, value


def collapse(path: Path) -> str | None:
    """What to say of a run whose pseudo-labels had far less or more foreground than the labels.

    One class everywhere minimises every unlabeled loss, so no loss shows it; see docs/method.md. Of a run with a guard:
    whether that had to act for long, or at the end. Of others: whether over the last tenth of the run the shares were
    unlike those of the labels, of all foreground for each network where a method logs them, else of each class.

    Args:
        path: curves.csv of the run.
    """
    if not path.is_file():
        return None
    rows: dict[str, Rows] = {"foreground": [], "pseudo_share": [], "guard": []}
    # these rows alone are parsed, for the sake of collecting many runs
    for iteration, prefix, name, value in _CURVES.findall(path.read_bytes()):
        with suppress(ValueError):  # a damaged row
            rows[prefix.decode()].append((int(iteration), name.decode(errors="replace"), float(value)))
    if rows["guard"]:
        return _held_back(rows["guard"], rows["pseudo_share"])
    if not rows["foreground"]:
        lost = _outside(_at_the_end(rows["pseudo_share"]))
        return f"collapse: at the end they have {_told(lost)}" if lost else None
    shares = _at_the_end(rows["foreground"])
    labels = shares.pop("labels", 0.0)
    # others were never near: the run was too short
    learned = {name for _, name, share in rows["foreground"] if labels / 2 < share < 2 * labels}
    unlike = [n for n in shares if n in learned and not COLLAPSED <= shares[n] / labels <= FLOODED]
    if not unlike:
        return None
    found = " and ".join(f"{name} {100 * shares[name]:.1f} %" for name in unlike)
    return (
        f"collapse: at the end network {found} of the unlabeled voxels are "
        f"foreground, of the labeled ones {100 * labels:.1f} %"
    )


def collapse_with_advice(path: Path, method: Mapping[str, Any]) -> str | None:
    """`collapse`, and what to try then; `method`: the node of the run's configuration."""
    warning = collapse(path)
    return None if warning is None else f"{warning}. {_advice(method)}"


def _advice(method: Mapping[str, Any]) -> str:
    """What to try after such a run, of which `method` is the node of the configuration."""
    if method.get("guard"):
        return "A short run needs more iterations (trainer.max_iterations); else docs/mix.md says what to do."
    gentler = "method=dual_gentle" if str(method.get("_target_")).endswith(".DualNetwork") else "method.guard=true"
    return f"Try {gentler}, smaller weights of the unlabeled terms, or more labels; docs/method.md says why."


def _held_back(states: Rows, ratios: Rows) -> str | None:
    """What to say of a run with a guard, of its states and of the ratios that it judged; None: it was hardly closed."""
    closed = {iteration for iteration, _, state in states if not state}
    if states[-1][2] and len(closed) < TOLD * len(states):
        return None
    found = _means([row for row in ratios if row[0] in closed and not LOW <= row[2] <= HIGH])
    share = max(100 * len(closed) / len(states), 1)
    end = "; at its end they count" if states[-1][2] else ""
    held = f"unlabeled scans did not count in {share:.0f} % of the run"
    return f"{held}: pseudo-labels had {_told(found)}, so the guard held them back{end}" if found else held


def _outside(ratios: Mapping[str, float]) -> dict[str, float]:
    return {name: ratio for name, ratio in ratios.items() if not LOW <= ratio <= HIGH}


def _told(ratios: Mapping[str, float]) -> str:
    return " and ".join(f"{ratio:.2g} times as much of class {name} as the labels" for name, ratio in ratios.items())


def _at_the_end(rows: Rows) -> dict[str, float]:
    """Name -> mean over the last tenth of the run; empty where that is fewer than `ENOUGH` points."""
    last = [row for row in rows if row[0] > 0.9 * rows[-1][0]] if rows else []
    return _means(last) if len({iteration for iteration, _, _ in last}) >= ENOUGH else {}


def _means(rows: Rows) -> dict[str, float]:
    """Name -> mean of its values."""
    return {name: mean(v for _, other, v in rows if other == name) for name in sorted({row[1] for row in rows})}
