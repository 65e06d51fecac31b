"""SemSim's strong views: which changes of intensity, in how many patches, and boxes of other patches."""

from typing import Any

import pytest
import torch
from method_toys import Tiny, tiny_parts

from dualseg import views
from dualseg.data.batch import Batch
from dualseg.methods import SemSim, Time
from dualseg.methods import semsim as module

TOTAL = 100


def test_one_pass_over_the_batch_and_two_strong_views_of_the_unlabeled_patches():
    seen = []
    network = Tiny(dropout=0.0)
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = torch.randn(5, 1, 16, 16, 16)
    SemSim(**tiny_parts(a=network)).loss_terms(
        Batch(image, torch.zeros(2, 16, 16, 16, dtype=torch.long), ["x"] * 5), Time(0, TOTAL)
    )
    (given,) = seen
    assert given.shape == (5 + 2 * 3, 1, 16, 16, 16)
    assert torch.equal(given[:5], image)
    assert not torch.allclose(given[5:8], given[8:])


def test_the_two_strong_views_draw_intensities_of_their_own(monkeypatch):
    monkeypatch.setattr(module, "_boxes", lambda image: torch.zeros(len(image), *image.shape[2:], dtype=torch.bool))
    seen = []
    network = Tiny(dropout=0.0)
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    torch.manual_seed(0)
    SemSim(**tiny_parts(a=network)).loss_terms(
        Batch(torch.randn(21, 1, 8, 8, 8), torch.zeros(1, 8, 8, 8, dtype=torch.long), ["x"] * 21), Time(0, TOTAL)
    )
    differs = (seen[0][21:41] != seen[0][41:]).flatten(1).any(dim=1)
    assert differs.float().mean() > 0.8, "all but the 4 % that neither changes"


@pytest.mark.parametrize(
    ("name", "low", "high", "share"),
    [
        ("contrast", 0.5, 1.5, 0.8),
        ("brightness", -0.5, 0.5, 0.8),
        ("gamma", 0.7, 1.5, 0.8),
        ("blur", 0.1, 2.0, 0.4),
        ("noise", None, None, 0.8),
    ],
)
def test_a_strong_view_has_each_change_of_intensity(name, low, high, share, monkeypatch):
    """All but one of them switched off: what is left, its strengths, and in how many patches."""
    calls = []

    def noted(image: torch.Tensor, *strength: torch.Tensor, **settings: Any) -> torch.Tensor:
        calls.append((strength, getattr(views, name)(image, *strength, **settings)))
        return calls[-1][1]

    for other in ("contrast", "brightness", "gamma", "blur", "noise"):
        monkeypatch.setattr(module, other, noted if other == name else lambda image, *_, **__: image)
    torch.manual_seed(0)
    image = torch.randn(400, 1, 6, 6, 6) + 0.5
    strong = module._strong(image)
    ((strength, whole),) = calls
    changed = (strong != image).flatten(1).any(dim=1)
    assert float(changed.float().mean()) == pytest.approx(share, abs=0.07)
    assert torch.equal(strong[changed], whole[changed])
    if name == "noise":
        assert float((whole - image).std()) == pytest.approx(0.1, rel=0.02)
        return
    numbers, slack = strength[0], 0.05 * (high - low)
    assert low <= numbers.min() < low + slack and high - slack < numbers.max() <= high


def test_strong_views_change_four_of_five_patches_and_boxes_are_in_every_other():
    torch.manual_seed(0)
    image = torch.randn(300, 1, 6, 6, 6)
    strong = module._strong(image)
    changed = (strong != image).flatten(1).any(dim=1).float().mean()
    assert float(changed) == pytest.approx(0.8, abs=0.07)
    assert torch.isfinite(strong).all()
    boxes = module._boxes(image)
    assert float(boxes.flatten(1).any(dim=1).float().mean()) == pytest.approx(0.5, abs=0.08)
    mixed = module._with_boxes(image, boxes)
    assert torch.equal(mixed[1][0][~boxes[1]], image[1][0][~boxes[1]])
    assert torch.equal(mixed[2][0][boxes[2]], image[1][0][boxes[2]])
