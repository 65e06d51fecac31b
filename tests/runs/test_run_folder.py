"""The run folder: its name, whose it is, and that its files are whole or not there."""

import copy
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from dualseg.configuration import conf_dir
from dualseg.errors import DualsegError
from dualseg.files import read_json, replacing, write_json, write_text
from dualseg.runs.claim import check_claim
from dualseg.runs.folder import RunFolder, iteration_of
from dualseg.runs.identity import ADDED, NOT_IDENTITY, flatten, identity, run_name
from dualseg.train import train
from dualseg.training.settings import resolve


def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return resolve(compose("train", overrides=["data.root=/data", *overrides]))


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return composed(f"output={tmp_path}/runs")


def test_names_read_well():
    assert re.fullmatch(r"phantom-dual-described-resnet34-vnet-4labels-seed0-[0-9a-f]{8}", run_name(composed()))
    supervised = composed("data=la", "method=supervised", "seed=3")
    assert re.fullmatch(r"la-supervised-vnet-alllabels-seed3-[0-9a-f]{8}", run_name(supervised))
    ratio = composed("data=la", "data.labeled_ratio=0.1", "objective=released", "networks=vnet_vnet")
    assert re.fullmatch(r"la-dual-released-vnet-vnet-10pctlabels-seed0-[0-9a-f]{8}", run_name(ratio))
    assert "-7pctlabels-" in run_name(composed("data=la", "data.labeled_ratio=0.07")), "no 7.000000000000001"


def test_a_name_is_stable():
    """In other processes and later versions too: a changed name would start finished runs anew."""
    settings = {
        "name": None,
        "output": "runs",
        "objective": "described",
        "data": {"name": "d", "labeled": 2, "labeled_ratio": None, "root": "/x", "source": {"root": "/x"}},
        "method": {"name": "m"},
        "networks": {"a": {"architecture": "n"}},
        "seed": 1,
    }
    content = (
        '{"data.labeled": 2, "data.labeled_ratio": null, "data.name": "d", "method.name": "m", '
        '"networks.a.architecture": "n", "objective": "described", "seed": 1}'
    )
    digest = hashlib.sha256(content.encode()).hexdigest()
    assert run_name(settings) == f"d-m-described-n-2labels-seed1-{digest[:8]}"


@pytest.mark.parametrize(
    "override",
    [
        "output=elsewhere", "overwrite=true", "logger=wandb", "data.root=/other", "data.num_workers=2",
        "trainer.accelerator=cpu", "trainer.progress_bar=false", "trainer.log_every=3", "trainer.checkpoint_every=7",
        "trainer.checkpoints_kept=4", "data.memory=9GiB",
    ],
)  # fmt: skip
def test_what_does_not_decide_the_result_keeps_the_name(override):
    assert run_name(composed(override)) == run_name(composed())


@pytest.mark.parametrize(
    "override",
    [
        "seed=1", "objective=released", "data.labeled=5", "data.held_out_validation=2", "optimizer.lr=0.02",
        "trainer.max_iterations=100", "trainer.threads=1", "trainer.precision=bf16-mixed", "base_channels=8",
        "networks=vnet_vnet", "method.temperature=0.2", "method.terms.cosine.enabled=false", "weights=file.ckpt",
        "lr_schedule=polynomial", "augmentation=flip_rotate", "inference.distance_unit=mm", "trainer.validate_every=9",
        "data.foreground=0.5", "augmentation.mix=true", "augmentation=strong",
        "batch.unlabeled=4", "data.stride=[8,8,8]", "trainer.channels_last=false",
    ],
)  # fmt: skip
def test_what_decides_the_result_changes_the_name(override):
    assert run_name(composed(override)) != run_name(composed())


def test_every_key_is_identity_but_the_listed_ones(settings):
    kept = identity(settings)
    for key in flatten(settings):
        ignored = any(key == name or key.startswith(f"{name}.") for name in NOT_IDENTITY)
        assert (key in kept) != (ignored or key in ADDED), key
    changed = {**settings, "data": {**settings["data"], "draw": 3}}
    assert identity(changed)["data.draw"] == 3


def test_where_a_run_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunFolder.of({**composed("name=mine"), "output": "~/runs"}).path == tmp_path / "runs" / "mine"
    settings = composed("output=out")
    assert RunFolder.of(settings).path == Path("out") / run_name(settings)
    assert not Path("out").exists(), "naming a folder makes none"


