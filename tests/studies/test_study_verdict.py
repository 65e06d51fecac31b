"""The verdict on unlabeled scans: its numbers by enumeration, its sentence, what is recommended and what runs carry."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from dualseg.errors import DualsegError
from dualseg.runs.folder import RunFolder
from dualseg.runs.verdict import NOT_VERIFIED, carry_from_study, recommended, verification
from dualseg.studies.collecting import Member
from dualseg.studies.comparisons import interval
from dualseg.studies.study import Study
from dualseg.studies.study_verdict import Difference, Verdict, by_case, sign_flip, training_noise
from dualseg.studies.writing import write_study

ROWS = ("with_unlabeled", "labels_only", "supervised")
STUDY = Study(
    name="verdict",
    experiments={},
    seeds=(0, 1),
    variants={row: {} for row in ROWS},
    against={"with_unlabeled": ["labels_only", "supervised"]},
    folds=2,
    verdict={row: row for row in ROWS},
)
BASE = np.array([0.80, 0.70, 0.75, 0.60, 0.85, 0.65, 0.72, 0.78])  # labels only, cases 0-7

Judge = Callable[..., Verdict]


@pytest.fixture(autouse=True)
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which take most of the time and are tested in test_study_report.py."""
    monkeypatch.setattr("dualseg.studies.writing.draw_all", lambda contents: {})


@pytest.fixture
def judge(tmp_path: Path, study_run: Callable[..., Path]) -> Judge:
    """The verdict on runs of two folds whose Dice with unlabeled scans is `gain` (a case each) above labels only."""

    def run(
        gain: np.ndarray,
        *,
        seeds: tuple[int, ...] = (0, 1),
        missing: tuple[str, ...] = (),
        supervised: float = -0.05,
        **others: Any,
    ) -> Verdict:
        members = []
        dice = {"with_unlabeled": BASE[: len(gain)] + gain, "labels_only": BASE[: len(gain)]}
        dice["supervised"] = dice["labels_only"] + supervised
        half = len(gain) // 2
        for row, seed, fold in itertools.product(ROWS, seeds, (0, 1)):
            folder = tmp_path / "runs" / f"{row}-{fold}-{seed}"
            members.append(Member(row, "", seed, RunFolder(folder), fold))
            if f"{row}-{fold}-{seed}" in missing:
                continue
            part = slice(0, half) if fold == 0 else slice(half, None)
            values = {"a": dice[row][part] + (0.01 if seed else -0.01)}
            study_run(folder, values, variant=row, seed=seed, first_case=fold * half, split="validation", **others)
        contents = write_study(STUDY, members, tmp_path / "runs" / "sweeps" / "verdict-la")
        assert contents.verdict is not None
        return contents.verdict

    return run


GAIN = np.array([0.03, 0.01, 0.02, 0.04, 0.01, 0.02, 0.03, 0.02])


def test_a_gain_in_every_case_is_help_and_its_mean_is_that_of_the_cases(judge: Judge) -> None:
    verdict = judge(GAIN)
    assert verdict.answer == "help" and verdict.dice.mean == pytest.approx(100 * GAIN.mean())
    assert 0 < verdict.dice.low < verdict.dice.mean < verdict.dice.high and verdict.p == pytest.approx(2 / 2**8)
    assert verdict.supervised is not None and verdict.supervised.mean == pytest.approx(100 * (GAIN.mean() + 0.05))
    assert (verdict.cases, verdict.folds, verdict.seeds, verdict.labels) == (8, 2, 2, (8, 8))
    assert verdict.recommended == "with_unlabeled" and len(verdict.runs) == 4
    assert verdict.sentence.startswith("Unlabeled scans help: +2.2 [") and "8 labeled cases" in verdict.sentence


def test_a_loss_in_every_case_is_hurt_and_the_better_of_the_others_is_recommended(judge: Judge) -> None:
    verdict = judge(-GAIN)
    assert verdict.answer == "hurt" and verdict.recommended == "labels_only" and "Do not use" in verdict.sentence
    assert {run.rsplit("-", 2)[0] for run in verdict.runs} == {"labels_only"}


def test_gains_and_losses_are_no_answer(judge: Judge) -> None:
    signs = np.array([1, -1, 1, -1, 1, 1, -1, -1])
    verdict = judge(GAIN * signs)
    assert verdict.answer == "not shown" and verdict.short.startswith("not verified")
    assert verdict.recommended == ("with_unlabeled" if (GAIN * signs).mean() > 0 else "labels_only")


