"""The file of a plan: beside the split, one for each list of labels; people read and edit it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from dualseg.data.split_file import is_spacing
from dualseg.errors import DualsegError
from dualseg.files import sweep, write_text
from dualseg.planning.decisions import DECISIONS, Plan
from dualseg.planning.fingerprint import DatasetFingerprint

PARTS = ("plan", "why", "measured", "asked")
HEAD = "# Read by dualseg-train; edit the values of `plan`, or delete the file for a new one: docs/planning.md\n"


def place_of(split_file: Path, labeled: Sequence[str], asked: Mapping[str, Any]) -> Path:
    """Where the plan of these labels lies: another list, or other preprocessing that is asked for, is another file."""
    digest = hashlib.sha256(json.dumps([sorted(labeled), asked], sort_keys=True).encode()).hexdigest()[:8]
    start = split_file.stem.removesuffix("-split")
    return split_file.with_name(f"{start}-plan-{len(labeled)}labels-{digest}.yaml")


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


def read(path: Path) -> Plan:
    """The plan in a file, which may have been edited.

    Raises:
        DualsegError: naming the file and what of it cannot be.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())
        raise DualsegError(f"{path}: cannot be read ({problem}); correct or delete it.") from error
    if not isinstance(content, dict) or not isinstance(content.get("plan"), dict):
        raise DualsegError(f"{path}: is no plan; it is a mapping of {', '.join(PARTS)}. Correct or delete it.")
    values = content["plan"]
    for name, check in _CHECKS.items():
        if name not in values or not check(values[name]):
            raise DualsegError(f"{path}: plan.{name}={values.get(name)} cannot be; correct it, or delete the file.")
    if unknown := sorted({*values} - {*DECISIONS}):
        raise DualsegError(f"{path}: plan.{unknown[0]}: no such decision; it has {', '.join(DECISIONS)}.")
    reasons = content.get("why")
    return Plan(values, reasons if isinstance(reasons, dict) else {})


def lines(plan: Plan) -> list[str]:
    """A plan for the console: a line a decision."""
    values = plan.values
    widths = "-".join(map(str, values["channels"]))
    shown = {
        "spacing": " x ".join(f"{edge:g}" for edge in values["spacing"]) + " mm",
        "intensity": "; ".join(map(_intensity_text, values["intensity"])),
        "patch_size": _by(values["patch_size"]),
        "stride": _by(values["stride"]),
        "batch": str(values["batch"]),
        "channels": widths,
        "strides": " ".join(_by(stride) for stride in values["strides"]),
        "kernels": " ".join(_by(kernel) for kernel in values["kernels"]),
        "blocks": "-".join(map(str, values["blocks"])),
    }
    reasons = {name: f"   ({why})" for name, why in plan.reasons.items()}
    return [f"  {name:<10} {text}{reasons.get(name, '')}" for name, text in shown.items()]


def _intensity_text(how: Any) -> str:
    if not isinstance(how, Mapping):
        return str(how)
    return f"clip {how['clip'][0]:g}..{how['clip'][1]:g}, mean {how['mean']:.4g}, deviation {how['deviation']:.4g}"


def _by(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


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


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_count, value))


def _is_triple(value: Any) -> bool:
    return _are_counts(value) and len(value) == 3


def _are_triples(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_triple, value))


_CHECKS = {
    "spacing": is_spacing,
    "intensity": lambda value: isinstance(value, list) and bool(value),  # the source looks closer
    "patch_size": _is_triple,
    "stride": _is_triple,
    "batch": _is_count,
    "base_channels": _is_count,
    "channels": _are_counts,
    "strides": _are_triples,
    "kernels": _are_triples,
    "blocks": _are_counts,
}
