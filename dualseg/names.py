"""How names may look that become folders, files, lines of tables and programs of others. No torch here."""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from dualseg.errors import DualsegError

NETWORK = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
# Unicode categories: control and format characters (bidi marks, for one), surrogates, ends of lines and paragraphs
UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
JOINERS = "\u200c\u200d"  # of category Cf, but part of the spelling of words in Persian, Hindi and others
LONGEST = 200  # bytes of a folder's name: file systems take 255, and files in it are named after it


def _is_unseen(letter: str) -> bool:
    return unicodedata.category(letter) in UNSEEN and letter not in JOINERS


def without_controls(text: str) -> str:
    """`text` with the characters that nobody sees, but for ends of lines, as escapes: a terminal would obey them."""
    return "".join(ascii(c)[1:-1] if _is_unseen(c) and c != "\n" else c for c in text)


def check_printable(what: str, names: Iterable[str]) -> None:
    """Raises: DualsegError where a name is empty, has a line break or another character that nobody sees.

    Such a name makes a table unreadable, or shows as another one than it is.
    """
    for name in names:
        if not name.strip():
            raise DualsegError(f"{what} {name!r}: is empty; give a name.")
        unseen = [letter for letter in name if _is_unseen(letter)]
        if unseen:
            raise DualsegError(
                f"{what} {name!r}: has a line break or a control character (U+{ord(unseen[0]):04X}); take it out."
            )


def check_folder_name(key: str, name: str) -> None:
    """Raises: DualsegError unless `name`, the value of `key`, names one folder beside others."""
    check_printable(key, [name])
    if "/" in name or "\\" in name or name.startswith("."):
        raise DualsegError(
            f"{key}={name}: is part of a folder's name, so it holds no / or \\ and does not begin with a dot; where "
            "the folder lies is the matter of output=DIR."
        )
    if len(name.encode()) > LONGEST:
        raise DualsegError(f"{key}={name[:40]}...: is longer than {LONGEST} bytes; give a shorter name.")


def shortened(name: str, longest: int) -> str:
    """A name of at most `longest` bytes; a longer one keeps its beginning, and gets a digest of the whole."""
    encoded = os.fsencode(name)  # a file's name need not be text
    if len(encoded) <= longest:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:8]
    return f"{encoded[: longest - 9].decode(errors='ignore')}-{digest}"


def check_network_names(where: str, networks: Any) -> None:
    """Raises: DualsegError unless `networks` is a mapping by plain names: files are named after networks."""
    if not isinstance(networks, Mapping) or not networks:
        raise DualsegError(f"{where}: is no mapping of names to networks, such as a and b.")
    for name in networks:
        if not isinstance(name, str) or not NETWORK.fullmatch(name):
            raise DualsegError(
                f"{where}: {name!r} is no name of a network; it begins with a letter A to Z, and has letters, digits, "
                "_ and - alone."
            )


def as_markdown(text: str) -> str:
    """One line that Markdown shows as it is, in a cell of a table too: names come from files.

    Numbers in brackets, such as [1], stay as they are.
    """
    line = re.sub(r"[\\`*|~]|(?<!\w)_|_(?!\w)|\[(?!\d+\](?!\s*[(\[:]))", r"\\\g<0>", " ".join(text.split()))
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
