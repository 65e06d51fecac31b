"""The file of a plan: beside the split, one for each list of labels; people read and edit it."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from dualseg.arguments import count, counts, is_list, sizes, triples
from dualseg.data.intensity import intensities, is_window
from dualseg.data.split_file import is_spacing, is_writable, name_of, own_folder
from dualseg.errors import DualsegError
from dualseg.files import sweep, write_text
from dualseg.planning.decisions import DECISIONS, Plan, by_text
from dualseg.planning.fingerprint import DatasetFingerprint
from dualseg.planning.topology import divisor_of

PARTS = ("plan", "why", "measured", "asked")
HEAD = "# Read by dualseg-train; edit the values of `plan`, or delete the file for a new one: docs/planning.md\n"


def place_of(split_file: Path, labeled: Sequence[str], asked: Mapping[str, Any]) -> Path:
    """Where the plan of these labels lies: another list, or other preprocessing that is asked for, is another file.

    Beside the split; where nothing can be written there, in the user's `own_folder`.
    """
    digest = hashlib.sha256(json.dumps([sorted(labeled), asked], sort_keys=True).encode()).hexdigest()[:8]
    end = f"plan-{len(labeled)}labels-{digest}.yaml"
    beside = split_file.with_name(f"{split_file.stem.removesuffix('-split')}-{end}")
    if beside.exists() or is_writable(split_file.parent):
        return beside
    return own_folder() / f"{name_of(split_file.parent)}-{end}"


def write(path: Path, plan: Plan, found: DatasetFingerprint, asked: Mapping[str, Any]) -> None:
    """Write a plan with what it was made of.

    Raises:
        DualsegError: the file cannot be written.
    """
    measured = {
        "images": len(found.spacings),
        "median_spacing": found.median_spacing,
        "labels": list(found.labels),
        "volumes_ml": {name: _range(values) for name, values in found.volumes.items()},
        "foreground": [None if one is None else asdict(one) for one in found.foreground],
    }
    sweep(path.parent, path.name)
    try:
        write_text(path, HEAD + _yaml(plan=plan.values, why=plan.reasons, measured=measured, asked=dict(asked)))
    except DualsegError as error:
        raise DualsegError(f"{error} Or give plan.file=FILE, a new file elsewhere.") from error


def read(path: Path, labeled: Sequence[str]) -> Plan:
    """The plan in a file, which may have been edited.

    Args:
        path: the file.
        labeled: the cases whose labels the run may read; the plan must not know others.

    Raises:
        DualsegError: naming the file and what of it cannot be.
    """
    if not path.is_file():
        raise DualsegError(f"plan.file={path}: is no file; name a plan, or a new file.")
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())
        raise DualsegError(f"{path}: cannot be read ({problem}); correct or delete it.") from error
    if not isinstance(content, dict) or not isinstance(content.get("plan"), dict):
        raise DualsegError(f"{path}: is no plan; it is a mapping of {', '.join(PARTS)}. Correct or delete it.")
    values = content["plan"]
    try:
        _check(values)
    except DualsegError as error:
        raise DualsegError(f"{path}: plan.{error} Correct it, or delete the file.") from error
    parts = {name: content[name] if isinstance(content.get(name), dict) else {} for name in PARTS}
    known = parts["measured"].get("labels")
    if not isinstance(known, list) or (others := sorted({*map(str, known)} - {*labeled})):
        whose = (
            f"of {', '.join(others[:3])}, which this run may not read" if isinstance(known, list) else "it does not say"
        )
        raise DualsegError(f"{path}: was made of labels {whose}; give another plan.file, or none.")
    return Plan(values, {key: str(why) for key, why in parts["why"].items()}, parts["asked"].get("gpu"))


def _check(values: Mapping[str, Any]) -> None:
    """Raises: DualsegError, beginning with the name of a decision that cannot be, or that contradicts another."""
    for name, check in _CHECKS.items():
        check(name, values.get(name))
    if unknown := sorted({*values} - {*DECISIONS}):
        raise DualsegError(f"{unknown[0]}: no such decision; it has {', '.join(DECISIONS)}.")
    stages = len(values["channels"])
    for name in ("strides", "kernels", "blocks"):
        if len(values[name]) != stages:
            raise DualsegError(f"{name}: has {len(values[name])} stages, channels {stages}.")
    if any(side % 2 == 0 for kernel in values["kernels"] for side in kernel):
        raise DualsegError(f"kernels={values['kernels']}: give odd sides.")
    patch, divisor = values["patch_size"], divisor_of(values["strides"])
    if any(side % factor for side, factor in zip(patch, divisor, strict=True)):
        raise DualsegError(f"patch_size={patch}: give multiples of {list(divisor)}, by which strides divide it.")
    if any(step > side for step, side in zip(values["stride"], patch, strict=True)):
        raise DualsegError(f"stride={values['stride']}: give at most patch_size={patch}.")


def _check_spacing(key: str, value: Any) -> None:
    if not is_spacing(value):
        raise DualsegError(f"{key}={value}: give three lengths in mm, for example [1,1,2.5].")


def _check_intensity(key: str, value: Any) -> None:
    if not is_list(value):
        raise DualsegError(f"{key}={value}: give a list, one entry for each channel.")
    intensities(value, [str(channel) for channel in range(len(value))])


def labeled_volumes(path: Path) -> dict[str, tuple[float, float]]:
    """Class -> smallest and largest volume in ml among the labels that a plan was made of; empty without such a file.

    What an edit has made unreadable is left out: nothing that is computed depends on it.
    """
    try:
        content = yaml.safe_load(path.read_text())
        return {str(name): (float(low), float(high)) for name, (low, high) in content["measured"]["volumes_ml"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, yaml.YAMLError):
        return {}


def shown(plan: Plan, settings: Mapping[str, Any]) -> str:
    """A plan for the console: its file, and a line a decision of which a resolved configuration makes use."""
    return "\n".join([f"Plan: {settings['plan']}", *_lines(plan, settings)])


def _lines(plan: Plan, settings: Mapping[str, Any]) -> list[str]:
    used = _in_use(settings)
    values = {**plan.values, **used}
    shown = {
        "spacing": _spacing_text(values["spacing"]),
        "intensity": _intensity_text(values["intensity"]),
        "patch_size": by_text(values["patch_size"]),
        "stride": by_text(values["stride"]),
        "batch": str(values["batch"]),
    }
    if "kernels" in used:
        shown |= {
            "channels": "-".join(map(str, values["channels"])),
            "strides": " ".join(by_text(stride) for stride in values["strides"]),
            "kernels": " ".join(by_text(kernel) for kernel in values["kernels"]),
            "blocks": "-".join(map(str, values["blocks"])),
        }
    given = {name: "given" for name in values if values[name] != plan.values[name]}
    reasons = {name: f"   ({why})" for name, why in (plan.reasons | given).items()}
    return [f"  {name:<10} {text}{reasons.get(name, '')}" for name, text in shown.items()]


def _in_use(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Decisions of a resolved configuration that may stand there in place of the plan's."""
    data, planned = settings["data"], [net for net in settings["networks"].values() if "kernels" in net]
    found = {"spacing": data["source"]["spacing"], "intensity": data["source"]["intensity"]}
    found |= {"patch_size": data["patch_size"], "stride": data["stride"], "batch": settings["batch"]["labeled"]}
    for network in planned:
        found |= {name: network[name] for name in ("channels", "strides", "kernels", "blocks") if name in network}
    return found


def _intensity_text(how: Any) -> str:
    if isinstance(how, list) and not is_window(how):
        return "; ".join(map(_intensity_text, how))
    if not isinstance(how, Mapping):
        return str(how)
    return f"clip {how['clip'][0]:g}..{how['clip'][1]:g}, mean {how['mean']:.4g}, deviation {how['deviation']:.4g}"


def _spacing_text(spacing: Any) -> str:
    return " x ".join(f"{edge:g}" for edge in spacing) + " mm" if isinstance(spacing, list) else str(spacing)


def _yaml(**parts: Mapping[str, Any]) -> str:
    """Lists of numbers and names on one line."""
    style: dict[str, bool | None] = {"why": False}  # a sentence a line
    dumped = [
        yaml.safe_dump({name: part}, sort_keys=False, default_flow_style=style.get(name), width=1000)
        for name, part in parts.items()
    ]
    return "".join(dumped)


def _range(values: Sequence[float]) -> list[float]:
    return [min(values), max(values)]


_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "spacing": _check_spacing,
    "intensity": _check_intensity,
    "patch_size": sizes,
    "stride": sizes,
    "batch": count,
    "base_channels": count,
    "channels": counts,
    "strides": triples,
    "kernels": triples,
    "blocks": counts,
}
