"""The split of a dataset folder: written once, read ever after."""

import json
import os
from pathlib import Path

import pytest

from dualseg.data.split_file import NAME, SplitFile, place_of
from dualseg.errors import DualsegError

CASES = {f"c{n:02d}": n < 17 for n in range(22)}
TEST = ("t0", "t1")


def change(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def path(tmp_path):
    """A split file of CASES."""
    SplitFile(tmp_path / "split.json", CASES, TEST)
    return tmp_path / "split.json"


def test_it_is_written_once_and_says_so(tmp_path, capsys):
    first = SplitFile(tmp_path / "new" / "split.json", CASES, TEST)
    assert str(first.path) in capsys.readouterr().err
    assert sorted(first.cases("labeled")) == [case for case, has_label in CASES.items() if has_label]
    assert sorted(first.cases("unlabeled")) == [case for case, has_label in CASES.items() if not has_label]
    assert first.cases("test") == TEST and first.cases("validation") == ()
    assert list(first.cases("labeled")) != sorted(first.cases("labeled")), "the first N are a fair sample"
    before = first.path.read_bytes()
    again = SplitFile(first.path, CASES, TEST)
    assert again.cases("labeled") == first.cases("labeled") and capsys.readouterr().err == ""
    assert first.path.read_bytes() == before


def test_an_order_of_ones_own_is_kept(path):
    order = sorted(case for case, has_label in CASES.items() if has_label)[::-1]
    change(path, labeled=order[4:], validation=order[:4])
    assert SplitFile(path, CASES, TEST).cases("labeled") == tuple(order[4:])
    assert SplitFile(path, CASES, TEST).cases("validation") == tuple(order[:4])
    change(path, labeled=order[5:], excluded=order[4:5])
    assert order[4] not in SplitFile(path, CASES, TEST).cases("labeled")


@pytest.mark.parametrize("folds", [2, 5, 17])
def test_folds_part_the_labeled_cases(path, folds):
    split = SplitFile(path, CASES, TEST)
    parts = [split.fold(fold, folds) for fold in range(folds)]
    held = [case for _, own in parts for case in own]
    assert sorted(held) == sorted(split.cases("labeled")), "each once"
    assert max(len(own) for _, own in parts) - min(len(own) for _, own in parts) <= 1
    for rest, own in parts:
        assert rest == tuple(case for case in split.cases("labeled") if case not in own), "in the order of the labels"


def test_folds_are_kept(path):
    SplitFile(path, CASES, TEST).fold(0, 3)
    labeled = sorted(case for case, has_label in CASES.items() if has_label)
    own = [labeled[:2], labeled[2:10], labeled[10:]]
    assert len(json.loads(path.read_text())["folds"]["3"]) == 3
    change(path, folds={"3": own})
    assert SplitFile(path, CASES, TEST).fold(1, 3)[1] == tuple(own[1])
    SplitFile(path, CASES, TEST).fold(1, 5)
    assert json.loads(path.read_text())["folds"]["3"] == own, "beside those that are there"


def test_a_median_spacing_is_kept(path):
    split = SplitFile(path, CASES, TEST)
    assert split.median_spacing is None
    split.keep_median_spacing((1.0, 1.5, 2.0))
    assert SplitFile(path, CASES, TEST).median_spacing == (1.0, 1.5, 2.0)


def test_where_it_lies(tmp_path, monkeypatch):
    root = tmp_path / "set"
    root.mkdir()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    assert place_of(root, None) == root / NAME
    assert place_of(root, tmp_path / "mine.json") == tmp_path / "mine.json"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    outside = place_of(root, None)
    assert outside.parent == tmp_path / "home" / "dualseg" and outside.name.startswith("set-")
    SplitFile(outside, CASES, TEST)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    assert place_of(root, None) == outside, "also when the folder has become writable"
    (root / NAME).touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert place_of(root, None) == root / NAME, "what is in the folder is read, written or not"


def test_nobody_needs_a_home_whose_folder_can_be_written(tmp_path, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert place_of(tmp_path, None) == tmp_path / NAME
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(DualsegError, match=r"set HOME or XDG_DATA_HOME .* data\.source\.splits=FILE"):
        place_of(tmp_path, None)
    (tmp_path / NAME).touch()
    assert place_of(tmp_path, None) == tmp_path / NAME


def test_a_file_that_cannot_be_written_says_how_else(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DualsegError, match=r"split\.json.*data\.source\.splits=FILE"):
        SplitFile(tmp_path / "file" / "split.json", CASES, TEST)


@pytest.mark.parametrize("fold, folds, words", [(5, 5, "give 0 to 4"), (-1, 5, "give 0 to 4"), (0, 18, "2 to 17")])
def test_folds_that_are_not_there(path, fold, folds, words):
    with pytest.raises(DualsegError, match=words):
        SplitFile(path, CASES, TEST).fold(fold, folds)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"labelled": []}, "is no split"),
        ({"labeled": "c00"}, "'labeled' is no list"),
        ({"folds": {"5": ["c00"]}}, "'folds'"),
        ({"median_spacing": [1, 0, 1]}, "'median_spacing'"),
        ({"unlabeled": ["gone"]}, "lists gone"),
        ({"validation": ["c20"]}, "c20 is validation but has no label file"),
        ({"unlabeled": [*list(CASES)[17:], "c17"]}, "c17 more than once"),
        ({"excluded": ["c00"]}, "c00 more than once"),
        ({"test": ["t0"]}, r"lacks 1 cases .*\(t1\)"),
        ({"test": [], "unlabeled": [*list(CASES)[17:], *TEST]}, "t0 is of imagesTs"),
    ],
)
def test_a_file_that_does_not_fit(path, changes, words):
    change(path, **changes)
    with pytest.raises(DualsegError, match=rf"split\.json.*{words}"):
        SplitFile(path, CASES, TEST)


