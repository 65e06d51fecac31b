"""Checks of a resolved configuration that need no torch, so that a mistake answers at once."""

import math
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from dualseg.arguments import at_least, fraction, is_number, one_of, sizes, switch, triples
from dualseg.command.habits import advice_on
from dualseg.configuration import conf_dir
from dualseg.data.checks import check_mirror_axes, check_mix
from dualseg.errors import DualsegError, nearest
from dualseg.machine import bytes_of
from dualseg.names import check_folder_name, check_network_names, check_printable
from dualseg.planning.configuration import left_to_plan, planned, unplanned
from dualseg.planning.topology import DIVISOR, divisor_of
from dualseg.runs.identity import flatten
from dualseg.training.dataset import source_and_split

WHOLE = {  # whole numbers and their least value; where the configuration leaves one null, null is fine
    "seed": 0,
    "base_channels": 1,
    "batch.labeled": 0,
    "batch.unlabeled": 0,
    "data.draw": 0,
    "data.labeled": 1,
    "data.held_out_validation": 0,
    "data.held_out_test": 0,
    "data.num_workers": 0,
    "inference.batch_size": 1,
    "trainer.max_iterations": 1,
    "trainer.num_nodes": 1,
    "trainer.checkpoint_every": 1,
    "trainer.checkpoints_kept": 1,
    "trainer.log_every": 1,
    "trainer.threads": 1,
    "trainer.validate_every": 1,
}
LARGEST = {"seed": 2**32 - 1}  # NumPy's; of the other whole numbers, torch's
MOST = 2**31 - 1
SWITCHES = (
    "augmentation.mix",
    "overwrite",
    "continue",
    "logger.offline",
    "trainer.channels_last",
    "trainer.progress_bar",
    "trainer.sync_batchnorm",
)
SWITCHES_OR = {"trainer.compile": "auto", "trainer.deterministic": "warn"}  # true, false, or that
NUMBERS = {
    "data.labeled_ratio": 0.0,
    "data.downsample": 1.0,
    "optimizer.lr": 0.0,
    "optimizer.weight_decay": 0.0,
    "lr_schedule.factor": 0.0,
    "lr_schedule.power": 0.0,
}
FLOAT32 = 3.4e38
FRACTIONS = (
    "data.foreground",
    "dropout",
    "optimizer.momentum",
)
SIZES = ("data.memory", "plan.memory")
NULLABLE = (
    "augmentation.intensity",
    "data.labeled",
    "data.labeled_ratio",
    "data.memory",
    "trainer.profiler",
    "trainer.threads",
    "trainer.validate_every",
)
# top-level keys of groups, beside those of conf/train.yaml itself
NODES = (
    "data", "augmentation", "method", "networks", "optimizer", "lr_schedule", "trainer", "logger", "callbacks", "batch",
    "objective",
)  # fmt: skip
IN_PATHS = ("name", "study", "scale", "variant")  # folders are named after them, each alone or put together
SHOWN = re.compile(r"(data|method)\.name|networks\.[\w-]+\.architecture")  # in tables
FOR_SCANS = ("seed", "data.patch_size", "data.downsample", "inference.batch_size", "trainer.channels_last")
PATHS = ("data.root", "data.source.splits", "data.source.unlabeled", "plan.file")
CHOICES = {
    "augmentation.intensity": ("strong",),
    "inference.distance_unit": ("voxel", "mm"),
    "trainer.precision": ("32-true", "bf16-mixed", "16-mixed"),
    "trainer.profiler": ("simple", "advanced", "pytorch"),
}


def resolve(config: Any, planning: bool = True) -> dict[str, Any]:
    """The composed configuration as plain, resolved, checked containers.

    Args:
        config: composed by Hydra.
        planning: fill in what is left to the plan, which is made where there is none; False: with what serves to look
            at the data alone.

    Raises:
        DualsegError: naming the first key whose value cannot work.
        omegaconf.MissingMandatoryValue: a key that has no default is not given.
    """
    from omegaconf import OmegaConf

    if config.get("sweep") is not None:
        raise DualsegError(f"sweep={config.study}: is many runs; add -m (dualseg-train -m sweep={config.study} ...).")
    _refuse_unread(config)
    # absolute before it is resolved, so that a run evaluated from another folder finds its data
    config = config.copy()
    for key in PATHS:
        if (path := OmegaConf.select(config, key)) is not None:
            OmegaConf.update(config, key, str(Path(str(path)).expanduser().absolute()))
    if config.data.name is None:
        config.data.name = Path(config.data.root).name
    plan = None
    _check_before_planning(config)
    if left_to_plan(config):
        config, plan = planned(config) if planning else (unplanned(config), None)
    settings = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(settings, dict)
    # of other runs; what a plan decides stands where it is used
    plain = {str(key): value for key, value in settings.items() if key not in ("sweep", "dry", "plan")}
    if plan is not None:
        plain["plan"] = str(plan)
    # a method that takes one network leaves the others of a pair out
    plain["networks"] = {name: network for name, network in plain["networks"].items() if network is not None}
    for key in IN_PATHS:
        if plain[key] is not None:
            check_folder_name(key, str(plain[key]))
    check(plain)
    if planning and plain["batch"]["unlabeled"] and has_twin(plain) and not _has_unlabeled(plain):
        plain["batch"]["unlabeled"] = 0
    return plain


