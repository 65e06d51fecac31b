"""Files that are written whole or not at all; files below a folder."""

import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from dualseg.errors import DualsegError

LONGEST_NAME = 255  # bytes that file systems take
TEMPORARY = re.compile(r"\.[0-9a-f]{8}\.tmp\.(.+)", re.DOTALL)  # the name of `temporary_beside`, and that of its target


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file beside `path`; when the block ends well, sync that file and rename it to `path`.

    Whatever fails, `path` keeps its former content and no temporary file stays; see `sweep` for a process that is
    killed.

    Raises:
        DualsegError: naming `path`, if the operating system refuses any step.
    """
    try:
        with temporary_beside(path) as temporary:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
    except OSError as error:
        raise DualsegError(f"{path}: cannot be written ({error}); check permissions and free space.") from error


@contextmanager
def temporary_beside(path: Path, folder: bool = False) -> Iterator[Path]:
    """An empty file, or folder, in the folder of `path`; after the block it is gone, unless it was renamed.

    Its name is hidden and keeps the suffixes, by which nibabel chooses its format; a random token keeps parallel
    writers apart. This process holds a lock on it, by which `sweep` knows that it is in use.

    Raises:
        OSError: it cannot be made.
        DualsegError: see `writing_nowhere_but`.
    """
    if not _is_writable(path):
        raise DualsegError(
            f"{path}: is missing or incomplete, and a run folder alone does not make dualseg write there. Name the "
            "data on the command line, data.root=DIR or data.source.splits=FILE, if that is meant."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, descriptor = _make(path, folder)
    try:
        yield temporary
    finally:
        if folder:
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        os.close(descriptor)


def _make(path: Path, folder: bool) -> tuple[Path, int]:
    while True:
        temporary = path.with_name(f".{secrets.token_hex(4)}.tmp.{_end_of(path.name)}")
        if folder:
            temporary.mkdir()
        descriptor = os.open(temporary, os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        with suppress(OSError):  # no locks here: then nothing is swept either
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), temporary.stat()):
                return temporary, descriptor
        os.close(descriptor)  # swept by another process before it was locked


def _end_of(name: str) -> str:
    """What the temporary file of a file by this name ends in: with the longest names there is no room for all of it."""
    return os.fsencode(name)[-(LONGEST_NAME - len(".01234567.tmp.")) :].decode(errors="ignore")


def is_temporary(path: Path) -> bool:
    """Its name is one of `temporary_beside`."""
    return TEMPORARY.fullmatch(path.name) is not None


_WRITABLE: ContextVar[tuple[Path, ...] | None] = ContextVar("writable", default=None)


@contextmanager
def writing_nowhere_but(paths: Iterable[Path]) -> Iterator[None]:
    """Meanwhile files are written and swept at these places and below alone: a run folder from somebody else says where
    its dataset writes.

    In the block, `replacing` raises a DualsegError elsewhere.
    """
    token = _WRITABLE.set(tuple(path.expanduser().resolve() for path in paths))
    try:
        yield
    finally:
        _WRITABLE.reset(token)


def _is_writable(path: Path) -> bool:
    allowed = _WRITABLE.get()
    return allowed is None or any(path.resolve().is_relative_to(place) for place in allowed)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_links(*folders: Path) -> None:
    """None of these folders, in which files are to be written, is a link: one from elsewhere may lead anywhere.

    Those above them may be links, as where all runs lie on another disk.

    Raises:
        DualsegError: naming the link.
    """
    for folder in folders:
        if folder.is_symlink():
            raise DualsegError(
                f"{folder}: is a link to {folder.readlink()}, so files would be written there; remove the link, or put "
                "a folder in its place. To keep a run on another disk, link its whole folder."
            )


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files and folders of killed processes in `folder`, but not below.

    What a living process writes stays, for that holds the lock; where the file system has no locks, all stays.

    Args:
        folder: need not exist.
        name: of the only file or folder whose temporary ones are removed: in a folder that others write, too.
    """
    with suppress(OSError):
        for path in list(folder.iterdir()) if _is_writable(folder) else ():
            match = TEMPORARY.fullmatch(path.name)
            if match and (name is None or match[1] == _end_of(name)):
                _remove_if_left(path)


def sweep_below(folder: Path) -> None:
    """`sweep` a folder and all below."""
    for parent, _, _ in os.walk(folder):
        sweep(Path(parent))


def _remove_if_left(path: Path) -> None:
    with suppress(OSError):
        folder = path.is_dir()
        descriptor = os.open(path, (os.O_RDONLY if folder else os.O_RDWR) | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path) if folder else path.unlink()
        finally:
            os.close(descriptor)


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
        return json.loads(path.read_bytes())  # of UTF-8, -16 and -32, with or without a byte order mark
    except FileNotFoundError:
        raise DualsegError(f"{path}: missing.") from None
    except UnicodeDecodeError as error:
        raise DualsegError(f"{path}: is no text in UTF-8 ({error}); save it in that encoding.") from error
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
