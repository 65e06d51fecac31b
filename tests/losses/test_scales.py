"""Losses over the scales of a network against loops over voxels."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dualseg.losses import label_at, over_scales, supervised_ce, supervised_dice


def loop_label(label: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """The label at the first voxel of each block."""
    block = [math.ceil(a / b) for a, b in zip(label.shape[1:], size, strict=True)]
    found = np.zeros((len(label), *size), int)
    for n, w, h, d in np.ndindex(*found.shape):
        found[n, w, h, d] = label[n, w * block[0], h * block[1], d * block[2]]
    return found


def loop_ce(logits: Tensor, label: np.ndarray) -> float:
    z = logits.double().numpy()
    total = 0.0
    for n, w, h, d in np.ndindex(*label.shape):
        scores = z[n, :, w, h, d]
        total += math.log(sum(math.exp(s) for s in scores)) - scores[label[n, w, h, d]]
    return total / label.size


def loop_dice(logits: Tensor, label: np.ndarray) -> float:
    p = logits.double().softmax(dim=1).numpy()
    losses = []
    for k in range(1, p.shape[1]):
        overlap = squares = members = 0.0
        for n, w, h, d in np.ndindex(*label.shape):
            own, is_k = p[n, k, w, h, d], label[n, w, h, d] == k
            overlap, squares, members = overlap + own * is_k, squares + own * own, members + is_k
        losses.append(1 - (2 * overlap + 1e-5) / (squares + members + 1e-5))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("sides", [(8, 6, 4), (9, 6, 3)])
def test_the_mean_over_scales_is_that_of_loops(count: int, sides: tuple[int, int, int]) -> None:
    torch.manual_seed(count)
    label = torch.randint(3, (2, *sides))
    # as the strides [2,2,1] and [2,1,2] leave them
    first = (math.ceil(sides[0] / 2), math.ceil(sides[1] / 2), sides[2])
    second = (math.ceil(sides[0] / 4), first[1], math.ceil(sides[2] / 2))
    logits = [torch.randn(2, 3, *size) for size in (sides, first, second)[:count]]
    weights = {1: [1], 2: [2 / 3, 1 / 3], 3: [4 / 7, 2 / 7, 1 / 7]}[count]
    labels = [loop_label(label.numpy(), z.shape[2:]) for z in logits]
    log_p = [z.log_softmax(dim=1) for z in logits]
    expected = sum(w * loop_ce(z, y) for w, z, y in zip(weights, logits, labels, strict=True))
    assert over_scales(supervised_ce, log_p, label).item() == pytest.approx(expected, rel=1e-5)
    expected = sum(w * loop_dice(z, y) for w, z, y in zip(weights, logits, labels, strict=True))
    assert over_scales(supervised_dice, [z.exp() for z in log_p], label).item() == pytest.approx(expected, rel=1e-5)


def test_one_scale_is_the_loss_itself_to_the_last_digit() -> None:
    label, log_p = torch.randint(2, (2, 4, 4, 4)), torch.randn(2, 2, 4, 4, 4).log_softmax(dim=1)
    assert torch.equal(over_scales(supervised_ce, [log_p], label), supervised_ce(log_p, label))


def test_a_label_keeps_its_voxels_where_nothing_is_coarser() -> None:
    label = torch.randint(3, (1, 4, 6, 5))
    assert torch.equal(label_at(label, (4, 6, 5)), label)
    assert torch.equal(label_at(label, (2, 3, 5)), label[:, ::2, ::2])


def test_without_labeled_patches_the_value_is_0_and_has_a_gradient() -> None:
    z = [torch.randn(2, 2, *size, requires_grad=True) for size in ((4, 4, 4), (2, 2, 2))]
    value = over_scales(supervised_ce, [one.log_softmax(dim=1)[:0] for one in z], torch.zeros((0, 4, 4, 4)).long())
    value.backward()
    assert value == 0
    assert all(one.grad is not None and not one.grad.any() for one in z)
