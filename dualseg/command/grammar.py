"""The key=value words of a command: one table for what it takes, its --help and docs/reference.md. No torch here."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dualseg.errors import DualsegError, nearest

_WIDTH = 118  # of a line of help


class Word(NamedTuple):
    """What one key says.

    Attributes:
        meaning: in one sentence.
        default: as it is written on a command line; empty where there is no such value.
        required: what stands for its value in the message that it must be given, such as DIR; empty: it need not.
    """

    meaning: str
    default: str = ""
    required: str = ""


TRUST = Word(
    "a network or dataset of your own that the run folder names, such as my_networks.MyNet; given again for each. "
    "Those of dualseg, MONAI and torch need none. Its module is run: for a folder from somebody else, give it only "
    "where you know that code"
)


def read_words(words: Sequence[str], command: str, keys: Mapping[str, Word]) -> dict[str, str]:
    """key=value words -> their values, each key once and none without a value.

    Args:
        words: of the command line.
        command: what messages call it.
        keys: what it takes.

    Raises:
        DualsegError: a word that is no such thing, or a required key is missing.
    """
    given: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if key not in keys:
            mend = nearest(key, list(keys)) if equals else f" Write key=value, for example {next(iter(keys))}={word}."
            raise DualsegError(f"{key}: no such key of {command}.{mend}")
        if not value:
            raise DualsegError(f"{word}: has no value; write {key}=...")
        if key in given:
            raise DualsegError(f"{key}: is given twice.")
        given[key] = value
    for key, word_of in keys.items():
        if word_of.required and key not in given:
            raise DualsegError(f"{key}={word_of.required} is required.")
    return given


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
