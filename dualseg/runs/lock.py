"""One writer at a time: a lock on a run folder that the system releases when its process dies."""

import errno
import fcntl
import os
import platform
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from dualseg.errors import DualsegError
from dualseg.names import check_printable

LOCK = ".lock"  # file in the run folder, there while a run writes (and after a kill, when nobody holds it)
PATIENCE = 1.0  # seconds: whoever asks `is_locked` holds the lock for an instant

_held: dict[int, Path] = {}  # descriptor of each lock of this process -> its file


def _let_go() -> None:
    """A forked process, such as one that loads data, would keep the lock beyond its parent's end."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def writing(folder: Path, fix: str = "choose another name=...") -> Iterator[None]:
    """Hold the lock of a folder, which is made if need be, and removed again if nothing was written into it.

    Where the file system has no locks, go on without.

    Raises:
        DualsegError: another process holds it, what lies in its place is no file of its own, or the folder is a link
            that leads nowhere.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in made:
        if path.is_symlink():
            raise DualsegError(f"{path}: is a link to {path.readlink()}, which does not exist; make that or remove it.")
    with suppress(OSError):  # nothing can be written: what writes next says so
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with ExitStack() as stack:
            try:
                stack.enter_context(holding(folder / LOCK))
            except BlockingIOError:
                raise being_written(folder, fix) from None
            yield
    finally:
        with suppress(OSError):  # the first one that is not empty
            for path in made:
                if path.exists():
                    path.rmdir()


@contextmanager
def holding(file: Path, patience: float | None = None) -> Iterator[None]:
    """Hold the lock that is `file`, which is removed afterwards; where there are no locks, go on without.

    Args:
        file: in a folder that exists.
        patience: seconds to wait for another holder; None is `PATIENCE`.

    Raises:
        BlockingIOError: another process holds it.
        DualsegError: what lies in its place is no file of its own.
    """
    try:
        descriptor = _acquire(file, PATIENCE if patience is None else patience)
    except BlockingIOError:
        raise
    except OSError:  # no locks here, or nothing can be written: what writes next says so
        yield
        return
    _held[descriptor] = file
    try:
        yield
    finally:
        if _is_file(descriptor, file):  # else its folder was removed, and another run may have made it anew
            file.unlink()
        _held.pop(descriptor, None)
        os.close(descriptor)


def _acquire(file: Path, patience: float) -> int:
    """Raises: BlockingIOError where another holds it, OSError where there are no locks."""
    deadline = time.monotonic() + patience
    while True:
        descriptor = _opened(file, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_file(descriptor, file):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())
                return descriptor
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise
            time.sleep(0.05)
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder has removed the file, or holds it still


def _opened(path: Path, flags: int) -> int:
    """A descriptor of the lock, which is written to.

    Raises:
        DualsegError: it is a link, of either kind, which a folder from elsewhere may hold to empty another file; a
            pipe, which nobody else may ever open; a folder or a socket.
        OSError: it cannot be opened.
    """
    foreign = DualsegError(f"{path}: is no plain file of its own, as a lock is; remove it.")
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise foreign from error
        raise
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(descriptor)
        raise foreign
    return descriptor


def _is_file(descriptor: int, path: Path) -> bool:
    """The locked file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except (FileNotFoundError, NotADirectoryError):
        return False


def check_in_place() -> None:
    """Raises: DualsegError where a folder that this process is writing was moved, replaced or deleted meanwhile."""
    for descriptor, file in _held.items():
        with suppress(OSError):  # of a network file system that does not answer now: the folder may be where it was
            if _is_file(descriptor, file):
                continue
            raise DualsegError(
                f"{file.parent}: was moved or deleted while the run wrote it. Move it back, then give the same command "
                "again: it resumes from its last checkpoint."
            )


def is_locked(folder: Path) -> bool:
    """A process is writing this run folder; False also where that cannot be known."""
    try:
        descriptor = _opened(folder / LOCK, os.O_RDONLY)
    except (DualsegError, OSError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def holder(folder: Path) -> str:
    """Who holds the lock, or held it when it was killed, as its file says; empty where that says nothing."""
    try:
        with os.fdopen(_opened(folder / LOCK, os.O_RDONLY)) as file:
            who = file.read(200).strip()
        check_printable("lock", [who])
    except (DualsegError, OSError, UnicodeDecodeError):
        return ""
    return who


def being_written(folder: Path, fix: str = "choose another name=...") -> DualsegError:
    """The answer to a second launch of a run that is running."""
    who = holder(folder) or "another process"
    return DualsegError(f"{folder}: is being written by {who}; wait for it or stop it, or {fix}")