@pytest.fixture(scope="module")
def resolved() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """`resolve` a configuration with other values, "a.b": value."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", overrides=["data.root=/data"])

    def resolve_with(values: dict[str, Any]) -> dict[str, Any]:
        own = copy.deepcopy(config)
        for key, value in values.items():
            OmegaConf.update(own, key, value, force_add=True)
        return resolve(own)

    return resolve_with


@pytest.mark.parametrize("key", ["name", "study", "scale", "variant"])
@pytest.mark.parametrize("value", ["../../x", "/tmp/x", "a/b", "..", "a\\b", ".hidden", "a\nb"])
def test_no_label_of_a_run_leaves_the_folder_of_runs(resolved, key, value):
    with pytest.raises(DualsegError, match=re.escape(key)):
        resolved({key: value})


@pytest.mark.parametrize("key", ["data.name", "method.name", "networks.a.architecture"])
def test_no_part_of_a_made_name_leaves_the_folder_of_runs(resolved, key):
    own = {"method.name": "mine", key: "../../x"}
    with pytest.raises(DualsegError, match=r"name \(of data\.name, method\.name, architectures\)=.*\.\./x"):
        RunFolder.of(resolved(own))
    with pytest.raises(DualsegError, match=rf"{key}: .*U\+000A"):
        resolved({**own, key: "a\nb"})


@pytest.mark.parametrize("name", ["../x", "a b", "1st"])
def test_files_are_named_after_networks(resolved, name):
    with pytest.raises(DualsegError, match=r"networks: .*no name"):
        resolved({"method.name": "mine", "networks": {name: {"architecture": "vnet"}}})


def launched(settings: dict[str, Any]) -> RunFolder:
    """A run folder as dualseg-train leaves it before the first iteration."""
    folder = RunFolder.of(settings)
    folder.open(settings)
    write_json(folder.manifest_file, {"dualseg": "0"})
    return folder


def test_opening_writes_the_configuration(settings):
    folder = RunFolder.of(settings)
    check_claim(folder, settings)
    assert not folder.path.exists(), "claim writes nothing"
    folder.open(settings)
    assert {p.name for p in folder.path.iterdir()} == {"config.yaml", "checkpoints", "logs"}
    assert folder.config() == settings


def test_a_resumed_run_says_where_its_data_lie_now(settings):
    settings["name"] = "mine"
    folder = launched(settings)
    moved = composed(f"output={settings['output']}", "name=mine", "data.root=/moved", "trainer.log_every=3")
    check_claim(folder, moved)
    folder.open(moved)
    assert folder.config() == moved
    assert folder.config()["data"]["source"]["root"] == "/moved"


@pytest.mark.parametrize("key", ["data.root", "data.source.root"])
def test_a_finished_run_is_of_the_data_it_read(settings, tmp_path, key):
    settings["name"] = "mine"
    settings["data"]["root"] = settings["data"]["source"]["root"] = str(tmp_path / "first")
    folder = launched(settings)
    other = copy.deepcopy(settings)
    (other["data"] if key == "data.root" else other["data"]["source"])["root"] = str(tmp_path / "second")
    check_claim(folder, other)
    folder.finish({"status": "finished"})
    with pytest.raises(DualsegError) as refused:
        check_claim(folder, other)
    ways = (f"{key}={tmp_path / 'first'}", f"not {tmp_path / 'second'}", "name=...", "overwrite=true")
    assert all(words in str(refused.value) for words in ways), refused.value
    check_claim(folder, {**other, "overwrite": True})
    (tmp_path / "second").symlink_to(tmp_path / "first")
    check_claim(folder, other)  # the same folder by another name


def test_another_configuration_is_turned_away(settings):
    settings["name"] = "mine"
    folder = launched(settings)
    other = copy.deepcopy(settings)
    other["optimizer"]["lr"] = 0.5
    with pytest.raises(DualsegError, match=r"optimizer\.lr: 0\.01 there, 0\.5 now, 1 keys .*overwrite=true"):
        check_claim(folder, other)
    del other["optimizer"]["lr"]
    with pytest.raises(DualsegError, match=r"optimizer\.lr: 0\.01 there, absent now"):
        check_claim(folder, other)
    check_claim(folder, {**other, "overwrite": True})


def test_overwriting_empties_the_folder(settings):
    folder = launched(settings)
    (folder.checkpoints / "iteration-000003.ckpt").touch()
    folder.finish({"status": "finished"})
    assert folder.finished
    check_claim(folder, {**settings, "overwrite": True})
    folder.open({**settings, "overwrite": True})
    assert not folder.finished
    assert folder.latest_checkpoint() is None
    assert folder.config()["overwrite"] is True


@pytest.mark.parametrize("name", ["chapter.tex", "config.yaml", "manifest.json", "checkpoints/x.pt", "logs/x.csv"])
def test_overwriting_spares_what_is_no_run_folder(settings, tmp_path, name):
    settings |= {"output": str(tmp_path), "name": "thesis", "overwrite": True}
    folder = RunFolder.of(settings)
    folder.path.mkdir()
    check_claim(folder, settings)  # empty, there is nothing to lose
    write_text(folder.path / name, "{}")
    with pytest.raises(DualsegError, match=r"thesis: overwrite=true empties run folders alone.*name=\.\.\."):
        check_claim(folder, settings)
    folder.open(settings)
    assert (folder.path / name).read_text() == "{}"


def test_an_evaluation_is_no_run_folder_to_empty(settings, tmp_path):
    settings |= {"output": str(tmp_path), "name": "both", "overwrite": True}
    folder = RunFolder.of(settings)
    write_json(folder.manifest_file, {"dualseg": "0", "evaluated": {}})
    with pytest.raises(DualsegError, match=r"both: overwrite=true .*no manifest\.json"):
        check_claim(folder, settings)


@pytest.mark.parametrize("lost", ["config.yaml", "manifest.json"])
def test_a_checkpoint_of_unknown_origin_is_not_resumed(settings, lost):
    folder = launched(settings)
    (folder.checkpoints / "iteration-000003.ckpt").touch()
    check_claim(folder, settings)
    (folder.path / lost).unlink()
    with pytest.raises(DualsegError, match=r"iteration-000003\.ckpt: a checkpoint without .*weights=FILE"):
        check_claim(folder, settings)


@pytest.mark.parametrize("name", ["checkpoints", "logs", "logs/wandb", "slices"])
def test_a_run_is_not_written_through_a_link_in_its_folder(settings, tmp_path, name):
    """A folder from elsewhere may hold one; that all runs, or this one, lie elsewhere is the user's own will."""
    folder, elsewhere = launched(settings), tmp_path / "elsewhere"
    elsewhere.mkdir()
    inside = folder.path / name
    if inside.exists():
        inside.rmdir()
    inside.symlink_to(elsewhere)
    with pytest.raises(DualsegError, match=rf"{inside}: is a link to {elsewhere}, .*remove"):
        check_claim(folder, settings)
    check_claim(folder, {**settings, "overwrite": True})  # which puts it aside
    inside.unlink()
    folder.path.rename(elsewhere / "run")
    folder.path.symlink_to(elsewhere / "run")
    check_claim(folder, settings)


