"""Correction on disagreement against method.md section 3, "CR"."""

import math

import numpy as np
import pytest
import torch
from loss_derivations import (
    SPATIAL,
    assert_connected_zero,
    assert_loss,
    extreme_pairs,
    first_argmax,
    flat,
    mean,
    random_labels,
    random_logits,
    softmax,
    voxels,
)

from dualseg.losses import confident_disagreement, rectification


def confident_class(p, confidence):
    k = first_argmax(p)
    return k if p[k] >= confidence else 0


def as_probabilities(foreground, dtype=torch.float32):
    """K = 2 probabilities, one voxel an entry."""
    p = torch.tensor(foreground, dtype=dtype)
    return torch.stack([1 - p, p]).view(1, 2, -1, 1, 1)


def derived_rectification(labels, disagreement):
    def derivation(z):
        errors = []
        for logits, y, inside in zip(z, labels, disagreement, strict=True):
            if inside:
                p = softmax(logits)
                errors += [(p[k] - (1.0 if y == k else 0.0)) ** 2 for k in range(1, len(p))]
        return mean(errors)

    return derivation


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("confidence", [0.6, 0.9])
def test_disagreement_voxel_by_voxel(num_classes, confidence):
    p_a, p_b = random_logits(0, num_classes).softmax(1), random_logits(1, num_classes).softmax(1)
    expected = [
        confident_class(a, confidence) != confident_class(b, confidence)
        for a, b in zip(voxels(p_a), voxels(p_b), strict=True)
    ]
    assert 0 < sum(expected) < len(expected)
    m = confident_disagreement(p_a, p_b, confidence)
    assert m.dtype == torch.bool
    assert flat(m) == expected
    assert torch.equal(m, confident_disagreement(p_b, p_a, confidence))


def test_two_classes_are_the_xor_of_the_confident_foregrounds():
    grid = [i / 100 for i in range(101)]
    a, b = zip(*((x, y) for x in grid for y in grid), strict=True)
    m = confident_disagreement(as_probabilities(a, torch.float64), as_probabilities(b, torch.float64))
    assert m.flatten().tolist() == [(x >= 0.6) ^ (y >= 0.6) for x, y in zip(a, b, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("confidence", [0.6, 0.7, 0.9])  # 0.7 and 0.9 round down resp. up in float32
def test_threshold_includes_equality(dtype, confidence):
    at = torch.tensor(confidence, dtype=dtype)
    below = torch.nextafter(at, torch.zeros((), dtype=dtype))
    p_a = as_probabilities([at.item(), below.item()], dtype)
    p_b = as_probabilities([0.0, 0.0], dtype)
    assert confident_disagreement(p_a, p_b, confidence).flatten().tolist() == [True, False]


def test_default_confidence_is_0_6():
    assert confident_disagreement(as_probabilities([0.6, 0.59]), as_probabilities([0.0, 0.0])).flatten().tolist() == [
        True,
        False,
    ]


def test_more_classes():
    def p(*voxel_probabilities):
        return torch.tensor(voxel_probabilities).T.reshape(1, 4, -1, 1, 1)

    p_a = p(
        [0.0, 0.7, 0.3, 0.0], [0.0, 0.7, 0.3, 0.0], [0.9, 0.1, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [0.1, 0.1, 0.1, 0.7]
    )
    p_b = p(
        [0.0, 0.3, 0.7, 0.0], [0.0, 0.6, 0.4, 0.0], [0.1, 0.5, 0.4, 0.0], [0.1, 0.0, 0.9, 0.0], [0.3, 0.3, 0.3, 0.1]
    )
    # different confident classes; the same class; background against no confidence; no confidence against class 2 and 3
    assert confident_disagreement(p_a, p_b).flatten().tolist() == [True, False, False, True, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_value_and_gradient(num_classes, dtype):
    z_a, z_b = random_logits(2, num_classes, dtype), random_logits(3, num_classes, dtype)
    label = random_labels(4, num_classes)
    m = confident_disagreement(z_a.softmax(1), z_b.softmax(1))
    assert 0 < m.sum() < m.numel()
    gradient = assert_loss(
        lambda z: rectification(z.softmax(1), label, m), derived_rectification(flat(label), flat(m)), z_a
    )
    assert np.abs(gradient).max() > 1e-3


def test_missing_classes():
    z, label = random_logits(5, 4), torch.full((2, *SPATIAL), 2)
    m = random_labels(6, 2).bool()
    assert_loss(lambda z: rectification(z.softmax(1), label, m), derived_rectification(flat(label), flat(m)), z)


def test_mask_carries_no_gradient():
    p_a = random_logits(7, 2).softmax(1).requires_grad_()
    p_b = random_logits(8, 2).softmax(1).requires_grad_()
    m = confident_disagreement(p_a, p_b)
    assert not m.requires_grad
    rectification(p_a, random_labels(9, 2), m).backward()
    assert p_a.grad.abs().sum() > 0
    assert p_b.grad is None


@pytest.mark.parametrize("num_classes", [2, 4])
def test_empty_mask(num_classes):
    leaf = random_logits(10, num_classes, torch.float32).requires_grad_()
    m = torch.zeros(2, *SPATIAL, dtype=torch.bool)
    assert_connected_zero(rectification(leaf.softmax(1), random_labels(11, num_classes), m), leaf)


def test_nothing_outside_the_mask_matters():
    p = random_logits(12, 2).softmax(1)
    m = random_labels(13, 2).bool()
    spoiled = p.where(m[:, None], torch.nan)
    label = random_labels(14, 2)
    assert rectification(spoiled, label, m).item() == rectification(p, label, m).item()


@pytest.mark.parametrize("num_classes", [2, 4])
def test_extreme_logits(num_classes):
    z_a, z_b = extreme_pairs(num_classes)
    label = (torch.arange(len(z_a)) % num_classes).view(-1, 1, 1, 1)
    m = confident_disagreement(z_a.softmax(1), z_b.softmax(1))
    leaf = z_a.clone().requires_grad_()
    value = rectification(leaf.softmax(1), label, m)
    value.backward()
    assert math.isclose(value.item(), derived_rectification(flat(label), flat(m))(voxels(z_a)), rel_tol=1e-6)
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("num_classes", [2, 4])
def test_empty_labeled_half(num_classes):
    leaf = torch.zeros(0, num_classes, *SPATIAL, requires_grad=True)
    p = leaf.softmax(1)
    m = confident_disagreement(p, p)
    assert m.shape == (0, *SPATIAL)
    assert_connected_zero(rectification(p, torch.zeros(0, *SPATIAL, dtype=torch.long), m), leaf)


def test_many_classes_take_no_more_than_their_probabilities(largest_tensor):
    p = torch.rand(1, 300, 4, 4, 4)
    label = torch.randint(300, (1, 4, 4, 4))
    disagreement = torch.ones(1, 4, 4, 4, dtype=torch.bool)
    assert largest_tensor(lambda: rectification(p, label, disagreement)) <= p.nbytes
