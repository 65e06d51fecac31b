"""Whether a run's pseudo-labels have won over its labels, which no loss shows. No torch: sweeps and tables ask too."""

import re
from pathlib import Path
from statistics import mean

ENOUGH = 5  # points of the curves in the last tenth of a run, below which chance decides what its patches hold
COLLAPSED = 0.25  # a run is told of when its share of foreground is below that part of the labels'
FLOODED = 3.0  # or above as many times of it
ADVICE = "Try method=dual_gentle, smaller weights of the unlabeled terms, or more labels; docs/method.md says why."
_SHARES = re.compile(rb"^(\d+),(foreground/\w+),([0-9.e+-]+)\r?\n", re.MULTILINE)


def collapse(path: Path) -> str | None:
    """What to say of a run whose networks end with far less or more foreground in unlabeled patches than in labels.

    One class everywhere minimises every unlabeled loss, so no loss shows it; see docs/method.md. None where the shares
    of foreground in pseudo-labels and labels, over the last tenth of the run, are alike.
    """
    if not path.is_file():
        return None
    # these rows alone are parsed, for the sake of collecting many runs
    rows = [(int(i), str(name, "ascii"), float(share)) for i, name, share in _SHARES.findall(path.read_bytes())]
    last = [row for row in rows if row[0] > 0.9 * rows[-1][0]] if rows else []
    if len({iteration for iteration, _, _ in last}) < ENOUGH:
        return None
    shares = {name: mean(v for _, other, v in last if other == name) for name in sorted({row[1] for row in last})}
    labels = shares.pop("foreground/labels", 0.0)
    # others were never near: the run was too short
    learned = {name for _, name, share in rows if labels / 2 < share < 2 * labels}
    lost = [name for name in shares if name in learned and not COLLAPSED <= shares[name] / labels <= FLOODED]
    if not lost:
        return None
    found = " and ".join(f"{name.removeprefix('foreground/')} {100 * shares[name]:.1f} %" for name in lost)
    return (
        f"the pseudo-labels have won over the labels: at the end network {found} of the unlabeled voxels are "
        f"foreground, of the labeled ones {100 * labels:.1f} %"
    )
