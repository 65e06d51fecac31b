"""From a resolved configuration to objects: the one place that knows both."""

import inspect
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from lightning_fabric.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment
from monai.transforms import MapTransform
from pytorch_lightning.callbacks import Callback, Checkpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler
from torch import nn

from dualseg.data import SemiSupervisedDataModule, SpatialAugmentation
from dualseg.data.checking.doubts import scan_doubts
from dualseg.data.reading import VolumeReader
from dualseg.data.volumes import VolumeSource
from dualseg.errors import DualsegError, missing_package
from dualseg.inference import SlidingWindow
from dualseg.inference.predictor import Member, Predictor
from dualseg.methods import NetworkEvaluation, SegmentationMethod
from dualseg.processes import is_slurm_task
from dualseg.record import ENSEMBLE, Roles, roles_of
from dualseg.runs.cases import Record
from dualseg.runs.folder import RunFolder
from dualseg.runs.trusted import Trust
from dualseg.training.callbacks import (
    Checkpoints,
    ComponentWriter,
    FormerRun,
    ProgressBar,
    RunTime,
    ScoredVolumes,
    SliceWriter,
    Throughput,
)
from dualseg.training.checkpoints import AtomicCheckpointIO, load_networks, read_checkpoint
from dualseg.training.curves import CurveLogger
from dualseg.training.settings import naming_keys_of
from dualseg.views import Augmentation

Config = Mapping[str, Any]
PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


def use_threads(config: Config) -> None:
    """`trainer.threads`: before anything is computed."""
    threads = config["trainer"]["threads"]
    if threads:
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # else Lightning sets its own number in each of several processes


def build_source(config: Config) -> VolumeSource:
    """`data.source`."""
    source = config["data"]["source"]
    with naming_keys_of("data.source", source):
        return instantiate(source)


def build_data(config: Config) -> SemiSupervisedDataModule:
    """`data` and `batch`."""
    augmentation = config["data"]["augmentation"] or {}
    with naming_keys_of("data.augmentation", augmentation):
        transforms = instantiate(augmentation) if augmentation else ()
    return build_evaluation_data(config, build_source(config), transforms)


def build_evaluation_data(
    config: Config, source: VolumeSource, augmentation: SpatialAugmentation | Sequence[MapTransform] = ()
) -> SemiSupervisedDataModule:
    """`data` and `batch` around a source that is there already; without augmentation, which an evaluation needs not."""
    others = ("name", "root", "source", "stride", "augmentation", "memory")
    settings = {k: v for k, v in config["data"].items() if k not in others}
    with naming_keys_of("data", config["data"]):
        return SemiSupervisedDataModule(
            source,
            augmentation=augmentation,
            labeled_per_batch=config["batch"]["labeled"],
            unlabeled_per_batch=config["batch"]["unlabeled"],
            seed=config["seed"],
            **settings,
        )


def on_cpu(config: Config) -> bool:
    """`trainer.accelerator` means the CPU on this machine."""
    accelerator = config["trainer"]["accelerator"]
    return accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())


def build_networks(config: Config, source: VolumeSource) -> dict[str, nn.Module]:
    """`networks`: the initial weights are a function of the seed alone.

    Raises:
        DualsegError: a setting of a network that cannot be, or that it does not take.
    """
    pl.seed_everything(config["seed"], verbose=False)
    networks = {}
    for name, network in config["networks"].items():
        with naming_keys_of(f"networks.{name}", network):
            settings = {key: value for key, value in network.items() if key != "architecture"}
            try:
                networks[name] = instantiate(settings, **_shape(source))
            except InstantiationException as error:
                cause = error.__cause__
                if isinstance(cause, DualsegError):  # of its constructor, which knows no network's name
                    raise DualsegError(f"networks.{name}.{cause}") from error
                if isinstance(cause, ImportError):
                    kind = network.get("network", network["_target_"])
                    raise DualsegError(f"networks.{name}: {kind} {missing_package(cause)}") from error
                raise
    return networks


def _shape(source: VolumeSource) -> dict[str, int]:
    """What a network is built for, beside its own settings."""
    return {"in_channels": source.channels, "num_classes": len(source.class_names)}


def build_sliding_window(config: Config, mirror: bool = False) -> SlidingWindow:
    """`inference`, with the patch and stride of `data`."""
    return SlidingWindow(
        config["data"]["patch_size"],
        config["data"]["stride"],
        config["inference"]["batch_size"],
        torch.channels_last_3d if config["trainer"]["channels_last"] else torch.contiguous_format,
        mirror,
    )


def build_method(config: Config, source: VolumeSource) -> SegmentationMethod:
    """`method` with its `networks`, `optimizer` and `lr_schedule`."""
    settings = {k: v for k, v in config["method"].items() if k != "name"}
    if isinstance(settings.get("terms"), Mapping):
        settings["terms"] = {name: _term(name, term) for name, term in settings["terms"].items()}
    with naming_keys_of("optimizer", config["optimizer"]):
        optimizer = instantiate(config["optimizer"])
        if isinstance(optimizer, partial):  # called in the fit, when it is too late for an answer
            inspect.signature(optimizer.func).bind_partial(**optimizer.keywords)
    with naming_keys_of("lr_schedule", config["lr_schedule"]):
        lr_schedule = instantiate(config["lr_schedule"])
    networks = build_networks(config, source)
    augmented = config["augmentation"]
    with naming_keys_of("method", settings):
        # _convert_=all: the networks and plain containers arrive as they are
        method: SegmentationMethod = instantiate(
            settings,
            networks=networks,
            optimizer=optimizer,
            lr_schedule=lr_schedule,
            class_names=source.class_names,
            regions=dict(source.regions),
            sliding_window=build_sliding_window(config),
            seed=config["seed"],
            distance_unit=config["inference"]["distance_unit"],
            augmentation=Augmentation(**augmented) if any(augmented.values()) else None,
            _convert_="all",
        )
    method.check_batch(config["batch"]["labeled"], config["batch"]["unlabeled"])
    return method


