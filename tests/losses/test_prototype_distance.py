import math

import pytest
import torch

from dualseg.losses.contrast import draw_voxels
from dualseg.losses.prototype_distance import class_means, prototype_distance


def test_class_means_are_directions_of_means_with_gradient():
    features = torch.tensor([[3.0, 1.0, 0.0, 9.0], [0.0, 1.0, 2.0, 9.0]]).view(1, 2, 4, 1, 1).requires_grad_()
    fused = torch.tensor([0, 0, 1, 2]).view(1, 4, 1, 1)
    reliable = torch.tensor([True, True, True, False]).view(1, 4, 1, 1)
    means, present = class_means(features, fused, reliable, 3)
    assert present.tolist() == [True, True, False]
    expected = torch.tensor([[2.0, 0.5], [0.0, 2.0], [0.0, 0.0]])
    torch.testing.assert_close(means, torch.nn.functional.normalize(expected, dim=1))
    (gradient,) = torch.autograd.grad(means[0, 1], features)
    assert (gradient[0, :, :2] != 0).all()
    assert (gradient[0, :, 2:] == 0).all()


@pytest.mark.parametrize(("separation", "apart"), [("hinge", 0.5), ("pull", math.sqrt(2))])
def test_a_case_by_hand(separation, apart):
    """200 unreliable foreground voxels at 60 degrees from their prototype, 200 background ones at their own."""
    fused = torch.tensor([1, 0] + [1, 0] * 200).view(1, 402, 1, 1)
    reliable = torch.tensor([True, True] + [False] * 400).view(1, 402, 1, 1)
    rows = torch.tensor([[0.0, 5.0], [2.0, 0.0]] + [[math.sqrt(0.75), 0.5], [4.0, 0.0]] * 200)
    features = rows.T.reshape(1, 2, 402, 1, 1)
    value, support = prototype_distance(features, fused, fused, reliable, 2, separation, margin=math.sqrt(2) + 0.5)
    assert value.item() == pytest.approx(1.0 + 0.0 + apart, rel=1e-4)
    assert int(support) == 4


def test_so_many_are_drawn_as_wanted_and_there_are():
    there = torch.zeros(1000, dtype=torch.bool)
    there[10:15] = True
    for wanted, expected in ((0, 0), (3, 3), (9, 5)):
        drawn = draw_voxels(there, torch.tensor(wanted))
        assert int(drawn.counts.sum()) == expected
        assert there[drawn.voxels[drawn.counts]].all()