def test_only_a_bare_folder_is_removed(settings):
    folder = launched(settings)
    folder.curves_file.write_text("iteration,name,value\n1,loss/total,0.5\n")
    folder.remove_if_bare()
    assert folder.path.exists()
    folder.curves_file.write_text("iteration,name,value\n")
    checkpoint = folder.checkpoints / "iteration-000003.ckpt"
    checkpoint.touch()
    folder.remove_if_bare()
    assert folder.path.exists()
    checkpoint.unlink()
    folder.remove_if_bare()
    assert not folder.path.exists()


def test_leftovers_of_a_killed_writer_are_cleared(settings):
    folder = RunFolder.of(settings)
    folder.open(settings)
    leftover = folder.checkpoints / ".0a1b2c3d.tmp.iteration-000004.ckpt"
    leftover.write_bytes(b"half")
    kept = folder.checkpoints / "iteration-000003.ckpt"
    kept.touch()
    folder.open(settings)
    assert list(folder.checkpoints.iterdir()) == [kept]


def test_latest_checkpoint_counts_and_ignores_strangers(settings):
    folder = RunFolder.of(settings)
    folder.open(settings)
    assert folder.latest_checkpoint() is None
    with pytest.raises(DualsegError, match="holds no checkpoint"):
        folder.checkpoint()
    for name in ("iteration-000009", "iteration-1000000", "iteration-000999", "iteration-best", "last"):
        (folder.checkpoints / f"{name}.ckpt").touch()
    assert folder.checkpoint().name == "iteration-1000000.ckpt"
    assert iteration_of(folder.checkpoint()) == 1_000_000
    with pytest.raises(DualsegError, match=r"last\.ckpt: not a checkpoint"):
        iteration_of(folder.checkpoints / "last.ckpt")


def test_existing_needs_a_configuration(tmp_path, settings):
    with pytest.raises(DualsegError, match=r"no run folder .*config\.yaml"):
        RunFolder.existing(tmp_path)
    folder = RunFolder.of(settings)
    folder.open(settings)
    assert RunFolder.existing(folder.path).config() == settings
    folder.config_file.write_text("{a: [")
    with pytest.raises(DualsegError, match=r"config\.yaml: cannot be read"):
        folder.config()


