"""solo_mix against loops over voxels in float64; what it shares with dual_mix is tested there."""

import numpy as np
import pytest
import torch
from method_toys import Volumes, cpu_trainer, tiny_parts, volumes_data
from mixing_derivation import SIZE, batch_of, decided, in_box, largest, probabilities, region_losses, weights_of

from dualseg.methods import SoloMix, Time
from dualseg.methods.audit import audit

SELF, PRE = Time(9, 10), Time(0, 10)


def made(classes=3, **settings):
    return SoloMix(**tiny_parts(Volumes(classes), a=decided(classes)), **settings).train()


def values_of(method, batch, time, seed=3):
    torch.manual_seed(seed)
    return {term.name: (term.value.item(), term.weight) for term in method.loss_terms(batch, time)}


@pytest.mark.parametrize("classes", [2, 3])
def test_the_objective_by_hand(classes):
    method, batch = made(classes), batch_of(classes=classes)
    weights = weights_of(method.networks["a"])  # the teacher is still a copy
    x, y, n = batch.image[:, 0].double().numpy(), batch.label.numpy(), len(batch.label)
    outside = ~np.array([in_box(v) for v in np.ndindex(*SIZE)]).reshape(SIZE)
    predicted = [np.array([probabilities(weights, v).argmax() for v in image.ravel()]).reshape(SIZE) for image in x[n:]]
    pseudo = [largest(label, range(1, classes)) for label in predicted]
    rows = {name: [] for name in SoloMix.TERMS}
    for half, m in ((slice(0, n // 2), outside), (slice(n // 2, n), ~outside)):
        mixed = x[:n][half] * m + x[n:][half] * ~m
        for kind, label, region in (("supervised", y[half], m), ("pseudo", pseudo[half], ~m)):
            for name, value in zip(("ce", "dice"), region_losses(weights, mixed, label, region), strict=True):
                rows[f"{kind}_{name}"].append(value)
    found = values_of(method, batch, SELF)
    assert {name: value for name, (value, _) in found.items()} == pytest.approx(
        {name: np.mean(values) for name, values in rows.items()}, rel=1e-4
    )
    assert {name: weight for name, (_, weight) in found.items()} == {
        "supervised_ce": 1, "supervised_dice": 1, "pseudo_ce": 0.5, "pseudo_dice": 0.5
    }  # fmt: skip


def test_labeled_pairs_first_and_in_the_twin():
    batch = batch_of(classes=3)
    twin = batch._replace(image=batch.labeled.image, case=batch.case[:4])
    x, y = batch.labeled.image[:, 0].double().numpy(), batch.label.numpy()
    outside = ~np.array([in_box(v) for v in np.ndindex(*SIZE)]).reshape(SIZE)
    mixed = [np.where(outside, x[k], x[(k + 1) % 4]) for k in range(4)]
    label = [np.where(outside, y[k], y[(k + 1) % 4]) for k in range(4)]
    ce, dice = region_losses(weights_of(decided(3)), mixed, label, np.ones(SIZE, bool))
    for found in (values_of(made(), batch, PRE), values_of(made(), twin, SELF)):
        assert {name: value for name, (value, _) in found.items()} == pytest.approx(
            {"supervised_ce": ce, "supervised_dice": dice}, rel=1e-4
        )


def test_the_network_stands_for_the_run_and_its_teacher_is_an_average():
    method = made()
    cpu_trainer(8).fit(method, volumes_data(Volumes(3)))
    assert method.roles.record == "a" and set(method.networks) == {"a", "teacher"}
    student, teacher = (method.networks[name].state_dict() for name in ("a", "teacher"))
    assert any(not torch.equal(student[key], teacher[key]) for key in student)


def test_every_term_is_live():
    rows = audit(made(), [batch_of(classes=3, seed=s) for s in range(2)], 10)
    assert {row.term: row.verdict for row in rows} == dict.fromkeys(SoloMix.TERMS, "live")
