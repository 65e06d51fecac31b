"""How surely dualseg-check finds a label that was mirrored while its affine stayed, on Left Atrium, along every axis.

    python benchmarks/mirrored_labels.py LA_ROOT

One label at a time is mirrored, the others are as they are, and the voxels alone decide (`mirrored_cases`).
"""

import argparse
import time
from pathlib import Path

import numpy as np

from dualseg.data import LeftAtrium
from dualseg.data.checking.content import mirror_ratios, mirrored_cases


def run(root: Path) -> str:
    """Measure, and give the result as a line."""
    start = time.perf_counter()
    source = LeftAtrium(root)
    upright: dict[str, np.ndarray] = {}
    mirrored: dict[tuple[str, int], np.ndarray] = {}
    for case in source.train_cases:
        image, label = source.read_image(case).array, source.read_label(case)
        upright[case] = mirror_ratios(image, label)
        for axis in range(3):
            mirrored[case, axis] = mirror_ratios(image, np.flip(label, axis))
    false_alarms = len(mirrored_cases(upright))
    told = {key: mirrored_cases({**upright, key[0]: own}).get(key[0]) for key, own in mirrored.items()}
    found = sum(finding is not None for finding in told.values())
    right = sum(finding is not None and finding[0] == axis for (_, axis), finding in told.items())
    seconds = time.perf_counter() - start
    return (
        f"{found} of {len(mirrored)} mirrored labels found, {right} along the right axis; "
        f"{false_alarms} false alarms in {len(upright)} labels as they are; {seconds:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of CASE/mri_norm2.h5")
    print(run(parser.parse_args().root))


if __name__ == "__main__":
    main()
