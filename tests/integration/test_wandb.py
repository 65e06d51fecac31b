"""`logger=wandb`, offline: one complete W&B run for each run folder, whatever happens to the launches."""

import csv
import json
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import wandb
import yaml
from PIL import Image
from pytorch_lightning.utilities import rank_zero_only
from wandb_records import records

import dualseg.train
from dualseg.data import Phantom
from dualseg.files import read_json, write_json
from dualseg.methods import SegmentationMethod
from dualseg.reporting.contents import find_examples, read_contents
from dualseg.reporting.wandb import log_results
from dualseg.runs.folder import RunFolder
from dualseg.training.wandb_logger import WandbLogger, run_id, tags

ITERATIONS = 5
VALIDATE_EVERY = 2  # the last evaluation along the run is not of the last iteration
TERMS = (
    "supervised_ce", "supervised_dice", "rectification", "cross_pseudo", "uncertainty", "entropy_filtered",
    "cosine", "contrast",
)  # fmt: skip


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return {}


@pytest.fixture
def finished(made, command, tiny, phantom: Phantom, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """`folder` of a run that failed in its fourth iteration and went on from its checkpoint at 2; `failed`, the record
    that it had then, `now`, the one it has at the end, and `out` of the second launch. Made once."""
    if not made:
        output = tmp_path_factory.mktemp("runs")
        words = [
            *tiny(phantom.root, output), "logger=wandb", "logger.project=p", "name=one",
            "study=la_main", "variant=full",
            f"trainer.max_iterations={ITERATIONS}", f"trainer.validate_every={VALIDATE_EVERY}", "trainer.log_every=1",
            "trainer.checkpoint_every=2", "data.held_out_validation=1", "evaluate_on=[validation,test]",
        ]  # fmt: skip

        def training_step(self: Any, *batch: Any, original: Any = SegmentationMethod.training_step) -> None:
            if self.trainer.global_step == 3:
                raise RuntimeError("the fourth iteration")
            original(self, *batch)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="the fourth iteration"):
            patch.setattr(SegmentationMethod, "training_step", training_step)
            command(dualseg.train.main, *words)
        (failed,) = records(output / "one")
        outcome = command(dualseg.train.main, *words)
        assert outcome.code == 0, outcome.err
        (now,) = records(output / "one")
        made.update(folder=output / "one", failed=failed, now=now, out=outcome.out)
    return made


def test_a_failed_launch_leaves_a_closed_record(finished):
    assert [row["_step"] for row in finished["failed"].history] == [1, 2, 3]
    assert finished["failed"].exit_code == 1
    assert finished["now"].exit_code == 0


def test_a_resumed_run_is_one_record(finished):
    assert finished["now"].run.run_id == finished["failed"].run.run_id
    assert not finished["failed"].folder.exists()
    assert str(finished["now"].folder) in finished["out"]  # the command that sends it


def test_group_name_tags_and_project(finished):
    run = finished["now"].run
    assert (run.project, run.run_group, run.display_name) == ("p", "la_main", "one")
    assert list(run.tags) == ["dual", "described", "phantom", "full", "2 labels"]


def test_config_is_the_resolved_one_under_what_runs_are_told_apart_by(finished):
    config = {key: value for key, value in finished["now"].config.items() if key != "_wandb"}
    assert config.pop("config") == yaml.safe_load((finished["folder"] / "config.yaml").read_text())
    assert config == {
        "study": "la_main", "variant": "full", "dataset": "phantom", "scale": None, "method": "dual",
        "objective": "described", "architecture": "resnet34+vnet", "labeled": 2, "unlabeled": 3, "seed": 0,
    }  # fmt: skip


def test_every_curve_over_iterations_as_in_the_csv(finished):
    rows: dict[int, dict[str, float]] = defaultdict(dict)
    with (finished["folder"] / "logs" / "curves.csv").open() as file:
        for row in csv.DictReader(file):
            rows[int(row["iteration"])][row["name"]] = float(row["value"])
    assert sorted(rows) == list(range(1, ITERATIONS + 1))
    history = finished["now"].history
    assert [(row["_step"], row["iteration"]) for row in history] == [(i, i) for i in sorted(rows)]
    for row in history:
        assert {name: row[name] for name in rows[row["iteration"]]} == rows[row["iteration"]]
    assert finished["now"].step_metrics["*"] == "iteration"


def test_the_curves_that_there_must_be(finished):
    history = finished["now"].history
    losses = {f"loss/{network}/{term}" for network in "ab" for term in TERMS} | {"loss/total"}
    timing = {"time/seconds_per_iteration", "time/data_wait_share"}
    always = losses | timing | {"lr", "ramp/start", "ramp/run"}
    assert all(always <= row.keys() for row in history)
    validated = [row["iteration"] for row in history if "validation/ensemble/dice" in row]
    assert validated == [2, 4]


def test_the_summary_is_the_report_and_not_the_last_point_of_a_curve(finished):
    metrics = read_json(finished["folder"] / "metrics.json")
    summary = finished["now"].summary
    for split in ("validation", "test"):
        for network in ("a", "b", "ensemble"):
            for metric in ("dice", "jaccard", "hd95", "asd"):
                assert summary[f"{split}/{network}/{metric}"] == metrics[split][network][metric]
    assert (summary["status"], summary["iterations"]) == ("finished", ITERATIONS)
    along = [row["validation/b/dice"] for row in finished["now"].history if "validation/b/dice" in row]
    assert along[-1] != summary["validation/b/dice"]  # else this test could not fail


