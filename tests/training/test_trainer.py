"""What is built of a configuration: loggers and callbacks of the user's own, and what Lightning's trainer is told."""

import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.profilers import SimpleProfiler

from dualseg import train
from dualseg.configuration import conf_dir
from dualseg.data import SemiSupervisedDataModule
from dualseg.errors import DualsegError
from dualseg.runs.folder import RunFolder
from dualseg.runs.identity import run_name
from dualseg.training.curves import read_curves
from dualseg.training.settings import resolve
from dualseg.training.tensorboard_logger import TensorBoardLogger
from dualseg.training.trainer import build_callbacks, build_logger, build_trainer


class Listener(pl.Callback):
    def __init__(self, every: int = 1) -> None:
        self.every = every


class Logger(CSVLogger):
    """Takes of a run what this one needs."""

    def __init__(self, resumed_at: int, level: str) -> None:
        super().__init__(".")
        self.known = resumed_at, level


class Thing:
    pass


def settings(*words: str) -> dict[str, Any]:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return resolve(compose("train", ["trainer.accelerator=cpu", "trainer.progress_bar=false", *words]))


def trainer(folder: Path, *words: str) -> pl.Trainer:
    return build_trainer(settings(*words), RunFolder(folder), 0, "again")


def named(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest imports this file under a name of its own."""
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Listener.__module__])


def test_callbacks_of_the_user_s_own_run_beside_the_others(tmp_path):
    word = f"+callbacks.mine._target_={named(Listener)}"
    built = trainer(tmp_path, word, "+callbacks.mine.every=5", f"+callbacks.other._target_={named(Listener)}")
    assert [one.every for one in built.callbacks if isinstance(one, Listener)] == [5, 1]
    assert run_name(settings(word)) != run_name(settings()), "a callback may change what is learned"


@pytest.mark.parametrize(
    "own, words",
    [
        (3, "callbacks=3: give each a name"),
        ({"mine": 3}, r"callbacks\.mine=3: names no class; give callbacks\.mine\._target_=module\.Class"),
        ({"mine": {"every": 3}}, r"callbacks\.mine={'every': 3}: names no class"),
        ({"mine": {"_target_": named(Thing)}}, r"callbacks\.mine: .*Thing is no pytorch_lightning\.Callback"),
        ({"mine": {"_target_": named(Listener), "at": 3}}, r"callbacks\.mine\.at: no such configuration key"),
        (
            {"mine": {"_target_": "pytorch_lightning.callbacks.ModelCheckpoint"}},
            r"callbacks\.mine: dualseg writes the checkpoints itself.*trainer\.checkpoint_every",
        ),
    ],
)
def test_what_is_no_callback_is_refused(own, words):
    with pytest.raises(DualsegError, match=words):
        build_callbacks(own)


def test_a_logger_gets_what_it_takes(tmp_path):
    folder = RunFolder(tmp_path)
    csv = build_logger({"_target_": "pytorch_lightning.loggers.CSVLogger", "name": "mine"}, folder, 3)
    assert isinstance(csv, CSVLogger) and Path(csv.root_dir) == tmp_path / "logs" / "mine"
    own = build_logger({"_target_": named(Logger), "level": "high"}, folder, 3)
    assert own.known == (3, "high")
    elsewhere = {"_target_": "pytorch_lightning.loggers.CSVLogger", "save_dir": "elsewhere"}
    assert Path(build_logger(elsewhere, folder, 3).root_dir).parent == Path("elsewhere")


@pytest.mark.parametrize(
    "own, words",
    [
        ({"level": "high"}, r"logger={'level': 'high'}: names no class"),
        ({"_target_": named(Logger), "colour": 1}, r"logger\.colour: no such configuration key"),
    ],
)
def test_what_a_logger_does_not_take_is_refused(own, words, tmp_path):
    with pytest.raises(DualsegError, match=words):
        build_logger(own, RunFolder(tmp_path), 0)


def test_a_logger_that_cannot_be_imported(command, tiny, phantom, tmp_path):
    words = tiny(phantom.root, tmp_path / "runs")
    command(train.main, *words, "+logger._target_=nowhere.Logger").complains("nowhere.Logger: no module nowhere")


def test_tensorboard_that_is_not_installed_is_named(tmp_path, monkeypatch):
    for package in ("TENSORBOARD", "TENSORBOARDX"):
        monkeypatch.setattr(f"lightning_fabric.loggers.tensorboard._{package}_AVAILABLE", False)
    with pytest.raises(DualsegError, match=r"logger=tensorboard .*pip install 'dualseg\[tensorboard\]'"):
        TensorBoardLogger(RunFolder(tmp_path))


def test_points_after_the_checkpoint_are_forgotten_by_tensorboard(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for resumed_at, end in ((0, 5), (3, 6)):
        logger = TensorBoardLogger(RunFolder(tmp_path), resumed_at)
        for step in range(resumed_at + 1, end + 1):
            logger.log_metrics({"loss": float(end)}, step)
        logger.finalize("success")
    seen = events.EventAccumulator(str(tmp_path / "logs" / "tensorboard")).Reload().Scalars("loss")
    assert [(one.step, one.value) for one in seen] == [(1, 5), (2, 5), (3, 5), (4, 6), (5, 6), (6, 6)]


def test_a_profile_goes_into_the_run_folder_and_makes_no_other_run(tmp_path):
    built = trainer(tmp_path, "trainer.profiler=simple")
    assert isinstance(built.profiler, SimpleProfiler) and built.profiler.dirpath == tmp_path / "logs"
    assert run_name(settings("trainer.profiler=simple")) == run_name(settings())


@pytest.mark.parametrize("value, warns", [("true", False), ("warn", True)])
def test_deterministic_operations(tmp_path, value, warns):
    try:
        trainer(tmp_path, f"trainer.deterministic={value}")
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled() == warns
        assert not torch.backends.cudnn.benchmark
        trainer(tmp_path)
        assert not torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)
    assert run_name(settings(f"trainer.deterministic={value}")) != run_name(settings())
    assert run_name(settings("trainer.compile=true")) == run_name(settings())  # the same but for rounding


@pytest.mark.parametrize(
    "word", ["trainer.deterministic=maybe", "trainer.deterministic=1", "trainer.profiler=fast", "trainer.compile=maybe"]
)
def test_values_that_the_trainer_does_not_take(word):
    with pytest.raises(DualsegError, match=word):
        settings(word)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_where_patches_are_cut_on_the_gpu_there_is_no_share_of_waiting(
    on_gpu: bool, command: Any, tiny: Any, phantom: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU is made up: a copy of the volumes stands for those that lie there."""
    volumes_on = SemiSupervisedDataModule._volumes_on
    made_up = (lambda data, device: {**data.volumes}) if on_gpu else volumes_on
    monkeypatch.setattr(SemiSupervisedDataModule, "_volumes_on", made_up)
    ended = command(train.main, *tiny(phantom.root, tmp_path / "runs"), "name=x", "method=supervised", "evaluate_on=[]")
    assert ended.code == 0, ended.err
    curves = {name for _, name, _ in read_curves(RunFolder(tmp_path / "runs" / "x").curves_file)}
    assert "time/seconds_per_iteration" in curves and ("time/data_wait_share" in curves) != on_gpu
