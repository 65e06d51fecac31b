"""Cosine consistency against method.md section 3, CCE part 4."""

import math

import pytest
import torch
from loss_derivations import (
    SPATIAL,
    assert_connected_zero,
    assert_loss,
    extreme_pairs,
    finite_differences,
    mean,
    random_logits,
    softmax,
    voxels,
)

from dualseg.losses import cosine


def one_minus_cosine(p, q):
    dot = math.fsum(a * b for a, b in zip(p, q, strict=True))
    return 1 - dot / (math.sqrt(math.fsum(a * a for a in p)) * math.sqrt(math.fsum(b * b for b in q)))


def derived(other):
    q = [softmax(logits) for logits in voxels(other.double())]
    return lambda z: mean([one_minus_cosine(softmax(a), b) for a, b in zip(z, q, strict=True)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_value_and_gradient(num_classes, dtype):
    z, other = random_logits(0, num_classes, dtype), random_logits(1, num_classes, dtype)
    assert_loss(lambda z: cosine(z.softmax(1), other.softmax(1)), derived(other), z)


def test_the_caller_decides_about_the_gradient_of_the_other():
    z, other = random_logits(2, 4).requires_grad_(), random_logits(3, 4).requires_grad_()
    cosine(z.softmax(1), other.softmax(1)).backward()  # released: into both
    for leaf, fixed in ((z, other), (other, z)):
        expected = finite_differences(derived(fixed.detach()), leaf)
        torch.testing.assert_close(leaf.grad, torch.from_numpy(expected), rtol=0, atol=1e-9)
    both = z.grad.clone()
    z.grad = other.grad = None
    cosine(z.softmax(1), other.softmax(1).detach()).backward()  # described: into network i only
    torch.testing.assert_close(z.grad, both, rtol=0, atol=1e-15)
    assert other.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agreement_is_zero_and_opposition_one(dtype):
    a = torch.tensor([1.0, 0.0], dtype=dtype).view(1, 2, 1, 1, 1)
    b = torch.tensor([0.0, 1.0], dtype=dtype).view(1, 2, 1, 1, 1)
    assert cosine(a, a).item() == pytest.approx(0, abs=1e-6)
    assert cosine(a, b).item() == 1


@pytest.mark.parametrize("num_classes", [2, 4])
def test_equal_networks_have_no_gradient(num_classes):
    leaf = random_logits(4, num_classes, torch.float32).requires_grad_()
    value = cosine(leaf.softmax(1), leaf.detach().softmax(1))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert leaf.grad.abs().max() < 1e-7


@pytest.mark.parametrize("num_classes", [2, 4])
def test_extreme_logits(num_classes):
    z, other = extreme_pairs(num_classes)
    leaf, other_leaf = z.clone().requires_grad_(), other.clone().requires_grad_()
    value = cosine(leaf.softmax(1), other_leaf.softmax(1))
    value.backward()
    assert value.item() == pytest.approx(derived(other)(voxels(z)), rel=1e-5)
    assert leaf.grad.isfinite().all()
    assert other_leaf.grad.isfinite().all()


@pytest.mark.parametrize("num_classes", [2, 4])
def test_empty_unlabeled_half(num_classes):
    leaf = torch.zeros(0, num_classes, *SPATIAL, requires_grad=True)
    assert_connected_zero(cosine(leaf.softmax(1), leaf.detach().softmax(1)), leaf)
