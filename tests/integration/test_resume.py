"""A run that is killed, and interrupted, and started again with the same command ends as if it had never stopped.

tests/training/test_checkpoints.py goes through every iteration in one process; here whole processes die.
"""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dualseg.evaluate
import dualseg.train
from dualseg.data import Phantom, SemiSupervisedDataModule
from dualseg.errors import DualsegError
from dualseg.files import read_json
from dualseg.methods import SegmentationMethod
from dualseg.runs.folder import RunFolder, iteration_of
from dualseg.training import checkpoints
from dualseg.training.checkpoints import network_states, read_checkpoint
from dualseg.training.curves import read_curves

pytestmark = pytest.mark.timeout(1500)  # half a minute of work, but on a busy machine
ITERATIONS = 12
TRAIN = [sys.executable, "-m", "dualseg.train"]
KILLED_IN_THE_VALIDATION_AT_8 = """
import os, signal
from dualseg.methods import NetworkEvaluation
from dualseg.train import main

def validation_step(self, volume, batch_idx, original=NetworkEvaluation.validation_step):
    if self.trainer.global_step == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, volume, batch_idx)

NetworkEvaluation.validation_step = validation_step
main()
"""
KILLED_IN_THE_SECOND_ITERATION = """
import os, signal
from dualseg.methods import SegmentationMethod
from dualseg.train import main

def training_step(self, batch, batch_idx, original=SegmentationMethod.training_step):
    if self.trainer.global_step == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, batch, batch_idx)

SegmentationMethod.training_step = training_step
main()
"""


@pytest.fixture(scope="module")
def words(phantom: Phantom) -> list[str]:
    """Two networks with dropout, 12 iterations, a checkpoint every 3, a validation every 4."""
    return [
        f"data.root={phantom.root}", "+data.source.train=6", "+data.source.test=2",
        "+data.source.shape=[40,36,32]", "data.patch_size=[16,16,16]", "data.stride=[8,16,16]", "data.labeled=2",
        "data.held_out_validation=1", "base_channels=2", f"trainer.max_iterations={ITERATIONS}",
        "trainer.checkpoint_every=3", "trainer.validate_every=4", "trainer.log_every=1", "trainer.threads=1",
        "trainer.accelerator=cpu", "trainer.progress_bar=false",
    ]  # fmt: skip


class Launcher:
    """Starts dualseg-train, name=NAME, in a process of its own."""

    def __init__(self, words: list[str], cwd: Path) -> None:
        self.words, self.cwd = words, cwd

    def __call__(self, name: str, command: Sequence[str] = TRAIN) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, *self.words, "output=runs", f"name={name}"],
            cwd=self.cwd,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def folder(self, name: str) -> RunFolder:
        return RunFolder(self.cwd / "runs" / name)


@pytest.fixture(scope="module")
def start(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    return Launcher(words, tmp_path_factory.mktemp("resume"))


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=1200)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert "not resumable" not in err, "Lightning's advice is wrong here: the sample stream goes on exactly"
    return out, err


def wait_for_checkpoint(folder: RunFolder, process: subprocess.Popen[str], after: int) -> None:
    """Until there is a checkpoint of a later iteration than `after`."""
    deadline = time.monotonic() + 1200
    while time.monotonic() < deadline:
        latest = folder.latest_checkpoint()
        if latest is not None and iteration_of(latest) > after:
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    process.kill()
    pytest.fail("no checkpoint came")


@pytest.fixture(scope="module")
def whole(start: Launcher) -> RunFolder:
    """The run that nothing stops."""
    out, _ = finish(start("whole"))
    assert out.startswith("Training ")
    return start.folder("whole")