def test_where_plain_training_is_best_it_is_recommended_whatever_the_twin_says(judge: Judge) -> None:
    verdict = judge(GAIN, supervised=0.1)
    assert verdict.answer == "help" and verdict.recommended == "supervised"
    assert {run.rsplit("-", 2)[0] for run in verdict.runs} == {"supervised"}
    assert any(sentence.startswith("Against plain supervised training: -7.8 [") for sentence in verdict.details)


def test_five_cases_show_nothing_though_a_bootstrap_excludes_zero(judge: Judge) -> None:
    verdict = judge(GAIN[:5])
    assert verdict.dice.low > 0 and verdict.answer == "not shown" and "fewer than 6" in verdict.sentence
    assert verdict.recommended == "with_unlabeled"


def test_six_cases_can_show_it(judge: Judge) -> None:
    assert judge(GAIN[:6]).answer == "help"


def test_only_cases_and_seeds_that_both_have_count(judge: Judge) -> None:
    gain = GAIN.copy()
    gain[:4] = -0.2  # of fold 0, which labels_only lacks
    verdict = judge(gain, missing=("labels_only-0-0", "labels_only-0-1", "supervised-0-0"))
    assert verdict.cases == 4 and verdict.dice.mean == pytest.approx(100 * GAIN[4:].mean())
    assert verdict.folds == 1 and "4 labeled cases, 1 fold of 8 labels, 2 seeds each" in verdict.sentence


def test_without_the_twin_there_is_no_verdict(judge: Judge) -> None:
    with pytest.raises(AssertionError):
        judge(GAIN, missing=tuple(f"labels_only-{fold}-{seed}" for fold in (0, 1) for seed in (0, 1)))


def test_a_class_that_gets_worse_is_named_though_the_mean_gets_better(judge: Judge, tmp_path: Path) -> None:
    judge(GAIN, classes=("left", "right"))
    folder = tmp_path / "runs"
    for path in folder.glob("with_unlabeled-*/cases.csv"):
        head, *lines = path.read_text().splitlines()
        changed = [_shifted(line, -0.03 if ",right," in line else 0.04) for line in lines]
        path.write_text("\n".join([head, *changed]) + "\n")
        rows = np.array([[float(x) for x in line.split(",")[4:8]] for line in changed])
        metrics = json.loads((path.parent / "metrics.json").read_text())
        means = dict(zip(("dice", "jaccard", "hd95", "asd"), rows.mean(axis=0).tolist(), strict=True))
        (path.parent / "metrics.json").write_text(json.dumps({**metrics, "validation": {"a": means}}))
    found = [RunFolder(path) for path in sorted(folder.glob("*-*-*"))]
    members = [Member(*_parts(run), run, int(run.path.name.split("-")[1])) for run in found]
    verdict = write_study(STUDY, members, folder / "sweeps" / "verdict-la").verdict
    assert verdict is not None and verdict.answer == "help" and verdict.worse == ["right"]
    assert verdict.classes["left"][0].mean == pytest.approx(100 * (GAIN.mean() + 0.04), abs=0.01)
    assert verdict.classes["right"][0].mean == pytest.approx(100 * (GAIN.mean() - 0.03), abs=0.01)
    assert any("Worse with unlabeled scans: right (-0.8" in sentence for sentence in verdict.details)


def _shifted(line: str, by: float) -> str:
    cells = line.split(",")
    cells[4] = f"{float(cells[4]) + by:.6f}"
    return ",".join(cells)


def _parts(run: RunFolder) -> tuple[str, str, int]:
    row, _, seed = run.path.name.split("-")
    return row, "", int(seed)


@pytest.mark.parametrize("seed", range(5))
def test_sign_flips_by_enumeration(seed: int) -> None:
    values = np.random.default_rng(seed).normal(0.3, 1.0, size=9)
    sums = [sum(s * v for s, v in zip(signs, values, strict=True)) for signs in itertools.product((1, -1), repeat=9)]
    two_sided = np.mean([abs(total) >= abs(values.sum()) - 1e-12 for total in sums])
    assert sign_flip(values) == pytest.approx(two_sided)


def test_sign_flips_of_many_cases_are_near_the_normal_approximation() -> None:
    from math import erfc, sqrt

    values = np.random.default_rng(1).normal(0.25, 1.0, size=60)
    z = abs(values.sum()) / np.sqrt((values**2).sum())
    assert sign_flip(values) == pytest.approx(erfc(z / sqrt(2)), abs=0.01) and sign_flip(values) == sign_flip(values)
    assert sign_flip(np.zeros(4)) == 1.0 and sign_flip(np.ones(1)) == 1.0


