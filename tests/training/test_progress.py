"""How far a training is, on a terminal and in a file."""

import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dualseg import train
from dualseg.training import progress
from dualseg.training.progress import ProgressLines


def lines_of(
    steps: range, capsys: pytest.CaptureFixture[str], *, every: int = 10, rank: int = 0, first: float = 1.0
) -> list[str]:
    """What a run prints whose iterations after `steps[0]` take a second each, the first of them `first` seconds."""
    trainer: Any = SimpleNamespace(global_step=steps[0], max_steps=100, is_global_zero=rank == 0)
    method: Any = SimpleNamespace(log_every=every)
    trainer.progress_bar_metrics = {"a_dice": 0.5, "loss": 1.25}
    clock = SimpleNamespace(perf_counter=lambda: trainer.global_step - steps[0] - 1 + first)
    bar = ProgressLines()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "time", clock)
        bar.on_train_start(trainer, method)
        for trainer.global_step in steps[1:]:
            bar.on_train_batch_end(trainer, method)
    return capsys.readouterr().out.splitlines()


def iterations(lines: list[str]) -> list[int]:
    return [int(re.findall(r"\d+", line)[0]) for line in lines]


def test_a_line_a_tenth_with_what_is_left_and_what_is_learned(capsys: pytest.CaptureFixture[str]) -> None:
    lines = lines_of(range(101), capsys)
    assert iterations(lines) == [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
    assert lines[0] == "Iteration 10 of 100, 1 s each, 1 min 30 s left: a_dice 0.5, loss 1.25"
    assert "left" not in lines[-1]


def test_only_where_values_are_logged(capsys: pytest.CaptureFixture[str]) -> None:
    assert iterations(lines_of(range(101), capsys, every=8)) == [16, 24, 32, 40, 56, 64, 72, 80, 96]


def test_a_resumed_run_goes_on_and_times_what_it_does_itself(capsys: pytest.CaptureFixture[str]) -> None:
    lines = lines_of(range(55, 101), capsys)
    assert iterations(lines) == [60, 70, 80, 90, 100]
    assert lines[0].startswith("Iteration 60 of 100, 1 s each, 40 s left")


def test_one_process_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines_of(range(101), capsys, rank=1) == []


def test_the_first_iteration_which_compiles_is_not_timed(capsys: pytest.CaptureFixture[str]) -> None:
    lines = lines_of(range(101), capsys, first=120.0)
    assert lines[0].startswith("Iteration 10 of 100, 1 s each, 1 min 30 s left")


def test_a_training_whose_output_is_no_terminal(command: Any, tiny: Any, phantom: Any, tmp_path: Path) -> None:
    words = [word for word in tiny(phantom.root, tmp_path / "runs") if "progress_bar" not in word]
    ended = command(train.main, *words, "trainer.max_iterations=3", "trainer.log_every=1")
    assert ended.code == 0, ended.err
    assert re.findall(r"^Iteration (\d) of 3", ended.out, re.MULTILINE) == ["2", "3"]
    assert "\r" not in ended.out + ended.err and "soft_dice" in ended.out


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("output, expected", [(io.StringIO(), False), (Terminal(), True)])
def test_where_a_bar_belongs(output: io.StringIO, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", output)
    assert progress.shows_bar({"progress_bar": True}) is expected
    assert progress.shows_bar({"progress_bar": False}) is False
