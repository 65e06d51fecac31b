"""Values of arguments and of keys of the configuration, checked; messages name the key. No torch here."""

import math
from collections.abc import Collection, Sequence
from typing import Any

from dualseg.errors import DualsegError


def is_number(value: Any) -> bool:
    """Neither true or false, which Python counts as numbers, nor infinite or NaN."""
    return type(value) in (int, float) and math.isfinite(value)


def one_of(key: str, value: Any, options: Collection[str]) -> None:
    """Raises: DualsegError unless `value` is one of `options`."""
    if value not in options:
        raise DualsegError(f"{key}={value}: choose from {', '.join(options)}.")


def fraction(key: str, value: Any) -> None:
    """Raises: DualsegError unless `value` is a number from 0 to 1."""
    if not (is_number(value) and 0 <= value <= 1):
        raise DualsegError(f"{key}={value}: give a number from 0 to 1.")


def positive(key: str, value: Any, or_null: str = "") -> None:
    """Raises: DualsegError unless `value` is a number above 0, or None where `or_null` says what that means."""
    if not (is_number(value) and value > 0) and not (or_null and value is None):
        raise DualsegError(f"{key}={value}: give a number above 0{f', or {or_null}' if or_null else ''}.")


def at_least(key: str, value: Any, least: float) -> None:
    """Raises: DualsegError unless `value` is a number of at least `least`."""
    if not (is_number(value) and value >= least):
        raise DualsegError(f"{key}={value}: give a number of at least {least:g}.")


def count(key: str, value: Any) -> None:
    """Raises: DualsegError unless `value` is a whole number above 0."""
    if not (type(value) is int and value > 0):
        raise DualsegError(f"{key}={value}: give a whole number above 0.")


def switch(key: str, value: Any) -> None:
    """Raises: DualsegError unless `value` is true or false: a string such as off would count as true."""
    if type(value) is not bool:
        raise DualsegError(f"{key}={value}: give true or false.")


def counts(key: str, value: Any) -> None:
    """Raises: DualsegError unless `value` is a list of whole numbers above 0, one for each stage of a network."""
    if not _are_counts(value):
        raise DualsegError(f"{key}={value}: give a whole number above 0 for each stage, for example [32,64,128,256].")


def triples(key: str, value: Any) -> None:
    """Raises: DualsegError unless `value` is a list of three whole numbers above 0 for each stage of a network."""
    if not is_list(value) or not value or not all(_are_counts(stage) and len(stage) == 3 for stage in value):
        example = "[[1,1,1],[2,2,1],[2,2,2]]"
        raise DualsegError(f"{key}={value}: give three whole numbers above 0 for each stage, for example {example}.")


def sizes(key: str, value: Any) -> None:
    """Raises: DualsegError unless `value` is a list of three whole numbers above 0."""
    if not (_are_counts(value) and len(value) == 3):
        raise DualsegError(f"{key}={value}: give three whole numbers above 0, for example [112,112,80].")


def is_list(value: Any) -> bool:
    """A list or another sequence, no text."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def _are_counts(value: Any) -> bool:
    return is_list(value) and len(value) > 0 and all(type(number) is int and number > 0 for number in value)
