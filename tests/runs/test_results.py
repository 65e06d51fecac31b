"""metrics.json, cases.csv, manifest.json and the results table: the contracts of docs/run-folder.md."""

import csv
import json
import math
import re
from pathlib import Path

import pytest

from dualseg.errors import DualsegError
from dualseg.metrics import segmentation
from dualseg.metrics.functional import Scores
from dualseg.metrics.segmentation import CaseScores, Summary
from dualseg.record import Roles
from dualseg.runs.reading import CASE_COLUMNS, CaseRow, case_row, read_rows
from dualseg.runs.reading import METRICS as COLUMNS
from dualseg.runs.results import metrics_of, write_cases
from dualseg.runs.tables import absences, distance_unit, poorly_found, results_table
from dualseg.training import provenance

METRICS = ("dice", "jaccard", "hd95", "asd")
ROLES = Roles({}, ("a", "b"), "ensemble")


def summary(classes: tuple[str, ...], bonus: float = 0.0) -> Summary:
    """Two cases; class c of case i scores Dice 0.5 + i/10 + c/100 + bonus."""
    rows = [
        CaseScores(i, name, Scores(0.5 + i / 10 + c / 100 + bonus, 0.4, 5.0 + i, 1.25, "prediction" if i else ""))
        for i in range(2)
        for c, name in enumerate(classes)
    ]
    per_class = {
        name: {m: sum(getattr(r.scores, m) for r in rows if r.class_name == name) / 2 for m in METRICS}
        for name in classes
    }
    mean = {m: sum(values[m] for values in per_class.values()) / len(classes) for m in METRICS}
    return Summary(mean, per_class, rows)


def test_metrics_of_two_classes_are_flat():
    results = {"validation": {"a": summary(("atrium",))}, "test": {n: summary(("atrium",)) for n in ("a", "ensemble")}}
    metrics = metrics_of(results, 6000, ROLES)
    expected = {"dice": pytest.approx(0.55), "jaccard": 0.4, "hd95": 5.5, "asd": 1.25}
    assert metrics == {
        "status": "finished",
        "record": "ensemble",
        "iterations": 6000,
        "validation": {"a": expected},
        "test": {"a": expected, "ensemble": expected},
    }
    assert json.loads(json.dumps(metrics)) == metrics
    averaged = metrics_of(results, 6000, Roles({"teacher": "a"}, ("a",), "teacher"))
    assert (averaged["record"], averaged["averages"]) == ("teacher", {"teacher": "a"})


def test_metrics_of_more_classes_name_them_beside_their_mean():
    metrics = metrics_of({"test": {"b": summary(("atrium", "ventricle"))}}, 7, ROLES)
    assert metrics["test"]["b"]["dice"] == pytest.approx(0.555)
    assert metrics["test"]["b"]["classes"]["ventricle"] == {
        "dice": pytest.approx(0.56), "jaccard": 0.4, "hd95": 5.5, "asd": 1.25,
    }  # fmt: skip


def test_cases_have_one_row_per_volume_network_and_class(tmp_path):
    path = tmp_path / "cases.csv"
    classes = ("atrium", "ventricle")
    tested = {"a": summary(classes), "ensemble": summary(classes, 0.2)}
    results = {"validation": {"a": summary(classes)}, "test": tested}
    write_cases(path, results, {"validation": ("v0", "v1"), "test": ("t,0", "t1")})
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["case", "split", "network", "class", *METRICS, "empty"]
    assert len(rows) == 2 * 2 + 2 * 2 * 2
    keys = {(r["case"], r["split"], r["network"], r["class"]): r for r in rows}
    assert len(keys) == len(rows)
    assert {(r["case"], r["split"]) for r in rows} == {
        ("v0", "validation"), ("v1", "validation"), ("t,0", "test"), ("t1", "test"),
    }  # fmt: skip
    row = keys["t1", "test", "ensemble", "ventricle"]
    assert [float(row[m]) for m in METRICS] == pytest.approx([0.81, 0.4, 6.0, 1.25], abs=5e-7)
    assert row["empty"] == "prediction"
    assert keys["v0", "validation", "a", "atrium"]["empty"] == ""


