"""Divergence of the networks against method.md section 3, CCE part 2."""

import math

import numpy as np
import pytest
import torch
from loss_derivations import (
    SPATIAL,
    assert_connected_zero,
    assert_loss,
    extreme_pairs,
    flat,
    kl,
    mean,
    random_logits,
    voxels,
)

from dualseg.losses import kl_divergence, uncertainty


def derived_uncertainty(other):
    return lambda z: mean([kl(q, p) for q, p in zip(voxels(other.double()), z, strict=True)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_value_and_gradient(num_classes, dtype):
    z, other = random_logits(0, num_classes, dtype), random_logits(1, num_classes, dtype)
    gradient = assert_loss(
        lambda z: uncertainty(kl_divergence(z.log_softmax(1), other.log_softmax(1))), derived_uncertainty(other), z
    )
    assert np.abs(gradient).max() > 1e-3


@pytest.mark.parametrize("num_classes", [2, 4])
def test_voxel_by_voxel_in_the_right_direction(num_classes):
    z, other = random_logits(2, num_classes), random_logits(3, num_classes)
    divergence = kl_divergence(z.log_softmax(1), other.log_softmax(1))
    assert divergence.shape == (2, *SPATIAL)
    expected = [kl(q, p) for q, p in zip(voxels(other), voxels(z), strict=True)]
    assert flat(divergence) == pytest.approx(expected, rel=1e-11)
    reverse = [kl(p, q) for q, p in zip(voxels(other), voxels(z), strict=True)]
    assert not np.allclose(expected, reverse, rtol=0.05)


def test_hand_value():
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25])
    divergence = kl_divergence(p.log().view(1, 2, 1, 1, 1), q.log().view(1, 2, 1, 1, 1))
    assert divergence.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-6)


def test_nothing_reaches_the_other_network():
    z = random_logits(4, 3).requires_grad_()
    other = random_logits(5, 3).requires_grad_()
    uncertainty(kl_divergence(z.log_softmax(1), other.log_softmax(1))).backward()
    assert z.grad.abs().sum() > 0
    assert other.grad is None


def test_equal_networks():
    leaf = random_logits(6, 4, torch.float32).requires_grad_()
    log_p = leaf.log_softmax(1)
    value = uncertainty(kl_divergence(log_p, log_p))
    value.backward()
    assert value.item() == 0
    assert leaf.grad.abs().max() < 1e-7


@pytest.mark.parametrize("num_classes", [2, 4])
def test_extreme_logits(num_classes):
    z, other = extreme_pairs(num_classes)
    leaf = z.clone().requires_grad_()
    divergence = kl_divergence(leaf.log_softmax(1), other.log_softmax(1))
    expected = [kl(q, p) for q, p in zip(voxels(other), voxels(z), strict=True)]
    assert flat(divergence) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    uncertainty(divergence).backward()
    # d D / d z = p - q: a saturated disagreement must keep its full gradient, not vanish or overflow
    expected_gradient = (z.double().softmax(1) - other.double().softmax(1)) / len(z)
    torch.testing.assert_close(leaf.grad.double(), expected_gradient, rtol=0, atol=1e-6 / len(z))


@pytest.mark.parametrize("num_classes", [2, 4])
def test_empty_unlabeled_half(num_classes):
    leaf = torch.zeros(0, num_classes, *SPATIAL, requires_grad=True)
    log_p = leaf.log_softmax(1)
    assert_connected_zero(uncertainty(kl_divergence(log_p, log_p)), leaf)
