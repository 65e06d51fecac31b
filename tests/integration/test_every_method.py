"""Every method of conf/method through all commands at toy size; a method added later is covered by being there.

Some of them with the planned networks as well: tests/methods/test_deep_supervision.py has all of these.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import pytest
import torch
from hydra.utils import get_object
from wandb_records import records

import dualseg.audit
import dualseg.evaluate
import dualseg.export
import dualseg.predict
import dualseg.report
import dualseg.train
from dualseg.configuration import conf_dir
from dualseg.data import Phantom
from dualseg.methods import MeanTeacher
from dualseg.runs.folder import RunFolder
from dualseg.training.checkpoints import read_checkpoint

METHODS = sorted(path.stem for path in (conf_dir() / "method").glob("*.yaml"))
TOY = ["base_channels=2", "data.patch_size=[16,16,16]", "data.stride=[16,16,16]", "trainer.log_every=1"]
PLANNED = [
    "networks=planned",
    "plan.channels=[2,2,4,4]",
    "plan.strides=[[1,1,1],[2,2,1],[2,2,2],[2,2,1]]",
    "plan.kernels=[[3,3,1],[3,3,3],[3,3,3],[3,3,3]]",
    "plan.blocks=[1,2,1,1]",
    "data.patch_size=[16,16,6]",
    "data.stride=[16,16,6]",
]
CASES = [
    *(pytest.param(method, [], id=method) for method in METHODS),
    *(pytest.param(method, PLANNED, id=f"{method}-planned") for method in ("supervised", "dual_gentle", "bcp")),
]


exported: set[str] = set()


def words_of(
    method: str, own_words: list[str], tiny: Callable[..., list[str]], phantom: Phantom, output: Path
) -> list[str]:
    replaced = ("base_channels", "data.patch_size", "data.stride", "evaluate_on", "trainer.max_iterations")
    own = [word for word in tiny(phantom.root, output) if not word.startswith(replaced)]
    return [*own, *TOY, f"method={method}", *own_words, "evaluate_on=[test]"]


@pytest.mark.parametrize("method, own_words", CASES)
def test_a_method_through_all_commands(
    method: str,
    own_words: list[str],
    command: Callable[..., Any],
    tiny: Callable[..., list[str]],
    phantom: Phantom,
    tmp_path: Path,
) -> None:
    through_all_commands(words_of(method, own_words, tiny, phantom, tmp_path), command, phantom, tmp_path)


def test_an_average_that_stands_for_the_run(
    command: Callable[..., Any],
    tiny: Callable[..., list[str]],
    phantom: Phantom,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MeanTeacher, "record", "teacher")
    own_words = ["logger=wandb", "logger.project=p"]
    words = words_of("mean_teacher", own_words, tiny, phantom, tmp_path)
    metrics = through_all_commands(words, command, phantom, tmp_path)
    assert (metrics["record"], {*metrics["test"]}) == ("teacher", {"a", "teacher"})
    (record,) = records(tmp_path / "whole")
    assert record.summary["test/teacher/dice"] == metrics["test"]["teacher"]["dice"]


def through_all_commands(words: list[str], command: Callable[..., Any], phantom: Phantom, tmp_path: Path) -> Any:
    """Train, resume, evaluate, predict, export and report; the content of metrics.json."""
    length = ["trainer.max_iterations=4", "trainer.checkpoint_every=2", "trainer.checkpoints_kept=2"]

    def ran(main: Callable[[], None], *given: str | Path) -> str:
        outcome = command(main, *given)
        assert outcome.code == 0, outcome.err
        return outcome.out

    whole = RunFolder(tmp_path / "whole")
    ran(dualseg.train.main, *words, *length, "name=whole")
    own = whole.config()["method"]
    if "terms" in own:  # each can be changed by its name, without a +
        assert list(own["terms"]) == list(get_object(own["_target_"]).TERMS)
    metrics = json.loads(whole.metrics_file.read_text())
    checkpoint = read_checkpoint(whole.checkpoint())

    resumed = RunFolder(shutil.copytree(whole.path, tmp_path / "resumed"))
    resumed.checkpoint().unlink()
    resumed.metrics_file.unlink()
    assert "iteration 2" in ran(dualseg.train.main, *words, *length, "name=resumed")
    assert_equal(checkpoint["state_dict"], read_checkpoint(resumed.checkpoint())["state_dict"])

    evaluation = RunFolder(tmp_path / "evaluation")
    ran(dualseg.evaluate.main, f"run={whole.path}", f"output={evaluation.path}")
    assert json.loads(evaluation.metrics_file.read_text()) == metrics

    record = metrics["record"]
    members = checkpoint["dualseg"]["ensemble"] if record == "ensemble" else [record]
    scan = phantom.root / "images" / f"{phantom.test_cases[0]}.nii.gz"
    ran(dualseg.predict.main, f"run={whole.path}", f"input={scan}", f"output={tmp_path / 'maps'}")
    assert nib.load(tmp_path / "maps" / "labels" / scan.name).shape == (40, 36, 32)
    assert set(metrics["test"]) >= {record, *members}

    architectures = [whole.config()["networks"][checkpoint["dualseg"]["averages"].get(name, name)] for name in members]
    kind = str((architectures, members))
    if kind not in exported:  # what is exported knows no method: once for each kind of networks
        ran(dualseg.export.main, f"run={whole.path}", "format=bundle", f"output={tmp_path / 'bundle'}")
        assert sorted(path.stem for path in (tmp_path / "bundle" / "models").glob("*.pt2")) == sorted(members)
        exported.add(kind)

    ran(dualseg.report.main, "run", whole.path)
    assert record in (whole.path / "report.html").read_text()
    return metrics


@pytest.mark.parametrize("method, own_words", CASES)
def test_a_method_in_the_audit(
    method: str,
    own_words: list[str],
    command: Callable[..., object],
    tiny: Callable[..., list[str]],
    phantom: Phantom,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No gradient goes where it should not; masks that are empty so early are other tests'."""
    monkeypatch.setattr(dualseg.audit, "WARM_UP", (4, 8))
    outcome = command(
        dualseg.audit.main, *words_of(method, own_words, tiny, phantom, tmp_path), "trainer.max_iterations=20"
    )
    assert outcome.code == 0, outcome.out + outcome.err


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    different = [key for key in first if not torch.equal(first[key], second[key])]
    assert not different
