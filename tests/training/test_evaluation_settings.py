"""What an evaluation is of: the configuration it takes from its runs, and cases that none of them has seen."""

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from dualseg.command.grammar import read_arguments
from dualseg.data import PancreasCT
from dualseg.errors import DualsegError
from dualseg.evaluate import EvaluationOptions, _cases_of
from dualseg.files import write_json
from dualseg.runs.cases import trained_before, trained_on
from dualseg.runs.folder import RunFolder
from dualseg.training.evaluation_settings import check_unseen, settings_of_evaluation
from dualseg.training.trusted import Trust

COUNTS = {"labeled": 2, "labeled_ratio": None, "held_out_validation": 0, "held_out_test": 0}


def config(name: str = "mine_v2", target: str = "my_dataset.MyDataset", unlabeled: int = 2, **data: Any) -> Any:
    source = {"_target_": target, "root": "/old"}
    return {
        "data": {
            "name": name,
            "root": "/old",
            "source": source,
            "downsample": 1,
            "patch_size": [16] * 3,
            **COUNTS,
            **data,
        },
        "batch": {"labeled": 2, "unlabeled": unlabeled},
        "inference": {"batch_size": 4},
        "optimizer": {"lr": 0.1},
    }


SOURCE: Any = SimpleNamespace(
    name="mine",
    train_cases=("c0", "c1", "c2", "c3"),
    test_cases=("t0",),
    validation_cases=(),
    unlabeled_cases=(),
    class_names=("background", "organ"),
    regions={},
)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., RunFolder]:
    """A run folder of a configuration and, where an up-to-date version wrote it, of a manifest."""

    def write(content: Any, *records: Any) -> RunFolder:
        run = RunFolder(tmp_path / f"run{len(list(tmp_path.iterdir()))}")
        run.path.mkdir()
        run.config_file.write_text(yaml.safe_dump(content))
        if records:
            write_json(run.manifest_file, {"dualseg": "0", "data": records[0], "started_from": records[1:]})
        return run

    return write


def record(dataset: str, labeled: str, unlabeled: str = "", **images: str) -> Any:
    cases = {"labeled": labeled.split(), "unlabeled": unlabeled.split(), "validation": ["v0"], "test": ["t0"]}
    return {"dataset": dataset, "fingerprint": "f", "cases": cases, "images": images}


def test_what_a_run_was_trained_on_is_what_it_recorded_and_not_what_the_split_says_now(folder):
    """By today's split it was trained on c0 to c3."""
    run, data = folder(config(), record("mine_v2", "c0 gone", "c7")), config()["data"]
    check_unseen([run], data, SOURCE, ["c1", "c2", "c3", "v0", "t0"], Trust())
    with pytest.raises(DualsegError, match=r"2 of .*trained on, c7 .*manifest\.json"):
        check_unseen([run], data, SOURCE, ["c1", "c7", "c0"], Trust())


def test_recorded_names_are_of_one_dataset_and_images_of_all(folder):
    run = folder(config(), record("mine_v2", "c0", c0="hash0"))
    elsewhere = {**config()["data"], "name": "site2"}
    assert check_unseen([run], elsewhere, SOURCE, ["c0"], Trust()) == {"hash0": "c0 of mine_v2"}
    with pytest.raises(DualsegError, match=r"data\.name=NAME"):
        check_unseen([run], config()["data"], SOURCE, ["c0"], Trust())


def test_every_run_of_an_ensemble_and_what_it_started_from_counts(folder):
    first = folder(config(), record("mine_v2", "c0", c0="0"))
    second = folder(config(), record("mine_v2", "c1", c1="1"), record("mine_v2", "c2", c2="2"))
    runs, data = [first, second], config()["data"]
    assert check_unseen(runs, data, SOURCE, ["c3"], Trust()).keys() == {"0", "1", "2"}
    for case in ("c0", "c1", "c2"):
        with pytest.raises(DualsegError, match=f"{case} for one"):
            check_unseen(runs, data, SOURCE, [case], Trust())


def test_weights_bring_along_what_they_were_trained_on(folder, capsys):
    run = folder(config(), record("mine_v2", "c0"), record("older", "c9"))
    weights = run.checkpoints / "iteration-000002.ckpt"
    assert [known["dataset"] for known in trained_before(str(weights), None)] == ["mine_v2", "older"]
    assert trained_on(folder(config())) == [] and capsys.readouterr().err == ""


