"""make: what the targets of studies call, and how they end. The commands are stubs."""

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# notes its words; ends with the code that $FAILS gives for one of them: "sweep=la_main:1 la_networks:2"
STUB = """#!/bin/sh
echo "${0##*/} $*" >> calls
for word; do for pair in $FAILS; do [ "${pair%:*}" = "$word" ] && exit "${pair#*:}"; done; done
exit 0
"""
TRAIN = "dualseg-train -m sweep={} scale=cpu launcher=basic data.root=/volumes"
REPORT = "dualseg-report study {}"
Make = Callable[..., tuple[subprocess.CompletedProcess[str], list[str]]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Run make in a copy with stubs: its outcome, and the calls of the stubs."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    commands = tmp_path / ".venv" / "bin"
    commands.mkdir(parents=True)
    for name in ("dualseg-train", "dualseg-report"):
        (commands / name).write_text(STUB)
        (commands / name).chmod(0o755)
    (tmp_path / ".venv" / ".installed").touch()

    def run(*words: str, fails: str = "") -> tuple[subprocess.CompletedProcess[str], list[str]]:
        settings = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
        environment: Mapping[str, str] = {**settings, "FAILS": fails}
        outcome = subprocess.run(
            ["make", *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        calls = tmp_path / "calls"
        return outcome, calls.read_text().splitlines() if calls.exists() else []

    return run


def test_a_study_is_run_and_collected(make: Make) -> None:
    outcome, calls = make("la-label-count", "LA_ROOT=/volumes")
    assert outcome.returncode == 0, outcome.stderr
    assert calls == [TRAIN.format("la_label_count"), REPORT.format("la_label_count")]


def test_what_is_finished_is_collected_when_runs_failed(make: Make) -> None:
    outcome, calls = make("la-main", "LA_ROOT=/volumes", fails="sweep=la_main:1")
    assert outcome.returncode == 2 and "Error 1" in outcome.stderr  # make's own code for any of a command's
    assert calls == [TRAIN.format("la_main"), REPORT.format("la_main")]


@pytest.mark.parametrize("code", [2, 130])
def test_nothing_is_collected_of_a_sweep_that_was_refused_or_stopped(make: Make, code: int) -> None:
    outcome, calls = make("la-main", "LA_ROOT=/volumes", fails=f"sweep=la_main:{code}")
    assert f"Error {code}" in outcome.stderr
    assert calls == [TRAIN.format("la_main")]


def test_a_study_that_cannot_be_collected_is_a_failure(make: Make) -> None:
    outcome, _ = make("la-main", "LA_ROOT=/volumes", fails="la_main:2")
    assert outcome.returncode == 2 and "Error 1" in outcome.stderr


def test_dry_collects_nothing(make: Make) -> None:
    outcome, calls = make("brats-main", "BRATS_ROOT=/volumes", "DRY=1", "SEEDS=0,1")
    assert outcome.returncode == 0, outcome.stderr
    assert calls == [TRAIN.format("brats_main") + " seed=0,1 dry=true"]
    outcome, _ = make("brats-main", "BRATS_ROOT=/volumes", "DRY=1", fails="dry=true:3")
    assert "Error 3" in outcome.stderr


def test_a_study_without_its_volumes_is_refused(make: Make) -> None:
    outcome, calls = make("pancreas-main", "LA_ROOT=/volumes")
    assert outcome.returncode == 2 and not calls
    assert "PANCREAS_ROOT is not given: " in outcome.stderr and "make pancreas-main PANCREAS_ROOT=" in outcome.stderr


def test_reproduce_goes_on_after_a_study_that_failed_and_skips_what_has_no_volumes(make: Make) -> None:
    studies = ["la_main", "la_label_count", "la_ablation", "la_networks", "la_seed", "la_baseline"]
    studies += ["la_mix", "la_mix_ablation", "la_dual", "brats_main"]
    roots = ("LA_ROOT=/volumes", "BRATS_ROOT=/volumes")
    outcome, calls = make("reproduce", *roots, fails="sweep=la_label_count:1 sweep=la_ablation:2")
    assert outcome.returncode == 2 and "[Makefile:" in outcome.stderr and "Error 1" in outcome.stderr.splitlines()[-1]
    expected = [call.format(study) for study in studies for call in (TRAIN, REPORT)]
    expected.remove(REPORT.format("la_ablation"))
    assert calls == expected
    assert "pancreas-main: skipped, PANCREAS_ROOT " in outcome.stdout


def test_reproduce_ends_well_where_every_study_did(make: Make) -> None:
    outcome, calls = make("reproduce", "BRATS_ROOT=/volumes", "DRY=1")
    assert outcome.returncode == 0, outcome.stderr
    assert calls == [TRAIN.format("brats_main") + " dry=true"] and outcome.stdout.count("skipped") == 13


def test_help_lists_every_study(make: Make) -> None:
    outcome, _ = make("help")
    for study in (
        "la-main",
        "la-label-count",
        "la-ablation",
        "la-networks",
        "la-seed",
        "la-baseline",
        "la-mix",
        "la-mix-ablation",
        "la-dual",
        "hippocampus",
        "hippocampus-design",
        "head-neck",
        "pancreas-main",
        "brats-main",
        "reproduce",
    ):
        assert f"make {study} " in outcome.stdout


def test_a_verdict_is_of_the_given_folder(make: Make) -> None:
    outcome, calls = make("verdict", "DATA_ROOT=/my scans", "SEEDS=0", "DRY=1")
    assert outcome.returncode == 0, outcome.stderr
    assert calls == ["dualseg-train -m sweep=verdict data=folder data.root=/my scans launcher=basic seed=0 dry=true"]
    outcome, again = make("verdict")
    assert outcome.returncode == 2 and "DATA_ROOT" in outcome.stderr and again == calls
