"""SSL-contrastive's two objectives against `dual_derivation`, and whom its contrast trains."""

from typing import Any

import dual_derivation as derivation
import numpy as np
import pytest
import torch
from dual_comparison import LABELED, as_arrays, assert_gradients, assert_terms, by_key, prototype_draws
from dual_derivation import Output, Setting, Terms
from method_toys import FEATURES, SHAPE, outputs, stored_batch, stored_method

from dualseg.data.batch import Batch
from dualseg.errors import DualsegError
from dualseg.methods import SSLContrastive, Time
from dualseg.methods.audit import audit

TOTAL = 100
SUPERVISED = {(name, i) for name in ("supervised_ce", "supervised_dice", "rectification") for i in "ab"}
VARIANTS: dict[str, dict[str, Any]] = {
    "hinge": {"margin": 1.3, "keep_fraction": 0.3},
    "pull": {"separation": "pull", "keep_fraction": 0.4},
    "both": {"loser_only": False, "keep_fraction": 0.3},
}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    return prototype_draws(monkeypatch)


def described(
    live: dict[str, Output],
    frozen: dict[str, Output],
    label: np.ndarray,
    t: int,
    drawn: list[np.ndarray],
    *,
    keep_fraction: float = 0.8,
    separation: str = "hinge",
    margin: float = 1.0,
    loser_only: bool = True,
) -> Terms:
    n, num_classes = len(label), live["a"][0].shape[1]
    setting = Setting(keep_fraction=keep_fraction, fusion="union" if num_classes == 2 else "mean")
    terms = derivation.supervised(live, frozen, label, setting)
    dice = {i: derivation.dice_loss(derivation.softmax(frozen[i][0][:n]), label) for i in "ab"}
    loser = max(dice, key=lambda i: dice[i])
    reliable, fused = derivation.reliable_and_fused(frozen["a"][0][n:], frozen["b"][0][n:], setting)
    for i, voxels in (("a", drawn[:2]), ("b", drawn[2:4])):
        z, f = live[i][0][n:], live[i][1][n:]
        terms["entropy_filtered", i] = float(derivation.cross_entropy(z, fused)[reliable].mean()), 1.0
        value = derivation.prototype_distance(
            f, frozen[i][0][n:], reliable, fused, (voxels[0], voxels[1]), margin if separation == "hinge" else None
        )
        trains = i == loser or not loser_only
        terms["contrast", i] = value if trains else 0.0, 0.1 * derivation.ramp(t, TOTAL)
    return terms


def fusion(num_classes: int) -> dict[str, str]:
    return {} if num_classes == 2 else {"fusion": "mean"}


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_described_values_and_weights(num_classes, variant, drawn):
    losers = set()
    for seed in (1, 2, 3, 4):
        stored, batch = outputs(num_classes, seed=seed), stored_batch(num_classes, seed)
        method = stored_method(SSLContrastive, stored, **fusion(num_classes), **VARIANTS[variant])
        drawn.clear()
        terms = method.loss_terms(batch, Time(30, TOTAL))
        arrays = as_arrays(stored)
        expected = described(arrays, arrays, batch.label.numpy(), 30, drawn, **VARIANTS[variant])
        assert_terms(terms, expected)
        assert all(len(voxels) > 3 for voxels in drawn)
        losers |= {i for i in "ab" if expected["contrast", i][0] > 0}
    assert losers == {"a", "b"}


@pytest.mark.parametrize("num_classes", [2, 3])
def test_described_gradients_reach_the_prototypes_too(num_classes, drawn):
    stored, batch = outputs(num_classes, seed=5), stored_batch(num_classes)
    method = stored_method(SSLContrastive, stored, **fusion(num_classes), **VARIANTS["hinge"])
    sum(t.weight * t.value for t in method.loss_terms(batch, Time(90, TOTAL))).backward()
    arrays, voxels = as_arrays(stored), list(drawn)

    def objective(live: dict[str, Output]) -> float:
        return derivation.total(described(live, arrays, batch.label.numpy(), 90, voxels, **VARIANTS["hinge"]))

    assert_gradients(method, objective, arrays, {"a": voxels[0], "b": voxels[3]})
    loser = next(i for i in "ab" if method.networks[i].features.grad.abs().max() > 0)
    moved = (method.networks[loser].features.grad[LABELED:].abs().amax(dim=1) > 0).sum()
    assert moved > SHAPE[0] * SHAPE[1] * SHAPE[2] / 2, "those of the reliable voxels, of which the prototypes are means"


