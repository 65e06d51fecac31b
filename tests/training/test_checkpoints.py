"""Checkpoints: when they are written, how many stay, and that a run goes on from any of them as if never stopped."""

import csv
import os
import shutil
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from method_toys import tiny_parts, volumes_data

from dualseg import signals
from dualseg.errors import DualsegError, Interrupted
from dualseg.methods import DualNetwork
from dualseg.runs.folder import RunFolder, iteration_of
from dualseg.training.callbacks import RunTime
from dualseg.training.checkpoints import (
    RESUMES,
    AtomicCheckpointIO,
    check_architecture,
    load_networks,
    network_states,
    read_checkpoint,
)
from dualseg.training.curves import read_curves
from dualseg.training.trainer import build_trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*not resumable")
ITERATIONS = 12


class Run:
    """One launch of a run, as dualseg-train makes it, with what it did."""

    def __init__(self, path: Path, resume: bool = False, **trainer: Any) -> None:
        self.folder = RunFolder(path)
        self.folder.checkpoints.mkdir(parents=True, exist_ok=True)
        self.method = DualNetwork(**tiny_parts(), keep_fraction=0.3, prototype_momentum=0.5)
        self.data = volumes_data(held_out_validation=1)
        self.latest = self.folder.latest_checkpoint() if resume else None
        settings = {
            "max_iterations": ITERATIONS, "validate_every": 4, "checkpoint_every": 3, "checkpoints_kept": 1,
            "log_every": 1, "accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto",
            "sync_batchnorm": False, "precision": "32-true", "progress_bar": False, "deterministic": False,
            "profiler": None, **trainer,
        }  # fmt: skip
        config = {"trainer": settings, "logger": None}
        resumed_at = iteration_of(self.latest) if self.latest else 0
        self.trainer = build_trainer(config, self.folder, resumed_at, "dualseg-train name=x")
        self.trained: list[int] = []
        self.validated: list[int] = []
        self.saved: list[int] = []
        step, save = self.method.training_step, self.trainer.save_checkpoint
        self.method.training_step = lambda *a: (self.trained.append(self.trainer.global_step), step(*a))[1]
        self.trainer.save_checkpoint = lambda path: (self.saved.append(iteration_of(path)), save(path))[1]
        validation_end = self.method.on_validation_epoch_end
        self.method.on_validation_epoch_end = lambda: (
            self.validated.append(self.trainer.global_step), validation_end()
        )[1]  # fmt: skip

    def fit(self) -> "Run":
        self.trainer.fit(self.method, self.data, ckpt_path=self.latest)
        return self

    def at(
        self, moment: Callable[[pl.Trainer], bool], hook: str = "on_train_batch_end", number: int = signal.SIGINT
    ) -> "Run":
        """Press Ctrl-C, or send another signal, in `hook` when `moment` has come."""
        callback = pl.Callback()
        setattr(callback, hook, lambda trainer, *a, **k: signal.raise_signal(number) if moment(trainer) else None)
        self.trainer.callbacks.insert(0, callback)
        return self

    @property
    def kept(self) -> list[int]:
        return sorted(iteration_of(p) for p in self.folder.checkpoints.iterdir())

    def state(self) -> dict[str, torch.Tensor]:
        momentum = self.trainer.optimizers[0].state_dict()["state"]
        buffers = {f"momentum {i}": s["momentum_buffer"] for i, s in momentum.items()}
        return {**self.method.state_dict(), **buffers}

    def curves(self) -> list[tuple[int, str, float]]:
        return [row for row in read_curves(self.folder.curves_file) if not row[1].startswith("time/")]


def run_time(run: Run) -> RunTime:
    return next(callback for callback in run.trainer.callbacks if isinstance(callback, RunTime))


def assert_same(run: Run, whole: Run) -> None:
    state, expected = run.state(), whole.state()
    assert state.keys() == expected.keys()
    assert [key for key in state if not torch.equal(state[key], expected[key])] == []
    assert run.curves() == whole.curves()
    assert len({row[:2] for row in run.curves()}) == len(run.curves())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """12 iterations with every checkpoint kept."""
    return Run(tmp_path_factory.mktemp("whole") / "run", checkpoint_every=1, checkpoints_kept=99).fit()


