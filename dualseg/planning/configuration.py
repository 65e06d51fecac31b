"""A configuration that leaves decisions to the plan -> the same with what the plan says in their places."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dualseg.data.folder import Folder, given_spacing
from dualseg.data.splits import split_source
from dualseg.data.volumes import VolumeSource
from dualseg.errors import DualsegError
from dualseg.machine import bytes_of
from dualseg.planning import plan_file
from dualseg.planning.decisions import DECISIONS, Plan, decide, networks_of
from dualseg.planning.fingerprint import fingerprint_of
from dualseg.planning.topology import DIVISOR, topology_of

MEMORY = {True: "8GiB", False: "1GiB"}  # with a GPU; without, where a larger patch takes minutes an iteration
CHANNELS = {True: 16, False: 8}  # at full resolution
_REFERENCE = re.compile(r"\$\{plan\.(\w+)\}")


def left_to_plan(config: Any) -> set[str]:
    """The decisions that a composed configuration refers to as ${plan.NAME}, and does not give."""
    from omegaconf import OmegaConf

    referred = {*_REFERENCE.findall(str(OmegaConf.to_container(config, resolve=False)))} & {*DECISIONS}
    return {name for name in referred if config.plan.get(name) is None}


def planned(config: Any) -> tuple[Any, Path | None]:
    """The configuration with the plan's values, and the file that they are from.

    A plan that is there is read; else it is made and written. Decisions that stand in the configuration are kept, and
    the others follow them. Where the dataset is no `Folder`, networks alone are planned, from the patch, and there is
    no file.

    Args:
        config: composed; it is not changed.

    Raises:
        DualsegError: the dataset cannot be planned for, or the file of the plan is damaged.
    """
    from omegaconf import OmegaConf

    config, left = config.copy(), left_to_plan(config)
    settings: Any = OmegaConf.to_container(config, resolve=True)
    source = _bare_source(settings["data"]["source"])
    if isinstance(source, Folder):
        plan, path = _of_folder(source, settings, "spacing" not in left)
    else:
        plan, path = _of_patch(settings), None
    for name in left:
        if name not in plan.values:
            raise DualsegError(f"plan.{name}: is planned for data=folder alone; give {name} itself.")
        OmegaConf.update(config, f"plan.{name}", plan.values[name], force_add=True)
    return config, path


def unplanned(config: Any) -> Any:
    """The configuration with values that serve to look at the data, which need not be fit for a plan."""
    from omegaconf import OmegaConf

    config = config.copy()
    simple = {"spacing": "median", "intensity": "auto", "batch": 4, "base_channels": 8, "channels": [8], "blocks": [1]}
    simple |= {"patch_size": [2**20] * 3, "stride": [1] * 3, "strides": [[1] * 3], "kernels": [[3] * 3]}
    for name in left_to_plan(config):
        OmegaConf.update(config, f"plan.{name}", simple[name], force_add=True)
    return config


def _bare_source(source: Mapping[str, Any]) -> VolumeSource:
    """The dataset, of which a plan is yet to say spacing and intensities."""
    from hydra.utils import instantiate

    left = {key: None for key in ("spacing", "intensity") if key in source}
    built: VolumeSource = instantiate({**source, **left})
    return built


def _of_folder(source: Folder, settings: Mapping[str, Any], spacing_given: bool) -> tuple[Plan, Path]:
    data, asked = settings["data"], _asked(settings, spacing_given)
    split = split_source(source, data)
    path = settings["plan"]["file"]
    path = plan_file.place_of(source.split_file, split.labeled, asked) if path is None else Path(path).expanduser()
    if path.exists():
        return plan_file.read(path, split.labeled), path
    found = fingerprint_of(source, split.labeled, split.unlabeled)
    gpu = _has_gpu(settings["trainer"]["accelerator"])
    memory = MEMORY[gpu] if asked["memory"] is None else asked["memory"]
    given = {"base_channels": CHANNELS[gpu], **asked["given"]}
    plan = decide(found, given, bytes_of("plan.memory", memory), data["downsample"], asked["multiple"])
    plan_file.write(path, plan, found, {**asked, "memory": memory, "gpu": gpu})
    print(f"The plan was written to {path} and is read from there from now on.", file=sys.stderr)
    return plan, path


def _of_patch(settings: Mapping[str, Any]) -> Plan:
    """Networks for the patch of a dataset whose voxels are as long as wide: all others here.

    Raises:
        DualsegError: naming what is for `data=folder` alone.
    """
    if given := [key for key in ("file", "memory") if settings["plan"][key] is not None]:
        raise DualsegError(f"plan.{given[0]}: is for data=folder alone; leave it out.")
    patch = settings["data"]["patch_size"]
    if not patch or not settings["base_channels"]:
        raise DualsegError("data.patch_size, base_channels: are planned for data=folder alone; give both.")
    return Plan(networks_of(topology_of(patch, (1.0, 1.0, 1.0)), settings["base_channels"]), {})


def _asked(settings: Mapping[str, Any], spacing_given: bool) -> dict[str, Any]:
    """What a plan depends on beside the labels."""
    data, networks = settings["data"], settings["networks"]
    given = {"patch_size": data["patch_size"], "base_channels": settings["base_channels"]}
    if spacing_given:  # each volume's own is the median, on the whole
        spacing = data["source"]["spacing"]
        given["spacing"] = "median" if spacing in (None, "median") else list(given_spacing(spacing))
    others = [network for network in networks.values() if network is not None and "kernels" not in network]
    return {
        "given": {name: value for name, value in given.items() if value is not None},
        "memory": settings["plan"]["memory"],
        "downsample": data["downsample"],
        "multiple": DIVISOR if others else 1,
    }


def _has_gpu(accelerator: str) -> bool:
    """Whether training will have one: as it is asked for, else as this machine has it."""
    import torch  # here: a plan is made once, and reading one must not wait for torch

    return accelerator not in ("cpu", "auto") or (accelerator == "auto" and torch.accelerator.is_available())
