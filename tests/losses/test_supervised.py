"""Supervised terms against method.md section 3, "Supervised"."""

import math

import pytest
import torch
from loss_derivations import (
    SPATIAL,
    assert_connected_zero,
    assert_loss,
    cross_entropy,
    extreme_pairs,
    flat,
    mean,
    random_labels,
    random_logits,
    softmax,
)

from dualseg.losses import supervised_ce, supervised_dice


def derived_ce(labels):
    return lambda z: mean([cross_entropy(logits, y) for logits, y in zip(z, labels, strict=True)])


def derived_dice(labels, eps=1e-5):
    def derivation(z):
        p = [softmax(logits) for logits in z]
        losses = []
        for k in range(1, len(p[0])):
            overlap = math.fsum(v[k] for v, y in zip(p, labels, strict=True) if y == k)
            squares = math.fsum(v[k] ** 2 for v in p)
            size = sum(1 for y in labels if y == k)
            losses.append(1 - (2 * overlap + eps) / (squares + size + eps))
        return mean(losses)

    return derivation


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_value_and_gradient(num_classes, dtype):
    logits, label = random_logits(0, num_classes, dtype), random_labels(1, num_classes)
    assert_loss(lambda z: supervised_ce(z.log_softmax(1), label), derived_ce(flat(label)), logits)
    assert_loss(lambda z: supervised_dice(z.softmax(1), label), derived_dice(flat(label)), logits)


@pytest.mark.parametrize("present", [[0], [3], [0, 2]])
def test_missing_classes(present):
    logits = random_logits(2, 4)
    label = torch.tensor(present)[random_labels(3, len(present))]
    assert_loss(lambda z: supervised_ce(z.log_softmax(1), label), derived_ce(flat(label)), logits)
    assert_loss(lambda z: supervised_dice(z.softmax(1), label), derived_dice(flat(label)), logits)


def test_dice_sums_run_over_the_batch_and_classes_are_averaged_one_by_one():
    # volume 0: 4 voxels of class 1, all hit; volume 1: class 2 in one voxel, missed; class 1 nowhere there
    label = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 2]]).view(2, 4, 1, 1)
    prediction = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]]).view(2, 4, 1, 1)
    p = torch.nn.functional.one_hot(prediction, 3).movedim(-1, 1).double()
    eps = 1e-5
    class_1, class_2 = 1 - (2 * 4 + eps) / (5 + 4 + eps), 1 - eps / (0 + 1 + eps)
    assert supervised_dice(p, label).item() == pytest.approx((class_1 + class_2) / 2, rel=1e-12)


def test_dice_of_an_absent_and_unpredicted_class_is_perfect():
    p = torch.zeros(2, 2, *SPATIAL)
    p[:, 0] = 1
    assert supervised_dice(p, torch.zeros(2, *SPATIAL, dtype=torch.long)).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_extreme_logits(num_classes):
    logits, _ = extreme_pairs(num_classes)
    label = (torch.arange(len(logits)) % num_classes).view(-1, 1, 1, 1)
    small = logits[: 4 * num_classes], label[: 4 * num_classes]  # one of every kind is enough for finite differences
    assert_loss(lambda z: supervised_ce(z.log_softmax(1), small[1]), derived_ce(flat(small[1])), small[0], step=1e-4)
    for loss in (
        lambda z: supervised_ce(z.log_softmax(1), label),
        lambda z: supervised_dice(z.softmax(1), label),
    ):
        leaf = logits.clone().requires_grad_()
        value = loss(leaf)
        value.backward()
        assert value.isfinite()
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("num_classes", [2, 4])
def test_empty_labeled_half(num_classes):
    label = torch.zeros(0, *SPATIAL, dtype=torch.long)
    leaf = torch.zeros(0, num_classes, *SPATIAL, requires_grad=True)
    assert_connected_zero(supervised_ce(leaf.log_softmax(1), label), leaf)
    leaf.grad = None
    assert_connected_zero(supervised_dice(leaf.softmax(1), label), leaf)


def test_cross_entropy_with_weights_of_classes():
    logits, label = random_logits(7, 2), random_labels(8, 2)
    weights = [1.0 if y == 0 else 10.0 for y in flat(label)]
    losses = [
        w * cross_entropy(z, y)
        for w, z, y in zip(weights, logits.movedim(1, -1).reshape(-1, 2).tolist(), flat(label), strict=True)
    ]
    value = supervised_ce(logits.log_softmax(1), label, torch.tensor([1.0, 10.0]).to(logits.dtype))
    assert value.item() == pytest.approx(math.fsum(losses) / math.fsum(weights), rel=1e-5)
