"""Run folders -> the rows of a study, and the tables that they are added to."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from dualseg.errors import DualsegError
from dualseg.runs.folder import RunFolder
from dualseg.runs.identity import identity
from dualseg.studies.collecting import RESULT_COLUMNS, Member, read_run
from dualseg.studies.tidy import StudyTables

DICE = {"a": [0.8, 0.7], "b": [0.7, 0.7], "ensemble": [0.9, 0.8]}


def member(folder: Path, variant: str = "full", seed: int = 0) -> Member:
    return Member(variant, "cpu", seed, RunFolder(folder))


def test_rows_of_a_run(tmp_path: Path, study_run: Callable[..., Path]) -> None:
    rows = read_run("la_x", member(study_run(tmp_path / "one", DICE), seed=3))
    assert all(tuple(sorted(row)) == tuple(sorted(RESULT_COLUMNS)) for row in rows.results)
    a, b, ensemble = rows.results
    assert a == {
        "study": "la_x", "variant": "full", "dataset": "la", "scale": "cpu", "method": "dual", "objective": "described",
        "architecture": "resnet34", "labeled": "8", "unlabeled": "52", "seed": "3", "fold": "",
        "network": "a", "record": "0", "split": "test",
        "dice": "0.750000", "jaccard": f"{(0.8 / 1.2 + 0.7 / 1.3) / 2:.6f}", "hd95": "5.000000", "asd": "1.250000",
        "iterations": "2000", "run": "one",
    }  # fmt: skip
    assert (b["record"], ensemble["record"]) == ("0", "1")
    assert (b["architecture"], ensemble["architecture"]) == ("vnet", "resnet34+vnet")
    assert [(c["network"], c["case"], c["dice"]) for c in rows.cases][:2] == [
        ("a", "case00", "0.800000"),
        ("a", "case01", "0.700000"),
    ]
    assert len(rows.cases) == 6


def test_a_run_of_which_an_average_stands_for_the_run(tmp_path: Path, study_run: Callable[..., Path]) -> None:
    folder = study_run(tmp_path / "one", {"a": [0.8, 0.7], "teacher": [0.9, 0.8]})
    metrics = json.loads((folder / "metrics.json").read_text()) | {"record": "teacher", "averages": {"teacher": "a"}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    rows = read_run("la_x", member(folder))
    a, teacher = rows.results
    assert (a["record"], teacher["record"], teacher["architecture"]) == ("0", "1", a["architecture"])
    tables, _ = StudyTables.read(tmp_path / "none").updated([rows])
    assert set(tables.cases_of_record()["network"]) == {"teacher"} and len(tables.cases_of_record()) == 2


def test_tables_of_a_version_without_the_column_record(tmp_path: Path, study_run: Callable[..., Path]) -> None:
    rows = [
        read_run("la_x", member(study_run(tmp_path / "one", DICE))),
        read_run("la_x", member(study_run(tmp_path / "two", {"a": [0.8, 0.7]}), variant="other")),
    ]
    tables, _ = StudyTables.read(tmp_path / "none").updated(rows)
    tables.write(tmp_path)
    older = tables.results.drop(columns="record")
    older.to_csv(tmp_path / "results.csv", index=False, lineterminator="\n")
    assert StudyTables.read(tmp_path).results.equals(tables.results)


def test_provenance_of_a_run(tmp_path: Path, study_run: Callable[..., Path]) -> None:
    folder = study_run(tmp_path / "one", DICE)
    run = read_run("la_x", member(folder)).run
    config = RunFolder(folder).config()
    digest = hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()
    assert run["configuration"] == digest and run["fingerprint"] == "f00d" and run["revision"] == "0123abc"
    assert run["uncommitted"] == "no" and run["seconds"] == "400.5" and run["seconds_per_iteration"] == "0.2"
    assert run["command"] == "dualseg-train seed=0" and run["distance_unit"] == "voxels" and run["evaluated"] == ""


@pytest.mark.parametrize(
    ("first", "later", "expected"),
    [(False, False, "no"), (True, False, "yes"), (False, True, "yes"), (None, False, "unknown"), (None, True, "yes")],
)
def test_a_run_is_uncommitted_if_any_launch_was(
    tmp_path: Path, study_run: Callable[..., Path], first: bool | None, later: bool, expected: str
) -> None:
    resumed = [{"iteration": 5, "started": "", "git": {"revision": "beef", "dirty": later}}]
    manifest = {"git": {"revision": "0123abc", "dirty": first}, "resumed": resumed}
    run = read_run("la_x", member(study_run(tmp_path / "one", DICE, manifest=manifest))).run
    assert run["uncommitted"] == expected and run["revision"] == "0123abc beef"


def evaluation(runs: Path, study_run: Callable[..., Path]) -> Path:
    """Two supervised runs, the second of uncommitted code, evaluated together."""
    for name, architecture, dirty in (("v", "vnet", False), ("r", "resnet34", True)):
        changes = {"networks": {"a": {"architecture": architecture}}, "method.name": "supervised", "objective": ""}
        manifest = {"git": {"revision": name, "dirty": dirty}}
        study_run(runs / name, {"a": [0.7, 0.6]}, changes=changes, manifest=manifest)
    folder = study_run(runs / "pair", DICE, manifest={"data": {"dataset": "la", "test": 2}})
    config = yaml.safe_load((runs / "v" / "config.yaml").read_text())
    # the evaluation was made elsewhere: the runs are found beside it
    evaluated = {f"/elsewhere/runs/{name}": "iteration-002000.ckpt" for name in "vr"}
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "evaluated": evaluated}, sort_keys=False))
    return folder


def test_of_an_evaluation_the_ensemble_alone_is_a_row(tmp_path: Path, study_run: Callable[..., Path]) -> None:
    rows = read_run("la_x", member(evaluation(tmp_path, study_run), "pair"))
    (row,) = rows.results
    assert row["network"] == "ensemble" and row["architecture"] == "vnet+resnet34"
    assert (row["method"], row["labeled"], row["unlabeled"]) == ("supervised", "8", "52")
    assert {case["network"] for case in rows.cases} == {"ensemble"}
    assert rows.run["evaluated"] == "v r" and rows.run["fingerprint"] == "f00d"
    assert rows.run["uncommitted"] == "yes" and rows.run["revision"] == "0123abc v r"
    shutil.rmtree(tmp_path / "r")
    with pytest.raises(DualsegError, match=r"evaluated /elsewhere/runs/r, .*not there"):
        read_run("la_x", member(tmp_path / "pair", "pair"))


def cut(folder: Path, name: str, keep: int) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:keep])


def without_a_line(folder: Path) -> None:
    lines = (folder / "cases.csv").read_text().splitlines(keepends=True)
    (folder / "cases.csv").write_text("".join(lines[:-1]))


def other_scores(folder: Path) -> None:
    text = (folder / "cases.csv").read_text()
    (folder / "cases.csv").write_text(text.replace("0.800000", "0.810000"))


def without_case(folder: Path) -> None:
    """Cut at the end of a case, in every network: a table that looks whole."""
    lines = (folder / "cases.csv").read_text().splitlines(keepends=True)
    (folder / "cases.csv").write_text("".join(line for line in lines if "case01" not in line))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: cut(f, "metrics.json", 40), "metrics.json: cannot be read"),
        (lambda f: cut(f, "cases.csv", 120), "cases.csv: cut off"),
        (lambda f: cut(f, "cases.csv", 0), "cases.csv: cut off"),
        (without_a_line, "cases.csv: cut off"),
        (without_case, "in metrics.json"),
        (other_scores, "in metrics.json"),
        (lambda f: (f / "cases.csv").write_text((f / "cases.csv").read_text() + "x,y\n"), "1 damaged rows"),
        (lambda f: (f / "cases.csv").unlink(), "cases.csv: missing"),
        (lambda f: (f / "manifest.json").unlink(), "manifest.json: missing"),
        (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json: not a JSON object"),
        (lambda f: (f / "manifest.json").write_text("{}"), "manifest.json: has no data.labeled"),
        (lambda f: (f / "metrics.json").write_text('{"status": "finished"}'), "metrics.json: has no iterations"),
        (lambda f: (f / "config.yaml").write_text("a: ["), "config.yaml: cannot be read"),
        (lambda f: (f / "config.yaml").write_text("text"), "config.yaml: not a mapping"),
    ],
)
def test_damaged_folders_are_named(
    tmp_path: Path, study_run: Callable[..., Path], damage: Callable[[Path], None], words: str
) -> None:
    folder = study_run(tmp_path / "one", DICE)
    damage(folder)
    with pytest.raises(DualsegError) as error:
        read_run("la_x", member(folder))
    assert str(folder) in str(error.value) and words in str(error.value)


def test_rows_of_other_machines_stay_and_those_of_the_same_run_are_replaced(
    tmp_path: Path, study_run: Callable[..., Path]
) -> None:
    first = [read_run("x", member(study_run(tmp_path / f"r{s}", DICE, seed=s), seed=s)) for s in (0, 2, 10)]
    tables, replaced = StudyTables.read(tmp_path).updated(first)
    tables.write(tmp_path)
    assert replaced == [] and list(tables.results["seed"].unique()) == ["0", "2", "10"]

    better = {**DICE, "a": [0.9, 0.9]}
    again = read_run("x", member(study_run(tmp_path / "new" / "r2", better, seed=2), seed=2))
    other = read_run("x", member(study_run(tmp_path / "renamed", better, seed=0), seed=0))
    tables, replaced = StudyTables.read(tmp_path).updated([again, other])
    dice = tables.results[tables.results["network"] == "a"].set_index("run")["dice"].to_dict()
    assert dice == {"renamed": "0.900000", "r2": "0.900000", "r10": "0.750000"}
    (told,) = replaced
    assert told.startswith("full, scale=cpu, seed 0: renamed ") and told.endswith(" r0")
    assert set(tables.cases["run"]) == set(tables.runs["run"]) == {"renamed", "r2", "r10"}
    assert len(tables.cases) == 18


def test_tables_are_read_back_as_they_were_written(tmp_path: Path, study_run: Callable[..., Path]) -> None:
    changes = {"data.labeled": None, "objective": None}
    run = read_run("x", member(study_run(tmp_path / "r", DICE, changes=changes, manifest={"command": 'say "a, b"'})))
    tables, _ = StudyTables.read(tmp_path).updated([run])
    tables.write(tmp_path)
    again = StudyTables.read(tmp_path)
    for name in ("results", "cases", "runs"):
        assert getattr(again, name).equals(getattr(tables, name))
    assert again.runs["command"].tolist() == ['say "a, b"']


@pytest.mark.parametrize(
    "damage", [lambda t: t[:-1], lambda t: t[: len(t) // 2], lambda t: t.replace("variant", "row", 1), lambda t: ""]
)
def test_damaged_tables_are_refused(
    tmp_path: Path, study_run: Callable[..., Path], damage: Callable[[str], str]
) -> None:
    tables, _ = StudyTables.read(tmp_path).updated([read_run("x", member(study_run(tmp_path / "r", DICE)))])
    tables.write(tmp_path)
    path = tmp_path / "results.csv"
    path.write_text(damage(path.read_text()))
    with pytest.raises(DualsegError, match=r"results\.csv: .*restore it"):
        StudyTables.read(tmp_path)


def test_folds_of_a_seed_are_pooled_over_their_cases(tmp_path: Path, study_run: Callable[..., Path]) -> None:
    first = study_run(tmp_path / "one", {"a": [0.9, 0.7, 0.5]})
    second = study_run(tmp_path / "two", {"a": [0.1]}, first_case=3)
    members = [Member("full", "cpu", 0, RunFolder(folder), fold) for fold, folder in enumerate((first, second))]
    tables, _ = StudyTables.read(tmp_path / "none").updated([read_run("la_x", one) for one in members])
    tables.write(tmp_path)
    assert list(StudyTables.read(tmp_path).results["fold"]) == ["0", "1"]
    (pooled,) = StudyTables.read(tmp_path).pooled().results.to_dict("records")
    assert pooled["dice"] == "0.550000" and pooled["run"] == "one/two" and pooled["fold"] == ""  # (0.9+0.7+0.5+0.1) / 4
    (median,) = tables.pooled().median_dice().to_dict("records")
    assert median["median_dice"] == pytest.approx(0.6) and median["run"] == "one/two"


def test_a_study_without_folds_has_no_such_column(tmp_path: Path, study_run: Callable[..., Path]) -> None:
    rows = [read_run("la_x", member(study_run(tmp_path / "one", DICE)))]
    tables, _ = StudyTables.read(tmp_path / "none").updated(rows)
    tables.write(tmp_path)
    assert all("fold" not in (tmp_path / f"{name}.csv").read_text().splitlines()[0] for name in ("results", "cases"))
    assert StudyTables.read(tmp_path).results.equals(tables.results) and tables.pooled() is tables
