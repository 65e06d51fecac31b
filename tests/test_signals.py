"""SIGINT and SIGTERM: where a command is, what it says, and that it ends. Whole trainings: tests/drill/signals.py."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dualseg import evaluate, signals, train
from dualseg.command.failures import guarded
from dualseg.data.reading import VolumeReader
from dualseg.errors import Interrupted
from dualseg.methods import DualNetwork, NetworkEvaluation
from dualseg.runs.folder import RunFolder
from dualseg.signals import STOPS, Stop, handled, held_back, resumable, stoppable

pytestmark = pytest.mark.timeout(120)
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Every test gives SIGINT, SIGTERM and the hooks back."""

    def reached(number, frame):
        raise AssertionError("the signal has reached the tests")

    former = {number: signal.signal(number, reached) for number in STOPS}
    hook = sys.unraisablehook
    yield
    left = [signal.signal(number, handler) for number, handler in former.items()]
    assert left == [reached, reached]
    assert sys.unraisablehook == hook
    assert signal.set_wakeup_fd(-1) == -1


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The exit codes with which the process would have ended at once."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    return codes


def in_python(code: str, seconds: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
    )


@pytest.mark.parametrize("number", STOPS)
def test_every_command_ends_with_the_signals_code(number, capsys):
    with pytest.raises(SystemExit) as stop:
        guarded(lambda: signal.raise_signal(number))
    assert stop.value.code == 128 + number
    assert capsys.readouterr().err == "stopped.\n"


def test_code_that_goes_on_after_failures_lets_it_through():
    def case_after_case() -> None:
        for _ in range(3):
            try:
                signal.raise_signal(signal.SIGTERM)
            except Exception:
                pytest.fail("taken for the failure of a case")

    with pytest.raises(Interrupted), stoppable():
        case_after_case()


def test_how_to_go_on_is_said_once():
    with pytest.raises(Interrupted, match=r"^stopped\. Like this\.$"), resumable("No."), resumable("Like this."):
        raise Interrupted(signal.SIGTERM)


def test_one_that_a_finalizer_swallows_is_raised_again(capfd):
    class Dying:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted) as stop, stoppable():
        Dying()
        time.sleep(20)
    assert stop.value.code == 143
    assert capfd.readouterr().err == ""


def test_a_second_one_leaves_at_once_but_an_echo_does_not(exits, monkeypatch):
    with pytest.raises(Interrupted), stoppable():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)  # `timeout` sends it twice
            assert exits == []
            monkeypatch.setattr(signals, "ECHO", 0.0)
            with pytest.raises(Interrupted):  # where nothing has ended the process
                signal.raise_signal(signal.SIGTERM)
            assert exits == [143]


def test_a_rank_leaves_repeated_ones_to_the_process_that_started_it(monkeypatch):
    monkeypatch.setattr(signals, "ECHO", 0.0)
    for ours, heard in ((False, [15, 2]), (True, [15])):
        monkeypatch.setattr(signals, "in_group", lambda ours=ours: ours)
        stop = Stop()
        assert stop.note(signal.SIGTERM)
        assert stop.note(signal.SIGINT) is not ours
        assert stop.signals == heard


def test_what_takes_long_to_clean_up_is_ended(exits, monkeypatch):
    monkeypatch.setattr(signals, "PATIENCE", 0.1)
    with pytest.raises(Interrupted), stoppable():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            deadline = time.monotonic() + 20
            while not exits:
                assert time.monotonic() < deadline
                time.sleep(0.01)
    assert exits[0] == 143


def test_a_run_that_finishes_its_iteration_first_is_not(exits, monkeypatch):
    monkeypatch.setattr(signals, "PATIENCE", 0.1)
    with stoppable(), handled(lambda number, frame: None):
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.5)
    assert exits == []


STUCK = """
import ctypes, os, signal, threading
from dualseg import signals
signals.PATIENCE = 0.2
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
with signals.stoppable():
    threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGTERM]).start()
    for _ in range(2):
        libc.pthread_mutex_lock(mutex)  # as in a collective operation, no Python code runs, and no signal ends it
"""


def test_a_rank_that_waits_in_vain_ends_in_time():
    ended = in_python(STUCK, DUALSEG_GROUP="2", RANK="1")
    assert ended.returncode == 143
    assert "last checkpoint is kept" in ended.stderr


def test_a_signal_waits_until_a_new_process_can_answer():
    code = """
import os, signal, sys
os.kill(os.getpid(), signal.SIGTERM)
from dualseg.command.failures import guarded
guarded(lambda: None)
"""
    with held_back():
        ended = in_python(code)
    assert (ended.returncode, ended.stderr) == (143, "stopped.\n")
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & {*STOPS}


# a training, and an evaluation of it


def test_a_training_stops_at_sigterm_while_it_reads(command, tiny, phantom, tmp_path, monkeypatch):
    monkeypatch.setattr(VolumeReader, "read_pair", lambda *a: signal.raise_signal(signal.SIGTERM))
    ended = command(train.main, *tiny(phantom.root, tmp_path / "runs"), "name=one")
    assert ended.code == 143, ended.err
    assert ended.err.splitlines()[-1].startswith("stopped. To go on: dualseg-train data.root=")
    assert not (tmp_path / "runs").exists()


def test_a_training_and_its_evaluation_stop_at_sigterm_and_go_on(command, tiny, phantom, tmp_path, monkeypatch):
    words = [*tiny(phantom.root, tmp_path / "runs"), "name=one", "evaluate_on=[test]"]
    step = DualNetwork.training_step
    with monkeypatch.context() as patch:
        patch.setattr(DualNetwork, "training_step", lambda *a: (step(*a), signal.raise_signal(signal.SIGTERM))[0])
        ended = command(train.main, *words)
    run = RunFolder(tmp_path / "runs" / "one")
    assert ended.code == 143, ended.err
    last = ended.err.splitlines()[-1]
    assert "stopped after iteration 1; " in last and "To go on: dualseg-train " in last
    assert [path.name for path in run.checkpoints.iterdir()] == ["iteration-000001.ckpt"]
    assert not run.finished
    ended = command(train.main, *words)
    assert ended.code == 0 and "from iteration 1" in ended.out
    monkeypatch.setattr(NetworkEvaluation, "test_step", lambda *a: signal.raise_signal(signal.SIGTERM))
    ended = command(evaluate.main, f"run={run.path}", f"output={tmp_path / 'eval'}", "trainer.progress_bar=false")
    assert (ended.code, ended.err.splitlines()[-1]) == (143, "stopped.")
    assert not (tmp_path / "eval" / "metrics.json").exists()
