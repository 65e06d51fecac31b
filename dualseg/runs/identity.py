"""What makes a run the run that it is: the keys of its configuration that decide the result, and its name."""

import hashlib
import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

# What may change without making it another run: where things lie, how it is watched, what hardware does it.
NOT_IDENTITY = (
    "name",
    "output",
    "study",
    "scale",
    "variant",
    "plan",  # where it lies; what it says stands in its places
    "overwrite",
    "continue",
    "logger",
    "data.root",
    "data.source.root",
    "data.num_workers",
    "data.memory",
    "trainer.accelerator",
    "trainer.compile",
    "trainer.profiler",
    "trainer.progress_bar",
    "trainer.log_every",
    "trainer.checkpoint_every",
    "trainer.checkpoints_kept",
)
# Keys of configurations that came after the first runs -> the value that runs without them had; * stands for any name.
# There they are no part of the identity, so that an older run folder is found and resumed.
ADDED: dict[str, Any] = {
    "augmentation.intensity": None,
    "augmentation.mix": False,
    "data.draw": 0,
    "data.fold": None,
    "data.folds": 5,
    "data.foreground": 0,
    "data.source.normalize_crop": False,
    "method.guard": False,
    "method.second_pass": False,
    "networks.*.norm": "instance",
    "trainer.deterministic": False,
    "weights_as": None,
}


def flatten(config: Mapping[str, Any], prefix: str = "", separator: str = ".") -> dict[str, Any]:
    """Nested mapping -> {"a.b": value}; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        flat.update(
            flatten(value, f"{name}{separator}", separator) if isinstance(value, Mapping) and value else {name: value}
        )
    return flat


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The flattened configuration without what does not decide the result, or has come since and says nothing new."""
    ignored = tuple(f"{key}." for key in NOT_IDENTITY)
    return {
        key: _name_of_run(value) if key == "weights" else value
        for key, value in flatten(config).items()
        if key not in NOT_IDENTITY
        and not key.startswith(ignored)
        and not any(value == usual and fnmatchcase(key, added) for added, usual in ADDED.items())
    }


def decides(argument: str) -> bool:
    """An argument of a command line is about what makes a run the run that it is."""
    key = argument.partition("=")[0]
    return key not in NOT_IDENTITY and not key.startswith(tuple(f"{other}." for other in NOT_IDENTITY))


def _name_of_run(weights: Any) -> Any:
    """A run folder by its name, wherever it lies; a checkpoint by its path, as it always was."""
    return Path(weights).name if isinstance(weights, str) and not weights.endswith(".ckpt") else weights


def run_name(config: Mapping[str, Any]) -> str:
    """Readable and stable: <dataset>-<method>[-<objective>]-<networks>-<labels>-seed<seed>-<hash of the identity>."""
    data, networks = config["data"], config["networks"]
    labels = data["labeled"] if data["labeled_ratio"] is None else f"{100 * data['labeled_ratio']:g}pct"
    parts = [data["name"], config["method"]["name"]]
    if "objective" in config:
        parts.append(config["objective"])
    parts += ["-".join(n["architecture"] for n in networks.values()), f"{'all' if labels is None else labels}labels"]
    digest = hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:8]
    return "-".join([*parts, f"seed{config['seed']}", digest])