def has_twin(settings: Mapping[str, Any]) -> bool:
    """A method that has labeled patches take the place of the unlabeled ones where there are none: `SoloMix`'s kind."""
    return "mix_unlabeled" in settings["method"]


def _has_unlabeled(settings: Mapping[str, Any]) -> bool:
    """The dataset has unlabeled volumes beside the labeled ones; also where `check_data` will say what is wrong."""
    from hydra.errors import InstantiationException

    try:
        return bool(source_and_split(settings)[1].unlabeled)
    except (DualsegError, InstantiationException):
        return True


def _check_before_planning(config: Any) -> None:
    """Raises: DualsegError for a value that a plan would be made of, and that cannot work; null is left to the plan."""
    from omegaconf import OmegaConf

    if not OmegaConf.is_dict(config.plan):
        raise DualsegError(
            f"plan={config.plan}: is no value; plan.file=FILE names a plan, recipe=none does without one."
        )
    settings: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    known = {key: value for key, value in flatten(settings).items() if value is not None}
    _check_values(known)
    if "data.patch_size" in known:
        sizes("data.patch_size", known["data.patch_size"])


@cache
def _read_keys() -> dict[str, list[str]]:
    """Prefix -> the keys that dualseg itself reads under it."""
    root = yaml.safe_load((conf_dir() / "train.yaml").read_text())
    trainer = yaml.safe_load((conf_dir() / "trainer" / "default.yaml").read_text())
    return {
        "": [*root, *NODES],
        "augmentation.": ["intensity", "mix"],
        "batch.": ["labeled", "unlabeled"],
        "inference.": [*root["inference"]],
        "plan.": [*root["plan"]],
        "trainer.": [*trainer],
    }


def _refuse_unread(config: Any) -> None:
    """Hydra lets +key=... pass; a sweep over a key that nothing reads would train the same run several times.

    What the other groups do not take is named where they are instantiated, by `naming_keys_of`.

    Raises:
        DualsegError: naming a key that neither dualseg nor an interpolation of the configuration reads.
    """
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(config, resolve=False)
    references = re.findall(r"\$\{([^}]*)", str(plain))
    relative = {part for reference in references if reference.startswith(".") for part in reference.split(".")}
    for prefix, keys in _read_keys().items():
        node = plain[prefix[:-1]] if prefix else plain
        for key in node if isinstance(node, dict) else ():
            name = re.compile(rf"(?<![\w.]){re.escape(f'{prefix}{key}')}\b")
            if key not in keys and key not in relative and not any(map(name.search, references)):
                if advice := advice_on(f"{prefix}{key}"):
                    raise DualsegError(f"{prefix}{key}: no such configuration key.{advice}")
                close = nearest(f"{prefix}{key}", [f"{prefix}{other}" for other in keys])
                fix = f"leave it out, or let another key read it (${{{prefix}{key}}})"
                raise DualsegError(f"{prefix}{key}: no such configuration key, nothing reads it; {fix}.{close}")


def check(settings: Mapping[str, Any]) -> None:
    """Raises: DualsegError naming the first key whose value cannot work."""
    check_network_names("networks", settings["networks"])
    _check_values(settings)
    stages = settings["evaluate_on"]
    if not isinstance(stages, list) or any(stage not in ("validation", "test") for stage in stages):
        raise DualsegError(f"evaluate_on={stages}: give a list of validation and test, for example [test].")
    patch, stride = settings["data"]["patch_size"], settings["data"]["stride"]
    sizes("data.patch_size", patch)
    sizes("data.stride", stride)
    check_patch_divides(patch, settings["networks"])
    if settings["augmentation"]["mix"]:
        check_mix(settings["batch"]["labeled"])
    if any(step > side for step, side in zip(stride, patch, strict=True)):
        raise DualsegError(f"data.stride={stride}: give at most data.patch_size={patch}.")


def check_for_scans(config: Mapping[str, Any], file: Path) -> None:
    """What prediction and export read of a run's configuration is there and can work: older runs may lack the rest.

    Args:
        config: of a run folder.
        file: which it is of, for messages.

    Raises:
        DualsegError: naming the first key that is missing or whose value cannot work.
    """
    known = flatten(config)
    for key in FOR_SCANS:
        if key not in known:
            raise DualsegError(f"{file}: has no {key}; restore the file that the run wrote.")
    try:
        _check_values(config)
        sizes("data.patch_size", known["data.patch_size"])
        check_patch_divides(known["data.patch_size"], config["networks"])
    except DualsegError as error:
        raise DualsegError(f"{file}: {error}") from error


