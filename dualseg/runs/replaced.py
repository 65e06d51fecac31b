"""overwrite=true: the former run stands aside, whole, until the new one has a checkpoint of its own. No torch here.

Each step is one rename: whatever kills the process leaves one of these, and the next command goes on from there.

    NAME                   .NAME.replaced   what `settle` does
    former run             -                nothing
    -                      former run       put it back
    new, no checkpoint     former run       remove the new one, put the former back
    new, a checkpoint      former run       remove the former
"""

import hashlib
import os
import platform
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from dualseg.errors import DualsegError
from dualseg.runs.lock import LOCK, holder, is_locked, writing

LONGEST = 240  # bytes of a name to which something is added: file systems take 255


def place_of(path: Path) -> Path:
    """Where the former run of the folder `path` stands while it is overwritten."""
    return _beside(path, "replaced")


def set_aside(path: Path) -> None:
    """Make room for a new run; called with the lock of the folder, which stays held.

    Raises:
        OSError: the file system refuses; the former run is where it was.
    """
    path, former = path.resolve(), place_of(path)
    path.rename(former)
    try:
        path.mkdir()
        _move_lock(former, path)
    except OSError:
        _put_back(path, former)
        raise


def drop(path: Path) -> None:
    """Remove the former run, if the new one has a checkpoint."""
    former = place_of(path)
    removed = _beside(path, "removed")  # of a removal that is cut off nothing is taken for a run
    if former.exists() and _has_checkpoint(path):
        shutil.rmtree(removed, ignore_errors=True)
        with suppress(OSError):  # the next command tries again
            former.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def settle(path: Path) -> None:
    """Keep one of the two runs, where an overwriting one has ended; called with the lock of the folder.

    Raises:
        OSError: the file system refuses.
    """
    drop(path)
    former = place_of(path)
    if former.exists() and not _has_checkpoint(path):
        _put_back(path.resolve(), former)
        reason = "the one that was to take its place had no checkpoint yet"
        print(f"{path}: holds its former run again, for {reason}.", file=sys.stderr)


def recover(path: Path, reading: bool = True) -> Path:
    """`settle` what an overwriting run has left that was killed; one that is running is left alone.

    Args:
        path: a run folder, or where one could be.
        reading: only if the killed process surely is: where locks do not reach, a run may go on on another machine.

    Returns:
        Where to read the run: `path`, or the place of the former run if nobody knows whether the new one goes on.

    Raises:
        DualsegError: naming both folders, where the file system refuses.
    """
    former = place_of(path)
    if not former.exists() or is_locked(former) or is_locked(path):  # the lock moves from the one to the other
        return path
    if reading and not (_held_here(path) or _held_here(former)):
        return path if _has_checkpoint(path) else former
    try:
        with writing(path):
            settle(path)
    except OSError as error:
        raise DualsegError(
            f"{path}: overwriting was cut off; its former run is in {former} and cannot be put back ({error}). Correct "
            "the permissions, or move it yourself."
        ) from error
    return path


def _beside(path: Path, ending: str) -> Path:
    path = path.resolve()
    name = os.fsencode(path.name)
    return path.parent / f".{path.name if len(name) <= LONGEST else hashlib.sha256(name).hexdigest()}.{ending}"


def _put_back(path: Path, former: Path) -> None:
    _move_lock(path, former)
    shutil.rmtree(path, ignore_errors=True)
    former.rename(path)


def _move_lock(folder: Path, other: Path) -> None:
    with suppress(FileNotFoundError):  # where there are no locks
        (folder / LOCK).rename(other / LOCK)


def _has_checkpoint(path: Path) -> bool:
    return any((path / "checkpoints").glob("iteration-*.ckpt"))


def _held_here(folder: Path) -> bool:
    """The lock file says that a process of this machine held it, so that there are locks, and it is dead."""
    return holder(folder).endswith(f" on {platform.node()}")
