"""Losses within a region against loops over voxels in float64."""

import numpy as np
import pytest
import torch

from dualseg.losses import region_ce, region_dice

SIZE = (4, 3, 5)


def drawn(classes, samples=2):
    g = torch.Generator().manual_seed(classes)
    logits = torch.randn(samples, classes, *SIZE, generator=g, requires_grad=True)
    label = torch.randint(classes, (samples, *SIZE), generator=g)
    return logits, label, torch.rand(1, *SIZE, generator=g) < 0.3


def ce_by_hand(log_p, label, region):
    total, count = 0.0, 0
    for n, *v in np.ndindex(*label.shape):
        if region[(0, *v)]:
            total, count = total - log_p[(n, label[(n, *v)], *v)], count + 1
    return total / count


def dice_by_hand(p, label, region):
    scores = []
    for n in range(len(p)):
        for c in range(p.shape[1]):
            both = either = 0.0
            for v in np.ndindex(*label.shape[1:]):
                if region[(0, *v)]:
                    y = float(label[(n, *v)] == c)
                    both, either = both + p[(n, c, *v)] * y, either + p[(n, c, *v)] + y
            scores.append((2 * both + 1e-5) / (either + 1e-5))
    return 1 - sum(scores) / len(scores)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_region_by_hand(classes):
    logits, label, region = drawn(classes)
    log_p = logits.detach().double().log_softmax(1).numpy()
    arguments = label.numpy(), region.numpy()
    assert region_ce(logits.log_softmax(1), label, region).item() == pytest.approx(ce_by_hand(log_p, *arguments))
    dice = region_dice(logits.softmax(1), label, region).item()
    assert dice == pytest.approx(dice_by_hand(np.exp(log_p), *arguments), rel=1e-5)
    everywhere = np.ones_like(region.numpy())
    dice = region_dice(logits.softmax(1), label).item()
    assert dice == pytest.approx(dice_by_hand(np.exp(log_p), label.numpy(), everywhere), rel=1e-5)


@pytest.mark.parametrize("loss", [region_ce, region_dice])
def test_voxels_outside_the_region_have_no_part(loss):
    logits, label, region = drawn(3)
    log_p = logits.log_softmax(1)
    given = log_p if loss is region_ce else log_p.exp()
    value = loss(given, label, region)
    value.backward()
    assert (logits.grad.abs().sum(dim=1) > 0).equal(region.expand_as(label))
    other = label.where(region, (label + 1) % 3)
    assert loss(given, other, region).item() == value.item()


@pytest.mark.parametrize("loss", [region_ce, region_dice])
def test_an_empty_region_is_zero_and_sends_nothing(loss):
    logits, label, region = drawn(2)
    value = loss(logits.log_softmax(1), label, region & False)
    value.backward()
    assert value.item() == 0 and logits.grad.abs().max() == 0
    none = logits[:0].softmax(1)
    assert loss(none, label[:0], region).item() == 0


def test_a_class_that_is_nowhere_costs_nothing():
    p = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1, 1).expand(1, 2, *SIZE)
    assert region_dice(p, torch.zeros(1, *SIZE, dtype=torch.long)).item() == pytest.approx(0, abs=1e-6)
