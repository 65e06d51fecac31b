"""dualseg-plan on a folder of CT scans that are all labeled: seconds and peak memory of the whole command.

    python benchmarks/plan.py                 200 scans of 256x256x40, then 50 of them, a minute or two
    python benchmarks/plan.py --scans 400

The scans are noise with a ball as the organ, one in three with thicker slices.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (256, 256, 40)


def write_dataset(folder: Path, scans: int) -> None:
    """In nnU-Net's raw layout."""
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    (folder / "dataset.json").write_text(json.dumps({**content, "numTraining": scans}))
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    ball = (np.square(grid).sum(axis=0) < 0.1).astype(np.uint8)
    for number in range(scans):
        affine = np.diag([0.8, 0.8, 2.5 if number % 3 else 5.0, 1])
        ct = (rng.normal(0, 30, SHAPE) + 60 * ball).astype(np.int16)
        nib.save(nib.Nifti1Image(ct, affine), folder / "imagesTr" / f"ct_{number:03d}_0000.nii.gz")
        nib.save(nib.Nifti1Image(ball, affine), folder / "labelsTr" / f"ct_{number:03d}.nii.gz")


def plan(folder: Path) -> tuple[float, float]:
    """Seconds and MiB of the command in a process of its own."""
    command = [sys.executable, "-m", "dualseg.plan", "data=folder", f"data.root={folder}"]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        sys.exit(os.waitstatus_to_exitcode(status))
    return seconds, usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=200, help="the larger of two folders (default: 200)")
    given = parser.parse_args()
    for scans in (given.scans, given.scans // 4):
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:  # /tmp may be a RAM disk
            folder = Path(name) / "scans"
            write_dataset(folder, scans)
            seconds, peak = plan(folder)
        print(f"{scans} scans of {'x'.join(map(str, SHAPE))}: {seconds:.1f} s, peak {peak:.0f} MiB")


if __name__ == "__main__":
    main()
