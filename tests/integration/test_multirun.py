"""`dualseg-train -m` with real ranks: one run folder a job, and a signal ends all of it, whatever launches the runs."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from launching import press_ctrl_c, processes_in, run, started, two_rank_words, wait_for

from dualseg.data import Phantom
from dualseg.runs.folder import RunFolder, iteration_of
from dualseg.runs.lock import is_locked
from dualseg.studies.index import Sweep, iterations_done

pytestmark = pytest.mark.timeout(1500)  # a minute of work, but on a busy machine
LAUNCHERS = {
    "basic": ["launcher=basic"],
    # two runs at a time: one rank each, for the time that it takes to start more
    "joblib": ["launcher=joblib", "hydra.launcher.n_jobs=2", "trainer.devices=1"],
}


def sweep_words(phantom: Phantom, launcher: str) -> list[str]:
    return ["-m", "seed=0,1", "evaluate_on=[]", *two_rank_words(phantom), *LAUNCHERS[launcher]]


def run_folders(cwd: Path) -> list[RunFolder]:
    return [RunFolder(path) for path in sorted((cwd / "runs").glob("*")) if path.name != "sweeps"]


def the_sweep(cwd: Path) -> Sweep:
    (path,) = (cwd / "runs" / "sweeps").iterdir()
    return Sweep(path)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_runs(phantom, tmp_path, launcher) -> None:
    code, out, err = run(tmp_path, *sweep_words(phantom, launcher), "trainer.max_iterations=2")
    assert code == 0, err
    assert processes_in(tmp_path) == set()
    folders = run_folders(tmp_path)
    assert [folder.finished for folder in folders] == [True, True]
    assert sorted(folder.config()["seed"] for folder in folders) == [0, 1]
    sweep = the_sweep(tmp_path)
    for folder in folders:
        said = sweep.log_file(folder.path.name).read_text()
        assert said.count("Training ") == said.count("Finished: ") == 1, "one writer, started once"
        assert [path.name for path in folder.checkpoints.iterdir()] == ["iteration-000002.ckpt"]
        assert json.loads(folder.manifest_file.read_text())["resumed"] == []
        assert not is_locked(folder.path)
    assert "[2/2] done " in out


@pytest.mark.parametrize(
    ("launcher", "number", "code"),
    [("joblib", signal.SIGINT, 130), ("basic", signal.SIGTERM, 143)],
)
def test_a_signal_leaves_a_checkpoint_and_no_process(phantom, tmp_path, launcher, number, code) -> None:
    at_a_time = {"basic": 1, "joblib": 2}[launcher]
    with long_sweep(phantom, tmp_path, launcher, at_a_time) as process:
        if number == signal.SIGINT:
            press_ctrl_c(process)
        else:
            process.send_signal(number)
        _, err = process.communicate(timeout=300)
        assert processes_in(tmp_path) == set()
    assert process.returncode == code, err
    assert err.splitlines()[-1] == "stopped." and "Traceback" not in err
    folders = run_folders(tmp_path)
    assert len(folders) == at_a_time, "no other run is started"
    for folder in folders:
        assert iteration_of(folder.checkpoint()) >= iterations_done(folder) > 0
        assert not is_locked(folder.path)
    sweep = the_sweep(tmp_path)
    assert [sweep.state(job) for job in sweep.jobs()].count("interrupted") == at_a_time
    assert [sweep.failure(job.run) for job in sweep.jobs()] == [None, None]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_killed_sweep_leaves_no_process(phantom, tmp_path, launcher) -> None:
    with long_sweep(phantom, tmp_path, launcher, {"basic": 1, "joblib": 2}[launcher]) as process:
        process.kill()
        process.communicate(timeout=300)
        deadline = time.monotonic() + 30
        while left := processes_in(tmp_path):
            assert time.monotonic() < deadline, left
            time.sleep(0.1)


@contextmanager
def long_sweep(phantom: Phantom, cwd: Path, launcher: str, runs: int) -> Iterator[subprocess.Popen[str]]:
    """A sweep of which so many runs are training; it ends with the block."""
    lasting = ["trainer.max_iterations=100000", "trainer.checkpoint_every=100000", "trainer.log_every=1"]
    with started(cwd, *sweep_words(phantom, launcher), *lasting) as process:
        wait_for(lambda: sum(iterations_done(folder) > 0 for folder in run_folders(cwd)) == runs, process)
        yield process
