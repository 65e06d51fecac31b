"""The weights that a run started from are part of what it is: with others it is neither shown nor resumed."""

from pathlib import Path
from typing import Any

import pytest

from dualseg.errors import DualsegError
from dualseg.files import write_json
from dualseg.runs.claim import check_claim
from dualseg.runs.folder import RunFolder, noted_checkpoint


def run_from(weights: Path, output: Path) -> tuple[RunFolder, dict[str, Any]]:
    """A finished run with a checkpoint, which started from `weights`, and its configuration."""
    settings: dict[str, Any] = {
        **{"name": "second", "output": str(output), "overwrite": False, "logger": None, "seed": 0},
        **{"data": {"name": "d"}, "networks": {}, "weights": str(weights), "weights_as": None},
    }
    folder = RunFolder.of(settings)
    folder.open(settings)
    checkpoint = max(weights.glob("checkpoints/*.ckpt"), default=weights)
    write_json(folder.manifest_file, {"dualseg": "0", "weights": noted_checkpoint(checkpoint)})
    (folder.checkpoints / "iteration-000002.ckpt").touch()
    folder.finish({"status": "finished"})
    return folder, settings


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """A run folder with a checkpoint."""
    (tmp_path / "first" / "checkpoints").mkdir(parents=True)
    (tmp_path / "first" / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "first" / "checkpoints" / "iteration-000001.ckpt").write_bytes(b"weights")
    return tmp_path / "first"


@pytest.mark.parametrize("given", ["", "checkpoints/iteration-000001.ckpt"])
def test_a_run_from_other_weights_is_neither_shown_nor_resumed(first, tmp_path, given):
    folder, settings = run_from(first / given, tmp_path)
    check_claim(folder, settings)
    checkpoint = first / "checkpoints" / "iteration-000001.ckpt"
    checkpoint.write_bytes(b"other weights")
    for state in ("finished", "stopped"):
        with pytest.raises(DualsegError, match=f"weights={first / given}, and {checkpoint} is another file now.*over"):
            check_claim(folder, settings)
        check_claim(folder, {**settings, "overwrite": True})
        if state == "finished":
            folder.metrics_file.unlink()
    (folder.checkpoints / "iteration-000002.ckpt").unlink()
    check_claim(folder, settings)  # nothing of the former weights is left


def test_a_run_whose_origin_was_trained_on_started_from_other_weights(first, tmp_path):
    folder, settings = run_from(first, tmp_path)
    (first / "checkpoints" / "iteration-000003.ckpt").write_bytes(b"later weights")
    with pytest.raises(DualsegError, match=r"from iteration-000001\.ckpt of .*iteration-000003\.ckpt .*overwrite=true"):
        check_claim(folder, settings)


def test_where_nothing_can_be_compared_the_run_is_taken_as_it_is(first, tmp_path):
    folder, settings = run_from(first, tmp_path)
    (first / "checkpoints" / "iteration-000001.ckpt").unlink()
    check_claim(folder, settings)
    (first / "config.yaml").unlink()
    check_claim(folder, settings)
    lost = tmp_path / "lost.ckpt"
    lost.write_bytes(b"weights")
    folder, settings = run_from(lost, tmp_path / "more")
    lost.unlink()
    check_claim(folder, settings)
    lost.write_bytes(b"other weights")
    write_json(folder.manifest_file, {"dualseg": "0"})  # of an older version
    check_claim(folder, settings)