def test_evaluations_are_numbered_and_never_the_same(settings):
    folder = RunFolder.of(settings)
    numbers = []
    for label in ("test", "test", "validation"):
        evaluation = folder.new_evaluation(label)
        numbers.append(evaluation.path.name)
        evaluation.finish({"status": "finished"})
    assert numbers == ["001-test", "002-test", "003-validation"]
    (folder.evaluations / "010-test").mkdir()
    assert folder.new_evaluation("test").path.name == "011-test"


def test_finished_only_when_metrics_say_so(settings):
    folder = RunFolder.of(settings)
    assert not folder.finished
    folder.finish({"status": "running"})
    assert not folder.finished
    folder.finish({"status": "finished"})
    assert folder.finished


@pytest.mark.parametrize("error", [OSError("disk full"), ValueError("no such number"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_former_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "metrics.json"
    write_text(path, "former")
    expected = DualsegError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as raised, replacing(path) as temporary:
        temporary.write_text("half of it")
        assert temporary.parent == path.parent, "a rename is atomic within one file system only"
        raise error
    assert path.read_text() == "former"
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]
    if isinstance(error, OSError):
        assert str(path) in str(raised.value)


def test_files_are_synced_before_they_are_renamed(tmp_path, monkeypatch):
    events = []
    rename = Path.replace
    kind = {True: "sync folder", False: "sync file"}
    monkeypatch.setattr("os.fsync", lambda descriptor: events.append(kind[stat.S_ISDIR(os.fstat(descriptor).st_mode)]))
    monkeypatch.setattr(Path, "replace", lambda self, target: events.append("rename") or rename(self, target))
    write_text(tmp_path / "x.txt", "new")
    assert events == ["sync file", "rename", "sync folder"]
    assert (tmp_path / "x.txt").read_text() == "new"


def test_parallel_writers_use_different_temporary_files(tmp_path):
    with replacing(tmp_path / "x.nii.gz") as first, replacing(tmp_path / "x.nii.gz") as second:
        assert first != second
        assert first.name.startswith(".")
        assert first.name.endswith(".nii.gz")
        first.write_text("1")
        second.write_text("2")
    assert (tmp_path / "x.nii.gz").read_text() == "1"  # the outer block ended last


def test_json_round_trip_and_its_mistakes(tmp_path):
    path = tmp_path / "deep" / "x.json"
    write_json(path, {"a": [1, 2.5, None]})
    assert read_json(path) == json.loads(path.read_text()) == {"a": [1, 2.5, None]}
    with pytest.raises(DualsegError, match=r"y\.json: missing"):
        read_json(tmp_path / "y.json")
    for text in ('{"a": ', "[" * 100_000):
        path.write_text(text)
        with pytest.raises(DualsegError, match=r"x\.json: cannot be read"):
            read_json(path)


def test_the_configuration_file_holds_no_interpolations_and_loads_plainly(settings):
    folder = RunFolder.of(settings)
    folder.open(settings)
    assert "${" not in folder.config_file.read_text()
    assert yaml.safe_load(folder.config_file.read_text())["networks"]["b"]["base_channels"] == settings["base_channels"]


def test_a_requeued_slurm_job_goes_on_in_what_it_began_though_it_says_overwrite(tmp_path, monkeypatch):
    config = {"output": "runs", "overwrite": True, "seed": 0, "data": {"root": "x"}}
    folder = RunFolder(tmp_path / "run")
    folder.open(config)
    folder.manifest_file.write_text('{"dualseg": "1", "slurm_job": "42"}')
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert not folder.resumes_in_slurm(config), "without a checkpoint the former run comes back"
    (folder.checkpoints / "iteration-000003.ckpt").touch()
    assert folder.resumes_in_slurm(config)
    assert not folder.resumes_in_slurm({**config, "seed": 1})
    resolved = {**config, "name": "run", "output": str(tmp_path)}
    seen = []
    monkeypatch.setattr("dualseg.training.settings.resolve", dict)
    monkeypatch.setattr("dualseg.train._is_to_do", lambda settings: seen.append(settings["overwrite"]))
    for restarts in ("1", "0"):
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
        train(resolved)
    assert seen == [False, True]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    for key, value in (("SLURM_RESTART_COUNT", "0"), ("SLURM_JOB_ID", "43")):
        with monkeypatch.context() as other:
            other.setenv(key, value)
            assert not folder.resumes_in_slurm(config), key
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    assert not folder.resumes_in_slurm(config)
