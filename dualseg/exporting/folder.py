"""A folder that is whole or not there."""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dualseg.errors import DualsegError


def check_output(path: Path) -> None:
    """Raises: DualsegError where `path` is a file, or a folder that is not empty."""
    if path.exists() and not path.is_dir():
        raise DualsegError(f"output={path}: is a file; give a folder.")
    if path.exists() and any(path.iterdir()):
        raise DualsegError(f"output={path}: is not empty; give a new folder.")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`; when the block ends well, rename it to `path`, which is new or empty.

    Whatever fails, nothing of it stays.

    Raises:
        DualsegError: naming `path`, if the operating system refuses any step.
    """
    path = path.absolute()
    temporary = path.with_name(f".{secrets.token_hex(4)}.tmp.{path.name}")
    try:
        temporary.mkdir(parents=True)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise DualsegError(f"output={path}: cannot be written ({error}); check permissions and free space.") from error
