"""What lies among files that are read and is not read itself: none of it is passed over without a word."""

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from dualseg.data.formats import READ, SUFFIX, one_file_each, stored_volume
from dualseg.data.nifti import partner
from dualseg.errors import DualsegError
from dualseg.files import contents_of, files_below, is_of_system

# suffixes of what is obviously no scan: notes, tables, settings, and the programs that come on a patient's disc
DOCUMENTS = re.compile(
    r"\.(bat|bval|bvec|cfg|chm|ckpt|class|cmd|com|conf|css|csv|dll|docx?|exe|html?|ico|inf|ini|ipynb|jar|js|jsonl?|lnk|log"
    r"|mat|md|md5|odt|pdf|pkl|pptx?|pth?|pyc?|rst|rtf|sh|sha256|so|toml|tsv|ttf|txt|url|xlsx?|xml|ya?ml)",
    re.IGNORECASE,
)
PICTURES = re.compile(r"\.(bmp|gif|jpe?g|png|svg|webp)", re.IGNORECASE)
_OF_SYSTEMS = ("Thumbs.db", "desktop.ini")
_BEGINNING = 1024  # bytes


def is_document(path: Path) -> bool:
    """Whether a file is obviously no scan: by its suffix or, without one, as a text, such as a README."""
    if path.suffix or not path.is_file():
        return DOCUMENTS.fullmatch(path.suffix) is not None
    try:
        with path.open("rb") as file:
            beginning = file.read(_BEGINNING)
    except OSError:
        return False
    return b"\0" not in beginning and beginning.decode(errors="replace").count("\ufffd") <= 1  # the last may be cut


def unread(files: Iterable[Path], read: Collection[Path]) -> list[Path]:
    """Those of `files` that are neither read nor part of what is read, nor left by a system, in their order.

    Args:
        files: hidden ones count where they are called as volumes are; what macOS leaves beside files does not.
        read: among them or elsewhere.
    """
    taken = {*read, *(part for path in read for part in parts_of(path))}
    return [
        path
        for path in files
        if path not in taken
        and path.name not in _OF_SYSTEMS
        and (not path.name.startswith(".") or (SUFFIX.search(path.name) and not path.name.startswith("._")))
    ]


def parts_of(path: Path) -> list[Path]:
    """The other files of a volume."""
    if path.suffix.lower() in (".mhd", ".nhdr"):
        try:
            return [stored_volume(path).file]
        except DualsegError:  # which reading it will say
            return []
    return [partner(path, "hdr")]


def beside(folder: Path, read: Collection[Path]) -> list[str]:
    """What a folder of a dataset holds that is not read, but for documents: a sentence for each kind of file.

    Args:
        folder: its files are read, those of folders in it are not, unless a list names them.
        read: files that are.
    """
    if not folder.is_dir():
        return []
    told = []
    kinds: dict[str, list[Path]] = {}
    for path in unread(contents_of(folder), read):
        if path.is_dir():
            below = [own for own in unread(files_below(path), read) if not is_document(own)]
            if below or (SUFFIX.search(path.name) and not any(own.is_relative_to(path) for own in read)):
                told.append(f"{path}: is a folder, with {_count(below)}; only files of {folder} itself are read.")
        elif path.name.startswith("."):
            kinds.setdefault("(hidden)", []).append(path)
        elif not is_document(path):
            kinds.setdefault(path.suffix.lower() or "without suffix", []).append(path)
    for kind, paths in kinds.items():
        fix = f"make volumes {READ}, or move them elsewhere"
        told.append(f"{folder}: {_count(paths)} {kind} not read ({some(paths)}); {fix}.")
    return told


def other_folders(root: Path, known: Collection[Path]) -> list[str]:
    """A sentence for each folder of a dataset that has volumes, and none of the names by which they are read."""
    told = []
    for folder in contents_of(root):
        if folder.is_dir() and not is_of_system(folder.name) and folder.resolve() not in known:
            volumes = one_file_each(path for path in contents_of(folder) if not path.name.startswith("."))
            if volumes:
                told.append(f"{folder}: is not read, and holds {_count(volumes)} ({some(volumes)}).")
    return told


def some(paths: Sequence[Path]) -> str:
    """The names of the first three."""
    return ", ".join([*(path.name for path in paths[:3]), *(["..."] if len(paths) > 3 else [])])


def _count(paths: Sequence[Path]) -> str:
    return f"{len(paths)} file{'' if len(paths) == 1 else 's'}"
