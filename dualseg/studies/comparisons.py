"""Is a variant better than another one? Paired over cases, the value of each averaged over seeds first."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

CONFIDENCE = 0.95
RESAMPLES = 9999
DIGITS = 9  # differences of six-digit numbers: what is equal must not differ by the rounding of binary fractions


@dataclass(frozen=True)
class Comparison:
    """Dice of `variant` minus that of `against`, both of one scale and split.

    Attributes:
        split: `test` or `validation`.
        seeds: that both have; the others are left out.
        differences: case -> difference, Dice in 0..1, of the cases that both have.
        left_out: what only one of the two has, in words; empty where nothing.
        mean: of the differences.
        low, high: 95 % bootstrap interval of that mean, over cases.
        effect: matched-pairs rank-biserial correlation, from -1 (worse in every case) to 1 (better in every case).
        p: two-sided p of Wilcoxon's signed-rank test.
        p_holm: the same, Holm-corrected over the study's comparisons.
    """

    scale: str
    split: str
    variant: str
    against: str
    seeds: tuple[str, ...]
    differences: dict[str, float]
    left_out: str
    mean: float
    low: float
    high: float
    effect: float
    p: float
    p_holm: float = np.nan


def compare_all(
    cases: pd.DataFrame, pairs: Sequence[tuple[str, str]], split: str
) -> tuple[list[Comparison], list[str]]:
    """Each variant against its reference at each scale, and a sentence for each reference or pair that has no values.

    Args:
        cases: of the study's cases.csv, those of the prediction that stands for each run.
        pairs: a variant and what it is compared with each, in the order wanted.
        split: whose cases.
    """
    own_split = cases[cases["split"] == split]
    found, impossible = [], []
    for scale, group in own_split.groupby("scale", sort=True):
        scores = {name: case_scores(own) for name, own in group.groupby("variant")}
        for against in dict.fromkeys(against for variant, against in pairs if variant in scores):
            if against not in scores:
                impossible.append(f"scale={scale}: no comparison, for no run of {against} has per-case values")
        for variant, against in pairs:
            if variant not in scores or against not in scores:
                continue
            comparison = compare(str(scale), split, variant, against, scores[variant], scores[against])
            if comparison is not None:
                found.append(comparison)
            else:
                impossible.append(f"scale={scale}: {variant} and {against} have no seed or no case in common")
    corrected = holm([comparison.p for comparison in found])
    return [replace(c, p_holm=p) for c, p in zip(found, corrected, strict=True)], impossible


def reference_of(comparisons: Sequence[Comparison]) -> str | None:
    """What all of them are compared with; None where they differ in it."""
    references = {comparison.against for comparison in comparisons}
    return references.pop() if len(references) == 1 else None


def by_scale(comparisons: Sequence[Comparison]) -> dict[str, list[Comparison]]:
    """The comparisons of each scale, in their order."""
    found: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        found.setdefault(comparison.scale, []).append(comparison)
    return found


def case_scores(cases: pd.DataFrame, metric: str = "dice") -> pd.DataFrame:
    """A metric of one variant by case (rows) and seed (columns), the mean over foreground classes."""
    return cases.assign(value=cases[metric].astype(float)).pivot_table("value", "case", "seed", aggfunc="mean")


def compare(
    scale: str, split: str, variant: str, against: str, ours: pd.DataFrame, theirs: pd.DataFrame
) -> Comparison | None:
    """Two tables of `case_scores` compared over the seeds and cases that both have; None where there are none."""
    seeds = sorted(set(ours.columns) & set(theirs.columns), key=int)
    pairs = pd.concat(
        [table[seeds].mean(axis=1, skipna=False) for table in (ours, theirs)], axis=1, join="inner"
    ).dropna()
    if not seeds or pairs.empty:
        return None
    values = (pairs.iloc[:, 0] - pairs.iloc[:, 1]).round(DIGITS).to_numpy()
    low, high = interval(values)
    p, effect = signed_rank(values)
    left_out = []
    for name, table in ((variant, ours), (against, theirs)):
        if others := sorted(set(table.columns) - set(seeds), key=int):
            left_out.append(f"seed {', '.join(others)} of {name}")
        if cases := len(set(table.index) - set(pairs.index)):
            left_out.append(f"{cases} {'case' if cases == 1 else 'cases'} of {name}")
    return Comparison(
        scale=scale,
        split=split,
        variant=variant,
        against=against,
        seeds=tuple(seeds),
        differences=dict(zip(pairs.index, values.tolist(), strict=True)),
        left_out="; ".join(left_out),
        mean=float(values.mean()),
        low=low,
        high=high,
        effect=effect,
        p=p,
    )


def signed_rank(differences: np.ndarray) -> tuple[float, float]:
    """Two-sided p of Wilcoxon's signed-rank test, and the matched-pairs rank-biserial correlation.

    With W+ and W- the sums of the ranks of |difference| over the positive and the negative ones, the correlation is
    (W+ - W-) / (W+ + W-) (Kerby, 2014, doi:10.2466/11.IT.3.1). Zeros are left out, as Wilcoxon did. The p is exact up
    to 50 differences, unless some are equal in size: then, and above, it is that of the normal approximation.
    """
    from scipy import stats

    nonzero = differences[differences != 0]
    if not len(nonzero):
        return 1.0, 0.0
    sizes = np.abs(nonzero)
    ranks = stats.rankdata(sizes)
    better, worse = ranks[nonzero > 0].sum(), ranks[nonzero < 0].sum()
    exact = len(nonzero) <= 50 and len(np.unique(sizes)) == len(sizes)
    p = stats.wilcoxon(nonzero, method="exact" if exact else "asymptotic").pvalue
    return float(p), float((better - worse) / (better + worse))


def interval(values: np.ndarray) -> tuple[float, float]:
    """BCa bootstrap interval of the mean, over 9,999 resamples that are the same each time.

    Where BCa is not defined (a value alone, or all of them equal), the mean itself, twice.
    """
    from scipy import stats

    if len(values) < 2 or np.ptp(values) == 0:
        return float(values.mean()), float(values.mean())
    bounds = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(bounds.low), float(bounds.high)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction of a family of p values."""
    from statsmodels.stats.multitest import multipletests

    return [float(value) for value in multipletests(list(p), method="holm")[1]] if len(p) else []
