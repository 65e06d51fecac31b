"""Bidirectional copy-paste against loops over voxels in float64, its teacher, and its two stages."""

from functools import partial

import numpy as np
import pytest
import torch
from method_toys import States, Tiny, Volumes, cpu_trainer, tiny_parts, volumes_data
from mixing_derivation import SIZE, batch_of, decided, in_box, predicted_class, pseudo_label, region_losses, weights_of
from torch import nn

from dualseg.errors import DualsegError
from dualseg.methods import BidirectionalCopyPaste, Time
from dualseg.methods.audit import audit
from dualseg.networks import SegmentationOutput

SELF, PRE = Time(9, 10), Time(0, 10)


class Normed(nn.Module):
    """A pointwise network with BatchNorm."""

    def __init__(self, num_classes=2):
        super().__init__()
        self.body, self.norm = nn.Conv3d(1, 3, 1), nn.BatchNorm3d(3)
        self.head = nn.Conv3d(3, num_classes, 1)

    def forward(self, image):
        features = self.norm(self.body(image)).relu()
        return SegmentationOutput(self.head(features), features)


def made(classes=2, network=None, **settings):
    source = Volumes(classes)
    return BidirectionalCopyPaste(
        **tiny_parts(source, a=network or Tiny(num_classes=classes, dropout=0.0)), **settings
    ).train()


def terms_of(method, batch, time, seed=3):
    torch.manual_seed(seed)
    return {term.name: term for term in method.loss_terms(batch, time)}


def parts_of(batch):
    image, n = batch.image[:, 0].double().numpy(), len(batch.label)
    y = batch.label.numpy()
    box = np.array([in_box(v) for v in np.ndindex(*SIZE)]).reshape(SIZE)
    return image[:n], y, image[n:], (~box).astype(bool)


def by_hand(weights, batch, pseudo):
    """(supervised CE, supervised D, pseudo CE, pseudo D), means of the two mixed images, and the objective."""
    labeled, y, unlabeled, m = parts_of(batch)
    rows = []
    for k in (0, 1):
        half, mask = slice(2 * k, 2 * k + 2), m if k == 0 else ~m  # labeled background, then labeled box
        x = labeled[half] * mask + unlabeled[half] * ~mask
        rows.append((*region_losses(weights, x, y[half], mask), *region_losses(weights, x, pseudo[half], ~mask)))
    total = sum(0.5 * (s_ce + s_d + 0.5 * p_ce + 0.5 * p_d) for s_ce, s_d, p_ce, p_d in rows)
    return np.mean(rows, axis=0), total


@pytest.mark.parametrize("classes", [2, 3])
def test_the_objective_by_hand(classes):
    method, batch = made(classes, decided(classes)), batch_of(classes=classes)
    terms = terms_of(method, batch, SELF)
    weights = weights_of(method.networks["a"])
    pseudo = [pseudo_label(weights, image) for image in parts_of(batch)[2]]  # the teacher is still a copy
    raw = [predicted_class(weights, image) for image in parts_of(batch)[2]]
    assert set(np.unique(pseudo)) == set(range(classes)) and not np.array_equal(raw, pseudo)
    values, total = by_hand(weights, batch, pseudo)
    assert list(terms) == ["supervised_ce", "supervised_dice", "pseudo_ce", "pseudo_dice"]
    assert [t.value.item() for t in terms.values()] == pytest.approx(values, rel=1e-5)
    loss = sum(term.weight * term.value for term in terms.values())
    assert loss.item() == pytest.approx(total, rel=1e-5)
    loss.backward()
    for parameter, weight in zip(method.networks["a"].parameters(), weights, strict=True):
        place, step, sums = (0,) * weight.ndim, 1e-4, []
        for change in (step, -step):
            weight[place] += change
            sums.append(by_hand(weights, batch, pseudo)[1])
            weight[place] -= change
        slope = (sums[0] - sums[1]) / (2 * step)
        assert parameter.grad.flatten()[0].item() == pytest.approx(slope, rel=1e-3, abs=1e-5)
    assert all(p.grad is None for p in method.networks["teacher"].parameters())


def test_pretraining_by_hand():
    method, batch = made(3), batch_of(classes=3)
    batch.image[4:] = torch.nan  # unlabeled patches have no part
    terms = terms_of(method, batch, PRE)
    labeled, y, _, m = parts_of(batch)
    x, target = labeled[:2] * m + labeled[2:] * ~m, y[:2] * m + y[2:] * ~m
    values = region_losses(weights_of(method.networks["a"]), x, target, np.ones(SIZE, bool))
    assert [(t.key, t.weight) for t in terms.values()] == [
        ("loss/a/supervised_ce", 0.5), ("loss/a/supervised_dice", 0.5),
    ]  # fmt: skip
    assert [t.value.item() for t in terms.values()] == pytest.approx(values, rel=1e-5)


def test_it_lasts_its_share_of_the_run():
    for share, total, last in ((0.25, 2000, 499), (0.1, 30, 2), (1.0, 5, 4)):
        method = made(pretraining=share)
        assert [method.pretrains(Time(t, total)) for t in (0, last, last + 1)] == [True, True, False]
    assert not made(pretraining=0).pretrains(Time(0, 10))


