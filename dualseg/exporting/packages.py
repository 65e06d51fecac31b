"""The words of `dualseg-export`. No torch here: a mistake must answer at once."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dualseg.errors import DualsegError
from dualseg.exporting.words import FORMATS, KEYS
from dualseg.words import read_words

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Options:
    """What the command line asks for.

    Attributes:
        run: the run folder.
        format: one of `FORMATS`.
        output: folder to make.
        trust: see `dualseg.runs.trusted.Trust`.
    """

    run: Path
    format: str
    output: Path
    trust: tuple[str, ...] = ()


def parse_words(words: Sequence[str]) -> Options:
    """key=value words -> Options.

    Raises:
        DualsegError: an unknown key or format, or one of the keys is missing or given twice.
    """
    trust = tuple(word.removeprefix("trust=") for word in words if word.startswith("trust="))  # as often as need be
    given = read_words([word for word in words if not word.startswith("trust=")], "dualseg-export", KEYS)
    if given["format"] not in FORMATS:
        raise DualsegError(f"format={given['format']}: choose from {', '.join(FORMATS)}.")
    return Options(Path(given["run"]).expanduser(), given["format"], Path(given["output"]).expanduser(), trust)


def check_packages() -> None:
    """Raises: DualsegError where a package that `format=onnx` needs is not installed."""
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise DualsegError(f"format=onnx needs {', '.join(missing)}: pip install 'dualseg[onnx]'.")
