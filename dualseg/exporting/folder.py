"""A folder that is whole or not there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dualseg.errors import DualsegError
from dualseg.files import sweep, temporary_beside


def check_output(path: Path) -> None:
    """Raises: DualsegError where `path` is a file, or a folder that is not empty."""
    if path.exists() and not path.is_dir():
        raise DualsegError(f"output={path}: is a file; give a folder.")
    if path.exists() and any(path.iterdir()):
        raise DualsegError(f"output={path}: is not empty; give a new folder.")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`; when the block ends well, rename it to `path`, which is new or empty.

    Whatever fails, nothing of it stays; what a killed process left of it is removed first.

    Raises:
        DualsegError: naming `path`, if the operating system refuses any step.
    """
    path = path.absolute()
    sweep(path.parent, path.name)
    try:
        with temporary_beside(path, folder=True) as temporary:
            yield temporary
            temporary.replace(path)
    except OSError as error:
        raise DualsegError(f"output={path}: cannot be written ({error}); check permissions and free space.") from error
