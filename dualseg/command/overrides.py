"""Overrides whose path or name has letters that Hydra's grammar reserves: put in quotes. No torch here."""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

# keys whose values are paths: a comma in one of them is no list of values to sweep over
PATH_KEYS = (
    "data.root", "data.source.root", "data.source.splits", "data.source.unlabeled", "output", "plan.file", "weights",
)  # fmt: skip
_QUOTED = "'\"[{"  # how a text in quotes, a list or a mapping begins


def quoted(text: str) -> str:
    """A text as Hydra's grammar takes it, whatever letters it has."""
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text) + "'"


def readable(arguments: Sequence[str], multirun: bool) -> list[str]:
    """The arguments, those in quotes that Hydra cannot read, or would read as another path than the one they say.

    Args:
        arguments: of a command line.
        multirun: the command is given -m, so that a comma may separate values.
    """
    after_flag = [False, *(argument in ("--config-dir", "-cd") for argument in arguments)]
    return [one if own else _readable(one, multirun) for one, own in zip(arguments, after_flag, strict=False)]


def _readable(argument: str, multirun: bool) -> str:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, equals, value = argument.partition("=")
    if not equals or not value or key.startswith(("-", "~")):
        return argument
    is_path = key.lstrip("+") in PATH_KEYS
    is_there = is_path and _exists(value)
    parser = OverridesParser.create()
    in_quotes = f"{key}={quoted(value)}"
    try:
        override = parser.parse_override(argument)
    except HydraException:
        with suppress(HydraException):  # else it is not the value that cannot be read
            parser.parse_override(in_quotes)
            return in_quotes if is_there or value[0] not in _QUOTED else argument
        return argument
    if not is_path or value[0] in _QUOTED:
        return argument
    if override.is_sweep_override():
        return argument if multirun and not is_there else in_quotes
    return in_quotes if is_there and str(override.value()) != value else argument


def _exists(path: str) -> bool:
    with suppress(OSError, RuntimeError):  # too long a name; ~ of a user who has no home
        return Path(path).expanduser().exists()
    return False
