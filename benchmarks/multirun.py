"""Seconds that a run of a sweep starts later than the same run given alone.

A run of one iteration is nearly all start: a sweep of them, less as many single runs, is what a sweep adds to each.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SECONDS_LIMIT = 1
TOY = (
    "data.patch_size=[16,16,16]", "base_channels=2", "trainer.max_iterations=1", "trainer.progress_bar=false",
    "trainer.accelerator=cpu", "trainer.threads=1", "evaluate_on=[]",
)  # fmt: skip


def train(folder: Path, *words: str) -> float:
    """Seconds of `dualseg-train` with `words`, run folders in `folder`."""
    command = [sys.executable, "-m", "dualseg.train", *words, *TOY, f"data.root={folder / 'phantom'}"]
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def run(runs: int = 4, rounds: int = 2) -> dict[str, Any]:
    """A sweep of `runs` seeds and the same seeds one by one, in turn, `rounds` times; the least of each counts."""
    seeds = [f"seed={seed}" for seed in range(runs)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train(folder, f"output={folder / 'first'}")  # writes the volumes
        sweeps, singles = [], []
        for count in range(rounds):
            many = f"seed={','.join(map(str, range(runs)))}"
            sweeps.append(train(folder, "-m", f"output={folder / f'many{count}'}", many))
            singles.append(sum(train(folder, f"output={folder / f'one{count}'}", seed) for seed in seeds))
    sweep, single = min(sweeps) / runs, min(singles) / runs
    return {
        "subject": f"{runs} runs of one iteration, as a sweep and one by one, {rounds} times",
        "facts": {"a run of the sweep": f"{sweep:.2f} s", "a single run": f"{single:.2f} s"},
        "checks": [("seconds a run starts later in a sweep", sweep - single, SECONDS_LIMIT)],
    }