def test_iterations_validations_and_checkpoints_of_a_whole_run(whole):
    assert whole.trainer.global_step == ITERATIONS
    assert whole.trained == list(range(ITERATIONS))
    assert whole.validated == [4, 8, 12]
    assert whole.saved == whole.kept == list(range(1, ITERATIONS + 1))
    names = {row[1] for row in whole.curves()}
    assert {"loss/total", "loss/a/contrast", "lr", "ramp/run", "validation/ensemble/dice"} <= names
    losses = [row[0] for row in whole.curves() if row[1] == "loss/total"]
    assert losses == list(range(1, ITERATIONS + 1)), "named by the iterations that are done"
    assert {r[0] for r in whole.curves() if r[1] == "validation/a/asd"} == {4, 8, 12}
    timed = [r for r in read_curves(whole.folder.curves_file) if r[1] == "time/data_wait_share"]
    assert [r[0] for r in timed] == losses
    assert all(0 <= r[2] <= 1 for r in timed)


@pytest.mark.parametrize("start", range(1, ITERATIONS + 1))
def test_from_any_checkpoint_the_run_ends_as_if_never_stopped(start, whole, tmp_path):
    """Bit-identical weights, momentum and prototypes; validations neither repeated nor left out; curves complete."""
    path = tmp_path / "run"
    (path / "checkpoints").mkdir(parents=True)
    name = f"iteration-{start:06d}.ckpt"
    shutil.copy(whole.folder.checkpoints / name, path / "checkpoints" / name)
    (path / "logs").mkdir()
    shutil.copy(whole.folder.curves_file, path / "logs" / "curves.csv")  # killed long after the checkpoint
    run = Run(path, resume=True, checkpoint_every=5).fit()
    assert run.trained == list(range(start, ITERATIONS))
    assert run.validated == [t for t in (4, 8, 12) if t > start]
    assert run.saved == [t for t in (5, 10, 12) if t > start]
    assert_same(run, whole)


@pytest.mark.parametrize(("every", "keep", "saved"), [(3, 1, [3, 6, 9, 12]), (5, 2, [5, 10, 12]), (50, 1, [12])])
def test_cadence_and_number_kept(every, keep, saved, whole, tmp_path):
    run = Run(tmp_path / "run", checkpoint_every=every, checkpoints_kept=keep, validate_every=None).fit()
    assert run.saved == saved
    assert run.kept == saved[-keep:]
    assert run.validated == []
    for key, value in run.method.state_dict().items():  # and validating changes nothing
        assert torch.equal(value, whole.method.state_dict()[key]), key


def test_validation_at_an_interval_that_does_not_divide_the_run(tmp_path):
    assert Run(tmp_path / "a", validate_every=5).fit().validated == [5, 10]
    assert Run(tmp_path / "b", validate_every=100).fit().validated == [12]


def test_curves_are_points_every_log_every_iterations(tmp_path):
    run = Run(tmp_path / "run", log_every=5, validate_every=None).fit()
    assert [row[0] for row in run.curves() if row[1] == "loss/total"] == [1, 5, 10]
    with run.folder.curves_file.open(newline="") as file:
        assert next(csv.reader(file)) == ["iteration", "name", "value"]


STOPS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture
def handlers() -> Iterator[None]:
    """A run gives SIGINT and SIGTERM back, and they never reach this process."""
    former = {number: signal.signal(number, signal.default_int_handler) for number in STOPS}
    yield
    left = [signal.signal(number, handler) for number, handler in former.items()]
    assert left == [signal.default_int_handler] * 2


@pytest.mark.parametrize(
    ("number", "moment", "hook", "stopped"),
    [
        (signal.SIGINT, lambda trainer: trainer.global_step == 5, "on_train_batch_end", 5),
        (signal.SIGTERM, lambda trainer: trainer.global_step == 5, "on_train_batch_end", 5),
        (signal.SIGTERM, lambda trainer: trainer.global_step == 8, "on_validation_batch_end", 8),
        (signal.SIGTERM, lambda trainer: trainer.global_step == 12, "on_train_batch_end", 12),
        (signal.SIGINT, lambda trainer: True, "on_train_epoch_start", 0),
        (signal.SIGTERM, lambda trainer: True, "on_fit_start", 0),
    ],
    ids=["between", "between, SIGTERM", "validation", "last iteration", "before the first", "before the loop"],
)
def test_a_signal_writes_a_checkpoint_of_what_is_done_and_says_how_to_go_on(
    number, moment, hook, stopped, whole, tmp_path, capsys, handlers
):
    run = Run(tmp_path / "run").at(moment, hook, number)
    with pytest.raises(Interrupted) as stop:
        run.fit()
    assert stop.value.code == 128 + number
    assert (f"after iteration {stopped};" if stopped else "before the first iteration. To") in str(stop.value)
    assert str(stop.value).endswith("To go on: dualseg-train name=x")
    assert "again: stop at once" in capsys.readouterr().out
    assert run.kept == ([stopped] if stopped else [])
    again = Run(tmp_path / "run", resume=True).fit()
    assert again.trained == list(range(stopped, ITERATIONS))
    assert_same(again, whole)


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_during_the_evaluation_says_how_to_go_on(number, tmp_path, handlers):
    run = Run(tmp_path / "run", validate_every=None, max_iterations=2)
    run.at(lambda trainer: True, "on_test_batch_end", number).fit()
    with pytest.raises(Interrupted, match="after iteration 2;") as stop:
        run.trainer.test(run.method, run.data, verbose=False)
    assert stop.value.code == 128 + number


