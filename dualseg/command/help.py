"""What --help prints of a command with options of its own: the fields of their dataclass, its docstring. No torch."""

import inspect
import re
import textwrap
from dataclasses import fields
from typing import TYPE_CHECKING

from dualseg.command.grammar import default_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_WIDTH = 118  # of a line


def help_of(usage: str, options: "type[DataclassInstance]", about: str = "", note: str = "") -> str:
    """The text.

    Args:
        usage: the first line.
        options: see `dualseg.command.grammar`; told in the order of their fields.
        about: what stands before the options, in lines.
        note: what follows them, likewise.
    """
    meanings = described(inspect.getdoc(options) or "", "Attributes")
    shown = {}
    for field in fields(options):
        key = "KEY=VALUE" if field.metadata.get("others") else field.name
        shown[f"{key}={default}" if (default := default_text(field)) else key] = meanings.get(field.name, "")
    column = max(map(len, shown)) + 4
    lines = [usage, "", *([textwrap.indent(about, "  "), ""] if about else [])]
    for key, meaning in shown.items():
        first, rest = f"  {key}".ljust(column), " " * column
        lines += textwrap.wrap(
            meaning, _WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False
        ) or [first.rstrip()]
    return "\n".join([*lines, *(["", textwrap.indent(note, "  ")] if note else []), ""])


def described(docstring: str, section: str) -> dict[str, str]:
    """Name -> its text in a section, such as Args, of a docstring in Google's style."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in docstring.partition(f"{section}:\n")[2].splitlines():
        if line and not line.startswith("    "):
            break
        entry = re.match(r"    (\w+(?:, \w+)*): (.*)", line)
        if entry:
            names = entry[1].split(", ")
            found.update(dict.fromkeys(names, entry[2]))
        elif line.strip():
            found.update({name: f"{found[name]} {line.strip()}" for name in names})
    return found