def test_cases_are_read_back_as_written(tmp_path):
    path = tmp_path / "cases.csv"
    write_cases(path, {"test": {"a": summary(("x, y",))}}, {"test": ("t,0", 't"1')})
    rows, damaged = read_rows(path, case_row)
    assert damaged == 0
    assert rows[0] == CaseRow("t,0", "test", "a", "x, y", 0.5, 0.4, 5.0, 1.25, "")
    assert rows[1] == CaseRow('t"1', "test", "a", "x, y", pytest.approx(0.6), 0.4, 6.0, 1.25, "prediction")


def test_damaged_rows_are_counted_and_a_cut_line_is_not_believed(tmp_path):
    path = tmp_path / "cases.csv"
    whole = "c,test,a,x,0.5,0.4,,1.25,"
    bad = ["c,test", f"{whole},more", whole.replace("0.5", "half"), f'"{whole}']
    path.write_text("\n".join([",".join(CASE_COLUMNS), *bad, whole, "d,test,a,x,0.5,0.4,5,1.2"]))
    (row,), damaged = read_rows(path, case_row)
    assert damaged == 4
    assert math.isnan(row.hd95) and row.asd == 1.25
    path.write_text("")
    assert read_rows(path, case_row) == ([], 0)
    with pytest.raises(DualsegError, match=r"absent\.csv: missing"):
        read_rows(tmp_path / "absent.csv", case_row)
    with pytest.raises(DualsegError, match="cannot be read"):
        read_rows(tmp_path, case_row)


def test_the_columns_are_the_metrics():
    assert COLUMNS == segmentation.METRICS


@pytest.mark.parametrize(("unit", "word"), [("voxel", "voxels"), ("mm", "mm")])
def test_the_table_shows_percent_and_distances_in_the_unit_of_the_config(unit, word):
    metrics = metrics_of({"test": {"a": summary(("x",)), "ensemble": summary(("x",), 0.25)}}, 1, ROLES)
    head, first, second = results_table(metrics, {"inference": {"distance_unit": unit}}).splitlines()
    assert head.split() == ["Dice", "%", "Jaccard", "%", "95HD", word, "ASD", word]
    assert first.split() == ["test", "a", "55.00", "40.00", "5.50", "1.25"]
    assert second.split() == ["test", "ensemble", "80.00", "40.00", "5.50", "1.25"]
    assert len({len(line) for line in (head, first, second)}) == 1, "the columns line up"


def test_every_class_has_its_line_and_how_often_it_was_found(tmp_path):
    classes = ("liver", "a tumour of the liver")
    results = {"test": {"a": summary(classes), "ensemble": summary(classes, 0.25)}}
    write_cases(tmp_path / "cases.csv", results, {"test": ("x", "y")})
    rows, _ = read_rows(tmp_path / "cases.csv", case_row)
    head, *lines = results_table(metrics_of(results, 1, ROLES), {}, rows).splitlines()
    assert [line.split("  ")[0] or line.split("  ")[1] for line in lines] == [
        "test a", "liver", "a tumour of the liver", "test ensemble", "liver", "a tumour of the liver"
    ]  # fmt: skip
    assert lines[2].split()[-8:] == ["56.00", "40.00", "5.50", "1.25", "1", "of", "2", "cases"]
    assert head.endswith("found in") and len({len(line) for line in (head, *lines) if "cases" in line}) == 1
    assert absences(rows) == [], "each was found in one case at least"


