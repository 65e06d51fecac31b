"""Averaged networks against the formula in float64, resumed, alternating, and on two processes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from method_toys import Normed, cpu_trainer, differing, tiny_parts, volumes_data, whole_and_resumed
from torch import Tensor

from dualseg.data.batch import Batch
from dualseg.errors import DualsegError
from dualseg.methods import Average, LossTerm, SegmentationMethod, Term, Time

pytestmark = pytest.mark.filterwarnings("ignore:.*not resumable")
HERE = Path(__file__).resolve().parent
SETTINGS = {
    "constant": Average("a", decay=0.8, warmup=False),
    "warmed up": Average("a", decay=0.6),
    "with buffers": Average("a", decay=0.7, warmup=False, buffers=True),
}


class Teacher(SegmentationMethod):
    """Learns from an averaged network, which runs with its own statistics of the batch or in evaluation mode."""

    averages = {"teacher": Average("a")}
    TERMS = {"supervised_ce": Term("labeled"), "consistency": Term("both")}
    mode = "train"

    def objective(self, batch: Batch, time: Time) -> Iterator[LossTerm]:
        n = len(batch.label)
        student = self.see("a", batch.image)
        yield from self.supervised("a", student.split(n, len(student) - n)[0], batch.label)
        for name in self.averages:
            teacher = self.watch(name, batch.image, self.mode)
            yield self.term("consistency", "a", (student.p - teacher.p).square().mean())

    def on(self, *names: str) -> bool:
        return "supervised_dice" not in names and super().on(*names)


class Alternating(Teacher):
    """Two averages; one of them moves in an iteration."""

    averages = {"even": Average("a", decay=0.8, warmup=False), "odd": Average("a", decay=0.8, warmup=False)}

    def moving_averages(self, time: Time) -> dict[str, Average]:
        name = ("even", "odd")[time.iteration % 2]
        return {name: self.averages[name]}


class States(pl.Callback):
    """All weights and buffers, before the first iteration and after each."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []

    def _note(self, method: pl.LightningModule) -> None:
        self.states.append({name: tensor.clone() for name, tensor in method.state_dict().items()})

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._note(pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self._note(pl_module)


def teacher(setting: Average, mode: str = "train") -> Teacher:
    kind = type("Teacher", (Teacher,), {"averages": {"teacher": setting}, "mode": mode})
    method: Teacher = kind(**tiny_parts(a=Normed()))
    return method


def states_of(method: SegmentationMethod, iterations: int = 4) -> list[dict[str, Tensor]]:
    watch = States()
    cpu_trainer(iterations, callbacks=[watch]).fit(method, volumes_data())
    return watch.states


def of(network: str, state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    start = f"networks.{network}."
    return {n.removeprefix(start): t.double().numpy() for n, t in state.items() if n.startswith(start)}


@pytest.mark.parametrize("kind", SETTINGS)
def test_an_average_moves_by_the_formula_after_each_step(kind):
    setting = SETTINGS[kind]
    first, *states = states_of(teacher(setting, "eval"))
    expected = of("teacher", first)
    assert all((value == of("a", first)[name]).all() for name, value in expected.items()), "it starts as a copy"
    for t, state in enumerate(states):
        decay = min(1 - 1 / (t + 1), setting.decay) if setting.warmup else setting.decay
        followed, found = of("a", state), of("teacher", state)
        for name in expected:
            buffer = "running" in name or "num_batches" in name
            if not buffer or (setting.buffers and "running" in name):
                expected[name] = decay * expected[name] + (1 - decay) * followed[name]
            elif not setting.buffers:  # it did not run in training mode
                expected[name] = followed[name]
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-7, err_msg=f"{t} {name}")
    if setting.warmup:
        assert (of("teacher", states[0])["head.weight"] == of("a", states[0])["head.weight"]).all()
    assert (found["head.weight"] != followed["head.weight"]).any()


def test_buffers_that_are_not_averaged_are_those_of_the_patches_that_it_saw():
    *_, last = states_of(teacher(SETTINGS["constant"], "train"))
    assert of("teacher", last)["body.1.num_batches_tracked"] == 4
    *_, last = states_of(teacher(SETTINGS["constant"], "eval"))
    for name in ("num_batches_tracked", "running_mean", "running_var"):  # else those of before the first iteration
        assert (of("teacher", last)[f"body.1.{name}"] == of("a", last)[f"body.1.{name}"]).all()


def test_alternating_averages_move_one_at_a_time():
    states = states_of(Alternating(**tiny_parts(a=Normed())), 5)
    for t, (before, after) in enumerate(pairwise(states)):
        moved = {
            name: (of(name, before)["head.weight"] != of(name, after)["head.weight"]).any() for name in ("even", "odd")
        }
        assert moved == {"even": t % 2 == 0, "odd": t % 2 == 1}


@pytest.mark.parametrize("kind", [*SETTINGS, "alternating"])
def test_a_resumed_run_has_the_averages_of_the_uninterrupted_one(kind, tmp_path):
    def make() -> SegmentationMethod:
        return Alternating(**tiny_parts(a=Normed())) if kind == "alternating" else teacher(SETTINGS[kind])

    whole, resumed = whole_and_resumed(make, tmp_path)
    assert differing(whole.state_dict(), resumed.state_dict()) == []
    stored = torch.load(tmp_path / "3.ckpt", weights_only=True)["state_dict"]
    for name in whole.averages:
        assert f"networks.{name}.head.weight" in differing(whole.state_dict(), stored), "it moved on"


def test_an_average_is_frozen():
    method = teacher(SETTINGS["constant"])
    states_of(method, 2)
    own = list(method.networks["teacher"].parameters())
    assert own and all(not p.requires_grad and p.grad is None for p in own)
    (optimizer,) = method.trainer.optimizers
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not trained & {id(p) for p in own}


def test_two_processes_have_the_same_averages_heads_and_guard(tmp_path):
    """Which also says that no parameter is without a gradient: torch would refuse the second iteration."""
    done = subprocess.run(
        [sys.executable, str(HERE / "ddp_toys.py"), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE.parents[1]}:{HERE}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(2))
    assert first["cases"] != second["cases"], "each has patches of its own"
    state = first["state"]
    assert {n.split(".")[1] for n in state if n.startswith("networks.")} == {"a", "teacher", "even", "odd"}
    own = differing(state, second["state"])
    assert all("running_" in name for name in own), "BatchNorm's of a rank's own patches, until the next exchange"
    banks = state["heads.guided_contrast.banks.0.count"]
    assert 4 * first["voxels"] < banks.sum() <= 2 * 4 * first["voxels"], "a bank holds the voxels of both"
    assert state["heads.erda.classes.a.present"].all()
    for shares in zip(first["shares"], second["shares"], strict=True):
        assert shares[0] != shares[1]
    mean = sum(first["shares"] + second["shares"]) / 2 / len(first["shares"])  # the guard has that of both processes
    assert float(state["guard.ratio"]) == pytest.approx(mean / first["expected"], rel=1e-6)
    assert first["trained"] == dict.fromkeys(("teacher", "even", "odd"), False)
    for name in ("teacher", "even", "odd"):
        assert (state[f"networks.{name}.head.weight"] != state["networks.a.head.weight"]).any()


@pytest.mark.parametrize("setting", [{"decay": 1.01}, {"decay": True}, {"warmup": 1}, {"buffers": "off"}])
def test_an_average_that_cannot_be_is_refused_where_it_is_made(setting):
    ((key, value),) = setting.items()
    with pytest.raises(DualsegError, match=f"^{key}={value}: give"):
        Average("a", **setting)
