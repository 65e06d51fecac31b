"""Makes the helper modules of this folder and of the predictions' tests importable, and gives a run to export."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "prediction")]


@pytest.fixture
def export(command: Callable) -> Callable:
    """`dualseg-export` with words."""
    import dualseg.export

    return lambda *words: command(dualseg.export.main, *words)