def _term(name: str, setting: Any) -> Any:
    """A term of the method's own as it is set; one that is added to them (`+term=NAME`), built."""
    if not isinstance(setting, Mapping) or "_target_" not in setting:
        return setting
    key = f"method.terms.{name}"
    try:
        with naming_keys_of(key, setting):
            return instantiate(setting)
    except InstantiationException as error:
        if isinstance(error.__cause__, DualsegError):
            raise DualsegError(f"{key}.{error.__cause__}") from error
        raise


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
        callbacks.append(ProgressBar())
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
        enable_progress_bar=settings["progress_bar"],
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


def build_evaluation(
    config: Config, runs: Sequence[RunFolder], source: VolumeSource, trust: Trust
) -> NetworkEvaluation:
    """The trained networks of one run under their names, of several under <number>-<run>/<network>.

    The ensemble of several runs is the mean of the networks that stand for each.
    """
    networks: dict[str, nn.Module] = {}
    members: list[str] = []
    for prefix, run in _prefixed(runs):
        own, roles = trained_networks(run, source, trust)
        networks |= {f"{prefix}{name}": network for name, network in own.items()}
        members += [f"{prefix}{name}" for name in roles.members]
    if len(runs) > 1:
        roles = Roles({}, tuple(members), ENSEMBLE)
    window = build_sliding_window(config)
    unit = config["inference"]["distance_unit"]
    return NetworkEvaluation(networks, source.class_names, window, unit, source.regions, roles)


def _prefixed(runs: Sequence[RunFolder]) -> list[tuple[str, RunFolder]]:
    """Each run with what the names of its networks begin with: nothing where it is the only one."""
    if len(runs) == 1:
        return [("", runs[0])]
    # numbered, since folders of the same name may lie in different places; ModuleDict allows no dots in names
    names = [re.sub(r"[^\w=+@-]", "_", run.path.resolve().name) for run in runs]
    return [(f"{n}-{name}/", run) for n, (name, run) in enumerate(zip(names, runs, strict=True), start=1)]


def trained_networks(run: RunFolder, source: VolumeSource, trust: Trust) -> tuple[dict[str, nn.Module], Roles]:
    """The run's networks, averages included, with the weights of its last checkpoint, and what they are.

    Raises:
        DualsegError: a class is not trusted, or a network does not fit the checkpoint.
    """
    config, path = run.config(), run.checkpoint()
    checkpoint = read_checkpoint(path)
    roles = roles_of(checkpoint["dualseg"], config["networks"], str(path))
    pl.seed_everything(config["seed"], verbose=False)
    networks = {}
    for name in [*config["networks"], *roles.averages]:
        own = roles.averages.get(name, name)
        recorded = {key: value for key, value in config["networks"][own].items() if key != "architecture"}
        where = f"{run.config_file}: networks.{own}"
        networks[name] = trust.network(recorded, where, path.stat().st_size, **_shape(source))
    load_networks(path, networks, checkpoint)
    return networks, roles


def build_predictor(
    runs: Sequence[RunFolder],
    sources: Sequence[VolumeSource],
    trust: Trust,
    overlap: float,
    mirror: bool,
    device: torch.device,
) -> Predictor:
    """The networks that stand for the runs, as one ensemble for new scans; runs that see a scan alike prepare it once.

    Args:
        sources: of each run, see `scan_source`; of the same classes.
        trust: what may be built from the run folders.
        overlap: share of a window that its neighbour covers again, in place of `data.stride`.
    """
    members: dict[str, Member] = {}
    for (prefix, run), source in zip(_prefixed(runs), sources, strict=True):
        config = run.config()
        data = config["data"]
        stride = [max(1, round(size * (1 - overlap))) for size in data["patch_size"]]
        window = build_sliding_window({**config, "data": {**data, "stride": stride}}, mirror)
        own, roles = trained_networks(run, source, trust)
        networks = {f"{prefix}{name}": own[name] for name in roles.members}
        for network in networks.values():
            network.to(memory_format=window.memory_format)  # type: ignore[call-overload]
        seen = [data["source"]["_target_"], source.scan_record(), data["downsample"], data["patch_size"]]
        key = json.dumps([*seen, config["inference"]["batch_size"], config["trainer"]["channels_last"]])
        earlier = members.get(key)
        if earlier is None:
            prepare = VolumeReader(source, data["downsample"]).prepare_scan
            doubts = partial(scan_doubts, source)
            members[key] = Member(prepare, source.prepared_voxels, networks, window, doubts)
        else:
            members[key] = replace(earlier, networks={**earlier.networks, **networks})
    return Predictor(list(members.values()), len(sources[0].class_names), device)


def build_evaluator(config: Config, folder: RunFolder, scored: ScoredVolumes) -> pl.Trainer:
    """A trainer that evaluates, on one device, and writes slices into `folder`."""
    settings = config["trainer"]
    return pl.Trainer(
        accelerator=settings["accelerator"],
        devices=1,
        plugins=[LightningEnvironment()],
        precision=settings["precision"],
        use_distributed_sampler=False,
        logger=False,
        callbacks=[scored, SliceWriter(folder.slices)],
        enable_checkpointing=False,
        enable_progress_bar=settings["progress_bar"],
        enable_model_summary=False,
        default_root_dir=str(folder.path),
    )
