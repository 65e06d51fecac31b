"""What logging, CSV and W&B offline, takes of a training iteration of Left Atrium at CPU scale."""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from training import training

from dualseg.training.wandb_logger import WandbLogger

SHARE_LIMIT = 0.01
POINT = 10  # iterations between two points of the curves, as is the default


class Timed(pl.Callback):
    """Seconds of the loop after the first point, those inside the loggers, and the processor's in W&B's processes."""

    def __init__(self) -> None:
        self.loggers_s = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for logger in trainer.loggers:
            logger.log_metrics = self.timed(logger.log_metrics)  # type: ignore[method-assign]

    def timed(self, function: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any, **named: Any) -> None:
            began = time.perf_counter()
            function(*arguments, **named)
            self.loggers_s += time.perf_counter() - began

        return call

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == POINT:  # W&B's processes have started
            self.loggers_s, self.began, self.service_before = 0.0, time.perf_counter(), descendants_s()
        if trainer.global_step == trainer.max_steps:
            self.loop_s = time.perf_counter() - self.began
            self.service_s = descendants_s() - self.service_before


def descendants_s() -> float:
    """Processor seconds of all processes below this one: W&B's, as there are no others (Linux; elsewhere 0)."""
    parents, seconds = {}, {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(")")[2].split()  # from the third on
        except OSError:  # it has ended
            continue
        pid = int(file.parent.name)
        parents[pid], seconds[pid] = int(fields[1]), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    below = {os.getpid()}
    while grown := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= grown
    return sum(seconds[pid] for pid in below - {os.getpid()} if pid in seconds)


def run(iterations: int = 60) -> dict[str, Any]:
    """Train `iterations` after the first point of the curves, and give the share of their time that logging takes."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"trainer.log_every={POINT}", "logger=wandb", "data.patch_size=[32,32,16]", "data.stride=[8,8,4]"]
        settings += ["base_channels=8", "trainer.threads=1"]
        _, data, method, trainer = training(Path(folder), POINT + iterations, settings)
        timed = Timed()
        trainer.callbacks.append(timed)  # type: ignore[attr-defined]
        trainer.fit(method, data)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.close(failed=False)
    share = (timed.loggers_s + timed.service_s) / timed.loop_s
    return {
        "name": "curves",
        "subject": (
            f"{iterations} iterations of trainer.fit, objective=described, patch 32x32x16, batch 2+2, base_channels 8, "
            f"a point of every curve each {POINT}, to CSV and W&B offline"
        ),
        "facts": {
            "iteration": f"{timed.loop_s / iterations:.4f} s",
            "in the loggers, an iteration": f"{1000 * timed.loggers_s / iterations:.3f} ms",
            "processor, W&B's own processes, an iteration": f"{1000 * timed.service_s / iterations:.3f} ms",
        },
        "checks": [("logging / iteration", share, SHARE_LIMIT)],
    }