def _check_values(settings: Mapping[str, Any]) -> None:
    """Those that can be judged one by one, of the keys that are there."""
    for key, value in flatten(settings).items():
        if SHOWN.fullmatch(key) and isinstance(value, str):
            check_printable(f"{key}:", [value])
        if value is None and key in NULLABLE:
            continue
        if key in WHOLE and (type(value) is not int or value < WHOLE[key]):
            raise DualsegError(f"{key}={value}: give a whole number of at least {WHOLE[key]}.")
        if key in WHOLE and value > (most := LARGEST.get(key, MOST)):
            raise DualsegError(f"{key}={value}: give a whole number of at most {most}.")
        if key in NUMBERS:
            at_least(key, value, NUMBERS[key])
            if value > FLOAT32:
                raise DualsegError(f"{key}={value}: give a number of at most {FLOAT32}, the largest of float32.")
        if key in FRACTIONS:
            fraction(key, value)
        if key == "lr_schedule.milestones" and not (isinstance(value, list) and all(map(_is_milestone, value))):
            fix = "give a list of iterations (whole numbers above 1) or fractions of the run (above 0, at most 1)"
            raise DualsegError(f"{key}={value}: {fix}.")
        if key == "trainer.devices" and not _is_devices(value):
            fix = "give a number of at least 1, -1 or auto for all there are, or a list of their indices such as [0,1]"
            raise DualsegError(f"{key}={value}: {fix}.")
        if key in SWITCHES_OR and type(value) is not bool and value != SWITCHES_OR[key]:
            raise DualsegError(f"{key}={value}: give true, false or {SWITCHES_OR[key]}.")
        if key == "data.augmentation.mirror_axes":
            check_mirror_axes(value)
        if key in SWITCHES:
            switch(key, value)
        if key in SIZES:
            bytes_of(key, value)
        if key in CHOICES:
            one_of(key, value, CHOICES[key])


def check_patch_divides(patch_size: list[int], networks: Mapping[str, Any]) -> None:
    """The networks of a configuration divide a patch without padding it, and not down to one voxel.

    A network that names `strides` and `kernels`, as those of a plan, divides each side by the product of its strides,
    every other one by 16.

    Raises:
        DualsegError: they do not; strides that cannot be.
    """
    planned = []
    for name, network in networks.items():
        if isinstance(network, Mapping) and {"strides", "kernels"} <= {*network}:
            triples(f"networks.{name}.strides", network["strides"])
            planned.append([*divisor_of(network["strides"])])
    others = [[DIVISOR] * 3] if len(planned) < len(networks) else []
    divisors = [math.lcm(*axis) for axis in zip(*planned, *others, strict=True)]
    if any(size % divisor for size, divisor in zip(patch_size, divisors, strict=True)):
        wrong = "its sides must be multiples of {}, {} and {}, by which the networks divide them".format(*divisors)
    elif patch_size in planned:
        wrong = "a network divides it down to one voxel, which InstanceNorm cannot normalise"
    else:
        return
    fix = [max(d, round(size / d) * d) for size, d in zip(patch_size, divisors, strict=True)]
    if fix in planned:
        fix = [2 * size for size in fix]
    raise DualsegError(f"data.patch_size={patch_size}: {wrong}; give {fix}, for example.")


def _is_devices(value: Any) -> bool:
    """As Lightning's `devices`."""
    if isinstance(value, list):
        return bool(value) and all(type(index) is int and index >= 0 for index in value)
    return value == "auto" or (type(value) is int and (value == -1 or value >= 1))


def _is_milestone(value: Any) -> bool:
    """As `step_decay` takes them."""
    return is_number(value) and value > 0 and (value <= 1 or value % 1 == 0)


def check_weights(settings: Mapping[str, Any]) -> None:
    """Raises: DualsegError where `weights` names no file or folder, or `weights_as` is no mapping of names."""
    weights, parts = settings["weights"], settings.get("weights_as")
    if weights and not Path(str(weights)).expanduser().exists():
        fix = "give a run folder, or a checkpoints/iteration-NNNNNN.ckpt of one, or leave it null"
        raise DualsegError(f"weights={weights}: no such checkpoint; {fix}.")
    if parts is not None:
        if not weights:
            raise DualsegError(f"weights_as={parts}: says what of weights=RUN_FOLDER goes where; give that as well.")
        if not isinstance(parts, dict) or not parts or not all(isinstance(v, str) for kv in parts.items() for v in kv):
            raise DualsegError(f"weights_as={parts}: give what goes where, for example {{b: a, a.encoder: a.encoder}}.")
