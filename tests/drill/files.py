"""Damaged files, many of each kind: none is read as something else without a word.

python tests/drill/files.py [NIFTI] [DICOM] [HDF5]      600, 150 and 300
"""

import sys
import tempfile
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / part) for part in ("data", "prediction", "drill")]

import nibabel as nib  # noqa: E402
import numpy as np  # noqa: E402
from dicom_mutants import judge, mutant  # noqa: E402
from mutants import mutants, verdict  # noqa: E402
from test_h5 import drill as damaged_h5  # noqa: E402

from dualseg.data.formats import read_volume  # noqa: E402

SHAPE = (16, 14, 12)


def damaged_nifti(count: int) -> Counter[str]:
    """Images and labels in turn, compressed: a bit, a sector, the end, ... of each."""
    found: Counter[str] = Counter()
    rng = np.random.default_rng(0)
    image = rng.normal(100, 30, SHAPE).astype(np.int16)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.nii.gz")
        for array in (image, (image > 120).astype(np.uint8)):
            nib.save(nib.Nifti1Image(array, np.diag([-1.5, 1.5, 2, 1])), path)
            content, expected = path.read_bytes(), read_volume(path)
            for _, damaged in mutants(content, count // 2, seed=array.itemsize):
                path.write_bytes(damaged)
                found[verdict(path, expected)] += 1
    return found


def damaged_dicom(count: int) -> Counter[str]:
    """Folders of two series, of which one is changed."""
    found: Counter[str] = Counter()
    for seed in range(count):
        with tempfile.TemporaryDirectory() as folder:
            found[judge(Path(folder), mutant(Path(folder), seed)) or "right"] += 1
    return found


def main() -> int:
    """Print a line for each kind; 1 if anything was wrong."""
    counts = [int(word) for word in sys.argv[1:]] + [600, 150, 300][len(sys.argv) - 1 :]
    kinds = (
        ("NIfTI files", damaged_nifti, {"refused", "same"}),
        ("DICOM folders", damaged_dicom, {"right"}),
        ("HDF5 files", damaged_h5, {"refused", "as written"}),
    )
    wrong = 0
    for (what, drill, good), count in zip(kinds, counts, strict=True):
        found = drill(count)
        wrong += sum(number for outcome, number in found.items() if outcome not in good)
        print(
            f"{found.total()} damaged {what}: {', '.join(f'{n} {outcome}' for outcome, n in found.items())}", flush=True
        )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
