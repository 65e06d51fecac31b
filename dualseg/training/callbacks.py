"""What happens around the iterations of a run: checkpoints, signals, timing, the slices that the report shows."""

import signal
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from dualseg.errors import DualsegError, Interrupted
from dualseg.methods import SegmentationMethod
from dualseg.runs.folder import CHECKPOINT, iteration_of
from dualseg.runs.lock import check_in_place
from dualseg.runs.replaced import drop, place_of
from dualseg.signals import STOPS, Stop
from dualseg.training.checkpoints import not_finite

SIGNALS = (*STOPS, signal.SIGUSR2)


class Checkpoints(Callback):
    """Saves every `every` iterations and after the last, keeps the newest `keep`; Ctrl-C or SIGTERM saves and stops.

    Saving happens between iterations, after a validation that is due: then a resumed run neither repeats nor skips it.
    (Lightning's ModelCheckpoint saves before the validation, which a resumed run then leaves out, and not at the end of
    a run whose length is no multiple of the cadence.)

    Where there is a handler of SIGUSR2 that can requeue the run, as submitit's in a Slurm job, that signal saves after
    the running iteration and then calls the handler. SIGTERM saves as well then, and nothing else: Slurm sends it to a
    job whose place another one takes, requeues the job itself, and would not do so if it ended on its own.

    Of several processes that train together all answer what one of them has heard, after the same iteration.

    Args:
        folder: where iteration-NNNNNN.ckpt go.
        every: iterations between two.
        keep: how many of the newest stay.
        resume_command: shown after Ctrl-C or SIGTERM.
    """

    def __init__(self, folder: Path, every: int, keep: int, resume_command: str) -> None:
        self.folder, self.every, self.keep = folder, every, keep
        self.resume_command = resume_command
        self._saved_at: int | None = None
        self._heard: set[int] = set()
        self._stop = Stop()
        self._stops = {*STOPS}  # the signals that end the run
        self._previous_handlers: dict[int, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if threading.current_thread() is threading.main_thread():
            requeues = callable(signal.getsignal(signal.SIGUSR2))
            self._stops = {signal.SIGINT} if requeues else {*STOPS}
            for number in SIGNALS if requeues else STOPS:
                self._previous_handlers[number] = signal.signal(number, self._on_signal) or signal.SIG_DFL

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if checkpoint["global_step"] < trainer.max_steps:  # of a finished run that is trained on: the epoch is not over
            loop = checkpoint["loops"]["fit_loop"]
            loop["epoch_loop.batch_progress"]["is_last_batch"] = False
            for progress in loop["epoch_progress"].values():
                progress |= {"processed": 0, "completed": 0}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved_at = trainer.global_step  # a resumed run's checkpoint is there

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        asked, done = self._agree(trainer), trainer.global_step
        if asked or (done and done % self.every == 0):
            self._save(trainer)
        self._answer(trainer, asked)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save(trainer)
        self._answer(trainer, self._agree(trainer))

    def on_validation_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self._answer_between_cases(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self._answer_between_cases(trainer)

    def on_test_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self._answer_between_cases(trainer)

    def on_test_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self._answer_between_cases(trainer)

    def _answer_between_cases(self, trainer: pl.Trainer) -> None:
        if trainer.state.fn != "fit":  # along the run the next iteration stops, after the validation
            self._answer(trainer, self._heard.copy())

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        while self._previous_handlers:
            signal.signal(*self._previous_handlers.popitem())

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")  # which Lightning leaves out then

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number in self._stops and self._stop.note(number):
            if len(self._stop.signals) > 1:
                raise Interrupted(number, f"stopped at once. To go on: {self.resume_command}")
            name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
            told = "finishing this iteration or case, then stopping (again: stop at once) ..."
            with suppress(RuntimeError, OSError):  # amid another line, or the terminal is gone
                print(f"\n{name}: {told}", flush=True)
        self._heard.add(number)

    def _agree(self, trainer: pl.Trainer) -> set[int]:
        """The signals that any process has heard: all answer after the same iteration, for saving takes all of them."""
        heard = self._heard.copy()
        reduce = partial(trainer.strategy.reduce_boolean_decision, all=False)
        return {number for number in SIGNALS if reduce(number in heard)} if reduce(bool(heard)) else set()

    def _answer(self, trainer: pl.Trainer, asked: set[int]) -> None:
        if stops := asked & self._stops:
            done = trainer.global_step
            what = f"after iteration {done}; a checkpoint is written" if done else "before the first iteration"
            raise Interrupted(min(stops), f"stopped {what}. To go on: {self.resume_command}")
        self._heard -= asked
        if signal.SIGUSR2 in asked:
            self._previous_handlers[signal.SIGUSR2](signal.SIGUSR2, None)  # submitit's ends the first process, no other

    def _save(self, trainer: pl.Trainer) -> None:
        if trainer.global_step in (0, self._saved_at):  # of no iterations there is nothing to go on from
            return
        check_in_place()
        method = cast(SegmentationMethod, trainer.lightning_module)
        method.check_finite()
        # a step can overflow on a loss that is finite; saved, such weights would push out the last good checkpoint
        broken = not_finite(method.state_dict(), {name for name, _ in method.named_parameters()})
        if broken is not None:
            raise DualsegError(
                f"weights not finite after iteration {trainer.global_step}: {broken}. The last good checkpoint is "
                "kept. Lower optimizer.lr or use trainer.precision=bf16-mixed or 32-true."
            )
        trainer.save_checkpoint(self.folder / f"iteration-{trainer.global_step:06d}.ckpt")
        self._saved_at = trainer.global_step
        if trainer.is_global_zero:
            saved = sorted((p for p in self.folder.iterdir() if CHECKPOINT.fullmatch(p.name)), key=iteration_of)
            for old in saved[: -self.keep]:
                old.unlink()


class FormerRun(Callback):
    """Removes the run that an overwriting one has set aside, once that has a checkpoint: to stand after `Checkpoints`.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._is_there = True

    def _drop(self, trainer: pl.Trainer) -> None:
        if trainer.is_global_zero and self._is_there:
            drop(self.folder)
            self._is_there = place_of(self.folder).exists()

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self._drop(trainer)

    def on_train_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self._drop(trainer)


class RunTime(Callback):
    """Seconds of training and evaluation over all launches of a run.

    They travel in the checkpoints: a launch that was stopped or killed counts up to the checkpoint from which the next
    one goes on. Starting Python and reading the volumes are not counted.
    """

    def __init__(self) -> None:
        self._before, self._began = 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Until now."""
        return self._before + time.perf_counter() - self._began

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = state_dict["seconds"]


class Throughput(Callback):
    """Curves `time/seconds_per_iteration`, `time/data_wait_share` and, on a GPU, `memory/gpu_gib` (peak).

    The share is of the time between one iteration's end and the next one's start in which batches are waited for. There
    is none where patches are cut on the GPU: the host is ahead then, and where it waits, it waits for the GPU.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._iterations, self._waited, self._ended = 0, 0.0, time.perf_counter()
        self._began = self._ended

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._waited += time.perf_counter() - self._ended

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, SegmentationMethod)
        self._iterations += 1
        self._ended = time.perf_counter()
        if trainer.global_step % pl_module.log_every == 0:
            seconds = self._ended - self._began
            values = {"time/seconds_per_iteration": seconds / self._iterations}
            if not pl_module.offered("cuts_on_gpu"):
                values["time/data_wait_share"] = self._waited / seconds
            if pl_module.device.type == "cuda":
                values["memory/gpu_gib"] = torch.cuda.max_memory_allocated(pl_module.device) / 2**30
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.global_step)
            self._reset()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._reset()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._reset()
