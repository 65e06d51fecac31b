"""Cross pseudo supervision against loops over voxels in float64."""

import numpy as np
import pytest
import torch
from method_toys import Stored, outputs, stored_batch

from dualseg.data.batch import Batch
from dualseg.inference import SlidingWindow
from dualseg.methods import CrossPseudoSupervision, Time
from dualseg.methods.audit import audit

END = Time(10, 10)
WINDOW = SlidingWindow((16, 16, 16), (8, 8, 8), memory_format=torch.contiguous_format)
SMALL = (4, 3, 5)


def made(classes=2, samples=4):
    names = ("background", "atrium", "ventricle")[:classes]
    stored = outputs(classes, samples=max(samples, 1))
    cut = {
        i: (z[:samples, :, : SMALL[0], : SMALL[1], : SMALL[2]], f[:samples, :, : SMALL[0], : SMALL[1], : SMALL[2]])
        for i, (z, f) in stored.items()
    }
    return CrossPseudoSupervision({i: Stored(*output) for i, output in cut.items()}, names, WINDOW)


def batch_of(classes=2, labeled=2, samples=4):
    batch = stored_batch(classes, labeled=labeled, samples=samples)
    return Batch(batch.image, batch.label[:, : SMALL[0], : SMALL[1], : SMALL[2]], batch.case)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_objective_and_its_gradient_by_hand(classes):
    method, batch = made(classes), batch_of(classes)
    terms = {term.key: term for term in method.loss_terms(batch, END)}
    p = {i: method.networks[i].logits.detach().double().softmax(1).numpy() for i in "ab"}
    y = batch.label.numpy()
    for i, j in ("ab", "ba"):
        entropy = np.mean([-np.log(p[i][(n, y[(n, *v)], *v)]) for n, *v in np.ndindex(*y.shape)])
        dice = []
        for c in range(1, classes):
            own, target = p[i][:2, c], y == c
            dice.append(1 - (2 * (own * target).sum() + 1e-5) / ((own**2).sum() + target.sum() + 1e-5))
        voxels = [(n, *v) for n, *v in np.ndindex(2, *SMALL)]
        pseudo = {(n, *v): int(p[j][(n + 2, slice(None), *v)].argmax()) for n, *v in voxels}
        cross = np.mean([-np.log(p[i][(n + 2, pseudo[(n, *v)], *v)]) for n, *v in voxels])
        for name, value, weight in (
            ("supervised_ce", entropy, 0.5),
            ("supervised_dice", np.mean(dice), 0.5),
            ("cross_pseudo", cross, 0.1),
        ):
            term = terms.pop(f"loss/{i}/{name}")
            assert (term.value.item(), term.weight) == (pytest.approx(value, rel=1e-5), weight)
            assert term.network == i
            if name == "cross_pseudo":
                (own, other) = torch.autograd.grad(
                    term.value, [method.networks[k].logits for k in (i, j)], retain_graph=True, allow_unused=True
                )
                assert other is None, "no gradient through a label"
                slope = np.zeros_like(p[i])
                for n, *v in voxels:
                    slope[(n + 2, slice(None), *v)] = p[i][(n + 2, slice(None), *v)]
                    slope[(n + 2, pseudo[(n, *v)], *v)] -= 1
                np.testing.assert_allclose(own, slope / len(voxels), rtol=1e-4, atol=1e-7)
    assert terms == {}


def test_the_cross_term_comes_up_over_the_run():
    weights = {term.key: term.weight for term in made().loss_terms(batch_of(), Time(0, 10))}
    assert weights["loss/a/cross_pseudo"] == weights["loss/b/cross_pseudo"] == pytest.approx(0.1 * np.exp(-5))
    assert weights["loss/a/supervised_ce"] == 0.5


@pytest.mark.parametrize(("labeled", "samples"), [(4, 4), (0, 4), (1, 4)])
def test_batches_of_other_sizes_and_without_foreground_are_finite(labeled, samples):
    method, batch = made(3, samples), batch_of(3, labeled, samples)
    terms = method.loss_terms(batch._replace(label=batch.label * 0), END)
    sum(term.value for term in terms).backward()
    assert len(terms) == 6 and all(term.value.isfinite() for term in terms)
    assert all(method.networks[i].logits.grad.isfinite().all() for i in "ab")


def test_every_term_is_live_and_the_ensemble_stands_for_the_run():
    method = made(3)
    rows = audit(method, [batch_of(3)], 10)
    assert {(row.term, row.network) for row in rows} == {(n, i) for n in method.TERMS for i in "ab"}
    assert {row.verdict for row in rows} == {"live"}
    assert method.roles.record == "ensemble"