def test_the_median_is_over_cases_of_each_class_and_of_their_mean():
    dice = {"x": (0.9, 0.1), "y": (0.8, 0.6), "z": (0.0, 0.3)}
    rows = [
        CaseRow(case, "test", "a", name, value, value, 1.0, 1.0, "")
        for case, values in dice.items()
        for name, value in zip(("liver", "tumour"), values, strict=True)
    ]
    scores = {"dice": 0.61, "jaccard": 0.5, "hd95": 1.0, "asd": 1.0}
    metrics = {"test": {"a": {**scores, "classes": {"liver": scores, "tumour": scores}}}}
    head, *lines = results_table(metrics, {}, rows).splitlines()
    assert head.split()[:3] == ["Dice", "%", "median"]
    assert [re.findall(r"\d+\.\d\d", line)[:2] for line in lines] == [["61.00", m] for m in ("50.00", "80.00", "30.00")]


def test_a_class_that_is_never_found_or_never_there_is_said():
    def row(network, case, name, dice, empty):
        return CaseRow(case, "test", network, name, dice, dice, 1.0, 1.0, empty)

    rows = [
        *(row(n, case, "tumour", 0.0, "prediction") for n in ("a", "ensemble") for case in ("x", "y")),
        *(row("b", case, "tumour", 0.0, "") for case in ("x", "y")),  # predicted, and elsewhere
        *(row(n, "z", "tumour", 1.0, "both") for n in ("a", "b", "ensemble")),
        *(row(n, "x", "cyst", 0.0, "reference") for n in ("a", "b")),
        *(row("a", case, "liver", dice, "") for case, dice in (("x", 0.0), ("y", 0.5))),
    ]
    tumour, cyst = absences(rows)
    assert "tumour found in 0 of 2 " in tumour and "(a, ensemble, b)" in tumour
    assert "no case contains cyst" in cyst


def test_a_class_that_is_hardly_found_is_warned_of():
    """Of what stands for the run alone, on its test cases where it has some, and in cases that contain the class."""

    def row(split, network, name, dice, empty=""):
        return CaseRow("x", split, network, name, dice, dice, 1.0, 1.0, empty)

    rows = [
        row("validation", "teacher", "tumour", 0.02),
        *(row("validation", "a", "tumour", dice) for dice in (0.05, 0.13)),  # 9 %
        *(row("validation", "a", "liver", dice) for dice in (0.0, 0.3)),
        row("validation", "a", "cyst", 0.0, "reference"),  # no case contains it
    ]
    metrics = {"record": "a", "validation": {"a": {}, "teacher": {}}}
    warning = poorly_found(metrics, rows)
    assert warning is not None and "validation" in warning and "tumour (Dice 9.0 %)" in warning
    assert "liver" not in warning and "cyst" not in warning
    assert poorly_found({**metrics, "test": {"a": {}}}, [*rows, row("test", "a", "tumour", 0.5)]) is None
    assert poorly_found({}, []) is None


def test_a_config_without_a_unit_means_the_default():
    assert distance_unit({}) == distance_unit({"inference": None}) == "voxels"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "manifest.json"
    provenance.start(path, provenance.describe(3, {"dataset": "d", "fingerprint": "f"}), resumed_at=0)
    return path


def test_a_manifest_says_where_a_run_comes_from(manifest):
    content = json.loads(manifest.read_text())
    keys = ("dualseg", "versions", "git", "seed", "hardware", "data", "command", "started", "finished", "seconds")
    assert set(keys) <= content.keys()
    assert content["seed"] == 3
    assert content["data"] == {"dataset": "d", "fingerprint": "f"}
    assert {"python", "torch", "pytorch-lightning", "monai", "numpy"} <= set(content["versions"])
    assert all(content["versions"].values())
    assert re.fullmatch(r"[0-9a-f]{40}", content["git"]["revision"] or "0" * 40)
    assert content["hardware"]["threads"] >= 1
    assert content["finished"] is None
    assert content["seconds"] is None


