"""Curves: complete and without duplicates over kills, resumes and stages."""

import csv
from pathlib import Path

import pytest

from dualseg.runs.collapse import collapse
from dualseg.training.curves import HEADER, CurveLogger, read_curves


def written(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "curves.csv"


def test_rows_are_tidy_and_on_disk_at_once(path):
    logger = CurveLogger(path)
    logger.log_metrics({"loss/total": 1 / 3, "lr": 0.01}, step=1)
    assert written(path) == [HEADER, ["1", "loss/total", repr(1 / 3)], ["1", "lr", "0.01"]]
    logger.log_metrics({"loss/total": 0.25}, step=2)
    assert read_curves(path) == [(1, "loss/total", 1 / 3), (1, "lr", 0.01), (2, "loss/total", 0.25)]


def test_a_resumed_run_drops_what_comes_again(path):
    first = CurveLogger(path)
    for t in range(1, 8):
        first.log_metrics({"loss/total": float(t)}, step=t)  # killed at 7; the last checkpoint is of 5
    second = CurveLogger(path, resumed_at=5)
    for t in range(6, 9):
        second.log_metrics({"loss/total": 10.0 * t}, step=t)
    assert read_curves(path) == [(t, "loss/total", float(t) if t < 6 else 10.0 * t) for t in range(1, 9)]


def test_a_row_of_the_checkpoints_own_iteration_is_kept_once(path):
    first = CurveLogger(path)
    first.log_metrics({"validation/a/dice": 0.5}, step=4)
    second = CurveLogger(path, resumed_at=4)
    second.log_metrics({"validation/a/dice": 0.7, "time/x": 1.0}, step=4)
    second.log_metrics({"validation/a/dice": 0.9}, step=5)
    assert read_curves(path) == [(4, "validation/a/dice", 0.5), (4, "time/x", 1.0), (5, "validation/a/dice", 0.9)]


def test_a_fresh_run_starts_the_file_anew(path):
    CurveLogger(path).log_metrics({"x": 1.0}, step=3)
    CurveLogger(path).log_metrics({"x": 2.0}, step=1)
    assert read_curves(path) == [(1, "x", 2.0)]


def test_stages_after_the_fit_append(path):
    """Lightning finalizes its loggers at the end of every stage."""
    logger = CurveLogger(path)
    logger.log_metrics({"x": 1.0}, step=1)
    logger.finalize("success")
    logger.log_metrics({"x": 2.0}, step=2)
    logger.finalize("success")
    assert read_curves(path) == [(1, "x", 1.0), (2, "x", 2.0)]
    assert written(path).count(HEADER) == 1


def test_a_logger_that_never_logs_leaves_the_file_alone(path):
    CurveLogger(path).log_metrics({"x": 1.0}, step=1)
    before = path.read_bytes()
    CurveLogger(path, resumed_at=1).finalize("success")
    assert path.read_bytes() == before


@pytest.mark.parametrize("cut", ["2", "2,loss/to", "2,loss/total,", "2,loss/total,0.12"])
def test_a_last_line_cut_short_is_left_out(path, cut):
    """0.12 may have been 0.125: without its line end a row cannot be trusted."""
    path.parent.mkdir()
    path.write_text(f"iteration,name,value\n1,loss/total,0.5\n{cut}")
    assert read_curves(path) == [(1, "loss/total", 0.5)]
    logger = CurveLogger(path, resumed_at=2)
    logger.log_metrics({"loss/total": 0.25}, step=3)
    assert read_curves(path) == [(1, "loss/total", 0.5), (3, "loss/total", 0.25)]


def test_values_keep_every_digit(path):
    value = 0.1 + 0.2
    CurveLogger(path).log_metrics({"x": value, "nan": float("nan"), "inf": float("inf")}, step=1)
    rows = {name: v for _, name, v in read_curves(path)}
    assert rows["x"] == value
    assert rows["nan"] != rows["nan"]
    assert rows["inf"] == float("inf")
    CurveLogger(path, resumed_at=1).log_metrics({"y": 1.0}, step=2)
    assert read_curves(path)[0] == (1, "x", value)


def test_no_file_no_rows(tmp_path):
    assert read_curves(tmp_path / "curves.csv") == []


def shares(path: Path, a: float, b: float, labels: float = 0.2) -> Path:
    """Curves of 500 iterations that end with these shares of foreground, and began with equal ones."""
    rows = ["iteration,name,value"]
    for iteration in range(10, 501, 10):
        ended = iteration > 450
        for name, share in (("a", a), ("b", b), ("labels", labels)):
            rows.append(f"{iteration},foreground/{name},{share if ended or name == 'labels' else labels}")
    path.write_text("\n".join(rows) + "\n")
    return path


def test_networks_that_end_on_foreground_are_told_of(tmp_path):
    """As a run with 4 labels did (experiments/la_label_count)."""
    assert "network b 70.0 % of the unlabeled" in str(collapse(shares(tmp_path / "curves.csv", a=0.5, b=0.7)))


def test_networks_that_end_on_background_are_told_of(tmp_path):
    said = collapse(shares(tmp_path / "curves.csv", a=0.002, b=0.15))
    assert said is not None
    assert "network a 0.2 % of the unlabeled" in said and "labeled ones 20.0 %" in said
    assert "a 0.2 % and b 4.0 %" in str(collapse(shares(tmp_path / "curves.csv", a=0.002, b=0.04)))


def test_of_healthy_networks_and_of_runs_without_pseudo_labels_nothing_is_said(tmp_path):
    assert collapse(shares(tmp_path / "curves.csv", a=0.06, b=0.3)) is None
    (tmp_path / "curves.csv").write_text("iteration,name,value\n10,loss/total,1.0\n")
    assert collapse(tmp_path / "curves.csv") is None
    assert collapse(tmp_path / "missing.csv") is None


def test_of_networks_that_have_not_learned_yet_nothing_is_said(tmp_path):
    rows = [f"{i},foreground/{n},{v}" for i in range(10, 501, 10) for n, v in (("a", 0.01), ("labels", 0.2))]
    (tmp_path / "curves.csv").write_text("\n".join(["iteration,name,value", *rows, ""]))
    assert collapse(tmp_path / "curves.csv") is None


def test_a_run_too_short_to_judge_is_not_judged(tmp_path):
    rows = [f"{i},foreground/{n},{v}" for i, a in ((1, 0.3), (2, 0.0)) for n, v in (("a", a), ("labels", 0.2))]
    (tmp_path / "curves.csv").write_text("\n".join(["iteration,name,value", *rows, ""]))
    assert collapse(tmp_path / "curves.csv") is None
