"""What an evaluation is of: the configuration it takes from its runs, and cases that none of them has seen."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dualseg.data import PancreasCT
from dualseg.errors import DualsegError
from dualseg.runs.evaluation import check_unseen, settings_of_evaluation
from dualseg.runs.trusted import Trust

COUNTS = {"labeled": 2, "labeled_ratio": None, "held_out_validation": 0, "held_out_test": 0}


def config(name: str = "mine_v2", target: str = "my_dataset.MyDataset", unlabeled: int = 2, **data: Any) -> Any:
    source = {"_target_": target, "root": "/old"}
    return {
        "data": {"name": name, "root": "/old", "source": source, **COUNTS, **data},
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


@pytest.mark.parametrize(
    "run",
    [
        config(),
        config(target="moved.MyDataset"),  # the class has moved since
        config(name="mine_v1"),  # data.name has changed since
    ],
)
def test_trained_cases_are_refused_whatever_the_class_is_called(run):
    data = config(held_out_test=1)["data"]
    with pytest.raises(DualsegError, match=r"1 of the cases to evaluate were trained on, c3"):
        check_unseen([run], data, SOURCE, ["c3"], Trust())
    check_unseen([run], data, SOURCE, ["t0"], Trust())


def test_runs_on_other_datasets_have_not_seen_these_cases():
    other = config("other", "other.Source", labeled=100)
    check_unseen([other], config()["data"], SOURCE, ["c0"], Trust())


def test_without_unlabeled_patches_the_unlabeled_cases_are_unseen():
    run = config(unlabeled=0)
    check_unseen([run], run["data"], SOURCE, ["c2", "c3"], Trust())
    with pytest.raises(DualsegError, match=r"c1 for one"):
        check_unseen([run], run["data"], SOURCE, ["c1", "c2"], Trust())


def test_a_run_has_seen_the_cases_of_its_own_split_wherever_the_data_lie_now(tmp_path):
    run, now = config("pancreas", "dualseg.data.PancreasCT"), config("pancreas", "dualseg.data.PancreasCT")
    run["data"]["source"]["split"], now["data"]["source"]["split"] = "mcf_fold0", "mcnet"
    now["data"]["root"] = now["data"]["source"]["root"] = str(tmp_path)
    source = PancreasCT(tmp_path, "mcnet")
    with pytest.raises(DualsegError, match=r"17 of the cases to evaluate were trained on, image0050 for one"):
        check_unseen([run], now["data"], source, source.test_cases, Trust())
    check_unseen([run], now["data"], source, ["image0067", "image0073", "image0074"], Trust())


def test_what_another_run_names_is_not_called_either(tmp_path):
    run, now = (config("pancreas", "dualseg.data.PancreasCT", root=str(tmp_path)) for _ in range(2))
    for own in (run, now):
        own["data"]["source"]["root"] = str(tmp_path)
    run["data"]["source"]["exclude"] = [{"_target_": "os.mkdir", "path": str(tmp_path / "canary")}]
    with pytest.raises(DualsegError, match=r"trust=os\.mkdir"):
        check_unseen([run], now["data"], PancreasCT(tmp_path), ["image0001"], Trust())
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
