"""Do unlabeled scans help here? A training with them against the same one without them, on held-out labeled cases."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from dualseg.runs.verdict import LEAST_CASES
from dualseg.studies.comparisons import DIGITS, interval
from dualseg.studies.study import ROLES, Study
from dualseg.studies.tidy import StudyTables

Answer = Literal["help", "hurt", "not shown"]
LEVEL = 0.05
FLIPS = 99_999  # sign flips that are drawn where there are more than these in all, from 17 cases on


@dataclass(frozen=True)
class Difference:
    """Of two rows, paired over cases, seeds averaged first.

    Attributes:
        mean: over cases: of Dice in points, of 95HD in its unit.
        low, high: 95 % bootstrap interval of the mean over cases, widened by what a repetition of the training does to
            the mean, as far as the seeds tell.
    """

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, pairs: pd.Series) -> "Difference":
        """Of a difference a case, fold and seed (its index)."""
        values = by_case(pairs)
        mean, (low, high) = float(values.mean()), interval(values)
        of_cases = float(values.var(ddof=1)) / len(values) if len(values) > 1 else 0.0
        wider = np.sqrt(1 + training_noise(pairs) / of_cases) if of_cases else 1.0
        return cls(mean, mean - wider * (mean - low), mean + wider * (high - mean))

    def __str__(self) -> str:
        return f"{self.mean:+.1f} [{self.low:.1f}, {self.high:.1f}]"


@dataclass(frozen=True)
class Verdict:
    """What a study says of the unlabeled scans.

    Attributes:
        answer: `help`, `hurt`, or `not shown`.
        dice: with unlabeled scans minus without, in points.
        p: two-sided p of the sign-flip test over cases.
        supervised: with unlabeled scans minus plain supervised training, in points; None where that is not finished.
        classes: class -> differences of Dice (points) and of 95HD; of one class alone, that.
        cases: labeled cases that were held out in their fold, and are compared.
        labels: fewest and most labels that a compared run had.
        folds, seeds: how many are compared.
        recommended: the row of the highest Dice, whose runs to predict with.
        runs: names of these.
    """

    answer: Answer
    dice: Difference
    p: float
    supervised: Difference | None
    classes: Mapping[str, tuple[Difference, Difference]]
    cases: int
    labels: tuple[int, int]
    folds: int
    seeds: int
    recommended: str
    runs: tuple[str, ...]

    @property
    def worse(self) -> list[str]:
        """Classes whose mean Dice is lower with unlabeled scans."""
        return [name for name, (dice, _) in self.classes.items() if dice.mean < 0]

    @property
    def short(self) -> str:
        """As a run carries it: verified +2.1 [0.4, 3.9]."""
        return f"{'verified' if self.answer == 'help' else 'not verified'} {self.dice}"

    @property
    def sentence(self) -> str:
        """The answer in one sentence."""
        few, many = self.labels
        labels = f"{few if few == many else f'{few} to {many}'} label{'' if many == 1 else 's'}"
        how = f"{self.cases} labeled cases, {_count(self.folds, 'fold')} of {labels}, {_count(self.seeds, 'seed')} each"
        if self.answer == "help":
            return f"Unlabeled scans help: {self.dice} Dice over the same training without them ({how})."
        if self.answer == "hurt":
            return f"Do not use the unlabeled scans: {self.dice} Dice against the same training without them ({how})."
        few_cases = self.cases < LEAST_CASES
        why = f"fewer than {LEAST_CASES} show nothing" if few_cases else "more labeled cases are needed to tell"
        against = "Dice against the same training without them"
        return f"Not shown that unlabeled scans help: {self.dice} {against} ({how}; {why})."

    @property
    def details(self) -> list[str]:
        """What has to be known beside the answer, a sentence each."""
        found = []
        if self.supervised is not None:
            found.append(f"Against plain supervised training: {self.supervised} Dice.")
        if self.worse and len(self.classes) > 1:
            named = ", ".join(f"{name} ({self.classes[name][0]} Dice)" for name in self.worse)
            found.append(f"Worse with unlabeled scans: {named}.")
        found.append(f"Recommended: {self.recommended}.")
        found.append("A final run has the labels of all folds, so more than these runs had.")
        return found

    def as_json(self) -> dict[str, Any]:
        """The content of verdict.json."""
        return {
            "answer": self.answer,
            "sentence": self.sentence,
            "details": self.details,
            "short": self.short,
            "dice": vars(self.dice),
            "p": self.p,
            "supervised": vars(self.supervised) if self.supervised else None,
            "classes": {name: {"dice": vars(d), "hd95": vars(h)} for name, (d, h) in self.classes.items()},
            "cases": self.cases,
            "labels": list(self.labels),
            "folds": self.folds,
            "seeds": self.seeds,
            "recommended": self.recommended,
            "runs": list(self.runs),
        }


def verdict_of(study: Study, tables: StudyTables) -> Verdict | None:
    """The verdict of the runs that are finished; None where the study gives none, or one of the two has no case yet.

    Only a case that both rows have with the same seeds counts.
    """
    if not study.verdict:
        return None
    cases = tables.cases_of_record()
    cases = cases[cases["split"] == "validation"]
    rows = {role: cases[cases["variant"] == study.verdict[role]] for role in ROLES}
    differences = _differences(rows["with_unlabeled"], rows["labels_only"], "dice")
    if differences is None:
        return None
    p = sign_flip(by_case(differences))
    dice = Difference.of(100 * differences)
    answer: Answer = "not shown"
    cases_compared = differences.index.get_level_values("case").nunique()
    if cases_compared >= LEAST_CASES and p <= LEVEL and (dice.low > 0 or dice.high < 0):
        answer = "help" if dice.mean > 0 else "hurt"
    supervised = _differences(rows["with_unlabeled"], rows["supervised"], "dice")
    against = None if supervised is None else Difference.of(100 * supervised)
    # what each of the three is above training with unlabeled scans, of the cases that it shares with it
    above = {"with_unlabeled": 0.0, "labels_only": -dice.mean}
    if against is not None:
        above["supervised"] = -against.mean
    role = max(above, key=lambda role: above[role])
    runs = tables.results.loc[tables.results["variant"] == study.verdict[role], "run"]
    own = tables.results[tables.results["variant"] == study.verdict["with_unlabeled"]]
    compared = differences.index.droplevel("case").drop_duplicates()
    counts = own.set_index(["fold", "seed"])["labeled"].loc[compared].astype(int)
    return Verdict(
        answer=answer,
        dice=dice,
        p=p,
        supervised=against,
        classes={name: _of_class(rows, name) for name in dict.fromkeys(rows["with_unlabeled"]["class"])},
        cases=cases_compared,
        labels=(int(counts.min()), int(counts.max())),
        folds=compared.get_level_values("fold").nunique(),
        seeds=compared.get_level_values("seed").nunique(),
        recommended=study.verdict[role],
        runs=tuple(dict.fromkeys(runs)),
    )


def sign_flip(differences: np.ndarray) -> float:
    """Two-sided p of the sign-flip test of the mean: exact up to 16 cases, of 99,999 drawn flips above that."""
    from scipy import stats

    if len(differences) < 2 or not np.any(differences):
        return 1.0
    found = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=FLIPS,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def _of_class(rows: Mapping[str, pd.DataFrame], name: str) -> tuple[Difference, Difference]:
    """Differences of Dice (points) and of 95HD of one class."""
    ours, theirs = (rows[role][rows[role]["class"] == name] for role in ROLES[:2])
    dice, distance = (_differences(ours, theirs, metric) for metric in ("dice", "hd95"))
    assert dice is not None and distance is not None
    return Difference.of(100 * dice), Difference.of(distance)


def _differences(ours: pd.DataFrame, theirs: pd.DataFrame, metric: str) -> "pd.Series[float] | None":
    """Ours minus theirs, a value a case, fold and seed that both have, of the mean over classes; None without any."""
    keys = ["case", "fold", "seed"]
    scores = [own.astype({metric: float}).groupby(keys)[metric].mean() for own in (ours, theirs)]
    both = (scores[0] - scores[1]).dropna()  # a run of the other one is not finished
    return None if both.empty else both.round(DIGITS)


def by_case(pairs: "pd.Series[float]") -> np.ndarray:
    """A value a case, the mean over its seeds, of values a case, fold and seed."""
    return pairs.groupby("case").mean().round(DIGITS).to_numpy()


def training_noise(pairs: "pd.Series[float]") -> float:
    """The variance of the mean over cases that comes from the training runs, and not from the cases.

    Cases of a fold share their runs, and what another seed does to a run moves all of them alike. In fold f with n_f
    cases and S seeds the variance of the runs' means over seeds estimates tau^2 + s^2 / n_f, with s^2 that of what is
    left of the values less the means of their case and of their run. The mean over all n cases then varies by
    sum_f (n_f / n)^2 tau^2 / S. Folds with one seed or one case say nothing of it; 0 where none does.

    Args:
        pairs: differences, indexed by case, fold and seed.
    """
    runs, left, free = [], 0.0, 0
    for _, own in pairs.groupby("fold"):
        values = own.unstack("seed").dropna()  # a case with one of the seeds alone
        cases, seeds = values.shape
        if cases < 2 or seeds < 2:
            continue
        of_runs = values.mean(axis=0)
        rest = values.sub(values.mean(axis=1), axis=0) - (of_runs - of_runs.mean())
        left, free = left + float((rest**2).to_numpy().sum()), free + (cases - 1) * (seeds - 1)
        runs.append((cases, seeds, float(of_runs.var(ddof=1))))
    if not runs:
        return 0.0
    tau = max(0.0, float(np.mean([variance - left / free / cases for cases, _, variance in runs])))
    every = sum(cases for cases, _, _ in runs)
    return sum((cases / every) ** 2 * tau / seeds for cases, seeds, _ in runs)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def class_rows(verdict: Verdict, unit: str) -> list[tuple[str, str, str]]:
    """The differences of each class, as rows of texts below their heads."""
    heads = ("class", "Dice, points", f"95HD ({unit})")
    return [heads, *((name, str(dice), str(distance)) for name, (dice, distance) in verdict.classes.items())]