def test_the_table_is_cases_csv(finished):
    row, now = finished["now"].history[-1], finished["now"]
    table = json.loads((now.folder / "files" / row["cases.path"]).read_text())
    with (finished["folder"] / "cases.csv").open() as file:
        columns, *cases = csv.reader(file)
    assert table["columns"] == columns
    assert len(table["data"]) == len(cases) == (1 + 2) * 3
    for shown, written in zip(table["data"], cases, strict=True):
        assert shown[:4] + shown[8:] == written[:4] + written[8:]
        assert shown[4:8] == [float(value) for value in written[4:8]]
    assert now.summary["cases._type"] == "table-file"


def test_files_that_wandb_sync_sends_lie_in_the_run_folder(finished):
    assert list((finished["folder"] / "logs" / "wandb" / "artifacts" / "staging").iterdir())


def test_the_images_are_those_of_the_report(finished):
    row, folder = finished["now"].history[-1], finished["now"].folder / "files"
    found = find_examples(read_contents(finished["folder"]))
    assert found is not None
    roles = {role: case for case, roles in found.roles.items() for role in roles}
    assert roles.keys() == {"best", "median", "worst"}
    for role, case in roles.items():
        files, captions = row[f"examples/{role}.filenames"], row[f"examples/{role}.captions"]
        for plane, file, caption in zip(("axial", "coronal", "sagittal"), files, captions, strict=True):
            assert caption.startswith(f"{case}, {plane}: test Dice {100 * found.dice['ensemble'][case]:.2f} %")
            with Image.open(folder / file) as image:
                pixels = np.asarray(image.convert("RGB")).astype(int)
            left, right = np.split(pixels, 2, axis=1)
            orange, blue = (np.abs(left - colour).sum(-1).min() < 30 for colour in ([230, 159, 0], [86, 180, 233]))
            slices = np.load(finished["folder"] / "slices" / f"{case}.npz")
            assert orange == slices[f"{plane}_reference"].any()
            assert blue == slices[f"{plane}_prediction"].any()
            assert (right.max(-1) - right.min(-1)).mean() > 20 > np.median(left.max(-1) - left.min(-1))


def test_a_run_without_evaluation_or_finite_scores_has_what_there_is(finished, tmp_path):
    logged: list[dict[str, Any]] = []

    class Run:
        summary: dict[str, Any] = {}
        log = staticmethod(logged.append)

    source = (finished["folder"] / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(source)
    write_json(tmp_path / "metrics.json", {"status": "finished", "iterations": 5})
    log_results(tmp_path, Run())
    assert logged == [{"iteration": 5}]
    assert Run.summary == {"status": "finished", "iterations": 5}
    header = "case,split,network,class,dice,jaccard,hd95,asd,empty"
    (tmp_path / "cases.csv").write_text(f"{header}\nx,test,a,atrium,0.0,0.0,nan,inf,prediction\n")
    log_results(tmp_path, Run())
    assert logged[1]["cases"].data == [["x", "test", "a", "atrium", 0.0, 0.0, None, None, "prediction"]]


def test_another_folder_or_configuration_is_another_wandb_run(tmp_path):
    one, two = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "two")
    assert len({run_id(one, {}), run_id(two, {}), run_id(one, {"seed": 5}), run_id(one, {"output": "x"})}) == 3


def test_tags_are_those_that_are_set_once_each_and_short():
    config = {
        "study": "s", "variant": "dual", "scale": "cpu", "seed": 0, "data": {"name": "d" * 70},
        "method": {"name": "dual"}, "networks": {"a": {"architecture": "vnet"}},
    }  # fmt: skip
    assert tags(config, {"labeled": 8, "unlabeled": 0}) == ["dual", "d" * 64, "cpu", "8 labels"]


def test_only_rank_zero_touches_wandb(tmp_path, monkeypatch):
    for name in ("init", "login", "Settings"):
        monkeypatch.setattr(wandb, name, None)  # not callable
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger = WandbLogger(RunFolder(tmp_path / "one"), offline=False)
    logger.experiment.log({})  # Lightning's stand-in
    logger.log_metrics({"lr": 0.1}, step=1)
    logger.close(failed=False)
    assert not list(tmp_path.iterdir())


def test_an_online_run_goes_on_and_keeps_what_wandb_has(finished, monkeypatch):
    asked, logged = {}, []

    class Run:
        step = 4  # W&B has iterations up to 3
        dir = "/x/files"
        define_metric = staticmethod(lambda *_, **__: None)
        log = staticmethod(lambda values, step: logged.append((step, values["iteration"])))

    monkeypatch.setattr(wandb, "login", lambda prompt: not prompt)
    monkeypatch.setattr(wandb, "init", lambda **settings: asked.update(settings) or Run())
    monkeypatch.setattr("dualseg.training.wandb_logger.shutil.rmtree", lambda path: None)
    logger = WandbLogger(RunFolder(finished["folder"]), resumed_at=4, offline=False)
    logger.log_metrics({"lr": 0.1}, step=5)
    assert (asked["mode"], asked["resume"]) == ("online", "allow")
    assert logged == [(4, 4), (5, 5)]
    assert asked["id"] == finished["now"].run.run_id