def test_new_cases_are_asked_about(path):
    with pytest.raises(DualsegError, match=r"lacks 1 cases .*\(new\).*excluded"):
        SplitFile(path, {**CASES, "new": True}, TEST)


def test_folds_that_part_nothing_and_validation_twice(path):
    change(path, folds={"2": [["c00"], ["c01"]]})
    with pytest.raises(DualsegError, match="do not part"):
        SplitFile(path, CASES, TEST).fold(0, 2)
    labeled = json.loads(path.read_text())["labeled"]
    change(path, labeled=labeled[2:], validation=labeled[:2])
    with pytest.raises(DualsegError, match="keep one"):
        SplitFile(path, CASES, TEST).fold(0, 5)


def test_nothing_is_written_of_a_dataset_with_faulty_cases(tmp_path, path, capsys):
    capsys.readouterr()
    new = SplitFile(tmp_path / "other.json", CASES, TEST, faulty=["c03"])
    new.keep_median_spacing((1, 1, 1))
    assert new.median_spacing == (1, 1, 1) and len(new.fold(0, 5)[0]) == 13
    assert not new.path.exists() and capsys.readouterr().err == ""
    before = path.read_bytes()
    old = SplitFile(path, CASES, TEST, faulty=["c03"])
    old.keep_median_spacing((1, 1, 1))
    old.fold(0, 4)
    assert path.read_bytes() == before
    assert all(old.cases(role) == SplitFile(path, CASES, TEST).cases(role) for role in ("labeled", "unlabeled", "test"))


def test_roles_fit_a_dataset_with_faulty_cases_as_far_as_they_can(path):
    """A label that was named wrongly leaves a case without one, and makes another; a case of the test set is a twin."""
    SplitFile(path, CASES, TEST).fold(0, 5)
    order = SplitFile(path, CASES, TEST).cases("labeled")
    split = SplitFile(path, {**CASES, "c03": False, "c3": True, "t1": True}, ("t0",), faulty=["c3", "t1"])
    assert split.cases("labeled") == (*(case for case in order if case != "c03"), "c3")
    assert split.cases("unlabeled")[-1] == "c03" and split.cases("test") == ("t0", "t1")
    rest, own = split.fold(0, 5)
    assert sorted((*rest, *own)) == sorted(split.cases("labeled"))


def test_of_two_roles_of_a_case_the_one_that_opens_no_label_is_taken(path):
    """While something else is at fault; else the file is refused."""
    labeled = SplitFile(path, CASES, TEST).cases("labeled")
    change(path, unlabeled=[*SplitFile(path, CASES, TEST).cases("unlabeled"), labeled[0]])
    split = SplitFile(path, CASES, TEST, faulty=[labeled[1]])
    assert labeled[0] in split.cases("unlabeled") and labeled[0] not in split.cases("labeled")


def test_faulty_cases_that_are_excluded_do_not_count(path):
    labeled = SplitFile(path, CASES, TEST).cases("labeled")
    change(path, labeled=labeled[1:], excluded=labeled[:1])
    SplitFile(path, CASES, TEST, faulty=labeled[:1]).keep_median_spacing((1, 1, 2))
    assert SplitFile(path, CASES, TEST).median_spacing == (1, 1, 2)
    with pytest.raises(DualsegError, match="no label file"):
        SplitFile(path, {**CASES, labeled[1]: False}, TEST, faulty=labeled[:1])


def test_what_a_killed_writer_left_of_it_goes_with_the_next_write(tmp_path):
    """The folder is the user's: nothing else of it is touched."""
    left, other = tmp_path / ".0a1b2c3d.tmp.split.json", tmp_path / ".0a1b2c3d.tmp.volume.nii.gz"
    left.write_text("{")
    other.write_text("")
    SplitFile(tmp_path / "split.json", CASES, TEST)
    assert sorted(tmp_path.iterdir()) == [other, tmp_path / "split.json"]
