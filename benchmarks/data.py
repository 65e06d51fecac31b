"""The share of the training loop's time in which it waits for batches, volumes being in memory."""

import statistics
import tempfile
from pathlib import Path
from typing import Any

from training import training

from dualseg.runs.curves import read_curves

SHARE_LIMIT = 0.02
POINT = 10  # iterations that one value of the curve stands for


def wait_share(iterations: int, overrides: list[str]) -> tuple[float, float]:
    """Mean share and seconds per iteration of a run, both as its own curves give them, after the first POINT."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"trainer.log_every={POINT}", "data.patch_size=[48,48,32]", "base_channels=8", *overrides]
        run, data, method, trainer = training(Path(folder), POINT + iterations, settings)
        trainer.fit(method, data)
        curves = [(name, value) for iteration, name, value in read_curves(run.curves_file) if iteration > POINT]
    share, seconds = (
        statistics.mean(value for name, value in curves if name == f"time/{curve}")
        for curve in ("data_wait_share", "seconds_per_iteration")
    )
    return share, seconds


def run(iterations: int = 40) -> dict[str, Any]:
    """Train with 0 and 2 workers, with the random crop alone and with flips and rotations of the whole volume."""
    facts, checks = {}, []
    for augmentation in (None, "flip_rotate"):
        for workers in (0, 2):
            chosen = [f"augmentation={augmentation}"] if augmentation else []
            share, seconds = wait_share(iterations, [f"data.num_workers={workers}", *chosen])
            what = f"{workers} workers, {augmentation or 'crop'}"
            facts[f"iteration, {what}"] = f"{seconds:.3f} s"
            checks.append((f"wait share, {what}", share, SHARE_LIMIT))
    return {
        "name": "data",
        "subject": (
            f"iterations {POINT + 1} to {POINT + iterations} of trainer.fit on phantoms in memory, "
            "objective=described, patch 48x48x32, batch 2+2, base_channels 8"
        ),
        "facts": facts,
        "checks": checks,
    }
