"""The key=value words of a command: one table for what it takes, its --help and docs/reference.md."""

import textwrap
from collections.abc import Mapping
from typing import NamedTuple

_WIDTH = 118  # of a line of help


class Word(NamedTuple):
    """What one key says.

    Attributes:
        meaning: in one sentence.
        default: as it is written on a command line; empty where there is no such value.
        required: it must be given.
    """

    meaning: str
    default: str = ""
    required: bool = False


def help_of(usage: str, words: Mapping[str, Word], note: str = "") -> str:
    """What --help prints.

    Args:
        usage: the first line.
        words: by key, in the order in which they are told.
        note: the last paragraph.
    """
    shown = {key: f"{key}={word.default}" if word.default else key for key, word in words.items()}
    column = max(map(len, shown.values())) + 4
    lines = [usage, ""]
    for key, word in words.items():
        first = f"  {shown[key]}".ljust(column)
        lines += textwrap.wrap(
            word.meaning, _WIDTH, initial_indent=first, subsequent_indent=" " * column, break_on_hyphens=False
        )
    if note:
        lines += ["", *textwrap.wrap(note, _WIDTH, initial_indent="  ", subsequent_indent="  ")]
    return "\n".join([*lines, ""])
