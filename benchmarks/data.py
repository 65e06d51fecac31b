"""What batches cost, volumes being in memory: how long training waits for them, how many patches there are a second."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from training import training

from dualseg.training.curves import read_curves

SHARE_LIMIT = 0.02
PATCHES_A_SECOND = 40  # strongly augmented, of 32x48x32, from 2 workers, at least
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


def patches_a_second(workers: int, batches: int = 100) -> float:
    """How many strongly augmented patches, a third of the labeled ones around the foreground, the loader gives."""
    with tempfile.TemporaryDirectory() as folder:
        settings = ["augmentation=strong", "data.foreground=0.33", "data.patch_size=[32,48,32]", "base_channels=4"]
        settings += ["data.stride=[16,16,16]", f"data.num_workers={workers}", "trainer.threads=1"]
        _, data, _, trainer = training(Path(folder), POINT + batches, settings)
        data.trainer = trainer
        torch.set_num_threads(1)
        patches, begun = 0, 0.0
        for number, batch in enumerate(data.train_dataloader()):
            if number == POINT:
                patches, begun = 0, time.perf_counter()
            patches += len(batch.image)
        return (patches - len(batch.image)) / (time.perf_counter() - begun)


def run(iterations: int = 40) -> dict[str, Any]:
    """Train with 0 and 2 workers, with the random crop alone, with whole volumes flipped, with patches rotated."""
    facts, checks = {}, []
    for workers in (0, 2):
        rate = patches_a_second(workers)
        facts[f"strong patches of 32x48x32, {workers} workers"] = f"{rate:.0f} a second"
    checks.append(("seconds a strong patch, 2 workers", 1 / rate, 1 / PATCHES_A_SECOND))
    for augmentation in (None, "flip_rotate", "strong"):
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
