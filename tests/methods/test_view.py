"""What a network's output is to the loss terms."""

import torch
from torch.nn import functional as F

from dualseg.methods.view import View
from dualseg.networks import SegmentationOutput


def test_further_scales_are_enlarged_logits():
    logits, features = torch.randn(2, 3, 8, 6, 4), torch.randn(2, 5, 8, 6, 4)
    others = {"logits_2": torch.randn(2, 3, 4, 3, 2), "distance": torch.randn(2, 1, 8, 6, 4)}
    view = View.of(SegmentationOutput(logits, features, others))
    first, second = view.scales
    assert first is view and second.features is features and not second.others
    expected = F.interpolate(others["logits_2"], (8, 6, 4), mode="trilinear")
    assert torch.equal(second.logits, expected) and torch.equal(second.log_p, expected.log_softmax(dim=1))
    assert View.of(SegmentationOutput(logits, features)).scales[0].logits is logits
