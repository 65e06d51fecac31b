"""The whole path of one run through the four commands: train, evaluate, report, audit."""

import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import dualseg.audit
import dualseg.check
import dualseg.evaluate
import dualseg.report
import dualseg.train
from dualseg.data import Phantom
from dualseg.metrics.functional import scores
from dualseg.networks import ResNet34VNet, VNet
from dualseg.runs.folder import RunFolder
from dualseg.training.checkpoints import load_networks

pytestmark = pytest.mark.timeout(1500)  # seconds of work, but on a busy machine
METRICS = ("dice", "jaccard", "hd95", "asd")
NETWORKS = ["a", "b", "ensemble"]
MAINS = [dualseg.audit.main, dualseg.check.main, dualseg.evaluate.main, dualseg.report.main, dualseg.train.main]
TRAIN_WORDS = (
    "+data.source.train=6", "+data.source.test=2", "+data.source.shape=[40,36,32]", "data.patch_size=[32,32,32]",
    "data.stride=[16,32,32]", "data.labeled=2", "data.held_out_validation=1", "base_channels=4", "optimizer.lr=0.05",
    "lr_schedule=constant", "trainer.max_iterations=12", "trainer.checkpoint_every=5", "trainer.validate_every=6",
    "trainer.log_every=2", "trainer.threads=1", "trainer.accelerator=cpu", "trainer.progress_bar=false", "output=runs",
)  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working folder in which the run is trained."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def trained(home: Path, phantom: Phantom) -> subprocess.CompletedProcess[str]:
    """dualseg-train, the installed script, from a folder that is not the checkout."""
    script = Path(sys.executable).with_name("dualseg-train")
    return subprocess.run(
        [script, f"data.root={phantom.root}", *TRAIN_WORDS],
        cwd=home,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )


@pytest.fixture(scope="module")
def run(trained: subprocess.CompletedProcess[str], home: Path) -> RunFolder:
    assert trained.returncode == 0, trained.stderr
    (path,) = (home / "runs").iterdir()
    return RunFolder(path)


@pytest.fixture(scope="module")
def sibling(run: RunFolder, phantom: Phantom) -> RunFolder:
    """A second run of another seed, beside the first."""
    words = [f"data.root={phantom.root}", *TRAIN_WORDS[:-1], f"output={run.path.parent}", "seed=1", "evaluate_on=[]"]
    argv, sys.argv = sys.argv, ["dualseg-train", *words, "trainer.max_iterations=2", "name=v1.5"]
    try:
        dualseg.train.main()
    finally:
        sys.argv = argv
    return RunFolder(run.path.parent / "v1.5")


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another, empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_training_says_what_it_does(trained, run):
    assert trained.returncode == 0
    lines = trained.stdout.splitlines()
    assert lines[0] == f"Training runs/{run.path.name}"
    assert lines[1] == f"Finished: runs/{run.path.name}"
    assert [line.split()[:2] for line in lines[3:9]] == [[s, n] for s in ("validation", "test") for n in NETWORKS]
    assert lines[9] == "Result: ensemble, which dualseg-predict takes."
    for line, command in zip(lines[10:], ("dualseg-report run ", "dualseg-predict run="), strict=True):
        assert f"{command}runs/{run.path.name}" in line
    assert "Traceback" not in trained.stderr
    assert "Warning" not in trained.stderr


def test_the_run_folder_is_as_its_page_says(run):
    assert run.path.name.startswith("phantom-dual-described-resnet34-vnet-2labels-seed0-")
    files = {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}
    assert files == {
        "config.yaml", "manifest.json", "preprocessing.json", "metrics.json", "cases.csv", "logs/curves.csv",
        "checkpoints/iteration-000012.ckpt",
        *(f"slices/phantom_00{index}.npz" for index in (5, 6, 7)),
    }  # fmt: skip
    config = yaml.safe_load(run.config_file.read_text())
    assert config["data"]["source"]["shape"] == [40, 36, 32]
    assert config["method"]["objective"] == "described"
    manifest = json.loads(run.manifest_file.read_text())
    assert manifest["command"].startswith("dualseg-train data.root=")
    assert manifest["finished"] is not None
    assert {k: manifest["data"][k] for k in ("dataset", "labeled", "unlabeled", "validation", "test")} == {
        "dataset": "phantom", "labeled": 2, "unlabeled": 3, "validation": 1, "test": 2,
    }  # fmt: skip
    assert list(manifest["data"]["evaluation_fingerprint"]) == ["validation", "test"]