def test_a_resumed_run_keeps_its_start_and_lists_where_it_went_on(manifest, monkeypatch):
    first = json.loads(manifest.read_text())
    monkeypatch.setattr(provenance, "now", lambda: "later")
    again = provenance.describe(3, {"dataset": "d", "fingerprint": "f"})
    provenance.start(manifest, again, resumed_at=40)
    provenance.start(manifest, again, resumed_at=70)
    content = json.loads(manifest.read_text())
    assert content["started"] == first["started"] != "later"
    assert [(r["iteration"], r["started"]) for r in content["resumed"]] == [(40, "later"), (70, "later")]
    assert all("revision" in r["git"] for r in content["resumed"])
    provenance.finish(manifest, 12.34)
    content = json.loads(manifest.read_text())
    assert (content["finished"], content["seconds"]) == ("later", 12.3)


def test_a_run_is_resumed_on_the_data_it_was_started_on(manifest, tmp_path):
    cases = {"labeled": ["a", "b"], "unlabeled": [], "validation": ["v"], "test": ["t"]}
    data = {"fingerprint": "f", "evaluation_fingerprint": {"validation": "v", "test": "t"}, "cases": cases}
    provenance.check_same_data(manifest, data)  # of a version that noted neither evaluation nor cases
    provenance.check_same_data(tmp_path / "none.json", {**data, "fingerprint": "g"})
    provenance.start(manifest, provenance.describe(3, data), resumed_at=0)
    provenance.check_same_data(manifest, {**data, "evaluation_fingerprint": {"test": "t"}})
    with pytest.raises(DualsegError, match="the training volumes "):
        provenance.check_same_data(manifest, {**data, "fingerprint": "g"})
    changed = {"validation": "v", "test": "other"}
    with pytest.raises(DualsegError, match="the training and test volumes "):
        provenance.check_same_data(manifest, {**data, "fingerprint": "g", "evaluation_fingerprint": changed})


@pytest.mark.parametrize(
    ("role", "now", "what"),
    [("labeled", ["b", "a"], "another order"), ("test", ["t", "u"], "u is now"), ("validation", [], "v is no more")],
)
def test_a_run_is_resumed_on_the_cases_it_was_started_on(manifest, role, now, what):
    """Also where the volumes that it reads are the same: in another order they are drawn otherwise."""
    cases = {"labeled": ["a", "b"], "unlabeled": [], "validation": ["v"], "test": ["t"]}
    data = {"fingerprint": "f", "evaluation_fingerprint": {}, "cases": cases}
    provenance.start(manifest, provenance.describe(3, data), resumed_at=0)
    with pytest.raises(DualsegError, match=rf"the {role} cases have changed.*{what}"):
        provenance.check_same_data(manifest, {**data, "cases": {**cases, role: now}})


def test_what_an_older_version_has_not_noted_is_added_when_a_run_is_resumed(manifest):
    started = json.loads(manifest.read_text())
    again = provenance.describe(3, {"dataset": "d", "fingerprint": "f", "cases": {"labeled": ["a"]}})
    provenance.start(manifest, {**again, "started_from": []}, resumed_at=40)
    content = json.loads(manifest.read_text())
    assert content["data"] == {**started["data"], "cases": {"labeled": ["a"]}}
    assert content["started_from"] == [] and content["started"] == started["started"]


def test_a_run_started_anew_forgets_the_former_manifest(manifest):
    provenance.start(manifest, provenance.describe(4, {}), resumed_at=0)
    content = json.loads(manifest.read_text())
    assert (content["seed"], content["resumed"]) == (4, [])


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/home/x/.venv/bin/dualseg-train", "data=la", "data.root=/a b"], "dualseg-train data=la 'data.root=/a b'"),
        (["/src/dualseg/train.py", "seed=1"], "python -m dualseg.train seed=1"),
        (["dualseg-train", "data.stride=[8,8,8]"], "dualseg-train 'data.stride=[8,8,8]'"),
    ],
)
def test_the_command_can_be_typed_again(argv, expected, monkeypatch):
    monkeypatch.setattr("sys.argv", argv)
    assert provenance.command_line() == expected