@pytest.mark.parametrize("number", STOPS)
def test_a_second_signal_stops_at_once_and_leaves_nothing_half_written(number, tmp_path, monkeypatch, handlers):
    monkeypatch.setattr(signals, "ECHO", 0.0)
    save = torch.save

    def amid(checkpoint: Any, path: Path) -> None:
        save(checkpoint, path)
        if "iteration-000006" in str(path):
            signal.raise_signal(number)
            signal.raise_signal(number)

    monkeypatch.setattr(torch, "save", amid)
    run = Run(tmp_path / "run")
    with pytest.raises(Interrupted, match="stopped at once") as stop:
        run.fit()
    assert stop.value.code == 128 + number
    assert run.kept == [3], "neither the new one nor a temporary file"


def test_a_signal_that_comes_twice_at_a_time_is_one(tmp_path, handlers):
    """As `timeout` sends it: to its command, and to the process group."""
    run = Run(tmp_path / "run", validate_every=None).at(lambda trainer: trainer.global_step == 5, number=signal.SIGTERM)
    run.at(lambda trainer: trainer.global_step == 5, number=signal.SIGTERM)
    with pytest.raises(Interrupted, match="after iteration 5; a checkpoint"):
        run.fit()


@pytest.fixture
def scheduler() -> Iterator[list[int]]:
    """The signals that handlers as submitit's, installed before the run, have got."""
    got: list[int] = []
    numbers = (signal.SIGUSR2, signal.SIGTERM)
    former = {number: signal.signal(number, lambda number, frame: got.append(number)) for number in numbers}
    ours = {number: signal.getsignal(number) for number in numbers}
    yield got
    left = {number: signal.signal(number, handler) for number, handler in former.items()}
    assert left == ours, "a run gives the signals back"


def test_a_requeue_signal_saves_then_calls_the_handler_once_and_the_run_may_go_on(scheduler, whole, tmp_path):
    """As in a task of a Slurm job that is not the one that requeues: submitit's handler comes back there."""
    run = Run(tmp_path / "run").at(lambda trainer: trainer.global_step == 5, number=signal.SIGUSR2)
    saved_then: list[list[int]] = []
    former = signal.getsignal(signal.SIGUSR2)
    signal.signal(signal.SIGUSR2, lambda *a: (saved_then.append(list(run.kept)), former(*a))[1])
    try:
        run.fit()
    finally:
        signal.signal(signal.SIGUSR2, former)
    assert scheduler == [signal.SIGUSR2]
    assert saved_then == [[5]], "the checkpoint is there when the handler is called"
    assert run.saved == [3, 5, 6, 9, 12]
    assert_same(run, whole)


@pytest.mark.parametrize("stopped", [5, 8, 12])
def test_a_requeued_run_goes_on_as_if_never_stopped(stopped, whole, tmp_path):
    """As in the task that requeues: submitit's handler ends the process."""

    def requeue(number: int, frame: Any) -> None:
        raise SystemExit(-1)

    former = signal.signal(signal.SIGUSR2, requeue)
    try:
        run = Run(tmp_path / "run").at(lambda trainer: trainer.global_step == stopped, number=signal.SIGUSR2)
        with pytest.raises(SystemExit):
            run.fit()
        assert signal.getsignal(signal.SIGUSR2) is requeue
    finally:
        signal.signal(signal.SIGUSR2, former)
    assert run.kept == [stopped]
    assert run.trainer.global_step == stopped
    again = Run(tmp_path / "run", resume=True).fit()
    assert again.trained == list(range(stopped, ITERATIONS))
    assert_same(again, whole)


