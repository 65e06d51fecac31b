"""Our four metrics against MedPy's four, on one pair of volumes of real size.

The reference is the label of the first Left Atrium case, the prediction that label eroded once and shifted by
(3, -2, 1) voxels; without a case, an atrium-like blob takes the label's place.
"""

import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dualseg.metrics.functional import scores

RATIO_LIMIT = 0.5
DIFFERENCE_LIMIT = 1e-6


def blob(shape: tuple[int, int, int] = (180, 138, 88), seed: int = 0) -> NDArray[np.bool_]:
    """A chamber of uneven wall with two veins, of the size that a left atrium has in its volume."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    bumps = ndimage.gaussian_filter(rng.standard_normal(shape), 6)
    chamber = (x / 0.4) ** 2 + (y / 0.5) ** 2 + (z / 0.5) ** 2 + 0.2 * bumps / bumps.std() < 1
    veins = [(y - side * 0.2) ** 2 + (z - 0.1) ** 2 < 0.09**2 for side in (-1, 1)]
    return chamber | ((abs(x) < 0.6) & (veins[0] | veins[1]))


def pair(la_root: Path | None) -> tuple[str, NDArray[np.bool_], NDArray[np.bool_]]:
    """Source, prediction and reference."""
    case = next(iter(sorted(la_root.glob("*/mri_norm2.h5"))), None) if la_root else None
    if case is None:
        source, reference = "synthetic blob", blob()
    else:
        import h5py

        with h5py.File(case) as file:
            source, reference = f"Left Atrium case {case.parent.name}", file["label"][:] > 0
    # The shift is cyclic: a label that touches the volume's edge would only make the pair a harder one.
    return source, np.roll(ndimage.binary_erosion(reference), (3, -2, 1), axis=(0, 1, 2)), reference


def run(la_root: Path | None = None, repeats: int = 5) -> dict[str, Any]:
    """Time both, in turn, `repeats` times; seconds are medians, the ratio that of the pairs.

    `la_root`: folder of `<case>/mri_norm2.h5`, None for the environment's DUALSEG_LA_ROOT.
    """
    from medpy.metric import binary

    if la_root is None and (environment := os.environ.get("DUALSEG_LA_ROOT")):
        la_root = Path(environment)
    source, prediction, reference = pair(la_root)
    medpy_metrics = (binary.dc, binary.jc, binary.hd95, binary.asd)
    ours, theirs = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        result = scores(prediction, reference)
        middle = time.perf_counter()
        expected = [metric(prediction, reference) for metric in medpy_metrics]
        ours.append(middle - start)
        theirs.append(time.perf_counter() - middle)
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    difference = max(abs(a - float(b)) for a, b in zip(result[:4], expected, strict=True))
    return {
        "name": "metrics",
        "subject": (
            f"Dice, Jaccard, 95HD and ASD of one pair of masks, {source}, "
            f"{'x'.join(map(str, reference.shape))} voxels; each side {repeats} x"
        ),
        "facts": {"ours": f"{statistics.median(ours):.3f} s", "MedPy": f"{statistics.median(theirs):.3f} s"},
        "checks": [("time / MedPy's", ratio, RATIO_LIMIT), ("largest difference", difference, DIFFERENCE_LIMIT)],
    }