def test_weights_say_themselves_what_they_were_trained_on(folder, tmp_path, capsys):
    """Wherever they lie: the folder above may be that of another run."""
    other = folder(config(), record("other", "c5"))
    own = [record("mine_v2", "c0", c0="hash0"), record("older", "c9")]
    for weights in (tmp_path / "copied.ckpt", other.checkpoints / "iteration-000002.ckpt"):
        found = trained_before(str(weights), own)
        assert [known["cases"]["labeled"] for known in found] == [["c0"], ["c9"]]
        assert found[0]["images"] == {"c0": "hash0"}
        with pytest.raises(DualsegError, match=rf"^{weights}: .*damaged"):
            trained_before(str(weights), [*own, {"dataset": "mine_v2"}])
    assert capsys.readouterr().err == ""


def test_of_weights_from_elsewhere_it_is_said_that_nobody_knows(folder, tmp_path, capsys):
    older = folder(config(), {"dataset": "mine_v2", "fingerprint": "f"})
    for weights in (tmp_path / "copied.ckpt", older.checkpoints / "iteration-000002.ckpt"):
        assert trained_before(str(weights), None) == []
        told = capsys.readouterr().err
        assert told.startswith(f"warning: weights={weights}: unknown") and told.count("\n") == 1


def test_a_record_without_images_counts_by_its_names(folder):
    known = record("mine_v2", "c0")
    del known["images"]
    run = folder(config(), known, known)
    assert [one["images"] for one in trained_on(run)] == [{}, {}]
    with pytest.raises(DualsegError, match="c0 for one"):
        check_unseen([run], config()["data"], SOURCE, ["c0"], Trust())


@pytest.mark.parametrize("spoilt", [{"cases": {}}, {"cases": {"labeled": [], "unlabeled": []}}, {"cases": []}])
def test_a_damaged_record_is_named(folder, spoilt):
    run = folder(config(), spoilt)
    with pytest.raises(DualsegError, match=r"manifest\.json: .*damaged.*restore"):
        trained_on(run)


@pytest.mark.parametrize(
    "damage",
    [{"cases": []}, {"cases": {"labeled": ["c0"]}}, {"images": None}, {"cases": {"labeled": [[]], "unlabeled": []}}],
)
def test_a_damaged_record_is_not_taken_for_none(folder, damage):
    run = folder(config(), {**record("mine_v2", "c0"), **damage})
    with pytest.raises(DualsegError, match=r"manifest\.json: .*damaged"):
        trained_on(run)


@pytest.mark.parametrize(
    "run",
    [
        config(),
        config(target="moved.MyDataset"),  # the class has moved since
        config(name="mine_v1"),  # data.name has changed since
    ],
)
def test_of_an_older_run_trained_cases_are_refused_whatever_the_class_is_called(run, folder):
    data = config(held_out_test=1)["data"]
    with pytest.raises(DualsegError, match=r"1 of .*trained on, c3"):
        check_unseen([folder(run)], data, SOURCE, ["c3"], Trust())
    check_unseen([folder(run)], data, SOURCE, ["t0"], Trust())


def test_older_runs_on_other_datasets_have_not_seen_these_cases(folder):
    other = config("other", "other.Source", labeled=100)
    check_unseen([folder(other)], config()["data"], SOURCE, ["c0"], Trust())


def test_without_unlabeled_patches_the_unlabeled_cases_are_unseen(folder):
    run = config(unlabeled=0)
    check_unseen([folder(run)], run["data"], SOURCE, ["c2", "c3"], Trust())
    with pytest.raises(DualsegError, match=r"c1 for one"):
        check_unseen([folder(run)], run["data"], SOURCE, ["c1", "c2"], Trust())


def test_an_older_run_has_seen_the_cases_of_its_own_split_wherever_the_data_lie_now(tmp_path, folder):
    run, now = config("pancreas", "dualseg.data.PancreasCT"), config("pancreas", "dualseg.data.PancreasCT")
    run["data"]["source"]["split"], now["data"]["source"]["split"] = "mcf_fold0", "mcnet"
    now["data"]["root"] = now["data"]["source"]["root"] = str(tmp_path)
    source = PancreasCT(tmp_path, "mcnet")
    with pytest.raises(DualsegError, match=r"17 of .*trained on, image0050"):
        check_unseen([folder(run)], now["data"], source, source.test_cases, Trust())
    check_unseen([folder(run)], now["data"], source, ["image0067", "image0073", "image0074"], Trust())


def test_what_another_run_names_is_not_called_either(tmp_path, folder):
    run, now = (config("pancreas", "dualseg.data.PancreasCT", root=str(tmp_path)) for _ in range(2))
    for own in (run, now):
        own["data"]["source"]["root"] = str(tmp_path)
    run["data"]["source"]["exclude"] = [{"_target_": "os.mkdir", "path": str(tmp_path / "canary")}]
    with pytest.raises(DualsegError, match=r"trust=os\.mkdir"):
        check_unseen([folder(run)], now["data"], PancreasCT(tmp_path), ["image0001"], Trust())
    assert not (tmp_path / "canary").exists()


