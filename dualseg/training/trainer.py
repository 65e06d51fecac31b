"""The trainer of a run: loggers, callbacks, devices, precision, checkpoints."""

import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import pytorch_lightning as pl
from hydra.utils import get_object, instantiate
from lightning_fabric.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment
from pytorch_lightning.callbacks import Callback, Checkpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler

from dualseg.errors import DualsegError
from dualseg.processes import is_slurm_task
from dualseg.runs.cases import Record
from dualseg.runs.folder import RunFolder
from dualseg.training.callbacks import Checkpoints, FormerRun, RunTime, Throughput
from dualseg.training.case_callbacks import ComponentWriter, SliceWriter
from dualseg.training.checkpoints import AtomicCheckpointIO
from dualseg.training.curves import CurveLogger
from dualseg.training.instantiating import naming_keys_of
from dualseg.training.progress import ProgressBar, ProgressLines, shows_bar

Config = Mapping[str, Any]
PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


def build_trainer(
    config: Config, folder: RunFolder, resumed_at: int, resume_command: str, trained_on: Sequence[Record] = ()
) -> pl.Trainer:
    """`trainer` and `logger`, writing into the run folder; its checkpoints say what they were `trained_on`."""
    settings = config["trainer"]
    iterations, validate_every = settings["max_iterations"], settings["validate_every"]
    loggers: list[Logger] = [CurveLogger(folder.curves_file, resumed_at)]
    if config["logger"]:
        loggers.append(build_logger(config["logger"], folder, resumed_at))
    callbacks: list[Callback] = [
        RunTime(),
        Throughput(),  # before the checkpoints, whose writing is no waiting for data
        Checkpoints(folder.checkpoints, settings["checkpoint_every"], settings["checkpoints_kept"], resume_command),
        FormerRun(folder.path),
        SliceWriter(folder.slices),
    ]
    if config.get("data", {}).get("fold") is not None:
        callbacks.append(ComponentWriter(folder.components))
    if settings["progress_bar"]:
        callbacks.append(ProgressBar() if shows_bar(settings) else ProgressLines())
    callbacks += build_callbacks(config.get("callbacks") or {})
    environment = _cluster_environment()
    trainer = pl.Trainer(
        max_steps=iterations,
        max_epochs=1,  # the sample stream of a run is one epoch: iterations are the unit
        val_check_interval=min(validate_every or iterations, iterations),
        limit_val_batches=1.0 if validate_every else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=min(settings["log_every"], iterations),
        accelerator=settings["accelerator"],
        devices=settings["devices"],
        num_nodes=settings["num_nodes"],
        strategy=settings["strategy"],
        sync_batchnorm=settings["sync_batchnorm"],
        precision=settings["precision"],
        deterministic=settings["deterministic"],
        benchmark=not settings["deterministic"],  # patches have one size: let cuDNN choose by trying
        profiler=PROFILERS[settings["profiler"]](folder.path / "logs", "profile") if settings["profiler"] else None,
        use_distributed_sampler=False,
        logger=loggers,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO(trained_on), environment],
        enable_checkpointing=False,
        enable_progress_bar=shows_bar(settings),
        enable_model_summary=False,
        default_root_dir=str(folder.path),
    )
    # Lightning's handler of SIGTERM waits for the other processes amid whatever they are doing, which never ends where
    # they are not told, and lets a run end with exit code 0 and without a checkpoint; `Checkpoints` answers
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    check_precision(trainer, settings["precision"])
    if settings["sync_batchnorm"] and trainer.world_size > 1 and trainer.strategy.root_device.type == "cpu":
        raise DualsegError("trainer.sync_batchnorm=true: torch has it for GPUs only; leave it at false on a CPU.")
    try:
        environment.validate_settings(num_devices=trainer.num_devices, num_nodes=trainer.num_nodes)
    except ValueError as error:
        raise DualsegError(f"trainer.devices, trainer.num_nodes: not what Slurm started ({error})") from error
    return trainer


def build_logger(settings: Mapping[str, Any], folder: RunFolder, resumed_at: int) -> Logger:
    """`logger`, dualseg's, Lightning's or another: of what a run knows of itself it gets what it takes.

    Raises:
        DualsegError: no class is named, or it does not take a setting.
    """
    known = {"folder": folder, "resumed_at": resumed_at, "save_dir": str(folder.path / "logs")}
    _check_class("logger", settings)
    with naming_keys_of("logger", settings):
        parameters: Mapping[str, Any] = {}
        with suppress(ImportError):  # of which `instantiate` gives the reason
            parameters = inspect.signature(get_object(settings["_target_"])).parameters
        return instantiate(settings, **{k: v for k, v in known.items() if k in parameters and k not in settings})


def build_callbacks(settings: Any) -> list[Callback]:
    """`callbacks`: the user's own, and Lightning's.

    Raises:
        DualsegError: one that is no callback, writes checkpoints beside dualseg's own, or takes no such setting.
    """
    if not isinstance(settings, Mapping):
        raise DualsegError(f"callbacks={settings}: give each a name and a class, callbacks.NAME._target_=module.Class.")
    callbacks = []
    for name, own in settings.items():
        key = f"callbacks.{name}"
        _check_class(key, own)
        with naming_keys_of(key, own):
            callback = instantiate(own)
        if isinstance(callback, Checkpoint):
            keys = "trainer.checkpoint_every and trainer.checkpoints_kept"
            raise DualsegError(f"{key}: dualseg writes the checkpoints itself, see {keys}; leave it out.")
        if not isinstance(callback, Callback):
            raise DualsegError(f"{key}: {own['_target_']} is no pytorch_lightning.Callback; choose one that is.")
        callbacks.append(callback)
    return callbacks


def _check_class(key: str, settings: Any) -> None:
    """Raises: DualsegError where what is to be built names no class."""
    if not isinstance(settings, Mapping) or "_target_" not in settings:
        raise DualsegError(f"{key}={settings}: names no class; give {key}._target_=module.Class.")


def _cluster_environment() -> ClusterEnvironment:
    """Who started this process: said rather than guessed by Lightning, which takes any Slurm job for one of `srun`."""
    if not is_slurm_task():
        return LightningEnvironment()
    try:
        return SLURMEnvironment(auto_requeue=False)  # submitit requeues
    except RuntimeError as error:
        raise DualsegError(f"Slurm: {error}") from error


def check_precision(trainer: pl.Trainer, precision: str) -> None:
    """Raises: DualsegError for training in mixed precision on a CPU.

    The gradients of bfloat16 convolutions are noise on some processors (seen with torch 2.13.0 on an EPYC with
    avx512_bf16, Conv3d 3x3x3 on 2x2x2 voxels).
    """
    if trainer.strategy.root_device.type == "cpu" and precision != "32-true":
        raise DualsegError(
            f"trainer.precision={precision}: mixed precision trains on a GPU only, since gradients can be wrong on a "
            "CPU; leave it at 32-true."
        )
