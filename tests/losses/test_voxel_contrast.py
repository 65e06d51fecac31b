import math

import pytest
import torch
from torch.nn import functional as F

from dualseg.losses import block_mean, voxel_contrast
from dualseg.losses.voxel_contrast import bidirectional_contrast


def tensors(classes: int, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    first, second, bank = (F.normalize(torch.randn(n, 4, generator=g), dim=1) for n in (20, 20, 30))
    predicted, other = torch.randint(classes, (20,), generator=g), torch.randint(classes, (30,), generator=g)
    return first, second, predicted, bank, other, torch.rand(30, generator=g)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("negatives", [4, 400])
def test_a_list_for_each_class_is_the_list_of_each_anchor(classes, negatives):
    first, second, predicted, bank, other, confidence = tensors(classes)
    values = []
    for u1, u2, k in zip(first.double(), second.double(), predicted, strict=True):
        pool = [(float(confidence[m]), m) for m in range(30) if other[m] != k]
        chosen = [m for _, m in sorted(pool, reverse=True)[:negatives]]
        positive = math.exp(float(u1 @ u2) / 0.1)
        for anchor in (u1, u2):
            rest = sum(math.exp(float(anchor @ bank[m].double()) / 0.1) for m in chosen)
            values.append(-math.log(positive / (positive + rest + 1e-8)))
    value, support = voxel_contrast(first, second, predicted, bank, other, confidence, classes, negatives)
    assert value.item() == pytest.approx(2 * sum(values) / len(values), rel=1e-5)
    assert int(support) == 20


def test_without_another_class_there_is_nothing_and_no_nan():
    first, second, predicted, bank, other, confidence = tensors(3)
    first.requires_grad_()
    bank.requires_grad_()
    value, support = voxel_contrast(first, second, predicted, bank, torch.zeros_like(other), confidence, 3)
    assert int(support) == int((predicted != 0).sum()) < 20
    value.backward()
    assert torch.isfinite(first.grad).all()
    assert (first.grad[predicted == 0] == 0).all()
    assert (first.grad[predicted != 0] != 0).any()
    value, support = voxel_contrast(first[:0], second[:0], predicted[:0], bank, other, confidence, 3)
    assert (value.item(), int(support), value.requires_grad) == (0.0, 0, True)


@pytest.mark.parametrize("labeled", [0, 1, 3])
def test_both_directions_have_the_anchors_of_the_one_half_and_the_bank_of_the_other(labeled):
    g = torch.Generator().manual_seed(1)
    u0, u1, u2 = (F.normalize(torch.randn(3, 5, 4, generator=g), dim=2) for _ in range(3))
    predicted, confidence = torch.randint(3, (3, 5), generator=g), torch.rand(3, 5, generator=g)
    expected = []
    patches = set(range(3))
    for own in (set(range(labeled)), set(range(labeled, 3))):
        a, b = sorted(own), sorted(patches - own)
        anchors = (u1[a].reshape(-1, 4), u2[a].reshape(-1, 4), predicted[a].flatten())
        bank = (u0[b].reshape(-1, 4), predicted[b].flatten(), confidence[b].flatten())
        expected.append(voxel_contrast(*anchors, *bank, 3, 2, 0.2))
    value, support = bidirectional_contrast(u0, u1, u2, predicted, confidence, labeled, 3, 2, 0.2)
    assert value.item() == pytest.approx(sum(float(v) for v, _ in expected))
    assert int(support) == sum(int(s) for _, s in expected) and (labeled in (0, 3)) == (int(support) == 0)


def test_block_means():
    x = torch.randn(2, 3, 9, 8, 3)
    pooled = block_mean(x, 4)
    assert pooled.shape == (2, 3, 2, 2, 1)
    torch.testing.assert_close(pooled[1, 2, 1, 0, 0], x[1, 2, 4:8, :4].mean())