def simulated(generator: np.random.Generator, cases: int, folds: int, seeds: int, tau: float) -> "pd.Series[float]":
    """Differences without any effect: of each case, of each run (`tau`), of both."""
    values = generator.normal(size=(folds, cases, 1)) + tau * generator.normal(size=(folds, 1, seeds))
    values = values + 0.5 * generator.normal(size=(folds, cases, seeds))
    index = pd.MultiIndex.from_tuples(
        [(f"{f}-{c}", str(f), str(s)) for f in range(folds) for c in range(cases) for s in range(seeds)],
        names=["case", "fold", "seed"],
    )
    return pd.Series(values.ravel(), index)


def test_the_noise_of_training_is_estimated_without_bias() -> None:
    """Of 3 folds and 2 seeds the mean over cases varies by tau^2 / 6, whatever the cases do."""
    generator = np.random.default_rng(0)
    found = [training_noise(simulated(generator, 8, 3, 2, tau=2.0)) for _ in range(150)]
    assert np.mean(found) == pytest.approx(4 / 6, rel=0.2)
    without = [training_noise(simulated(generator, 8, 3, 2, tau=0.0)) for _ in range(50)]
    assert np.mean(without) < 0.03


def test_runs_that_move_all_of_their_cases_widen_the_interval() -> None:
    """With 60 cases in 2 folds luck of training alone would pass for an effect in 26 of 60 such studies."""
    generator = np.random.default_rng(1)
    excluded = {"cases alone": 0, "and training": 0}
    for _ in range(60):
        pairs = simulated(generator, 30, 2, 2, tau=0.5)
        low, high = interval(by_case(pairs))
        widened = Difference.of(pairs)
        excluded["cases alone"] += low > 0 or high < 0
        excluded["and training"] += widened.low > 0 or widened.high < 0
        assert widened.low <= low and widened.high >= high
    assert excluded["cases alone"] >= 15 and excluded["and training"] <= 10


def test_one_seed_says_nothing_of_training_and_widens_nothing() -> None:
    pairs = simulated(np.random.default_rng(2), 6, 3, 1, tau=1.0)
    assert training_noise(pairs) == 0.0
    found = Difference.of(pairs)
    assert (found.low, found.high) == pytest.approx(interval(by_case(pairs)))


def test_the_runs_carry_the_verdict_and_the_study_names_those_to_predict_with(judge: Judge, tmp_path: Path) -> None:
    verdict = judge(GAIN)
    runs = tmp_path / "runs"
    assert verification(RunFolder(runs / "with_unlabeled-0-0")) == verdict.short
    assert not (runs / "labels_only-0-0" / "verdict.json").exists()
    study = runs / "sweeps" / "verdict-la"
    assert verdict.sentence in (study / "report.html").read_text()
    assert recommended(study).runs == tuple(runs.resolve() / name for name in verdict.runs)
    assert recommended(runs / "with_unlabeled-0-0").runs == (runs / "with_unlabeled-0-0",)


def test_a_later_run_of_the_same_training_carries_it_and_another_one_does_not(
    judge: Judge, tmp_path: Path, study_run: Callable[..., Path]
) -> None:
    verdict = judge(GAIN)
    same = RunFolder(study_run(tmp_path / "runs" / "final", {"a": BASE}, seed=7, changes={"data.labeled": 12}))
    carry_from_study(same, 12)
    assert verification(same) == verdict.short
    others = {
        "method.keep_fraction": 0.1,
        "data.root": "/elsewhere",
        "max_iterations": 9,
        "augmentation": {"mix": True},
    }
    for key, value in others.items():
        key = "trainer.max_iterations" if key == "max_iterations" else key
        other = RunFolder(study_run(tmp_path / "runs" / f"other-{key}", {"a": BASE}, changes={key: value}))
        carry_from_study(other, 12)
        assert verification(other) == NOT_VERIFIED, key
    fewer = RunFolder(study_run(tmp_path / "runs" / "fewer", {"a": BASE}))
    carry_from_study(fewer, 7)  # the runs of the verdict had 8
    assert verification(fewer) == NOT_VERIFIED
    labels_only = study_run(tmp_path / "runs" / "alone", {"a": BASE}, changes={"batch.unlabeled": 0})
    assert verification(RunFolder(labels_only)) is None


