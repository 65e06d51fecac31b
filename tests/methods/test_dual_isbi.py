"""The conference version of the dual method: its terms are those of `dual` without the ramp, but for the contrast."""

import dual_derivation as derivation
import numpy as np
import pytest
from dual_comparison import as_arrays, assert_gradients, assert_terms, prototype_draws
from dual_derivation import Output, Setting, Terms
from method_toys import outputs, stored_batch, stored_method

from dualseg.methods import DualISBI, DualNetwork, Time
from dualseg.methods.audit import audit

TOTAL = 100


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    return prototype_draws(monkeypatch)


def described(live: dict[str, Output], frozen: dict[str, Output], label: np.ndarray, drawn: list[np.ndarray]) -> Terms:
    """At full ramp; the voxels that `derivation.described` would draw are none, its contrast is replaced."""
    n, num_classes = len(label), live["a"][0].shape[1]
    setting = Setting(keep_fraction=0.3, fusion="union" if num_classes == 2 else "mean", rampup_iterations=0)
    none = {i: np.zeros(0, int) for i in "ab"}
    terms = derivation.described(live, frozen, label, TOTAL, TOTAL, none, setting)
    reliable, fused = derivation.reliable_and_fused(frozen["a"][0][n:], frozen["b"][0][n:], setting)
    for i, voxels in (("a", drawn[:2]), ("b", drawn[2:4])):
        value = derivation.prototype_distance(
            live[i][1][n:], frozen[i][0][n:], reliable, fused, (voxels[0], voxels[1]), 1.3
        )
        terms["contrast", i] = value, 0.1
    return terms


@pytest.mark.parametrize("num_classes", [2, 3])
def test_described_values_and_gradients(num_classes, drawn):
    stored, batch = outputs(num_classes, seed=8), stored_batch(num_classes)
    fusion = {} if num_classes == 2 else {"fusion": "mean"}
    method = stored_method(DualISBI, stored, keep_fraction=0.3, margin=1.3, **fusion)
    terms = method.loss_terms(batch, Time(TOTAL, TOTAL))
    arrays, voxels = as_arrays(stored), list(drawn)
    assert_terms(terms, described(arrays, arrays, batch.label.numpy(), voxels))
    sum(t.weight * t.value for t in terms).backward()

    def objective(live: dict[str, Output]) -> float:
        return derivation.total(described(live, arrays, batch.label.numpy(), voxels))

    assert_gradients(method, objective, arrays, {"a": voxels[0], "b": voxels[3]})


def test_only_the_contrast_has_a_ramp():
    method = stored_method(DualISBI, outputs(2))
    weights = {(t.name, t.network): t.weight for t in method.loss_terms(stored_batch(2), Time(0, TOTAL))}
    assert weights["contrast", "a"] == pytest.approx(0.1 * np.exp(-5))
    assert {w for (name, _), w in weights.items() if name not in ("contrast", "rectification")} == {1.0}


@pytest.mark.parametrize("num_classes", [2, 3])
def test_released_is_that_of_the_journal_version(num_classes):
    stored, batch = outputs(num_classes), stored_batch(num_classes)
    fusion = {} if num_classes == 2 else {"fusion": "mean"}
    own = stored_method(DualISBI, stored, objective="released", **fusion).loss_terms(batch, Time(7, TOTAL))
    other = stored_method(DualNetwork, stored, objective="released").loss_terms(batch, Time(7, TOTAL))
    assert [(t.key, t.value, t.weight) for t in own] == [(t.key, t.value, t.weight) for t in other]


def test_every_term_is_live():
    method = stored_method(DualISBI, outputs(2), keep_fraction=0.3)
    rows = audit(method, [stored_batch(2)], TOTAL)
    live = {(row.term, row.network) for row in rows if row.verdict == "live"}
    assert live == {(name, i) for name in DualISBI.TERMS for i in "ab"}