def test_metrics_are_those_of_the_rows(run):
    metrics = json.loads(run.metrics_file.read_text())
    assert list(metrics) == ["status", "iterations", "record", "validation", "test"]
    assert (metrics["status"], metrics["iterations"]) == ("finished", 12)
    rows = rows_of(run.cases_file)
    assert len(rows) == (1 + 2) * 3
    for split, cases in (("validation", ["phantom_005"]), ("test", ["phantom_006", "phantom_007"])):
        assert list(metrics[split]) == NETWORKS
        for network in NETWORKS:
            own = [row for row in rows if (row["split"], row["network"]) == (split, network)]
            assert [row["case"] for row in own] == cases
            assert {row["class"] for row in own} == {"atrium"}
            assert all(float(row["dice"]) > 0 for row in own), "scores of nothing would prove nothing"
            for metric in METRICS:
                mean = np.mean([float(row[metric]) for row in own])
                assert metrics[split][network][metric] == pytest.approx(mean, abs=1e-6)


def test_scores_are_those_of_the_checkpoints_networks(run, phantom):
    """From the files alone: networks, one window at a time, argmax of the mean, and the metrics of that mask."""
    networks = {"a": ResNet34VNet(base_channels=4), "b": VNet(base_channels=4)}
    load_networks(run.checkpoint(), networks)
    image = torch.from_numpy(phantom.read_image("phantom_006").array)
    label = phantom.read_label("phantom_006") == 1
    p = {}
    for name, network in networks.items():
        network.eval()
        total, count = np.zeros((2, 40, 36, 32)), np.zeros((40, 36, 32))
        for x in (0, 8):
            for y in (0, 4):
                with torch.no_grad():
                    patch = network(image[None, :, x : x + 32, y : y + 32]).logits.softmax(dim=1)[0]
                total[:, x : x + 32, y : y + 32] += patch.double().numpy()
                count[x : x + 32, y : y + 32] += 1
        p[name] = total / count
    p["ensemble"] = (p["a"] + p["b"]) / 2
    rows = {row["network"]: row for row in rows_of(run.cases_file) if row["case"] == "phantom_006"}
    for name, probabilities in p.items():
        prediction = probabilities.argmax(axis=0) == 1
        # a voxel on the fence may fall on the other side: where the two networks are sure and contradict each other
        fence = int((np.abs(probabilities[1] - probabilities[0]) < 1e-5).sum())
        slack = 2 * fence / (prediction.sum() + label.sum())
        assert slack < 0.01
        assert float(rows[name]["dice"]) == pytest.approx(scores(prediction, label).dice, abs=slack + 1e-6)


def test_evaluations_stand_beside_earlier_ones(run, away, command):
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    outcomes = [command(dualseg.evaluate.main, f"run={run.path}") for _ in range(2)]
    folders = []
    for outcome in outcomes:
        assert outcome.code == 0, outcome.err
        head, *table = outcome.out.splitlines()
        folders.append(Path(head.removeprefix("Evaluation: ")))
        assert [line.split()[:2] for line in table[1:4]] == [["test", n] for n in NETWORKS]
    assert [folder.name for folder in folders] == ["001-test", "002-test"]
    trained = json.loads(run.metrics_file.read_text())
    for folder in folders:
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics == {"status": "finished", "iterations": 12, "record": "ensemble", "test": trained["test"]}
        assert rows_of(folder / "cases.csv") == [row for row in rows_of(run.cases_file) if row["split"] == "test"]
        assert {p.name for p in (folder / "slices").iterdir()} == {"phantom_006.npz", "phantom_007.npz"}
        evaluated = yaml.safe_load((folder / "config.yaml").read_text())["evaluated"]
        assert evaluated == {str(run.path): "iteration-000012.ckpt"}
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["command"] == f"dualseg-evaluate run={run.path}"
        assert manifest["started"] <= manifest["finished"] and manifest["seconds"] > 0
        assert (manifest["data"]["dataset"], manifest["data"]["test"]) == ("phantom", 2)
        sha256 = hashlib.sha256(run.checkpoint().read_bytes()).hexdigest()
        taken = manifest["evaluated"][str(run.path)]
        assert (taken["checkpoint"], taken["sha256"]) == ("iteration-000012.ckpt", sha256)
        assert {"versions", "git", "hardware"} <= manifest.keys()
    assert all(path.read_bytes() == content for path, content in before.items())
    assert list(away.iterdir()) == []


