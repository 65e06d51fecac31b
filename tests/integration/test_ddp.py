"""`trainer.devices=2`: two processes on the CPU do the work of one, leave one run folder, and end together.

tests/test_processes.py has what a group does; here the ranks are real.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from launching import ENV, ranks_in, run, started, two_rank_words, wait_for
from pytorch_lightning.plugins.layer_sync import TorchSyncBatchNorm
from pytorch_lightning.utilities import rank_zero_only
from wandb_records import OfflineRun

import dualseg.evaluate
import dualseg.train
from dualseg.data import Phantom
from dualseg.errors import DualsegError
from dualseg.processes import GROUP
from dualseg.runs.folder import RunFolder, iteration_of
from dualseg.runs.lock import is_locked
from dualseg.training import assembly
from dualseg.training.checkpoints import network_states, read_checkpoint
from dualseg.training.curves import read_curves
from dualseg.training.trainer import build_trainer

pytestmark = pytest.mark.timeout(1500)  # a minute and a half of work, but on a busy machine
HERE = Path(__file__).resolve().parent
STEPS = 3


@pytest.fixture(scope="module")
def words(phantom: Phantom) -> list[str]:
    """Three volumes to validate: the ranks' shares are unequal."""
    return [*two_rank_words(phantom), "data.held_out_validation=3", "trainer.log_every=1"]


def assert_refused(code: int, err: str, *words: str) -> None:
    """With one message, which holds `words`."""
    (message,) = [line for line in err.splitlines() if "error: " in line]
    assert code == 2, err
    assert "Traceback" not in err
    assert all(word in message for word in words), message


@pytest.fixture(scope="module")
def cwd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ddp")


@pytest.fixture(scope="module")
def two(words: list[str], cwd: Path) -> RunFolder:
    """The run of three steps, with a validation along it, that two processes have finished."""
    code, out, err = run(
        cwd, *words, f"trainer.max_iterations={STEPS}", "trainer.validate_every=1",
        "method._target_=ddp_method.NotingDualNetwork", "logger=wandb",
    )  # fmt: skip
    assert code == 0, err
    assert out.count("Training ") == out.count("Finished: ") == 1
    noise = [line for line in err.replace("\r", "\n").splitlines() if line.strip() and "volumes:" not in line]
    assert len(noise) <= 1 and all("hardly found" in line for line in noise), "what three steps teach, said once"
    (folder,) = (cwd / "runs").iterdir()
    return RunFolder(folder)


@pytest.fixture(scope="module")
def notes(two: RunFolder, cwd: Path) -> list[dict[str, Any]]:
    return [torch.load(cwd / f"rank-{rank}.pt") for rank in range(2)]


def test_the_global_batches_are_those_of_one_process(two, notes, monkeypatch) -> None:
    monkeypatch.syspath_prepend(HERE)
    from ddp_method import patches_of

    data = assembly.build_data(two.config())
    data.setup("fit")
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(max_steps=STEPS, global_step=0, global_rank=0, world_size=1, strategy=strategy)
    expected = [patches_of(batch) for batch in data.train_dataloader()]
    assert len(expected) == STEPS
    assert notes[0]["pid"] != notes[1]["pid"]
    for whole, first, second in zip(expected, *(note["batches"] for note in notes), strict=True):
        labeled = [first[0], second[0]]
        unlabeled = [first[1], second[1]]
        assert (len(whole), len(first), len(second)) == (4, 2, 2)
        assert sorted(labeled) == sorted(whole[:2])
        assert sorted(unlabeled) == sorted(whole[2:])


def test_the_ranks_end_with_the_same_weights(two, notes) -> None:
    first, second = (note["parameters"] for note in notes)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    states = network_states(read_checkpoint(two.checkpoint()))
    assert all(torch.equal(value, states[n.split(".", 1)[0]][n.split(".", 1)[1]]) for n, value in first.items())
    initial = assembly.build_networks(two.config(), assembly.build_source(two.config()))
    assert not torch.equal(next(initial["a"].parameters()), states["a"][next(iter(states["a"]))])


