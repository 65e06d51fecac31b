"""A 512x512x300 CT through dualseg-predict with the CPU-sized networks: seconds and peak memory. Then its display copy.

    python benchmarks/predict.py                                  as experiment=pancreas_cpu, minutes on one core
    python benchmarks/predict.py --downsample 1 --memory 2GiB     the networks on all of 1 mm, their output on disk

The networks have random weights and the CT is made by arithmetic: neither changes the time.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import yaml
from hydra import compose, initialize_config_dir

from dualseg import __version__
from dualseg.configuration import conf_dir
from dualseg.data import PancreasCT
from dualseg.data.nifti import read_nifti
from dualseg.data.volumes import Image
from dualseg.files import write_json
from dualseg.methods.base import CHECKPOINT_FORMAT
from dualseg.prediction.viewer.display import display_copy
from dualseg.prediction.viewer.review_page import SCAN_BYTES
from dualseg.training import assembly
from dualseg.training.settings import resolve

SHAPE, SPACING = (512, 512, 300), (0.8, 0.8, 1.0)  # voxels; mm


def write_ct(path: Path) -> None:
    """A body of soft tissue with noise, in air; int16 HU."""
    across, along, axial = (np.linspace(-1, 1, n, dtype=np.float32) for n in SHAPE)
    body = (across[:, None] / 0.85) ** 2 + (along[None] / 0.6) ** 2 < 1
    noise = np.random.default_rng(0).normal(0, 20, SHAPE[:2]).astype(np.float32)
    ct = np.empty(SHAPE, np.int16)
    for index, height in enumerate(axial):
        ct[:, :, index] = np.where(body, 40 + 30 * np.cos(4 * across[:, None] + 3 * height), -1000) + noise
    nib.save(nib.Nifti1Image(ct, np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1])), path)


def write_run(folder: Path, downsample: float) -> None:
    """What training with experiment=pancreas_cpu leaves, before its first iteration."""
    words = ["experiment=pancreas_cpu", "data.root=/nowhere", f"data.downsample={downsample}"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = resolve(compose("train", overrides=words))
    source = PancreasCT.for_scans({})
    networks = assembly.build_networks(config, source)
    state = {f"networks.{name}.{key}": v for name, net in networks.items() for key, v in net.state_dict().items()}
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    write_json(folder / "preprocessing.json", source.scan_record())
    made_by = {"format": CHECKPOINT_FORMAT, "version": __version__}
    torch.save({"state_dict": state, "dualseg": made_by}, folder / "checkpoints" / "iteration-000000.ckpt")


def time_display_copy(folder: Path) -> str:
    """What report=true adds, but for writing it."""
    image = Image(*read_nifti(folder / "ct.nii.gz"))
    label, entropy = (
        np.asarray(nib.load(folder / "out" / kind / "ct.nii.gz").dataobj) for kind in ("labels", "entropy")
    )
    began, began_cpu = time.perf_counter(), time.process_time()
    copy = display_copy(image, label, entropy, SCAN_BYTES)
    seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    voxels = "x".join(map(str, copy.shape))
    return f"display copy of {voxels}, {copy.size / 1e6:.1f} MB, in {seconds:.1f} s ({cpu:.1f} s of CPU)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--downsample", type=float, default=3, help="of the run (default: 3, as pancreas_cpu)")
    parser.add_argument("--memory", default="8GiB", help="budget (default: 8GiB)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:  # /tmp may be a RAM disk
        folder = Path(name)
        write_ct(folder / "ct.nii.gz")
        write_run(folder / "run", given.downsample)
        words = [f"run={folder / 'run'}", f"input={folder / 'ct.nii.gz'}", f"output={folder / 'out'}"]
        command = [sys.executable, "-m", "dualseg.predict", *words, f"memory={given.memory}", "uncertainty=true"]
        began = time.perf_counter()
        process = subprocess.Popen(command)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        if status:
            sys.exit(os.waitstatus_to_exitcode(status))
        copied = time_display_copy(folder)
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30
    size = "x".join(map(str, SHAPE))
    cpu = usage.ru_utime + usage.ru_stime
    print(
        f"{size}, downsample {given.downsample:g}, memory={given.memory}: "
        f"{seconds:.0f} s ({cpu:.0f} s of CPU), peak {peak:.2f} GiB; {copied}"
    )


if __name__ == "__main__":
    main()
