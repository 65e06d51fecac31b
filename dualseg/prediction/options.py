"""The words of `dualseg-predict`. No torch here: a mistake must answer at once."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dualseg.errors import DualsegError, nearest
from dualseg.machine import bytes_of
from dualseg.prediction.words import KEYS


@dataclass(frozen=True)
class Options:
    """What the command line asks for: `KEYS` says what each means. `memory` is in bytes."""

    run: tuple[str, ...]
    input: tuple[str, ...]
    output: Path
    overlap: float = 0.5
    mirror: bool = False
    probabilities: bool = False
    uncertainty: bool = False
    report: bool = False
    keep_largest: tuple[str, ...] | None = None
    memory: int = 8 * 2**30
    device: str = "auto"
    identifiers: bool = False
    trust: tuple[str, ...] = ()


def parse_words(words: Sequence[str]) -> Options:
    """key=value words -> Options; a word without a key is one more input, so that a shell's `*` can be used.

    Raises:
        DualsegError: an unknown key, an impossible value, or run, input or output is missing.
    """
    given: dict[str, Any] = {key: [] for key in SEVERAL}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            key, value = "input", word
        if key not in READERS:
            raise DualsegError(f"{key}: no such key of dualseg-predict.{nearest(key, list(READERS))}")
        if key in SEVERAL:
            given[key].append(READERS[key](key, value))
        elif key in given:
            raise DualsegError(f"{key}: is given twice.")
        else:
            given[key] = READERS[key](key, value)
    for key, word_of in KEYS.items():
        if word_of.required and not given.get(key):
            raise DualsegError(f"{key}={word_of.required} is required.")
    return Options(**{**given, **{key: tuple(given[key]) for key in SEVERAL}})


def _text(key: str, value: str) -> str:
    if not value:
        raise DualsegError(f"{key}=: has no value.")
    return value


def _path(key: str, value: str) -> Path:
    return Path(_text(key, value)).expanduser()


def _switch(key: str, value: str) -> bool:
    if value not in ("true", "false"):
        raise DualsegError(f"{key}={value}: give true or false.")
    return value == "true"


def _overlap(key: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1:
        raise DualsegError(f"{key}={value}: give a number from 0 to below 1.")
    return number


def _device(key: str, value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise DualsegError(f"{key}={value}: give auto, cpu, cuda or cuda:N.")
    return value


def _names(key: str, value: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in value.strip("[]").split(","))
    if not all(names):
        raise DualsegError(f"{key}={value}: give names of classes such as [liver,spleen], or all.")
    return names


READERS = {
    "run": _text,
    "input": _text,
    "output": _path,
    "overlap": _overlap,
    "mirror": _switch,
    "probabilities": _switch,
    "uncertainty": _switch,
    "report": _switch,
    "keep_largest": _names,
    "memory": bytes_of,
    "device": _device,
    "identifiers": _switch,
    "trust": _text,
}
SEVERAL = ("run", "input", "trust")  # keys that may be given again
assert READERS.keys() == KEYS.keys() == {field.name for field in fields(Options)}


def classes_to_clean(keep_largest: Sequence[str], class_names: Sequence[str]) -> list[int]:
    """Numbers of the classes that `keep_largest` names, of `none` none.

    Raises:
        DualsegError: a name that is no foreground class.
    """
    foreground = list(class_names[1:])
    if tuple(keep_largest) == ("none",):
        return []
    if tuple(keep_largest) == ("all",):
        return list(range(1, len(class_names)))
    for name in keep_largest:
        if name not in foreground:
            raise DualsegError(f"keep_largest={name}: no such class; choose from {', '.join(foreground)}, all or none.")
    return [1 + foreground.index(name) for name in keep_largest]