def test_slurm_taking_the_place_of_a_run_saves_and_lets_it_go_on(scheduler, whole, tmp_path):
    """Ended on its own it would not be requeued: Slurm does that when it ends it."""
    run = Run(tmp_path / "run").at(lambda trainer: trainer.global_step == 5, number=signal.SIGTERM).fit()
    assert run.saved == [3, 5, 6, 9, 12]
    assert scheduler == []
    assert_same(run, whole)


def test_signals_are_left_alone_where_nothing_requeues(tmp_path):
    seen: list[Any] = []
    run = Run(tmp_path / "run", max_iterations=2)
    run.method.on_train_batch_end = lambda *a: seen.append(signal.getsignal(signal.SIGUSR2))  # type: ignore[method-assign]
    run.fit()
    assert seen == [signal.SIG_DFL] * 2


def test_training_works_outside_the_main_thread(tmp_path):
    run = Run(tmp_path / "run", max_iterations=2)
    thread = threading.Thread(target=run.fit)
    thread.start()
    thread.join()
    assert run.kept == [2]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed")])
def test_a_checkpoint_that_cannot_be_written_leaves_the_previous_one(error, tmp_path, monkeypatch):
    save = torch.save

    def half(checkpoint: Any, path: Path) -> None:
        if "iteration-000006" in str(path):
            Path(path).write_bytes(b"half")
            raise error
        save(checkpoint, path)

    monkeypatch.setattr(torch, "save", half)
    run = Run(tmp_path / "run")
    with pytest.raises(DualsegError) as raised:
        run.fit()
    path, reason = run.folder.checkpoints / "iteration-000006.ckpt", getattr(error, "strerror", None) or error
    assert str(raised.value).startswith(f"{path}: the checkpoint could not be written (disk full? {reason}). Earlier")
    assert str(raised.value).count("iteration-000006") == 1, "said once"
    assert run.kept == [3], "neither the new one nor a temporary file"
    monkeypatch.undo()
    assert Run(tmp_path / "run", resume=True).fit().trained == list(range(3, ITERATIONS))


