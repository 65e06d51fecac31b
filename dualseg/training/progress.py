"""How far a training is: a bar on a terminal, a line each tenth of the run where the output goes to a file."""

import sys
import time
from collections.abc import Mapping
from typing import Any, cast

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, TQDMProgressBar

from dualseg.machine import duration
from dualseg.methods import SegmentationMethod

LINES = 10  # of a run


def shows_bar(trainer: Mapping[str, Any]) -> bool:
    """`trainer.progress_bar`, on a terminal: what a bar overwrites again and again, a file would keep."""
    return bool(trainer["progress_bar"]) and sys.stdout.isatty()


class ProgressBar(TQDMProgressBar):
    """One bar that counts iterations, with the losses and Dice of `SegmentationMethod`."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=5, leave=True)

    def init_train_tqdm(self) -> Any:
        bar = super().init_train_tqdm()
        bar.set_description("Training")
        return bar

    def on_train_epoch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description("Training")

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class ProgressLines(Callback):
    """`Iteration 600 of 6,000, 0.12 s each, 11 min 03 s left: a_dice 0.412`, with what `ProgressBar` shows.

    A line comes at the first iteration after each tenth of the run whose values are logged: no other one waits for the
    device. The times are those since the first iteration of this launch, which compiles; validations are counted.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._first: int | None = None
        self._shown = self._tenth(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        step, every = trainer.global_step, cast(SegmentationMethod, pl_module).log_every
        if self._first is None:
            self._first, self._began = step, time.perf_counter()
            return
        if step % every or self._tenth(trainer) == self._shown or not trainer.is_global_zero:
            return
        self._shown = self._tenth(trainer)
        each = (time.perf_counter() - self._began) / (step - self._first)
        left = f", {duration(each * (trainer.max_steps - step))} left" if step < trainer.max_steps else ""
        values = ", ".join(f"{name} {value:.3g}" for name, value in trainer.progress_bar_metrics.items())
        print(f"Iteration {step:,} of {trainer.max_steps:,}, {each:.2g} s each{left}: {values}", flush=True)

    @staticmethod
    def _tenth(trainer: pl.Trainer) -> int:
        return trainer.global_step * LINES // trainer.max_steps