DAMAGED = (
    '{"runs": [], "keep_largest": []}',
    '{"runs": [3], "keep_largest": []}',
    '{"runs": ["../x"], "keep_largest": []}',
    '{"runs": ["x"]}',
    "[]",
)


def test_what_is_damaged_of_the_study_is_named_and_nothing_carried(
    judge: Judge, tmp_path: Path, study_run: Callable[..., Path]
) -> None:
    judge(GAIN)
    file = tmp_path / "runs" / "sweeps" / "verdict-la" / "verdict.json"
    content = json.loads(file.read_text())
    run = RunFolder(study_run(tmp_path / "runs" / "final", {"a": BASE}))
    for key in ("short", "sentence", "labels", "training"):
        file.write_text(json.dumps({name: value for name, value in content.items() if name != key}))
        with pytest.raises(DualsegError, match=r"verdict-la/verdict\.json: damaged"):
            carry_from_study(run, 12)
    assert verification(run) == NOT_VERIFIED


def test_runs_that_are_gone_from_the_sweep_are_no_part_of_the_next_verdict(judge: Judge, tmp_path: Path) -> None:
    judge(GAIN)
    study = tmp_path / "runs" / "sweeps" / "verdict-la"
    found = [RunFolder(path) for path in sorted((tmp_path / "runs").glob("*-*-*"))]
    members = [Member(*_parts(run), run, int(run.path.name.split("-")[1])) for run in found]
    verdict = write_study(STUDY, [member for member in members if member.fold == 0], study).verdict
    assert verdict is not None and (verdict.cases, verdict.folds) == (4, 1)
    contents = write_study(STUDY, [member for member in members if member.variant != "labels_only"], study)
    assert contents.verdict is None and not (study / "verdict.json").exists()


def test_a_verdict_that_lies_elsewhere_than_its_runs_says_so(judge: Judge, tmp_path: Path) -> None:
    judge(GAIN)
    elsewhere = tmp_path / "x" / "y" / "z"
    elsewhere.mkdir(parents=True)
    (elsewhere / "verdict.json").write_bytes((tmp_path / "runs/sweeps/verdict-la/verdict.json").read_bytes())
    with pytest.raises(DualsegError, match="sweeps/verdict-DATASET"):
        recommended(elsewhere)


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_verdict_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "verdict.json").write_text(content)
    with pytest.raises(DualsegError, match=r"verdict\.json|run"):
        recommended(tmp_path)


def test_the_configuration_of_a_study_of_folds_does_not_make_its_runs_unlike(judge: Judge, tmp_path: Path) -> None:
    judge(GAIN)
    for path in (tmp_path / "runs").glob("*-*-*/config.yaml"):
        config = yaml.safe_load(path.read_text())
        config["data"] |= {"fold": int(path.parent.name.split("-")[1]), "folds": 2}
        path.write_text(yaml.safe_dump(config))
    found = [RunFolder(path) for path in sorted((tmp_path / "runs").glob("*-*-*"))]
    members = [Member(*_parts(run), run, int(run.path.name.split("-")[1])) for run in found]
    contents = write_study(STUDY, members, tmp_path / "out")
    assert not [sentence for sentence in contents.remarks if "unlike" in sentence]
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| with_unlabeled | a | 8 | 2,000 | 4 |" in table


def test_a_class_keeps_its_largest_component_where_that_is_better_on_six_held_out_cases(
    judge: Judge, tmp_path: Path
) -> None:
    judge(GAIN)
    gains = {"liver": (0.02, 0.0, 0.01, -0.01, 0.0, 0.0), "vessel": (0.02, -0.03, 0.0, 0.0, 0.0, 0.0)}
    for index in range(6):
        for seed in (0, 1):
            run = tmp_path / "runs" / f"with_unlabeled-{index % 2}-{seed}" / "components"
            run.mkdir(exist_ok=True)
            of_case = {name: [0.5, 0.5 + own[index] * (1 + seed)] for name, own in gains.items()}
            (run / f"case{index}.json").write_text(json.dumps(of_case))
    found = [RunFolder(path) for path in sorted((tmp_path / "runs").glob("*-*-*"))]
    members = [Member(*_parts(run), run, int(run.path.name.split("-")[1])) for run in found]
    study = tmp_path / "runs" / "sweeps" / "verdict-la"
    write_study(STUDY, members, study)
    assert recommended(study).keep_largest == ("liver",)
    for path in (tmp_path / "runs").glob("*/components/case5.json"):
        path.unlink()
    write_study(STUDY, members, study)
    assert recommended(study).keep_largest == ()
