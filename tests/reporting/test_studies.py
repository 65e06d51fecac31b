"""From run folders to the tables, comparisons and page of a study; statistics against derivations by hand."""

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import dualseg.report
from dualseg.reporting.studies.comparisons import compare, holm, interval, signed_rank
from dualseg.reporting.studies.tables import latex, lines_of, markdown
from dualseg.runs.collecting import RESULT_COLUMNS
from dualseg.runs.folder import RunFolder
from dualseg.sweeps.index import Job, Sweep

CASES = ("c1", "c2", "c3", "c4", "c5")


def make_run(folder: Path, dice: list[float], labeled: int = 8, dirty: bool = False, dataset: str = "la") -> RunFolder:
    """A finished run of one network with these Dice of `CASES`."""
    run = RunFolder(folder)
    folder.mkdir(parents=True)
    config = {
        "data": {"name": dataset, "labeled": labeled}, "method": {"name": "supervised"}, "seed": 0,
        "networks": {"a": {"architecture": "vnet"}}, "inference": {"distance_unit": "voxel"},
    }  # fmt: skip
    run.config_file.write_text(yaml.safe_dump(config))
    manifest = {
        "git": {"revision": "0123456789abcdef", "dirty": dirty}, "resumed": [], "dualseg": "0.1.0", "seconds": 60.0,
        "versions": {"torch": "2.13.0"}, "hardware": {"gpu": None, "cpu": "EPYC", "cores": 2, "threads": 1},
        "data": {"labeled": labeled, "unlabeled": 0, "fingerprint": "f00"}, "started": "now", "command": "train",
    }  # fmt: skip
    run.manifest_file.write_text(json.dumps(manifest))
    with run.cases_file.open("w") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["case", "split", "network", "class", "dice", "jaccard", "hd95", "asd", "empty"])
        rows.writerows([c, "test", "a", "atrium", d, d / 2, 3.0, 1.0, ""] for c, d in zip(CASES, dice, strict=True))
    scores = {"dice": float(np.mean(dice)), "jaccard": float(np.mean(dice)) / 2, "hd95": 3.0, "asd": 1.0}
    run.finish({"status": "finished", "iterations": 100, "test": {"a": scores}})
    return run


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `runs` with a sweep of the study la_networks: two variants finished, with two seeds and with one."""
    runs = tmp_path / "runs"
    jobs = []
    for variant, seed, dice in (
        ("resnet34_vnet", 0, [0.5, 0.6, 0.7, 0.8, 0.9]),
        ("resnet34_vnet", 1, [0.7, 0.6, 0.7, 0.8, 0.9]),
        ("vnet_vnet", 0, [0.6, 0.7, 0.75, 0.82, 0.9]),
        ("segresnet_vnet", 0, None),
    ):
        jobs.append(Job(f"{variant}-{seed}", (), f"{variant} seed {seed}", "kind", 100, seed, variant))
        if dice:
            make_run(runs / jobs[-1].run, dice, dirty=variant == "vnet_vnet")
    Sweep.named(runs, "la_networks", "cpu", ()).write(jobs, "la_networks", "cpu")
    monkeypatch.chdir(tmp_path)
    return runs


def test_a_study_is_collected_compared_and_shown(study, tmp_path, command):
    outcome = command(dualseg.report.main, "study", "la_networks")
    assert outcome.code == 0, outcome.err
    folder = tmp_path / "experiments/la_networks"
    results = pd.read_csv(folder / "results.csv")
    assert list(results.columns) == RESULT_COLUMNS and len(results) == 3
    assert len(pd.read_csv(folder / "cases.csv")) == 15
    runs = pd.read_csv(folder / "runs.csv").set_index("run")
    assert runs.loc["vnet_vnet-0", ["revision", "uncommitted", "fingerprint"]].tolist() == [
        "0123456789ab",
        "yes",
        "f00",
    ]
    table = (folder / "table.md").read_text()
    # means of 0.70 and 0.74: 72 and a sample deviation of 2 * sqrt(2)
    assert "| resnet34 vnet | a | 100 | 2 | **72.00 ± 2.83** |" in table
    assert "| vnet vnet | a | 100 | 1 | 75.40 |" in table and "1 of 3 seeds; uncommitted code" in table
    assert "| segresnet vnet |  |  | 0 | not run |" in table
    # the common seed alone: 0.1, 0.1, 0.05, 0.02, 0
    assert "| vnet vnet | 1 | 5 | +5.40 |" in table
    page = (folder / "report.html").read_text()
    assert "0123456789ab" in page and "http" not in page.replace("http-equiv", "")
    assert r"\toprule" in (folder / "table.tex").read_text()
    assert (folder / "runs-cpu.png").is_file() and (folder / "differences-cpu.png").is_file()


def test_rows_of_runs_that_are_gone_stay_and_those_of_the_same_run_are_replaced(study, tmp_path, command):
    command(dualseg.report.main, "study", "la_networks")
    folder = tmp_path / "experiments/la_networks"
    before = (folder / "results.csv").read_text()
    command(dualseg.report.main, "study", "la_networks")
    assert (folder / "results.csv").read_text() == before, "collecting again changes nothing"
    for path in (study / "vnet_vnet-0").iterdir():
        path.unlink()
    make_run(study / "segresnet_vnet-0", [0.9] * 5)
    command(dualseg.report.main, "study", "la_networks")
    variants = pd.read_csv(folder / "results.csv")["variant"].value_counts().to_dict()
    assert variants == {"resnet34_vnet": 2, "vnet_vnet": 1, "segresnet_vnet": 1}


@pytest.mark.parametrize(
    ("file", "content", "part"),
    [
        ("cases.csv", "case,split,network,class,dice,jaccard,hd95,asd,empty\nc1,test,a,atrium,0.5", "cases.csv"),
        ("cases.csv", "case,split,network,class,dice,jaccard,hd95,asd,empty\nc1,test,a\n", "damaged"),
        ("manifest.json", None, "manifest.json: missing"),
        ("manifest.json", "{", "manifest.json: cannot be read"),
    ],
)
def test_a_damaged_run_is_named_and_left_out(study, tmp_path, command, file, content, part):
    path = study / "vnet_vnet-0" / file
    path.unlink() if content is None else path.write_text(content)
    outcome = command(dualseg.report.main, "study", "la_networks")
    assert outcome.code == 1
    assert "vnet_vnet-0: left out" in outcome.err and part in outcome.err
    results = pd.read_csv(tmp_path / "experiments/la_networks/results.csv")
    assert set(results["variant"]) == {"resnet34_vnet"}, "what can be read is there"


def test_a_study_without_a_finished_run_or_with_two_datasets_is_refused(study, tmp_path, command):
    outcome = command(dualseg.report.main, "study", "la_main")
    outcome.complains("la_main: no finished run")
    make_run(study / "segresnet_vnet-0", [0.9] * 5, dataset="pancreas")
    outcome = command(dualseg.report.main, "study", "la_networks")
    outcome.complains("mixes the datasets la, pancreas")
    assert not (tmp_path / "experiments").exists()
    outcome = command(dualseg.report.main, "study", "la_network")
    outcome.complains("la_network: no such study", "Did you mean la_networks?")


def exact_p(differences: list[float]) -> float:
    """Two-sided p of the signed-rank test by counting all signs; no ties, no zeros."""
    ranks = np.argsort(np.argsort(np.abs(differences))) + 1
    observed = min(ranks[np.array(differences) > 0].sum(), ranks[np.array(differences) < 0].sum())
    every = itertools.product((0, 1), repeat=len(ranks))
    sums = [sum(rank for rank, sign in zip(ranks, signs, strict=True) if sign) for signs in every]
    return min(1.0, 2 * sum(s <= observed for s in sums) / len(sums))


@pytest.mark.parametrize("seed", range(4))
def test_signed_rank_against_counting(seed):
    differences = np.random.default_rng(seed).normal(0.3, 1, 9)
    p, effect = signed_rank(differences)
    assert p == pytest.approx(exact_p(list(differences)))
    pairs = list(zip(np.argsort(np.argsort(np.abs(differences))) + 1, differences, strict=True))
    better, worse = sum(r for r, d in pairs if d > 0), sum(r for r, d in pairs if d < 0)
    assert effect == pytest.approx((better - worse) / 45)


def test_signed_rank_of_equal_runs_says_nothing():
    assert signed_rank(np.zeros(5)) == (1.0, 0.0)
    assert signed_rank(np.array([0.1, 0.2, 0.0, 0.3]))[1] == 1.0


def test_holm_by_hand():
    # sorted 0.01, 0.03, 0.04: x 3, x 2, x 1, and never below the one before
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([]) == []


def test_interval_is_the_quantiles_of_resampled_means():
    values = np.random.default_rng(1).normal(0.02, 0.05, 20)
    low, high = interval(values)
    generator = np.random.default_rng(5)
    means = [generator.choice(values, 20).mean() for _ in range(20000)]
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.0015)
    assert interval(np.array([0.1, 0.1])) == (0.1, 0.1)


def test_a_case_is_averaged_over_classes_and_common_seeds_first():
    rows = []
    for variant, seed, shift in (("x", "0", 0.0), ("x", "1", 0.2), ("x", "2", 9.0), ("y", "0", 0.1), ("y", "1", 0.1)):
        for case in ("c1", "c2", "c3"):
            for name, dice in (("organ", 0.4), ("tumour", 0.2)):
                rows.append((variant, seed, case, "test", "a", name, str(dice + shift)))
                rows.append((variant, seed, case, "validation", "a", name, "7"))
    cases = pd.DataFrame(rows, columns=["variant", "seed", "case", "split", "network", "class", "dice"])
    (comparison,) = compare(cases, ["x", "y", "z"], "x")
    assert (comparison.variant, comparison.seeds, comparison.cases) == ("y", 2, 3)
    # x over seeds 0 and 1: 0.3 + 0.1; y: 0.3 + 0.1
    assert comparison.differences == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)


def test_runs_of_other_lengths_or_numbers_are_neither_bold_nor_silent():
    row = {"dataset": "la", "split": "test", "network": "a", "jaccard": "0.5", "hd95": "1", "asd": "1"}
    results = pd.DataFrame(
        [
            {**row, "variant": v, "seed": s, "dice": d, "iterations": n, "run": f"{v}{s}"}
            for v, s, d, n in (
                ("x", 0, "0.80", 100), ("x", 1, "0.82", 100), ("y", 0, "0.7", 100), ("y", 1, "0.7", 100),
                ("short", 0, "0.95", 50), ("mixed", 0, "0.9", 100), ("mixed", 1, "0.9", 50),
            )
        ]
    )  # fmt: skip
    lines = lines_of(results, [], ["x", "y", "short", "mixed"], seeds=2)
    text = markdown(lines, "title")
    assert "| x | a | 100 | 2 | **81.00 ± 1.41** |" in text
    assert "| short | a | 50 | 1 | 95.00 |" in text and "1 of 2 seeds |" in text
    assert "| mixed | a | 50, 100 | 2 | 90.00 ± 0.00 |" in text and "runs of different length |" in text
    assert r"\textbf{81.00 $\pm$ 1.41}" in latex(lines)
