"""The statistics of a study, each against a derivation of its own."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dualseg.studies.comparisons import compare_all, holm, interval, signed_rank

DIFFERENCES = np.array([0.031, -0.012, 0.054, 0.007, -0.003, 0.021, 0.016, 0.045])


def ranks_of(sizes: Sequence[float]) -> list[float]:
    """Ranks from 1, equal sizes share the mean of theirs."""
    return [sum(other < size for other in sizes) + (sum(other == size for other in sizes) + 1) / 2 for size in sizes]


def enumerated_p(differences: np.ndarray) -> float:
    """Share of all 2^n assignments of signs whose W+ is at least as far from its expectation as the observed one."""
    ranks = ranks_of([abs(d) for d in differences])
    middle = sum(ranks) / 2
    observed = abs(sum(r for r, d in zip(ranks, differences, strict=True) if d > 0) - middle)
    signs = itertools.product((0, 1), repeat=len(ranks))
    sums = [sum(r for r, positive in zip(ranks, chosen, strict=True) if positive) for chosen in signs]
    return sum(abs(w - middle) >= observed - 1e-9 for w in sums) / len(sums)


def cases_frame(dice: Mapping[str, Mapping[int, Sequence[float]]], network: str = "a", first: int = 0) -> pd.DataFrame:
    """cases.csv of variant -> seed -> Dice of the cases."""
    rows = [
        {"scale": "cpu", "variant": v, "seed": str(s), "network": network, "split": "test", "class": "atrium",
         "case": f"case{first + i:02d}", "dice": str(d)}
        for v, seeds in dice.items() for s, values in seeds.items() for i, d in enumerate(values)
    ]  # fmt: skip
    return pd.DataFrame(rows, dtype=str)


def test_p_is_that_of_the_enumerated_signed_rank_distribution() -> None:
    p, _ = signed_rank(DIFFERENCES)
    assert p == pytest.approx(enumerated_p(DIFFERENCES), abs=1e-12)
    assert signed_rank(-DIFFERENCES)[0] == pytest.approx(p)
    every_case_better = np.arange(1, 21) / 100
    assert signed_rank(every_case_better)[0] == pytest.approx(2 / 2**20)  # the two extreme assignments of signs


def test_zeros_are_left_out_and_ties_use_the_normal_approximation() -> None:
    with_zeros = np.concatenate([DIFFERENCES, [0.0, 0.0]])
    assert signed_rank(with_zeros) == signed_rank(DIFFERENCES)
    assert signed_rank(np.zeros(5)) == (1.0, 0.0)
    tied = np.array([0.01, 0.01, 0.02, -0.02, 0.03, 0.04, 0.04, 0.05, -0.01, 0.06])
    ranks = ranks_of(np.abs(tied).tolist())
    w = sum(r for r, d in zip(ranks, tied, strict=True) if d > 0)
    # the variance over signs of a sum of signed ranks is the sum of their squares over 4, ties or not
    z = (w - sum(ranks) / 2) / np.sqrt(sum(r**2 for r in ranks) / 4)
    assert signed_rank(tied)[0] == pytest.approx(2 * stats.norm.sf(abs(z)), rel=1e-9)


def test_effect_is_the_rank_biserial_correlation() -> None:
    # by hand: sizes 3 7 12 16 21 31 45 54 have the ranks 1 to 8; negative are 3 and 12, of the ranks 1 and 3
    assert signed_rank(DIFFERENCES)[1] == pytest.approx((36 - 2 * 4) / 36)
    assert signed_rank(np.array([0.1, 0.2]))[1] == 1 and signed_rank(np.array([-0.1, -0.2]))[1] == -1
    # ties by hand: |d| 1 1 2 have the ranks 1.5 1.5 3; positive 1.5 + 3, negative 1.5
    assert signed_rank(np.array([0.1, -0.1, 0.2]))[1] == pytest.approx((4.5 - 1.5) / 6)


def test_holm_by_hand() -> None:
    # sorted 0.01 0.02 0.03 0.04 times 4 3 2 1: 0.04 0.06 0.06 0.04, none below the one before
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.5]) == pytest.approx([1.0, 1.0]) and holm([]) == []


def test_interval_agrees_with_an_explicit_bca_bootstrap() -> None:
    rng = np.random.default_rng(7)
    values = rng.gamma(2.0, 0.01, 30) - 0.01
    n = len(values)
    means = values[rng.integers(0, n, (200_000, n))].mean(axis=1)
    bias = stats.norm.ppf(np.mean(means < values.mean()))
    jackknife = np.array([np.delete(values, i).mean() for i in range(n)])
    spread = jackknife.mean() - jackknife
    acceleration = np.sum(spread**3) / (6 * np.sum(spread**2) ** 1.5)
    z = stats.norm.ppf([0.025, 0.975])
    levels = stats.norm.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))
    expected = np.quantile(means, levels)
    np.testing.assert_allclose(interval(values), expected, atol=0.05 * values.std())
    assert interval(values) == interval(values.copy())  # the same resamples each time
    assert interval(np.full(4, 0.02)) == (0.02, 0.02)


def test_a_case_is_averaged_over_classes_and_seeds_before_it_is_compared() -> None:
    frame = cases_frame({"full": {0: [0.8, 0.7], 1: [0.9, 0.7]}, "less": {0: [0.7, 0.7], 1: [0.6, 0.8]}})
    other_class = frame.assign(**{"class": "wall", "dice": (frame["dice"].astype(float) - 0.2).astype(str)})
    (found,), impossible = compare_all(pd.concat([frame, other_class]), [("less", "full")], "test")
    assert impossible == []
    assert found.variant == "less" and found.seeds == ("0", "1") and found.left_out == ""
    assert found.differences == pytest.approx({"case00": 0.65 - 0.85, "case01": 0.75 - 0.7})
    assert found.mean == pytest.approx((-0.2 + 0.05) / 2)


def test_unequal_runs_are_compared_over_what_they_share_and_that_is_said() -> None:
    full = cases_frame({"full": {0: [0.8, 0.7, 0.6], 1: [0.1, 0.1, 0.1]}})
    less = cases_frame({"less": {0: [0.7, 0.5, 0.9], 2: [0, 0, 0]}}, first=1)
    (found,), _ = compare_all(pd.concat([full, less]), [("less", "full")], "test")
    assert found.seeds == ("0",) and found.differences == pytest.approx({"case01": 0.0, "case02": -0.1})
    assert found.left_out == "seed 2 of less; 1 case of less; seed 1 of full; 1 case of full"


def test_a_case_that_one_seed_lacks_is_not_averaged_over_fewer() -> None:
    full = cases_frame({"full": {0: [0.8, 0.7], 1: [0.8, 0.7]}})
    less = cases_frame({"less": {0: [0.7, 0.5], 1: [0.7]}})
    (found,), _ = compare_all(pd.concat([full, less]), [("less", "full")], "test")
    assert list(found.differences) == ["case00"] and "1 case of less" in found.left_out


def test_what_cannot_be_compared_is_said() -> None:
    frame = cases_frame({"full": {0: [0.8]}, "less": {1: [0.7]}})
    found, impossible = compare_all(frame, [("less", "full")], "test")
    (said,) = impossible
    assert found == [] and said.startswith("scale=cpu: less and full ") and "in common" in said
    found, impossible = compare_all(frame, [("less", "absent")], "test")
    assert found == [] and "no run of absent " in impossible[0]


def test_the_family_of_holm_is_every_comparison_of_the_study() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0.5, 0.9, 12)
    frame = cases_frame({v: {0: base + shift + rng.normal(0, 0.02, 12)} for v, shift in
                         (("full", 0), ("x", 0.02), ("y", 0.01), ("z", 0))})  # fmt: skip
    found, _ = compare_all(
        pd.concat([frame, frame.assign(scale="full")]), [(name, "full") for name in ("x", "y", "z")], "test"
    )
    assert len(found) == 6
    ordered = sorted(found, key=lambda c: c.p)
    running = 0.0
    for index, comparison in enumerate(ordered):
        running = max(running, min(1.0, (6 - index) * comparison.p))
        assert comparison.p_holm == pytest.approx(running)
