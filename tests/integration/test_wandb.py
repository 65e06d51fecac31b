"""`logger=wandb`, offline: one W&B run for each run folder, whatever happens to the launches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb

import dualseg.methods.dual
import dualseg.train
from dualseg.assembly import build_trainer
from dualseg.data import Phantom
from dualseg.runs.folder import RunFolder


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def initial(path: Path, resumed_at: int = 0, **changes: Any) -> dict[str, Any]:
    """What wandb.init will be called with."""
    trainer = {
        "max_iterations": 2, "validate_every": None, "checkpoint_every": 3, "checkpoints_kept": 1, "log_every": 1,
        "accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "sync_batchnorm": False,
        "precision": "32-true", "progress_bar": False,
    }  # fmt: skip
    logger = {"_target_": "pytorch_lightning.loggers.WandbLogger", "project": "p", "offline": True}
    config = {"trainer": trainer, "logger": logger, **changes}
    return build_trainer(config, RunFolder(path), resumed_at, "").loggers[1]._wandb_init


def test_a_resumed_run_goes_on_in_its_wandb_run(tmp_path):
    started, resumed = initial(tmp_path / "one"), initial(tmp_path / "one", resumed_at=7)
    assert started["name"] == resumed["name"] == "one"
    assert started["dir"] == str(tmp_path / "one" / "logs")
    assert started["id"] == resumed["id"]
    assert (started["resume"], resumed["resume"]) == (None, "allow")


def test_another_folder_or_configuration_is_another_wandb_run(tmp_path):
    runs = [initial(tmp_path / "one"), initial(tmp_path / "two"), initial(tmp_path / "one", seed=5)]
    assert len({run["id"] for run in runs}) == 3


def wandb_runs(run: Path) -> list[Path]:
    return [path for path in (run / "logs" / "wandb").iterdir() if path.name.startswith("offline-run-")]


def test_each_run_of_a_multirun_has_its_own(command: Callable[..., Any], tiny, phantom: Phantom, tmp_path):
    output = tmp_path / "runs"
    outcome = command(dualseg.train.main, "-m", *tiny(phantom.root, output), "logger=wandb", "seed=0,1")
    assert outcome.code == 0, outcome.err
    assert wandb.run is None
    runs = [path for path in output.iterdir() if (path / "config.yaml").is_file()]
    assert len(runs) == 2
    identities = [path.name.rpartition("-")[2] for run in runs for path in wandb_runs(run)]
    assert len(set(identities)) == len(identities) == 2


def test_a_failed_run_closes_its_own(command, tiny, phantom, tmp_path, monkeypatch):
    codes, finish = [], wandb.finish
    monkeypatch.setattr(wandb, "finish", lambda exit_code: (codes.append(exit_code), finish(exit_code)))
    monkeypatch.setattr(dualseg.methods.dual, "cross_pseudo", None)
    with pytest.raises(TypeError):
        command(dualseg.train.main, *tiny(phantom.root, tmp_path / "runs"), "logger=wandb")
    assert wandb.run is None
    assert codes == [1]