def test_one_run_folder_with_one_writer(two) -> None:
    files = {str(path.relative_to(two.path)) for path in two.path.rglob("*") if path.is_file()}
    wandb = {name for name in files if name.startswith("logs/wandb/")}
    slices = {name for name in files if name.startswith("slices/")}
    checkpoint = f"checkpoints/iteration-{STEPS:06d}.ckpt"
    assert files - slices - wandb == {
        "config.yaml", "manifest.json", "preprocessing.json", "metrics.json", "cases.csv", "logs/curves.csv",
        checkpoint,
    }  # fmt: skip
    (record,) = map(OfflineRun, two.wandb.glob("offline-run-*"))
    assert [row["iteration"] for row in record.history] == [1, 2, 3]
    assert len(slices) == 5, "three volumes of the validation, two of the test"
    assert two.finished
    assert not is_locked(two.path)
    curves = [row[:2] for row in read_curves(two.curves_file)]
    assert len(set(curves)) == len(curves)
    assert {t for t, name in curves if name == "loss/total"} == {1, 2, 3}
    assert {t for t, name in curves if name == "validation/ensemble/dice"} == {1, 2, 3}
    manifest = json.loads(two.manifest_file.read_text())
    assert manifest["command"].startswith("python -m dualseg.train data.root=")


def test_the_evaluation_along_the_run_is_of_the_same_networks_as_the_one_after_it(two) -> None:
    along = {name: value for t, name, value in read_curves(two.curves_file) if t == STEPS}
    after = json.loads(two.metrics_file.read_text())["validation"]
    for network, metric in (("a", "dice"), ("a", "asd"), ("b", "dice"), ("b", "hd95"), ("ensemble", "jaccard")):
        assert along[f"validation/{network}/{metric}"] == after[network][metric]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_two_processes_evaluate_as_one(two, split, command, tmp_path) -> None:
    outcome = command(dualseg.evaluate.main, f"run={two.path}", f"split={split}", f"output={tmp_path / split}")
    assert outcome.code == 0, outcome.err
    one = RunFolder(tmp_path / split)
    ours, theirs = (json.loads(folder.metrics_file.read_text())[split] for folder in (two, one))
    assert ours == theirs
    header, *rows = two.cases_file.read_text().splitlines()
    column = header.split(",").index("split")
    assert [
        header,
        *(row for row in rows if row.split(",")[column] == split),
    ] == one.cases_file.read_text().splitlines()
    for path in one.slices.iterdir():
        assert (two.slices / path.name).is_file()


def test_ctrl_c_then_a_killed_rank(words, cwd) -> None:
    arguments = [*words, "trainer.max_iterations=100000", "trainer.checkpoint_every=3", "name=long", "evaluate_on=[]"]
    long = RunFolder(cwd / "runs" / "long")
    with started(cwd, *arguments) as process:
        wait_for(lambda: long.latest_checkpoint() is not None, process)
        # of the same run, at the same time
        second = subprocess.run(process.args, cwd=cwd, env=ENV, capture_output=True, text=True, timeout=600)
        assert_refused(second.returncode, second.stderr, "runs/long: ", "written by process", "name=")
        assert is_locked(long.path)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    stopped_at = iteration_of(long.checkpoint())
    assert out.count("Ctrl-C: finishing") == 1
    assert err.count(f"stopped after iteration {stopped_at}; ") == err.count("To go on: ") == 1
    assert "Traceback" not in err
    assert not is_locked(long.path)

    with started(cwd, *arguments) as process:
        wait_for(lambda: iteration_of(long.checkpoint()) > stopped_at, process)
        killed = time.monotonic()
        os.kill(ranks_in(cwd)[1], signal.SIGKILL)
        out, err = process.communicate(timeout=300)
        assert time.monotonic() - killed < 30
        assert ranks_in(cwd) == {}
    assert process.returncode == 137, err
    assert f"Resuming runs/long from iteration {stopped_at}" in out
    assert err.count("error: ") == 1
    (message,) = [line for line in err.splitlines() if "error: " in line]
    assert "error: rank 1 of 2 " in message and "SIGKILL" in message
    assert "Traceback" not in err
    assert not is_locked(long.path)
    assert iteration_of(long.checkpoint()) > stopped_at


