"""config.yaml of a run folder, which may be from elsewhere, read back. No torch here."""

import math
from pathlib import Path
from typing import Any

import yaml

from dualseg.errors import DualsegError

MOST_VALUES = 1_000_000  # of a configuration; a real one has some hundred
DEEPEST = 100  # lists and mappings in one another; far deeper ones end a process that libyaml loads them in
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast, and not everywhere


def read_config(path: Path) -> dict[str, Any]:
    """The mapping that the file holds.

    Raises:
        DualsegError: it is missing or damaged.
    """
    fix = "restore the file that the run wrote"
    try:
        text = path.read_text()
        _check_depth(text)
        config = yaml.load(text, Loader=YAML_LOADER)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise DualsegError(f"{path}: cannot be read ({reason}); {fix}.") from error
    if not isinstance(config, dict):
        raise DualsegError(f"{path}: not a mapping of keys; {fix}.")
    if _values_in(config, {}) > MOST_VALUES:
        raise DualsegError(f"{path}: holds more than {MOST_VALUES} values, by references; {fix}.")
    return config


def _check_depth(text: str) -> None:
    """Raises: ValueError for YAML that is nested deeper than `DEEPEST`."""
    opening = sum(text.count(sign) for sign in ("[", "{", "- ", "? "))
    if opening < DEEPEST and "\n" + " " * (DEEPEST - opening) not in text:
        return  # it cannot be, and a thousand configurations are read in seconds
    depth = 0
    for event in yaml.parse(text, Loader=YAML_LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} lists and mappings in one another")


def _values_in(node: Any, known: dict[int, float]) -> float:
    """How many values a tree has that YAML's references may make of few lines; infinity where it holds itself."""
    if not isinstance(node, dict | list):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf
        known[id(node)] = 1 + sum(_values_in(one, known) for one in (node.values() if isinstance(node, dict) else node))
    return known[id(node)]
