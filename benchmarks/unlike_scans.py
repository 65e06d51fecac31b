"""How many scans dualseg-check calls unlike among scans of one dataset, and how many of other datasets it tells.

    python benchmarks/unlike_scans.py LA_ROOT HIPPOCAMPUS_ROOT HEAD_NECK_ROOT

20 times for each number of labeled scans, so many are drawn at random and the others of the dataset are the pool, which
should be like them; then one scan of each other dataset is put into that pool. The thresholds of
`dualseg.data.checking.pool` were chosen on these very data.
"""

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from dualseg.data import Folder, LeftAtrium
from dualseg.data.checking.look import Look, look_at
from dualseg.data.checking.pool import PARTS, unlike_scans
from dualseg.data.volumes import VolumeSource

LABELED = (1, 2, 4, 8, 20)
DRAWS = 20


def looks_of(source: VolumeSource) -> dict[str, Look]:
    cases = (*source.train_cases, *source.unlabeled_cases)
    return {case: look_at(source.read_stored(case) or source.read_image(case)) for case in cases}


def measure(name: str, own: Mapping[str, Look], others: Mapping[str, Look]) -> Iterator[str]:
    """The results of a dataset as lines."""
    rng = np.random.default_rng(0)
    for count in LABELED:
        called, pooled, told, foreign = 0, 0, 0, 0
        parts = dict.fromkeys(PARTS, 0)
        content = 0
        for _ in range(DRAWS):
            order = rng.permutation([*own]).tolist()
            labeled, pool = order[:count], order[count:]
            unlike = [scan for scan in unlike_scans(own, labeled, pool) if scan.distance > 1]
            called, pooled = called + len(unlike), pooled + len(pool)
            for part in PARTS:
                parts[part] += sum(scan.parts[part] > 1 for scan in unlike)
            for stranger in rng.choice([*others], 4, replace=False).tolist():
                scans = unlike_scans({**own, stranger: others[stranger]}, labeled, [*pool, stranger])
                (scan,) = [scan for scan in scans if scan.case == stranger]
                foreign, told, content = foreign + 1, told + (scan.distance > 1), content + (scan.parts["content"] > 1)
        shares = ", ".join(f"{part} {100 * number / pooled:.1f}" for part, number in parts.items())
        yield (
            f"{name}, {count} labeled: {100 * called / pooled:.1f} % of the pool unlike ({shares}); "
            f"{told} of {foreign} scans of other datasets told, {content} by their content"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("la", "hippocampus", "head_neck"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args()
    looks = {"Left Atrium": looks_of(LeftAtrium(given.la))}
    with tempfile.TemporaryDirectory() as folder:  # the split is not to be left in the dataset's folder
        for name in ("hippocampus", "head_neck"):
            splits = Path(folder) / f"{name}.json"
            looks[name] = looks_of(Folder(getattr(given, name), splits=splits, spacing=None, intensity=None))
    for name, own in looks.items():
        others = {case: look for other, found in looks.items() if other != name for case, look in found.items()}
        print(*measure(name, own, others), sep="\n", flush=True)


if __name__ == "__main__":
    main()
