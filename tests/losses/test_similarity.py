import math

import pytest
import torch
from torch.nn import functional as F

from dualseg.losses import (
    agreement,
    block_centre,
    class_log_probabilities,
    masked_dice,
    patch_prototypes,
    refined,
    similarities,
)


def test_refinement_voxel_by_voxel():
    torch.manual_seed(0)
    p, f = torch.rand(2, 3, 3, 3, 3).softmax(1), torch.randn(2, 5, 3, 3, 3)
    result = refined(p, f, temperature=0.5)
    torch.testing.assert_close(result.sum(dim=1), torch.ones(2, 3, 3, 3))
    rows, features = p[1].flatten(1).T.double(), f[1].flatten(1).T.double()
    for v in range(27):
        weights = [math.exp(float(F.cosine_similarity(features[u], features[v], dim=0)) / 0.5) for u in range(27)]
        mixed = sum(w * row for w, row in zip(weights, rows, strict=True)) / sum(weights)
        torch.testing.assert_close(result[1].flatten(1)[:, v].double(), (rows[v] + mixed) / 2, rtol=1e-5, atol=1e-6)


def test_voxels_alike_share_their_predictions_at_a_low_temperature():
    p = torch.tensor([[1.0, 0.0, 0.2], [0.0, 1.0, 0.8]]).view(1, 2, 3, 1, 1)
    f = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 1.0]]).view(1, 2, 3, 1, 1)
    expected = torch.tensor([[0.75, 0.25, 0.2], [0.25, 0.75, 0.8]]).view(1, 2, 3, 1, 1)
    torch.testing.assert_close(refined(p, f, temperature=0.01), expected)


def test_prototypes_decide_at_a_low_temperature_and_absent_classes_have_none():
    features = torch.eye(4)[:3].T.view(1, 4, 3, 1, 1).repeat(2, 1, 1, 1, 1).requires_grad_()
    label = torch.tensor([[0, 1, 1], [0, 0, 1]]).view(2, 3, 1, 1)
    g, present = patch_prototypes(features, label, 3)
    assert present.tolist() == [[True, True, False]] * 2
    torch.testing.assert_close(g[0, 1], torch.tensor([0.0, 0.5, 0.5, 0.0]))
    log_p = class_log_probabilities(similarities(features, g), present, temperature=0.01)
    torch.testing.assert_close(log_p.exp()[0, :, 0, 0, 0], torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(log_p.exp()[0, :, 2, 0, 0], torch.tensor([0.0, 1.0, 0.0]))
    log_p[:, :2].sum().backward()
    assert torch.isfinite(features.grad).all()


def test_the_mean_over_patches_is_one_of_those_that_have_the_class():
    m = torch.tensor([[0.9, 0.1], [0.5, -1.0]]).view(1, 2, 2, 1, 1, 1)
    log_p = class_log_probabilities(m, torch.tensor([[True, True], [True, False]]), temperature=0.5)
    scores = [(math.exp(1.8) + math.exp(1.0)) / 2, math.exp(0.2)]
    torch.testing.assert_close(log_p.exp().flatten(), torch.tensor(scores) / sum(scores))


def test_agreement_falls_with_what_divides_the_patches():
    def of(*rows: list[float], present: torch.Tensor | None = None) -> float:
        m = torch.tensor(rows).view(1, len(rows), len(rows[0]), 1, 1, 1)
        there = torch.ones(m.shape[1:3], dtype=torch.bool) if present is None else present
        return agreement(m, there, sharpness=100.0).item()

    assert of([0.3, -0.1]) == pytest.approx(1.0)
    assert of([0.3, -0.1], [0.4, 0.0]) == pytest.approx(1.0, abs=1e-5)  # softmax does not see what is common
    assert 0.1 < of([0.3, -0.1], [0.1, 0.0]) < 0.9
    assert of([0.9, -0.9], [-0.9, 0.9]) < 1e-3
    lacking = torch.tensor([[True, True], [True, False]])
    assert of([0.3, -0.1], [0.3, 9.0], present=lacking) == pytest.approx(1.0), "takes the others' likeness"
    absent = torch.tensor([[True, True, False]] * 2)
    assert of([0.3, -0.1, 9.0], [0.1, 0.0, -9.0], present=absent) == pytest.approx(of([0.3, -0.1], [0.1, 0.0]))


def test_masked_dice():
    torch.manual_seed(1)
    p, label = torch.randn(2, 3, 3, 3, 3).softmax(1).requires_grad_(), torch.randint(3, (2, 3, 3, 3))
    mask = torch.rand(2, 3, 3, 3) < 0.4
    losses = []
    for k in range(3):
        own, truth = p[:, k][mask].double(), (label == k)[mask].double()
        losses.append(1 - (2 * (own * truth).sum() + 1e-5) / ((own**2).sum() + truth.sum() + 1e-5))
    value = masked_dice(p, label, mask)
    assert value.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    assert masked_dice(p, label, torch.zeros_like(mask)).item() == 0.0
    value.backward()
    assert (p.grad.movedim(1, -1)[~mask] == 0).all()


def test_block_centres():
    label = torch.arange(2 * 8 * 9 * 3).view(2, 8, 9, 3)
    assert torch.equal(block_centre(label, 4), label[:, [2, 6]][:, :, [2, 6]][:, :, :, [1]])