def test_another_root_moves_every_path_of_the_source():
    run = config()
    run["data"]["source"] = {
        "_target_": "my_dataset.MyDataset",
        "folder": "/old",
        "images": "/old/images",
        "labels": ["/old/labels/one", {"more": "/old/labels/two"}],
        "lists": "/older/lists",
        "size": 3,
    }
    before = copy.deepcopy(run)
    settings = settings_of_evaluation([run], {"data.root": "/new", "data.source.folder": "/old"})
    assert settings["data"]["root"] == "/new"
    assert settings["data"]["source"] == {
        "_target_": "my_dataset.MyDataset",
        "folder": "/old",  # the word for it counts
        "images": "/new/images",
        "labels": ["/new/labels/one", {"more": "/new/labels/two"}],
        "lists": "/older/lists",
        "size": 3,
    }
    assert run == before


def test_another_root_is_kept_as_seen_from_here(monkeypatch, tmp_path):
    """So that the evaluation's config.yaml says where the data lay."""
    monkeypatch.chdir(tmp_path)
    data = settings_of_evaluation([config()], {"data.root": "volumes"})["data"]
    assert data["root"] == data["source"]["root"] == str(Path.cwd() / "volumes")


def test_a_dataset_named_after_its_folder_is_named_after_the_one_that_is_scored():
    named = config(name="old")
    assert settings_of_evaluation([named], {"data.root": "/new"})["data"]["name"] == "new"
    assert settings_of_evaluation([named], {"data.root": "/new", "data.name": "mine"})["data"]["name"] == "mine"
    assert settings_of_evaluation([config()], {"data.root": "/new"})["data"]["name"] == "mine_v2"


def test_networks_see_volumes_as_in_training():
    with pytest.raises(DualsegError, match=r"data\.downsample=2: .*trained with 1"):
        settings_of_evaluation([config()], {"data.downsample": 2})
    assert settings_of_evaluation([config()], {"data.downsample": 1})["data"]["downsample"] == 1


def test_runs_on_other_kinds_of_datasets_are_no_ensemble():
    settings_of_evaluation([config(), config(target="moved.MyDataset")], {})
    with pytest.raises(DualsegError, match=r"data\.source: MyDataset .*Theirs .*ensemble"):
        settings_of_evaluation([config(), config(target="my_dataset.Theirs")], {})


@pytest.mark.parametrize("folder_name", ["a: b", "[x]", "#1", "{x", "1e3"])
def test_a_folder_is_the_text_that_was_typed(folder_name):
    assert changes_of(f"data.root={folder_name}") == {"data.root": folder_name}
    assert changes_of("data.source.splits=null") == {"data.source.splits": None}


def test_a_value_that_is_no_yaml_is_answered():
    with pytest.raises(DualsegError, match=r"data\.stride=\[9,9: cannot be read"):
        changes_of("data.stride=[9,9")


def changes_of(argument: str) -> dict[str, Any]:
    return read_arguments(EvaluationOptions, ["run=r", argument], "dualseg-evaluate").changes


@pytest.mark.parametrize(
    ("asked", "validation", "test", "taken"),
    [(None, "v", "t", "test"), (None, "v", "", "validation"), ("validation", "v", "t", "validation")],
)
def test_the_split_that_has_cases_is_taken(asked, validation, test, taken, capsys):
    source = pool_of(validation, test)
    assert _cases_of(asked, source, {**COUNTS, "draw": 0, "fold": None, "folds": 5}) == (
        taken,
        tuple(validation if taken == "validation" else test),
    )
    assert ("split=validation" in capsys.readouterr().err) == (asked != taken == "validation")


@pytest.mark.parametrize(
    ("asked", "validation", "fix"),
    [("test", "v", r"data\.held_out_test=N or split=validation\."), (None, "", r"data\.held_out_test=N\.")],
)
def test_a_split_without_cases_is_answered(asked, validation, fix):
    with pytest.raises(DualsegError, match=rf"split=test: has no cases; give {fix}"):
        _cases_of(asked, pool_of(validation, ""), {**COUNTS, "draw": 0, "fold": None, "folds": 5})


def test_the_validation_cases_of_a_fold_are_those_of_the_labels_that_it_had():
    """Of the others, the run may have trained on the images."""
    data = {**COUNTS, "labeled": 4, "draw": 0, "fold": 0, "folds": 2}
    assert _cases_of("validation", pool_of("", ""), data)[1] == ("a", "c")


def pool_of(validation: str, test: str) -> Any:
    cases = {"train_cases": tuple("abcdefgh"), "unlabeled_cases": (), "validation_cases": tuple(validation)}
    return SimpleNamespace(name="toy", class_names=["background", "x"], regions={}, test_cases=tuple(test), **cases)
