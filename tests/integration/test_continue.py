"""continue=true: a run is trained on, and ends as one of that length, or nothing of it is touched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import dualseg.train
from dualseg.data import Phantom
from dualseg.files import read_json
from dualseg.runs.folder import RunFolder
from dualseg.training.wandb_logger import run_id

METHOD = ["method=supervised", "lr_schedule=constant", "data.held_out_validation=1", "evaluate_on=[validation]"]


@pytest.fixture
def train(phantom: Phantom, tiny: Callable[..., list[str]], tmp_path: Path, command: Callable[..., Any]) -> Any:
    """(iterations, more words) -> how dualseg-train ended; into `tmp_path`."""

    def call(iterations: int, *words: str) -> Any:
        own = [*tiny(phantom.root, tmp_path), *METHOD, "trainer.log_every=1", "trainer.checkpoint_every=2"]
        return command(dualseg.train.main, *own, f"trainer.max_iterations={iterations}", *words)

    return call


@pytest.mark.parametrize(
    "own",
    [
        # milestones in iterations: one before and one after the end
        ["lr_schedule=step", "lr_schedule.milestones=[2,4]"],
        ["method=mean_teacher", "++method.terms.consistency.ramp=none", "trainer.validate_every=1"],
    ],
)
def test_it_ends_as_the_longer_run_to_the_last_bit(own, train, tmp_path) -> None:
    assert train(5, "name=whole", *own).code == 0
    assert train(3, "name=parts", *own).code == 0
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    files = (parts.metrics_file, parts.cases_file, parts.config_file, parts.manifest_file)
    before = {path.name: path.read_bytes() for path in files}
    assert read_json(parts.metrics_file)["iterations"] == 3
    planned = train(5, "name=parts", *own, "continue=true", "dry=true")
    assert planned.code == 0 and "from iteration 3" in planned.out and "2 iterations" in planned.out
    outcome = train(5, "name=parts", *own, "continue=true")
    assert outcome.code == 0, outcome.err
    assert "from iteration 3" in outcome.out
    ours, theirs = (torch.load(run.latest_checkpoint(), weights_only=True)["state_dict"] for run in (parts, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert parts.cases_file.read_text() == whole.cases_file.read_text()
    rows = [
        [line for line in run.curves_file.read_text().splitlines() if ",time/" not in line] for run in (parts, whole)
    ]
    assert rows[0] == rows[1] and len(rows[0]) > 10
    (kept,) = parts.evaluations.iterdir()
    assert kept.name == "001-iteration-000003"
    assert {name: (kept / name).read_bytes() for name in before} == before
    assert [*(kept / "slices").iterdir()] != []
    again = train(5, "name=parts", *own)
    assert (again.code, "Finished" in again.out, "Resuming" in again.out) == (0, True, False), "a run like any other"
    manifest = read_json(parts.manifest_file)
    assert "trainer.max_iterations=5" in manifest["command"] and "continue" not in manifest["command"]
    assert (manifest["iterations"], [one["iteration"] for one in manifest["resumed"]]) == (3, [3])
    assert run_id(parts, parts.config()) == run_id(parts, RunFolder(kept).config()), "one W&B run"


def test_a_killed_continuation_is_a_run_that_is_not_finished(train, tmp_path) -> None:
    assert train(2, "name=run").code == 0
    folder = RunFolder(tmp_path / "run")
    longer = folder.config()
    longer["trainer"]["max_iterations"], longer["continue"] = 300, True
    assert folder.changes_length(longer)
    folder.open(longer)
    assert not folder.finished and not folder.changes_length(longer)
    for words in (["continue=true"], []):  # 300 were a mistake: 3 it is
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
    train(2, "continue=true", "name=none", "overwrite=true").complains("overwrite=true continue=true")
    assert train(3, "name=run", "evaluate_on=[]").code == 0
    train(4, "name=run", "evaluate_on=[]").complains("trainer.max_iterations", "continue=true")
    for other in (["seed=1"], ["trainer.max_iterations=2"]):
        outcome = train(4, "name=run", "evaluate_on=[]", "continue=true", *other)
        assert "continue=true" not in outcome.complains("overwrite=true")
    named = train(2, "evaluate_on=[]").out
    folder = next(line.removeprefix("Finished: ") for line in named.splitlines() if line.startswith("Finished: "))
    for dry in ([], ["dry=true"]):  # which says what would be done, and so what would be refused
        train(4, "evaluate_on=[]", "continue=true", f"name={Path(folder).name}", *dry).complains("weights=")
    train(4, "-m", "continue=true", "name=run", "evaluate_on=[]").complains("continue=true", "-m")