@pytest.mark.parametrize("variant", ["described", "averaged_buffers"])
def test_the_teacher_is_a_copy_then_an_average(variant):
    states = States()
    method = made(network=Normed(), variant=variant, optimizer=partial(torch.optim.SGD, lr=0.5))
    cpu_trainer(8, callbacks=[states]).fit(method, volumes_data())
    for t, (before, after) in enumerate(zip([states.after[0], *states.after], states.after, strict=False)):
        for name, student in after["a"].items():
            teacher, old = after["teacher"][name], before["teacher"][name]
            if name.endswith("num_batches_tracked"):
                continue
            if t < 2:
                assert torch.equal(teacher, student), (t, name)
                continue
            average = old + 0.01 * (student - old)
            if "running" in name and variant == "described":
                assert not torch.allclose(teacher, average, atol=1e-6), "its own statistics, moved by its own passes"
            else:
                torch.testing.assert_close(teacher, average)
    passes = states.after[-1]["teacher"]["norm.num_batches_tracked"].item()
    assert passes == (2 * 6 if variant == "described" else 0), "two passes an iteration of self-training"


def test_the_teacher_reads_statistics_that_fit_its_mode():
    modes = []
    for variant in ("described", "averaged_buffers"):
        method = made(network=Normed(), variant=variant)
        method.networks["teacher"].register_forward_hook(lambda module, *_: modes.append(module.training))
        terms_of(method, batch_of(), SELF)
    assert modes == [True, True, False, False]


def test_no_foreground_is_finite_and_stays_empty():
    method = made(3)
    with torch.no_grad():
        method.networks["teacher"].head.bias.copy_(torch.tensor([50.0, 0.0, 0.0]))
    batch = batch_of(classes=3)._replace(label=torch.zeros(4, *SIZE, dtype=torch.long))
    for time in (SELF, PRE):
        terms = terms_of(method, batch, time)
        sum(term.value for term in terms.values()).backward()
        assert all(term.value.isfinite() for term in terms.values())
    assert all(p.grad.isfinite().all() for p in method.networks["a"].parameters())


@pytest.mark.parametrize(("labeled", "unlabeled"), [(1, 1), (2, 6), (3, 2), (5, 3)])
def test_batches_of_other_sizes_use_every_patch(labeled, unlabeled):
    method, batch = made(), batch_of(labeled, unlabeled)
    batch.image.requires_grad_()
    sum(term.value for term in terms_of(method, batch, SELF).values()).backward()
    assert (batch.image.grad.flatten(1).abs().amax(dim=1) > 0).all()


def test_without_unlabeled_patches_labeled_ones_are_mixed_throughout():
    method, batch = made(), batch_of(4, 0)
    late, early = (terms_of(method, batch, time) for time in (SELF, PRE))
    assert list(late) == ["supervised_ce", "supervised_dice"]
    assert [t.value.item() for t in late.values()] == [t.value.item() for t in early.values()]


def test_without_labeled_patches_it_is_refused():
    with pytest.raises(DualsegError, match=r"batch\.labeled=0"):
        terms_of(made(), batch_of(0, 4), SELF)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "averaged"}, r"method\.variant=averaged: .*averaged_buffers"),
        ({"pretraining": 1.5}, r"method\.pretraining=1\.5"),
        ({"pretraining": "quarter"}, r"method\.pretraining=quarter"),
        ({"pretraining": True}, r"method\.pretraining=True"),
    ],
)
def test_an_impossible_argument_is_refused(settings, message):
    with pytest.raises(DualsegError, match=message):
        made(**settings)


def test_every_term_is_live_and_a_switched_off_one_absent():
    rows = audit(made(3), [batch_of(classes=3, seed=s) for s in range(2)], 10)
    assert [(row.term, row.network, row.verdict) for row in rows] == [
        (name, "a", "live") for name in BidirectionalCopyPaste.TERMS
    ]
    rows = audit(made(3, terms={"pseudo_dice": {"enabled": False}}), [batch_of(classes=3)], 10)
    assert [row.term for row in rows if row.verdict == "absent"] == ["pseudo_dice"]


def test_without_pseudo_terms_the_teacher_has_nothing_to_do():
    off = {"enabled": False}
    network = Tiny(dropout=0.0)
    whole, method = made(network=network), made(network=network, terms={"pseudo_ce": off, "pseudo_dice": off})
    passes = []
    method.networks["teacher"].register_forward_hook(lambda *_: passes.append(1))
    terms, expected = terms_of(method, batch_of(), SELF), terms_of(whole, batch_of(), SELF)
    assert {name: term.value for name, term in terms.items()} == {
        name: expected[name].value for name in ("supervised_ce", "supervised_dice")
    }
    assert not passes and "time/largest_component" not in method.watched
    assert "pseudo_dice" in terms_of(made(terms={"pseudo_ce": off}), batch_of(), SELF)


def test_the_time_of_the_largest_component_is_a_curve():
    method = made()
    curves = {}
    method.log_curves = curves.update
    cpu_trainer(4, log_every_n_steps=1).fit(method, volumes_data())
    assert 0 < curves["time/largest_component"] < 1
    assert method.roles.record == "a"
