"""Files that are written whole or not at all; files below a folder."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dualseg.errors import DualsegError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; when the block ends well, sync that file and rename it to `path`.

    Whatever fails, `path` keeps its former content and no temporary file stays. The temporary name is hidden and keeps
    the suffixes, by which nibabel chooses its format; a random token keeps parallel writers apart.

    Raises:
        DualsegError: naming `path`, if the operating system refuses any step.
    """
    temporary = path.with_name(f".{secrets.token_hex(4)}.tmp.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise DualsegError(f"{path}: cannot be written ({error}); check permissions and free space.") from error


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write `text` whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Raises: DualsegError if the file is missing, unreadable or no JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise DualsegError(f"{path}: missing.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DualsegError(f"{path}: cannot be read ({error}); restore it from a copy.") from error


def read_object(path: Path) -> dict[str, Any]:
    """Raises: DualsegError as `read_json`, and where it is no JSON object."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise DualsegError(f"{path}: not a JSON object; restore it from a copy.")
    return content


def contents_of(folder: Path) -> list[Path]:
    """Files and folders in a folder, by name.

    Raises:
        DualsegError: it cannot be listed: nobody knows what would be missing.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise _unlisted(error) from error


def files_below(folder: Path, hidden: bool = False) -> Iterator[Path]:
    """All files in a folder and below, by name; links are followed, each folder once; those of `is_of_system` not.

    Args:
        hidden: hidden files too.

    Raises:
        DualsegError: as `contents_of`.
    """

    def refuse(error: OSError) -> None:
        raise _unlisted(error)

    seen: set[Path] = set()
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        own = Path(parent).resolve()
        if own in seen:
            folders.clear()
            continue
        seen.add(own)
        folders[:] = sorted(name for name in folders if not is_of_system(name))
        yield from (Path(parent, name) for name in sorted(names) if hidden or not name.startswith("."))


def is_of_system(folder: str) -> bool:
    """Whether a folder by this name is hidden, or one that an operating system keeps on each disk."""
    return folder.startswith(".") or folder in ("lost+found", "$RECYCLE.BIN", "System Volume Information")


def _unlisted(error: OSError) -> DualsegError:
    return DualsegError(f"{error.filename}: cannot be listed ({error.strerror}); make it readable, or move it away.")