def test_what_all_ranks_complain_of_is_said_once(words, cwd) -> None:
    code, _, err = run(cwd, *words, "trainer.max_iterations=1", "batch.unlabeled=3", "name=uneven", "evaluate_on=[]")
    assert_refused(code, err, "batch.unlabeled=3 ", "evenly to 2 processes")
    assert not (cwd / "runs" / "uneven").exists()


@pytest.fixture
def no_group() -> Iterator[None]:
    """What is left of a process group that a test began in this process is ended, and its environment gone."""
    with patch.dict(os.environ):
        yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def test_no_rank_waits_for_a_head_that_nothing_trains(words, command, no_group, tmp_path) -> None:
    """bcp leaves the coarser logits of the planned networks out. DDP of one rank complains as well as that of two."""
    own = [
        "networks=planned", "plan.channels=[2,2,4,4]", "plan.strides=[[1,1,1],[2,2,2],[2,2,2],[2,2,2]]",
        "plan.kernels=[[3,3,3],[3,3,3],[3,3,3],[3,3,3]]", "plan.blocks=[1,1,1,1]",
    ]  # fmt: skip
    length = ["trainer.max_iterations=3", "evaluate_on=[]", f"output={tmp_path}"]
    one = ["trainer.devices=1", "trainer.strategy=ddp"]
    method = ["method=bcp", "batch.labeled=4", "batch.unlabeled=4"]
    outcome = command(dualseg.train.main, *words, *own, *length, *one, *method)
    assert outcome.code == 0, outcome.err
    assert torch.distributed.is_initialized(), "DDP was used"


# how the trainer is built


@pytest.fixture
def settings(two: RunFolder) -> dict[str, Any]:
    return two.config()


def built(settings: dict[str, Any], **trainer: Any) -> Any:
    changed = {**settings, "trainer": {**settings["trainer"], **trainer}}
    return build_trainer(changed, RunFolder("nowhere"), 0, "")


@pytest.fixture
def as_rank_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ((GROUP, "2"), ("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)


def test_sync_batchnorm_is_for_gpus(settings, as_rank_of_two) -> None:
    with pytest.raises(DualsegError, match=r"trainer\.sync_batchnorm=true: .* GPUs only"):
        built(settings, sync_batchnorm=True)
    assert built(settings).strategy._layer_sync is None


def test_sync_batchnorm_reaches_lightning(settings, monkeypatch) -> None:
    trainer = built(settings, devices=1, strategy="ddp", sync_batchnorm=True)
    assert isinstance(trainer.strategy._layer_sync, TorchSyncBatchNorm)


@pytest.fixture
def as_task_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # a trainer of rank 1 sets it, for all later tests too
    names = ("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS_PER_NODE", "SLURM_NNODES", "SLURM_PROCID")
    for name, value in zip(names, ("2", "2", "2", "1", "1"), strict=True):
        monkeypatch.setenv(name, value)
    for name in ("SLURM_LOCALID", "SLURM_NODEID"):
        monkeypatch.setenv(name, "1" if name == "SLURM_LOCALID" else "0")


def test_tasks_of_srun_are_lightnings_and_requeueing_is_not(settings, as_task_of_two) -> None:
    trainer = built(settings)
    environment = trainer.strategy.cluster_environment
    assert type(environment).__name__ == "SLURMEnvironment"
    assert not environment.auto_requeue
    assert (trainer.world_size, trainer.global_rank) == (2, 1)


@pytest.mark.parametrize(("variable", "word"), [("SLURM_NTASKS_PER_NODE", "4"), ("SLURM_NNODES", "3")])
def test_what_slurm_started_must_be_what_is_configured(settings, as_task_of_two, monkeypatch, variable, word) -> None:
    monkeypatch.setenv(variable, word)
    with pytest.raises(DualsegError, match="not what Slurm started"):
        built(settings)


def test_without_tasks_a_node_slurm_cannot_start_ranks(settings, as_task_of_two, monkeypatch) -> None:
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(DualsegError, match="--ntasks-per-node=2"):
        built(settings)
