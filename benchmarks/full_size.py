"""The paper's Left Atrium setting on a CPU: seconds per iteration, seconds for one held-out volume, peak memory.

    python benchmarks/full_size.py --la-root DIR        3 iterations of each objective, many minutes on 2 cores

Patch 112x112x80, batch 2+2, both networks at full width; the volume is segmented with stride 18,18,4.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from dualseg.files import read_json
from dualseg.runs.folder import RunFolder
from dualseg.training.curves import read_curves

ITERATIONS = 3


def run(la_root: Path, output: Path, objective: str) -> str:
    """Train `ITERATIONS` with `objective` and evaluate the last training case, held out; one line of measurements."""
    words = [
        f"data.root={la_root}",
        "data.held_out_test=1",
        f"trainer.max_iterations={ITERATIONS}",
        "trainer.log_every=1",
    ]
    words += ["experiment=la_paper", f"objective={objective}", f"output={output}", f"name={objective}"]
    process = subprocess.Popen([sys.executable, "-m", "dualseg.train", *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(os.waitstatus_to_exitcode(status))
    folder = RunFolder(output / objective)
    curves = read_curves(folder.curves_file)
    iterations = [value for _, name, value in curves if name == "time/seconds_per_iteration"]
    volume = read_json(folder.manifest_file)["seconds"] - sum(iterations)
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30
    seconds = ", ".join(f"{s:.1f}" for s in iterations)
    return f"{objective}: iterations {seconds} s; volume and checkpoint {volume:.0f} s; peak memory {peak:.2f} GiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--la-root", type=Path, required=True, help="folder of <case>/mri_norm2.h5")
    la_root = parser.parse_args().la_root.resolve()
    with tempfile.TemporaryDirectory() as output:
        for objective in ("described", "released"):
            print(run(la_root, Path(output), objective), flush=True)


if __name__ == "__main__":
    main()
