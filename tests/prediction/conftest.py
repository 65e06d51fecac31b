"""Makes the helper modules of this folder importable under pytest's importlib mode, and gives a run to predict by."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from predict_toys import TRUST, write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder of `Rising` with two `Threshold` networks; its dataset is nowhere."""
    return write_run(tmp_path / "run")


@pytest.fixture
def predict(command: Callable, run: Path, tmp_path: Path) -> Callable:
    """`dualseg-predict run=RUN output=OUT`, which trusts the toys, with further words."""
    import dualseg.predict

    def call(*words: str | Path):
        own = [] if any(str(word).startswith("run=") for word in words) else [f"run={run}"]
        out = [] if any(str(word).startswith("output=") for word in words) else [f"output={tmp_path / 'out'}"]
        return command(dualseg.predict.main, *own, *out, *TRUST, *words)

    return call
