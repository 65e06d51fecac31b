"""Is a variant better than another one? Paired over the test cases, each case averaged over seeds first."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 9999


@dataclass(frozen=True)
class Comparison:
    """Dice of `variant` minus that of `against`, over cases.

    Attributes:
        seeds, cases: how many went into it: those that both have.
        difference: mean over cases, Dice in 0..1.
        low, high: bootstrap confidence interval (95 %, percentile, over cases) of that mean.
        p: two-sided Wilcoxon signed-rank test, Holm-corrected over the study's comparisons of this scale.
        effect: matched-pairs rank-biserial correlation, (W+ - W-) / (W+ + W-): 1 if every case is better.
        differences: of each case, in the order of `case_names`.
    """

    variant: str
    against: str
    seeds: int
    cases: int
    difference: float
    low: float
    high: float
    p: float
    effect: float
    differences: tuple[float, ...]
    case_names: tuple[str, ...]


def network_of_record(networks: Sequence[str]) -> str:
    """The network that stands for a run: the ensemble where there is one, else a."""
    return "ensemble" if "ensemble" in set(networks) else "a"


def case_means(cases: pd.DataFrame, variant: str, seeds: Sequence[str]) -> pd.Series:
    """Test Dice of each case: mean over foreground classes, then over `seeds`; network of record."""
    own = cases[(cases["variant"] == variant) & (cases["split"] == "test") & cases["seed"].isin(seeds)]
    own = own[own["network"] == network_of_record(list(own["network"]))]
    by_seed = own.assign(dice=own["dice"].astype(float)).groupby(["case", "seed"])["dice"].mean()
    return by_seed.groupby("case").mean()


def compare(cases: pd.DataFrame, variants: Sequence[str], against: str) -> list[Comparison]:
    """Each of `variants` that has cases against `against`, over the seeds and cases that both have.

    Args:
        cases: the study's cases.csv, of one scale.
        variants: rows of the table.
        against: the row they are compared with.
    """
    seeds_of = {variant: set(cases.loc[cases["variant"] == variant, "seed"]) for variant in (*variants, against)}
    found = []
    for variant in variants:
        seeds = sorted(seeds_of[variant] & seeds_of[against])
        if variant == against or not seeds:
            continue
        pairs = pd.concat([case_means(cases, name, seeds) for name in (variant, against)], axis=1, join="inner")
        differences = (pairs.iloc[:, 0] - pairs.iloc[:, 1]).to_numpy()
        low, high = interval(differences)
        p, effect = signed_rank(differences)
        names = tuple(map(str, pairs.index))
        found.append(
            Comparison(
                variant, against, len(seeds), len(names), float(differences.mean()), low, high, p, effect,
                tuple(differences), names,
            )
        )  # fmt: skip
    corrected = holm([comparison.p for comparison in found])
    return [Comparison(**{**vars(c), "p": p}) for c, p in zip(found, corrected, strict=True)]


def signed_rank(differences: np.ndarray) -> tuple[float, float]:
    """Two-sided p of Wilcoxon's signed-rank test, and the rank-biserial correlation; zeros are left out."""
    nonzero = differences[differences != 0]
    if not len(nonzero):
        return 1.0, 0.0
    ranks = stats.rankdata(np.abs(nonzero))
    better, worse = ranks[nonzero > 0].sum(), ranks[nonzero < 0].sum()
    p = float(stats.wilcoxon(nonzero).pvalue)
    return p, float((better - worse) / (better + worse))


def interval(values: np.ndarray) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean; the same values give the same one."""
    if len(values) < 2 or np.ptp(values) == 0:
        return float(values.mean()), float(values.mean())
    bounds = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(bounds.low), float(bounds.high)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction."""
    from statsmodels.stats.multitest import multipletests  # takes a second to import

    return [float(value) for value in multipletests(list(p), method="holm")[1]] if p else []