def assert_same_values(ours: Any, theirs: Any, where: str) -> None:
    """Nested containers of tensors and numbers, equal to the last bit."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_same_values(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), where
        for index, (x, y) in enumerate(zip(ours, theirs, strict=True)):
            assert_same_values(x, y, f"{where}[{index}]")
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), where
    else:
        assert ours == theirs, where


def assert_same_run(run: RunFolder, whole: RunFolder) -> None:
    checkpoint, expected = (read_checkpoint(folder.checkpoint()) for folder in (run, whole))
    assert checkpoint["global_step"] == expected["global_step"] == ITERATIONS
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_same_values(checkpoint[key], expected[key], key)
    curves = [row for row in read_curves(run.curves_file) if not row[1].startswith("time/")]
    assert curves == [row for row in read_curves(whole.curves_file) if not row[1].startswith("time/")]
    everything = [row[:2] for row in read_curves(run.curves_file)]
    assert len(set(everything)) == len(everything)
    assert {t for t, name in everything if name == "loss/total"} == set(range(1, ITERATIONS + 1))
    assert {t for t, name in everything if name == "validation/ensemble/dice"} == {4, 8, 12}
    for name in ("metrics.json", "cases.csv"):
        assert (run.path / name).read_text() == (whole.path / name).read_text()
    for path in whole.slices.iterdir():
        with np.load(path) as theirs, np.load(run.slices / path.name) as ours:
            assert all(np.array_equal(ours[key], theirs[key]) for key in theirs.files)
    layouts = [sorted(str(p.relative_to(f.path)) for p in f.path.rglob("*")) for f in (run, whole)]
    assert layouts[0] == layouts[1]


def test_killed_twice_and_interrupted_once_a_run_ends_bit_identical(
    start: Launcher, whole: RunFolder, command, monkeypatch
) -> None:
    run = start.folder("stopped")

    process = start("stopped")  # 1: SIGKILL from outside, right after the first checkpoint
    wait_for_checkpoint(run, process, after=0)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    first = iteration_of(run.checkpoint())
    assert not run.finished
    began = json.loads(run.manifest_file.read_text())["started"]

    process = start("stopped", [sys.executable, "-c", KILLED_IN_THE_VALIDATION_AT_8])  # 2: SIGKILL amid a validation
    out, _ = process.communicate(timeout=1200)
    assert process.returncode == -signal.SIGKILL
    assert f"from iteration {first}" in out
    second = iteration_of(run.checkpoint())
    assert second == 6
    # as a kill would leave a checkpoint half-written, and the curves too
    (run.checkpoints / ".01234567.tmp.iteration-000009.ckpt").write_bytes(run.checkpoint().read_bytes()[:1000])
    with run.curves_file.open("a") as file:
        file.write("8,validation/a/di")

    process = start("stopped")  # 3: Ctrl-C
    wait_for_checkpoint(run, process, after=second)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=1200)
    assert process.returncode == 130, err
    assert "Resuming" in out
    third = iteration_of(run.checkpoint())
    assert third >= 9
    assert f"stopped after iteration {third}; " in err and "To go on: python -m dualseg.train" in err
    assert err.rstrip().endswith("name=stopped")
    assert "Traceback" not in err
    assert not run.finished

    out, _ = finish(start("stopped"))  # 4: to the end
    assert f"from iteration {third}" in out
    assert_same_run(run, whole)
    manifest = json.loads(run.manifest_file.read_text())
    assert manifest["started"] == began
    assert [resumed["iteration"] for resumed in manifest["resumed"]] == [first, second, third]
    assert manifest["finished"] is not None
    assert manifest["seconds"] >= round(read_checkpoint(run.checkpoint())["callbacks"]["RunTime"]["seconds"], 1) > 0

    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    monkeypatch.chdir(start.cwd)
    again = command(dualseg.train.main, *start.words, "output=runs", "name=stopped")  # 5: nothing left to do
    assert (again.code, again.err) == (0, "")
    assert again.out.splitlines()[-7:] == out.splitlines()[-7:], "the same table"
    assert "test ensemble" in again.out
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


def test_another_configuration_does_not_resume_this_run(whole, words, command) -> None:
    outcome = command(
        dualseg.train.main, *words, f"output={whole.path.parent}", "name=whole", "optimizer.lr=0.5", "seed=3"
    )
    outcome.complains("optimizer.lr", "0.01 there", "0.5 now", "2 keys", "overwrite=true")
    assert whole.finished


def test_weights_start_another_run_from_this_ones_networks(whole, words, command, tmp_path) -> None:
    given = whole.checkpoint()
    short = ("trainer.max_iterations=1", "trainer.validate_every=null", "evaluate_on=[]", "optimizer.lr=0.0")
    arguments = [*words, f"output={tmp_path}", *short]
    outcome = command(dualseg.train.main, *arguments, f"weights={given}", "name=from")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith(f"Training {tmp_path / 'from'}, from the weights of {given}\n"), "not a resumed one"
    run = RunFolder(tmp_path / "from")
    checkpoint, origin = read_checkpoint(run.checkpoint()), read_checkpoint(given)
    assert checkpoint["global_step"] == 1
    for name, state in network_states(checkpoint).items():
        for key, value in state.items():
            if "running_" not in key and "num_batches" not in key:  # at rate 0 nothing else moves
                assert torch.equal(value, network_states(origin)[name][key]), key
    assert run.config()["weights"] == str(given)
    sha256 = hashlib.sha256(given.read_bytes()).hexdigest()
    assert read_json(run.manifest_file)["weights"] == {"checkpoint": given.name, "sha256": sha256}
    arguments = [*arguments, "method=mean_teacher", "batch={labeled: 2, unlabeled: 2}", f"weights={whole.path}"]
    outcome = command(dualseg.train.main, *arguments, "networks=vnet", "name=plain")
    outcome.complains("['a', 'b']", "['a']", "weights_as={a: a}")
    outcome = command(dualseg.train.main, *arguments, "networks=vnet", "weights_as={a: b}", "name=part")
    assert outcome.code == 0, outcome.err
    outcome = command(dualseg.train.main, *arguments, "networks=vnet", "weights_as={a.encoder: b.encoder}", "name=half")
    assert outcome.code == 0, outcome.err
    half = network_states(read_checkpoint(RunFolder(tmp_path / "half").checkpoint()))["a"]
    key, other = (
        next(k for k in half if k.startswith(part) and k.endswith("weight")) for part in ("encoder", "decoder")
    )
    assert torch.equal(half[key], network_states(origin)["b"][key])
    assert not torch.equal(half[other], network_states(origin)["b"][other])
    started = network_states(read_checkpoint(RunFolder(tmp_path / "part").checkpoint()))
    assert started.keys() == {"a", "teacher"}
    for state in started.values():
        for key, value in state.items():
            if "running_" not in key and "num_batches" not in key:
                assert torch.equal(value, network_states(origin)["b"][key]), key


def test_overwrite_starts_anew(words, command, tmp_path) -> None:
    short = ("trainer.max_iterations=2", "trainer.validate_every=null", "evaluate_on=[]")
    arguments = [*words, f"output={tmp_path}", "name=run", *short]
    run = RunFolder(tmp_path / "run")
    assert command(dualseg.train.main, *arguments).code == 0
    former = read_checkpoint(run.checkpoint())["state_dict"]
    (run.path / "report.html").write_text("of the former run")
    other = ("overwrite=true", "seed=5", "trainer.max_iterations=1")
    outcome = command(dualseg.train.main, *arguments, *other)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("Training ")
    assert not (run.path / "report.html").exists()
    assert [p.name for p in run.checkpoints.iterdir()] == ["iteration-000001.ckpt"]
    assert {row[0] for row in read_curves(run.curves_file)} == {1}
    assert json.loads(run.manifest_file.read_text())["seed"] == 5
    state = read_checkpoint(run.checkpoint())["state_dict"]
    assert not all(torch.equal(value, former[key]) for key, value in state.items())
    outcome = command(dualseg.train.main, *arguments, *other)  # asked again, it starts anew again
    again = read_checkpoint(run.checkpoint())["state_dict"]
    assert outcome.out.startswith("Training ")
    assert all(torch.equal(value, state[key]) for key, value in again.items())


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def former(whole: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of the finished run."""
    return RunFolder(shutil.copytree(whole.path, tmp_path / "runs" / "former"))


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("moment", ["reading", "iteration", "checkpoint", "interrupt"])
def test_an_overwriting_run_that_fails_before_its_first_checkpoint_leaves_the_former_one(
    words, command, former, monkeypatch, moment
) -> None:
    before, full = content(former.path), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    target, name, error = {
        "reading": (SemiSupervisedDataModule, "fingerprint", full),
        "iteration": (SegmentationMethod, "training_step", DualsegError("loss not finite")),
        "checkpoint": (checkpoints.torch, "save", full),
        "interrupt": (SegmentationMethod, "training_step", KeyboardInterrupt()),
    }[moment]
    monkeypatch.setattr(target, name, failing(error))
    arguments = [*words, f"output={former.path.parent}", "name=former"]
    outcome = command(dualseg.train.main, *arguments, "overwrite=true", "seed=5")
    assert outcome.code != 0, outcome
    assert content(former.path) == before
    assert list(former.path.parent.iterdir()) == [former.path]
    monkeypatch.undo()
    assert command(dualseg.train.main, *arguments).out.startswith("Finished")


def test_an_overwriting_run_that_is_killed_before_its_first_checkpoint_leaves_the_former_one(
    start: Launcher, former: RunFolder, command
) -> None:
    before = content(former.path)
    killed = [sys.executable, "-c", KILLED_IN_THE_SECOND_ITERATION]
    launcher = Launcher([*start.words, "overwrite=true", "seed=5"], former.path.parents[1])
    process = launcher("former", killed)
    out, err = process.communicate(timeout=1200)
    assert process.returncode == -signal.SIGKILL and out.startswith("Training"), err
    assert former.latest_checkpoint() is None
    outcome = command(dualseg.evaluate.main, f"run={former.path}", f"output={former.path.parent / 'scores'}")
    assert outcome.code == 0 and "former run again" in outcome.err
    after = content(former.path)
    assert before.items() <= after.items()
    assert {path.name for path in former.path.parent.iterdir()} == {"former", "scores"}
