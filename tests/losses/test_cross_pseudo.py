"""Cross pseudo supervision, plain and weighted, against method.md section 3, CCE parts 1 and 2."""

import math

import numpy as np
import pytest
import torch
from loss_derivations import (
    SPATIAL,
    assert_connected_zero,
    assert_loss,
    cross_entropy,
    extreme_pairs,
    first_argmax,
    kl,
    mean,
    random_logits,
    voxels,
)

from dualseg.losses import cross_pseudo, kl_divergence, uncertainty


def derived_plain(other):
    def derivation(z):
        return mean([cross_entropy(p, first_argmax(q)) for p, q in zip(z, voxels(other.double()), strict=True)])

    return derivation


def derived_weighted(other, plus_divergence):
    def derivation(z):
        terms = []
        for p, q in zip(z, voxels(other.double()), strict=True):
            divergence = kl(q, p)
            term = math.exp(-divergence) * cross_entropy(p, first_argmax(q))
            terms.append(term + (divergence if plus_divergence else 0.0))
        return mean(terms)

    return derivation


def weighted(z, other, plus_divergence):
    log_p = z.log_softmax(1)
    divergence = kl_divergence(log_p, other.log_softmax(1))
    value = cross_pseudo(log_p, other.argmax(1), divergence)
    return value + uncertainty(divergence) if plus_divergence else value


@pytest.mark.parametrize("weighs", [False, True])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_soft(num_classes, weighs):
    z, other = random_logits(0, num_classes, torch.float32), random_logits(1, num_classes, torch.float32)
    soft = random_logits(2, num_classes, torch.float32).softmax(1)
    divergence = kl_divergence(z.log_softmax(1), other.log_softmax(1)) if weighs else None

    def derivation(z):
        factors = torch.exp(-divergence).flatten().tolist() if weighs else [1.0] * len(z)
        triples = zip(z, voxels(soft), factors, strict=True)
        return mean([w * sum(q[k] * cross_entropy(p, k) for k in range(num_classes)) for p, q, w in triples])

    assert_loss(lambda z: cross_pseudo(z.log_softmax(1), soft.to(z.dtype), divergence), derivation, z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_plain(num_classes, dtype):
    z, other = random_logits(0, num_classes, dtype), random_logits(1, num_classes, dtype)
    assert_loss(lambda z: cross_pseudo(z.log_softmax(1), other.argmax(1)), derived_plain(other), z)


@pytest.mark.parametrize("plus_divergence", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_weighted(num_classes, dtype, plus_divergence):
    z, other = random_logits(2, num_classes, dtype), random_logits(3, num_classes, dtype)
    assert_loss(lambda z: weighted(z, other, plus_divergence), derived_weighted(other, plus_divergence), z)


def test_the_weight_is_not_detached():
    z, other = random_logits(4, 2), random_logits(5, 2)
    leaf = z.clone().requires_grad_()
    log_p = leaf.log_softmax(1)
    divergence = kl_divergence(log_p, other.log_softmax(1))
    (detached,) = torch.autograd.grad(
        cross_pseudo(log_p, other.argmax(1), divergence.detach()), leaf, retain_graph=True
    )
    (ours,) = torch.autograd.grad(cross_pseudo(log_p, other.argmax(1), divergence), leaf)
    derived = assert_loss(lambda z: weighted(z, other, False), derived_weighted(other, False), z)
    assert (ours - detached).abs().max() > 0.1 * ours.abs().max()
    np.testing.assert_allclose(ours.numpy(), derived, rtol=0, atol=1e-8)


@pytest.mark.parametrize("is_weighted", [False, True])
def test_nothing_reaches_the_other_network(is_weighted):
    z, other = random_logits(6, 4).requires_grad_(), random_logits(7, 4).requires_grad_()
    loss = weighted(z, other, True) if is_weighted else cross_pseudo(z.log_softmax(1), other.softmax(1).argmax(1))
    loss.backward()
    assert z.grad.abs().sum() > 0
    assert other.grad is None


def test_missing_classes_among_the_pseudo_labels():
    z = random_logits(8, 4)
    other = random_logits(9, 4)
    other[:, 2] += 100
    assert other.argmax(1).unique().tolist() == [2]
    assert_loss(lambda z: weighted(z, other, True), derived_weighted(other, True), z)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_extreme_logits(num_classes):
    z, other = extreme_pairs(num_classes)
    for loss, derivation in (
        (lambda z: cross_pseudo(z.log_softmax(1), other.argmax(1)), derived_plain(other)),
        (lambda z: weighted(z, other, False), derived_weighted(other, False)),
        (lambda z: weighted(z, other, True), derived_weighted(other, True)),
    ):
        leaf = z.clone().requires_grad_()
        value = loss(leaf)
        value.backward()
        assert value.item() == pytest.approx(derivation(voxels(z)), rel=1e-5)
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_empty_unlabeled_half(num_classes, is_weighted):
    leaf = torch.zeros(0, num_classes, *SPATIAL, requires_grad=True)
    log_p = leaf.log_softmax(1)
    label = torch.zeros(0, *SPATIAL, dtype=torch.long)
    divergence = kl_divergence(log_p, log_p) if is_weighted else None
    assert_connected_zero(cross_pseudo(log_p, label, divergence), leaf)
