"""From run folders to objects: the trained networks of runs, to evaluate or to predict with."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import LightningEnvironment
from torch import nn

from dualseg.data.checking.doubts import scan_doubts
from dualseg.data.reading import VolumeReader
from dualseg.data.volumes import VolumeSource
from dualseg.inference.predictor import Member, Predictor
from dualseg.methods import NetworkEvaluation
from dualseg.record import ENSEMBLE, Roles, roles_of
from dualseg.runs.folder import RunFolder
from dualseg.training.assembly import build_sliding_window, shape_of
from dualseg.training.case_callbacks import ScoredVolumes, SliceWriter
from dualseg.training.checkpoints import load_networks, read_checkpoint
from dualseg.training.progress import shows_bar
from dualseg.training.trusted import Trust

Config = Mapping[str, Any]


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
        networks[name] = trust.network(recorded, where, path.stat().st_size, **shape_of(source))
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
        enable_progress_bar=shows_bar(settings),
        enable_model_summary=False,
        default_root_dir=str(folder.path),
    )
