"""continue=true: a finished run is trained on, and ends as one of the full length, or nothing of it is touched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import dualseg.train
from dualseg.data import Phantom
from dualseg.files import read_json
from dualseg.runs.folder import RunFolder

METHOD = ["method=supervised", "lr_schedule=constant", "data.held_out_validation=1", "evaluate_on=[validation]"]


@pytest.fixture
def train(phantom: Phantom, tiny: Callable[..., list[str]], tmp_path: Path, command: Callable[..., Any]) -> Any:
    """(iterations, more words) -> how dualseg-train ended; into `tmp_path`."""

    def call(iterations: int, *words: str) -> Any:
        own = [*tiny(phantom.root, tmp_path), *METHOD, "trainer.log_every=1", "trainer.checkpoint_every=2"]
        return command(dualseg.train.main, *own, f"trainer.max_iterations={iterations}", *words)

    return call


def test_it_ends_as_the_longer_run_to_the_last_bit(train, tmp_path) -> None:
    steps = ["lr_schedule=step", "lr_schedule.milestones=[2,4]"]  # in iterations: one before and one after the end
    for words in (["name=whole", *steps], ["name=parts", *steps]):
        outcome = train(5 if "name=whole" in words else 3, *words)
        assert outcome.code == 0, outcome.err
    parts = RunFolder(tmp_path / "parts")
    assert read_json(parts.metrics_file)["iterations"] == 3
    outcome = train(5, "name=parts", *steps, "continue=true")
    assert outcome.code == 0, outcome.err
    assert "from iteration 3" in outcome.out
    whole = RunFolder(tmp_path / "whole")
    ours, theirs = (torch.load(run.latest_checkpoint(), weights_only=True)["state_dict"] for run in (parts, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert parts.cases_file.read_text() == whole.cases_file.read_text()
    watched = [[line for line in run.curves_file.read_text().splitlines() if ",time/" not in line]
               for run in (parts, whole)]  # fmt: skip
    assert watched[0] == watched[1] and len(watched[0]) > 10
    assert parts.config()["trainer"]["max_iterations"] == 5
    again = train(5, "name=parts", *steps)
    assert (again.code, "Finished" in again.out, "Resuming" in again.out) == (0, True, False), "a run like any other"


def test_a_killed_continuation_is_a_run_that_is_not_finished(train, tmp_path) -> None:
    assert train(2, "name=run").code == 0
    folder = RunFolder(tmp_path / "run")
    longer = folder.config()
    longer["trainer"]["max_iterations"], longer["continue"] = 3, True
    assert folder.lengthens(longer)
    folder.open(longer)
    assert not folder.finished and not folder.lengthens(longer)
    for words in (["continue=true"], []):
        outcome = train(3, "name=run", *words)
        assert outcome.code == 0, outcome.err
    assert read_json(folder.metrics_file)["iterations"] == 3


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (["lr_schedule=polynomial"], "lr_schedule"),
        (["lr_schedule=step", "lr_schedule.milestones=[0.5]"], "lr_schedule"),
        (["method=cps"], ".ramp"),
        (["method=dual"], "method.rampup_iterations"),
        (["method=bcp", "networks=planned"], "method.pretraining"),
    ],
)
def test_what_follows_the_length_of_the_run_is_refused(words, keys, train, tmp_path) -> None:
    own = ["name=run", *words, "batch.labeled=2", "batch.unlabeled=2"]
    assert train(2, *own, "evaluate_on=[]").code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    outcome = train(3, *own, "evaluate_on=[]", "continue=true")
    outcome.complains(keys, f"weights={tmp_path / 'run'}")
    after = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {path for path in before | after if before.get(path) != after.get(path)} == set(), "nothing was touched"


def test_what_is_no_run_to_train_on(train) -> None:
    train(2, "continue=true").complains("continue=true", "name=...")
    train(2, "continue=true", "name=none").complains("none", "continue=true")
    assert train(3, "name=run", "evaluate_on=[]").code == 0
    train(4, "name=run", "evaluate_on=[]").complains("trainer.max_iterations", "continue=true")
    for other in (["seed=1"], ["trainer.max_iterations=2"]):
        outcome = train(4, "name=run", "evaluate_on=[]", "continue=true", *other)
        assert "continue=true" not in outcome.complains("overwrite=true")
    train(4, "-m", "continue=true", "name=run", "evaluate_on=[]").complains("continue=true", "-m")