@pytest.mark.parametrize("shift", [-4.0, 0.5])
def test_as_many_background_voxels_as_foreground_ones_and_never_more_than_there_are(shift, drawn):
    stored = outputs(2)
    for logits, _ in stored.values():
        logits[:, 0] += shift
    stored_method(SSLContrastive, stored, keep_fraction=0.1).loss_terms(stored_batch(2), Time(0, TOTAL))
    arrays = as_arrays(stored)
    reliable, _ = derivation.reliable_and_fused(
        arrays["a"][0][LABELED:], arrays["b"][0][LABELED:], Setting(keep_fraction=0.1)
    )
    for i, (foreground, background) in (("a", drawn[:2]), ("b", drawn[2:])):
        predicted = arrays[i][0][LABELED:].argmax(axis=1)
        candidates = [int((~reliable & ((predicted > 0) == wanted)).sum()) for wanted in (True, False)]
        assert len(foreground) == candidates[0] // 100 > 5
        assert len(background) == min(len(foreground), candidates[1])
        for voxels, wanted in ((foreground, True), (background, False)):
            assert len(set(voxels)) == len(voxels)
            assert ((predicted.ravel()[voxels] > 0) == wanted).all()
            assert not reliable.ravel()[voxels].any()


def test_released_is_labels_alone():
    stored = outputs(2)
    batch, arrays = stored_batch(2), as_arrays(stored)
    method = stored_method(SSLContrastive, stored, objective="released")
    expected = derivation.supervised(arrays, arrays, batch.label.numpy(), Setting())
    assert expected.keys() == SUPERVISED
    assert_terms(method.loss_terms(batch, Time(0, TOTAL)), expected)
    rows = audit(method, [batch], TOTAL)
    assert {row.term for row in rows if row.verdict == "absent"} == {"entropy_filtered", "contrast"}


def test_every_described_term_is_live_and_the_contrast_trains_the_loser():
    method = stored_method(SSLContrastive, outputs(2), keep_fraction=0.3)
    batches = [stored_batch(2, seed) for seed in (1, 2, 3, 4)]
    rows = audit(method, batches, TOTAL)
    assert {(row.term, row.network) for row in rows if row.verdict == "live"} == SUPERVISED | {
        (name, i) for name in ("entropy_filtered", "contrast") for i in "ab"
    }
    terms = by_key(method.loss_terms(batches[0], Time(50, TOTAL)))
    a, b = (terms["supervised_dice", i].value for i in "ab")
    loser, winner = ("b", "a") if a < b else ("a", "b")
    assert int(terms["contrast", loser].support) > 0 == int(terms["contrast", winner].support)


@pytest.mark.parametrize("case", ["background", "without labels", "without unlabeled patches"])
@pytest.mark.parametrize("num_classes", [2, 3])
def test_empty_sets_are_zero_and_connected(case, num_classes):
    samples = LABELED if case == "without unlabeled patches" else 4
    stored, batch = outputs(num_classes, samples=samples), stored_batch(num_classes, samples=samples)
    if case == "background":
        for logits, _ in stored.values():
            logits[:, 0] += 50
        batch = batch._replace(label=torch.zeros_like(batch.label))
    if case == "without labels":
        batch = Batch(batch.image, batch.label[:0], batch.case)
    method = stored_method(SSLContrastive, stored, **fusion(num_classes))
    terms = method.loss_terms(batch, Time(50, TOTAL))
    sum(t.weight * t.value for t in terms).backward()
    for t in terms:
        assert torch.isfinite(t.value), t.key
        assert t.value.requires_grad, t.key
        if t.name == "contrast" and case != "without labels":
            assert t.value.item() == 0.0
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


def test_features_without_direction_have_no_gradient():
    stored = {i: (z, torch.zeros(4, FEATURES, *SHAPE)) for i, (z, _) in outputs(2).items()}
    method = stored_method(SSLContrastive, stored, keep_fraction=0.3)
    sum(t.weight * t.value for t in method.loss_terms(stored_batch(2), Time(50, TOTAL))).backward()
    assert all(torch.isfinite(n.features.grad).all() for n in method.networks.values())


def test_impossible_settings_are_named():
    for setting in ({"separation": "push"}, {"margin": -1}, {"loser_only": "off"}, {"confidence": 60}):
        ((key, value),) = setting.items()
        with pytest.raises(DualsegError, match=rf"method\.{key}={value}: "):
            stored_method(SSLContrastive, outputs(2), **setting)
    with pytest.raises(DualsegError, match=r"method\.fusion=union .*2 classes"):
        stored_method(SSLContrastive, outputs(3))
    with pytest.raises(DualsegError, match=r"method\.terms\.cosine: no such"):
        stored_method(SSLContrastive, outputs(2), terms={"cosine": {"weight": 1.0}})
