"""overwrite=true: the former run stands aside, whole, until the new one has a checkpoint of its own. No torch here.

Each step is one rename: whatever kills the process leaves one of these, and the next command goes on from there.

    NAME                   .NAME.replaced   what `settle` does
    former run             -                nothing
    -                      former run       put it back
    new, no checkpoint     former run       remove the new one, put the former back
    new, a checkpoint      former run       remove the former

Beside them .NAME.removed is what is being removed, .NAME.settling a lock while runs are moved.
"""

import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dualseg.errors import DualsegError
from dualseg.files import is_temporary
from dualseg.runs.lock import LOCK, holder, holding, is_locked, writing

SETTLING = "settling"
PATIENCE = 60.0  # seconds: removing a run may take that long
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
    with _settling(path):
        path.rename(former)
        try:
            path.mkdir()
            _move_lock(former, path)
        except OSError:
            _put_back(path, former)
            raise


def drop(path: Path) -> None:
    """Remove the former run, if the new one has a checkpoint."""
    if _has_checkpoint(path) and _has_left(path):
        with suppress(OSError), _settling(path):  # the next command tries again
            _drop(path)


def settle(path: Path) -> None:
    """Keep one of the two runs, where an overwriting one has ended; called with the lock of the folder.

    Raises:
        OSError: the file system refuses.
    """
    if _has_left(path):
        with _settling(path):
            _settle(path)


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
    if is_locked(path) or not _has_left(path):
        return path
    former = place_of(path)
    try:
        with _settling(path):
            if is_locked(former) or is_locked(path):  # the lock moves from the one to the other
                return path
            if reading and former.exists() and not (_held_here(path) or _held_here(former)):
                return path if _is_whole(path) else former
            if former.exists():
                with writing(path):
                    _settle(path)
            else:
                _drop(path)
    except OSError as error:
        raise DualsegError(
            f"{path}: overwriting was cut off; its former run is in {former} and cannot be put back ({error}). Correct "
            "the permissions, or move it yourself."
        ) from error
    return path


@contextmanager
def _settling(path: Path) -> Iterator[None]:
    """Only one process at a time moves the two runs: the lock of the folder moves with them, and is free between."""
    with holding(_beside(path, SETTLING), PATIENCE):
        yield


def _has_left(path: Path) -> bool:
    """An overwriting run is running, or was killed."""
    return any(_beside(path, ending).exists() for ending in ("replaced", "removed", SETTLING))


def _drop(path: Path) -> None:
    former = place_of(path)
    removed = _beside(path, "removed")  # of a removal that is cut off nothing is taken for a run
    shutil.rmtree(removed, ignore_errors=True)
    if former.exists() and _has_checkpoint(path):
        with suppress(OSError):  # the next command tries again
            former.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)


def _settle(path: Path) -> None:
    _drop(path)
    former = place_of(path)
    if not former.exists() or _has_checkpoint(path):
        return
    if _is_whole(path):
        print(f"{path}: holds results, and so does {former}: both are kept; remove one of them.", file=sys.stderr)
        return
    _put_back(path.resolve(), former)
    reason = "the one that was to take its place had no checkpoint yet"
    print(f"{path}: holds its former run again, for {reason}.", file=sys.stderr)


def _beside(path: Path, ending: str) -> Path:
    path = path.resolve()
    name = os.fsencode(path.name)
    return path.parent / f".{path.name if len(name) <= LONGEST else hashlib.sha256(name).hexdigest()}.{ending}"


def _put_back(path: Path, former: Path) -> None:
    aside = _beside(path, "removed")
    shutil.rmtree(aside, ignore_errors=True)
    _move_lock(path, former)
    with suppress(FileNotFoundError):  # killed here, or the folder could not be made
        path.rename(aside)
    try:
        former.rename(path)
    except OSError:
        with suppress(OSError):
            aside.rename(path)
            _move_lock(former, path)
        if former.exists():  # else another process has settled it, where there are no locks
            raise
    shutil.rmtree(aside, ignore_errors=True)


def _move_lock(folder: Path, other: Path) -> None:
    with suppress(FileNotFoundError):  # where there are no locks
        (folder / LOCK).rename(other / LOCK)


def holds_no_work(path: Path) -> bool:
    """The folder is missing, empty or as dualseg-train leaves it that was killed before it had written manifest.json,
    by which a run folder is known.
    """
    if not path.exists():
        return True
    for one in path.iterdir():
        if one.name in ("checkpoints", "logs") and one.is_dir() and not one.is_symlink():
            if not all(map(is_temporary, one.iterdir())):
                return False
        elif one.name not in (LOCK, "config.yaml", "preprocessing.json", "plan.yaml") and not is_temporary(one):
            return False
    return True


def _has_checkpoint(path: Path) -> bool:
    return any((path / "checkpoints").glob("iteration-*.ckpt"))


def _is_whole(path: Path) -> bool:
    """Something that no overwriting run has which was killed before its first checkpoint, as an evaluation's results.

    A folder from elsewhere may have the name of a former run.
    """
    return _has_checkpoint(path) or (path / "metrics.json").exists()


def _held_here(folder: Path) -> bool:
    """The lock file says that a process of this machine held it, so that there are locks, and it is dead."""
    return holder(folder).endswith(f" on {platform.node()}")