def test_evaluation_computes_with_the_threads_of_the_run(run, away, command, monkeypatch):
    used = []
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    outcome = command(dualseg.evaluate.main, f"run={run.path}", "trainer.threads=3", "output=threads")
    assert outcome.code == 0, outcome.err
    assert used == [3]


def test_evaluation_in_millimetres_at_another_stride(run, phantom, away, command):
    outcome = command(
        dualseg.evaluate.main, f"run={run.path}", "split=validation", "inference.distance_unit=mm", "output=mm"
    )
    assert outcome.code == 0, outcome.err
    voxels, millimetres = (
        {row["network"]: row for row in rows_of(path) if row["split"] == "validation"}
        for path in (run.cases_file, away / "mm" / "cases.csv")
    )
    spacing = np.linalg.norm(phantom.read_image("phantom_005").affine[:3, :3], axis=0)
    assert spacing.min() > 1.2, "so millimetres cannot be taken for voxels"
    for network in NETWORKS:
        assert millimetres[network]["dice"] == voxels[network]["dice"]
        for metric in ("hd95", "asd"):
            ratio = float(millimetres[network][metric]) / float(voxels[network][metric])
            assert spacing.min() <= ratio <= spacing.max()
    again = command(dualseg.evaluate.main, f"run={run.path}", "output=mm")
    again.complains("output=mm", "not empty")
    other = command(
        dualseg.evaluate.main, f"run={run.path}", "split=validation", "data.stride=[4,32,32]", "output=fine"
    )
    assert other.code == 0, other.err
    assert rows_of(away / "fine" / "cases.csv") != list(voxels.values())


def test_runs_given_together_are_one_ensemble(run, sibling, phantom, away, command):
    outcome = command(dualseg.evaluate.main, f"run={run.path}", f"run={sibling.path}", "output=both")
    assert outcome.code == 0, outcome.err
    metrics = json.loads((away / "both" / "metrics.json").read_text())
    own = "1-" + run.path.name.replace(".", "_")
    assert list(metrics["test"]) == [f"{own}/a", f"{own}/b", "2-v1_5/a", "2-v1_5/b", "ensemble"]
    assert metrics["iterations"] == 2, "what the least trained one has"
    alone = json.loads(run.metrics_file.read_text())["test"]
    assert metrics["test"][f"{own}/a"] == alone["a"]
    assert metrics["test"]["ensemble"] != alone["ensemble"]
    evaluated = yaml.safe_load((away / "both" / "config.yaml").read_text())["evaluated"]
    assert list(evaluated) == [str(run.path), str(sibling.path)]
    unnamed = command(dualseg.evaluate.main, f"run={run.path}", f"run={sibling.path}")
    assert Path(unnamed.out.splitlines()[0].removeprefix("Evaluation: ")).name.endswith("-test-ensemble-of-2")


def test_evaluation_refuses_what_it_does_not_know(run, away, command):
    for words, parts in (
        (["split=test"], ["run=RUN_FOLDER is required"]),
        ([f"run={run.path}", "split=train"], ["split=train", "test or validation"]),
        ([f"run={run.path}", "data.strde=[8,8,8]"], ["data.strde", "Did you mean data.stride?"]),
        ([f"run={run.path}", "optimizer.lr=1"], ["optimizer.lr", "no such key"]),
        ([f"run={away}"], [str(away), "config.yaml"]),
        ([str(run.path)], ["write key=value"]),
    ):
        command(dualseg.evaluate.main, *words).complains(*parts)


def test_report_is_one_page_of_its_own(run, away, command):
    outcome = command(dualseg.report.main, "run", run.path, "--output", "page.html")
    assert outcome.code == 0, outcome.err
    assert "page.html" in outcome.out
    page = (away / "page.html").read_text()
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page)
    for words in ("ensemble", "phantom_006", "uncertainty", "contrast"):
        assert words in page
    outcome = command(dualseg.report.main, "run", run.path)
    assert outcome.code == 0
    assert (run.path / "report.html").is_file()