def test_a_killed_launch_counts_up_to_the_checkpoint_that_the_next_one_goes_on_from(whole, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.checkpoints.mkdir(parents=True)
    checkpoint = torch.load(whole.folder.checkpoints / "iteration-000010.ckpt", weights_only=True)
    assert 0 < checkpoint["callbacks"]["RunTime"]["seconds"] < run_time(whole).seconds
    checkpoint["callbacks"]["RunTime"]["seconds"] = 1e6
    torch.save(checkpoint, folder.checkpoints / "iteration-000010.ckpt")
    again = Run(folder.path, resume=True, checkpoint_every=1).fit()
    saved = torch.load(folder.checkpoint(), weights_only=True)["callbacks"]["RunTime"]["seconds"]
    assert 1e6 < saved < run_time(again).seconds < 1e6 + 600


def test_checkpoints_are_synced_and_renamed(tmp_path, monkeypatch):
    events = []
    rename = Path.replace
    kind = {True: "sync folder", False: "sync file"}
    monkeypatch.setattr("os.fsync", lambda descriptor: events.append(kind[stat.S_ISDIR(os.fstat(descriptor).st_mode)]))
    monkeypatch.setattr(Path, "replace", lambda self, target: events.append("rename") or rename(self, target))
    AtomicCheckpointIO().save_checkpoint(
        {"state_dict": {"x": torch.ones(2)}, "dualseg": {"format": 1, "version": "0"}}, tmp_path / "c"
    )
    assert events == ["sync file", "rename", "sync folder"]
    assert torch.equal(read_checkpoint(tmp_path / "c")["state_dict"]["x"], torch.ones(2))


def test_networks_of_a_checkpoint_load_into_new_ones(whole):
    path = whole.folder.checkpoint()
    states = network_states(read_checkpoint(path))
    assert states.keys() == {"a", "b"}
    networks = tiny_parts()["networks"]
    load_networks(path, networks)
    for name, network in networks.items():
        assert network.state_dict().keys() == states[name].keys()
        for key, value in network.state_dict().items():
            assert torch.equal(value, whole.method.networks[name].state_dict()[key])


def test_slices_are_written_in_the_final_evaluation_only(tmp_path):
    run = Run(tmp_path / "run", max_iterations=4).fit()
    assert not run.folder.slices.exists()
    run.trainer.limit_val_batches = 1.0
    run.trainer.validate(run.method, run.data, verbose=False)
    assert [p.name for p in run.folder.slices.iterdir()] == ["case_5.npz"]
    run.trainer.test(run.method, run.data, verbose=False)
    assert sorted(p.name for p in run.folder.slices.iterdir()) == ["case_5.npz", "test_0.npz", "test_1.npz"]


class Masked(torch.nn.Module):
    """Has a mask of attention as a buffer, and extra state that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}

    def set_extra_state(self, state: dict[str, int]) -> None:
        pass


@pytest.mark.parametrize(
    ("place", "value", "resume", "refused"),
    [
        ("mask", -torch.inf, True, None),
        ("mask", torch.nan, False, "networks.a.mask"),
        ("weight", torch.inf, False, "networks.a.weight"),
        ("momentum_buffer", torch.nan, True, "momentum_buffer of parameter 0"),
        ("momentum_buffer", torch.nan, False, None),
    ],
)
def test_values_that_are_not_finite(place, value, resume, refused, tmp_path):
    network = Masked()
    state = {f"networks.a.{key}": entry for key, entry in network.state_dict().items()}
    momentum = {"momentum_buffer": torch.zeros(2), "step": 1}
    where = momentum[place] if place in momentum else state[f"networks.a.{place}"].clone()
    where[1] = value
    if place not in momentum:
        state[f"networks.a.{place}"] = where
    optimizer = {"state": {0: momentum}, "param_groups": []}
    made_by = {"format": 1, "version": "0"}
    path = tmp_path / "iteration-000001.ckpt"
    rest = dict.fromkeys(RESUMES)
    torch.save({**rest, "state_dict": state, "optimizer_states": [optimizer], "dualseg": made_by}, path)
    if refused is None:
        check_architecture(path, {"a": network}, resume)
        load_networks(path, {"a": network})
    else:
        with pytest.raises(DualsegError, match=f"not finite: .*{refused}"):
            check_architecture(path, {"a": network}, resume)


MADE_BY = {"format": 1, "version": "0"}
STATE = {"networks.a.weight": torch.ones(2), "networks.a.mask": torch.zeros(2), "networks.a._extra_state": {}}


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (None, "EOFError"),
        (torch.ones(3), "not written by dualseg"),
        ({"state_dict": STATE}, "not written by dualseg"),
        ({"state_dict": STATE, "dualseg": 1}, "not written by dualseg"),
        ({"state_dict": STATE, "dualseg": {"version": "0"}}, "not written by dualseg"),
        ({"state_dict": STATE, "dualseg": {"format": 2}}, "newer"),
        ({"dualseg": MADE_BY}, "state_dict"),
        ({"state_dict": torch.ones(3), "dualseg": MADE_BY}, "state_dict"),
        ({"state_dict": {1: torch.ones(3)}, "dualseg": MADE_BY}, "state_dict"),
        ({"state_dict": {"networks.a": torch.ones(3)}, "dualseg": MADE_BY}, "state_dict"),
    ],
)
def test_what_is_no_checkpoint_is_named(content, word, tmp_path):
    path = tmp_path / "iteration-000001.ckpt"
    path.touch() if content is None else torch.save(content, path)
    for resume in (False, True):
        with pytest.raises(DualsegError, match=rf"^{path}: .*{word}.*"):
            check_architecture(path, {"a": Masked()}, resume)


@pytest.mark.parametrize("lost", [*RESUMES, "state", "list"])
def test_weights_alone_do_not_resume_a_run(lost, tmp_path):
    path = tmp_path / "iteration-000001.ckpt"
    content = {**dict.fromkeys(RESUMES), "state_dict": STATE, "dualseg": MADE_BY, "optimizer_states": [{"state": {}}]}
    torch.save(content, path)
    check_architecture(path, {"a": Masked()}, resume=True)
    if lost in RESUMES:
        del content[lost]
    else:
        content["optimizer_states"] = [{}] if lost == "state" else 3
    torch.save(content, path)
    check_architecture(path, {"a": Masked()})
    word = lost if lost in RESUMES else "optimizer_states"
    with pytest.raises(DualsegError, match=rf"^{path}: {word} is missing or damaged.*weights=FILE"):
        check_architecture(path, {"a": Masked()}, resume=True)