def test_audit_takes_the_words_of_training(run, phantom, away, command, monkeypatch):
    monkeypatch.setattr(dualseg.audit, "WARM_UP", (2,))
    monkeypatch.setattr(dualseg.audit, "BATCHES", 1)
    words = [*TRAIN_WORDS, "method.confidence=0.5", "method.keep_fraction=0.5"]
    outcome = command(dualseg.audit.main, f"data.root={phantom.root}", *words)
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("live") + outcome.out.count("mask empty") == 16
    assert list(away.iterdir()) == []


def test_dry_says_what_training_would_do_and_trains_nothing(run, phantom, away, command):
    words = [f"data.root={phantom.root}", *TRAIN_WORDS]
    outcome = command(dualseg.train.main, *words, "dry=true")
    assert outcome.code == 0, outcome.err
    where, how, *_ = outcome.out.splitlines()
    assert where == f"runs/{run.path.name}: to do"
    assert how == "12 iterations; cases: 2 labeled, 3 unlabeled, 1 validation, 2 test"
    assert re.findall(r"^network (\w): [1-9][\d,]+ parameters$", outcome.out, re.MULTILINE) == ["a", "b"]
    assert list(away.iterdir()) == []
    outcome = command(dualseg.train.main, *words, f"output={run.path.parent}", "dry=true")
    assert outcome.out.startswith(f"{run.path}: done, iteration 12 of 12\n")


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("method._target_=my_methods.Absent", "my_methods.Absent"),
        ("method.confidence=2", "confidence"),
        ("batch.unlabeled=0", "batch.unlabeled=0"),
        ("weights=nowhere", "weights=nowhere"),
    ],
)
def test_dry_refuses_what_training_would(phantom, away, command, word, named):
    outcome = command(dualseg.train.main, f"data.root={phantom.root}", *TRAIN_WORDS, word, "dry=true")
    outcome.complains(named)
    assert list(away.iterdir()) == []


def test_dry_asks_of_a_run_what_training_would(run, phantom, command, monkeypatch, tmp_path):
    """A finished one is not built again but to overwrite it; one that is resumed needs its first weights no more."""
    words = [f"data.root={phantom.root}", *TRAIN_WORDS, f"output={run.path.parent}", "dry=true"]
    wrong = "method._target_=my_methods.Absent"
    named = [*words, wrong, f"name={run.path.name}"]
    assert "network" not in command(dualseg.train.main, *words).out
    command(dualseg.train.main, *named, "overwrite=true").complains("my_methods.Absent")
    tried = []
    monkeypatch.setattr("dualseg.training.settings.check_weights", lambda _: tried.append("weights"))
    begun = shutil.copytree(run.path, tmp_path / run.path.name)
    (begun / "metrics.json").unlink()
    outcome = command(dualseg.train.main, *words, f"output={tmp_path}")
    assert outcome.code == 0 and "network a" in outcome.out and not tried, outcome.err
    monkeypatch.setattr("dualseg.runs.lock.is_locked", lambda _: True)
    outcome = command(dualseg.train.main, *named, f"output={tmp_path}")
    assert outcome.code == 0 and "network" not in outcome.out, "it is being written"


def test_supervised_training_leaves_a_run_of_one_network(phantom, away, command):
    short = ("method=supervised", "trainer.max_iterations=2", "evaluate_on=[test]", "data.held_out_validation=0")
    short += ("trainer.validate_every=null",)
    words = [w for w in TRAIN_WORDS if not w.startswith(("trainer.max_iterations", "data.held_out"))]
    outcome = command(dualseg.train.main, f"data.root={phantom.root}", *words, *short)
    assert outcome.code == 0, outcome.err
    (path,) = (away / "runs").iterdir()
    assert path.name.startswith("phantom-supervised-vnet-2labels-seed0-")
    metrics = json.loads((path / "metrics.json").read_text())
    assert list(metrics) == ["status", "iterations", "record", "test"]
    assert list(metrics["test"]) == ["a"] and metrics["record"] == "a"
    assert json.loads((path / "manifest.json").read_text())["data"]["unlabeled"] == 0
    assert command(dualseg.report.main, "run", path).code == 0


@pytest.mark.parametrize("main", MAINS)
def test_help_is_shown(main: Callable[[], Any], command):
    outcome = command(main, "--help")
    assert outcome.code == 0
    assert main.__module__.replace(".", "-") in outcome.out
