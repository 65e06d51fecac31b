"""Entropy filter, fusion and filtered supervision against method.md section 3, CCE part 3."""

import math

import numpy as np
import pytest
import torch
from loss_derivations import (
    NUM_VOXELS,
    SPATIAL,
    assert_connected_zero,
    assert_loss,
    cross_entropy,
    extreme_pairs,
    first_argmax,
    flat,
    mean,
    random_labels,
    random_logits,
    voxels,
)
from loss_derivations import entropy as derived_entropy
from loss_ranks import KEEP_FRACTIONS, distributed_entropies

from dualseg.errors import DualsegError
from dualseg.losses import entropy, entropy_filtered, fuse, linear_quantile, reliable_voxels


def derived_filtered(labels, reliable):
    def derivation(z):
        return mean([cross_entropy(p, y) for p, y, keep in zip(z, labels, reliable, strict=True) if keep])

    return derivation


def derived_reliable(entropy_a, entropy_b, keep_fraction):
    threshold_a, threshold_b = np.quantile(entropy_a, keep_fraction), np.quantile(entropy_b, keep_fraction)
    return [not (a > threshold_a and b > threshold_b) for a, b in zip(entropy_a, entropy_b, strict=True)]


# entropy


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_entropy(num_classes, dtype):
    logits = random_logits(0, num_classes, dtype).requires_grad_()
    h = entropy(logits.log_softmax(1))
    assert not h.requires_grad
    assert h.shape == (2, *SPATIAL)
    expected = [derived_entropy(z) for z in voxels(logits.detach().double())]
    assert flat(h) == pytest.approx(expected, rel=1e-5 if dtype == torch.float32 else 1e-11)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_entropy_of_extreme_logits(num_classes):
    logits, _ = extreme_pairs(num_classes)
    h = entropy(logits.log_softmax(1))
    assert flat(h) == pytest.approx([derived_entropy(z) for z in voxels(logits)], rel=1e-5, abs=1e-7)
    assert h.max().item() == pytest.approx(math.log(num_classes), rel=1e-6)


# quantile


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("q", [0.0, 0.2, 0.29, 0.5, 0.7, 0.8, 0.9999, 1.0])
def test_quantile_equals_numpys(q, dtype):
    generator = torch.Generator().manual_seed(1)
    for n in [*range(1, 40), 101, 1001]:
        values = torch.rand(n, generator=generator, dtype=dtype)
        expected = np.quantile(values.double().numpy(), q)
        tolerance = 1.2e-7 if dtype == torch.float32 else 1e-15
        assert linear_quantile(values, q).item() == pytest.approx(expected, rel=0, abs=tolerance)
        # which values lie strictly above is what is used; they must be the same ones
        assert (values > linear_quantile(values, q)).tolist() == (values.double().numpy() > expected).tolist()


def test_quantile_of_ties_and_of_unsorted_volumes():
    values = torch.tensor([3.0, 1.0, 1.0, 1.0, 2.0]).view(1, 5, 1, 1)
    assert linear_quantile(values, 0.5).item() == 1.0
    assert linear_quantile(values, 0.6).item() == pytest.approx(1.4, rel=1e-6)
    assert linear_quantile(torch.full((7,), 0.3), 0.8).item() == torch.tensor(0.3).item()


def test_quantile_of_more_than_16_million_elements():
    n = 2**24 + 3
    values = (torch.arange(n, dtype=torch.float64) * 7919 % n).view(1, 1, 1, n)  # a permutation of 0..n-1
    assert values.numel() > 16_000_000
    # of the integers 0..n-1 the q-quantile is q (n - 1) itself
    assert linear_quantile(values, 0.8).item() == pytest.approx(0.8 * (n - 1), rel=1e-12)


# reliable voxels


def test_reliable_is_the_complement_of_uncertain_in_both():
    # the 0.8 quantile of 0..10 is 8, a value that occurs: it is not strictly above itself
    entropy_a = torch.arange(11.0).view(1, 11, 1, 1)
    assert reliable_voxels(entropy_a, entropy_a).flatten().tolist() == [True] * 9 + [False] * 2
    swapped = entropy_a.flatten()[[0, 1, 2, 3, 4, 5, 6, 7, 9, 8, 10]].view_as(
        entropy_a
    )  # 9 uncertain in A, 8 holds it in B
    assert reliable_voxels(entropy_a, swapped).flatten().tolist() == [True] * 10 + [False]
    assert reliable_voxels(entropy_a, entropy_a.flip(1)).all()


@pytest.mark.parametrize("keep_fraction", [0.2, 0.5, 0.8, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reliable_voxel_by_voxel(dtype, keep_fraction):
    generator = torch.Generator().manual_seed(2)
    shared = torch.rand(2, 4, 5, 6, generator=generator, dtype=dtype)
    entropy_a = shared + 0.5 * torch.rand(shared.shape, generator=generator, dtype=dtype)
    entropy_b = 3 * shared + torch.rand(
        shared.shape, generator=generator, dtype=dtype
    )  # its own scale: its own quantile
    reliable = reliable_voxels(entropy_a, entropy_b, keep_fraction)
    expected = derived_reliable(flat(entropy_a), flat(entropy_b), keep_fraction)
    assert 0 < sum(expected) < len(expected)
    assert reliable.dtype == torch.bool
    assert flat(reliable) == expected
    assert torch.equal(reliable, reliable_voxels(entropy_b, entropy_a, keep_fraction))  # one R for both networks


def test_default_drops_the_most_uncertain_fifth_of_the_whole_half():
    entropy_a = torch.arange(100.0).view(2, 50, 1, 1)  # everything in volume 1 is more uncertain than volume 0
    reliable = reliable_voxels(entropy_a, entropy_a)
    assert reliable[0].all()
    assert (~reliable).sum() == 20


def test_constant_entropy_leaves_everything_reliable():
    constant = torch.full((2, *SPATIAL), 0.3)
    for keep_fraction in (0.0, 0.2, 0.8, 1.0):
        assert reliable_voxels(constant, constant, keep_fraction).all()


def test_keep_all():
    h = torch.rand(2, *SPATIAL, generator=torch.Generator().manual_seed(3))
    assert reliable_voxels(h, h, 1.0).all()


def test_reliable_of_an_empty_half():
    empty = torch.zeros(0, *SPATIAL)
    reliable = reliable_voxels(empty, empty)
    assert reliable.shape == (0, *SPATIAL)
    assert reliable.dtype == torch.bool


@pytest.mark.parametrize(("index", "keep_fraction"), list(enumerate(KEEP_FRACTIONS)))
def test_two_ranks_have_the_threshold_of_the_whole_half(index, keep_fraction, of_two_ranks):
    shares = [distributed_entropies(rank) for rank in range(2)]
    whole = [[value for share in shares for value in flat(share[network])] for network in range(2)]
    expected = derived_reliable(*whole, keep_fraction)
    ours = [of_two_ranks[rank][2 + index] for rank in range(2)]
    assert [value for reliable in ours for value in flat(reliable)] == expected
    # thresholds of each rank's own share keep other voxels: the test sees the difference
    assert any(not torch.equal(reliable_voxels(*shares[rank], keep_fraction), ours[rank]) for rank in range(2))


# fusion


@pytest.mark.parametrize("num_classes", [2, 4])
def test_fusion_of_the_mean(num_classes):
    p_a, p_b = random_logits(4, num_classes).softmax(1), random_logits(5, num_classes).softmax(1)
    expected = [
        first_argmax([(x + y) / 2 for x, y in zip(a, b, strict=True)])
        for a, b in zip(voxels(p_a), voxels(p_b), strict=True)
    ]
    fused = fuse(p_a.requires_grad_(), p_b)
    assert fused.dtype == torch.int64
    assert flat(fused) == expected
    assert flat(fused) != flat(p_a.argmax(1))
    assert flat(fused) != flat(p_b.argmax(1))


def test_fusion_of_the_mean_is_of_probabilities():
    # a sure and a doubtful network: the mean probability follows the sure one; three classes so that no vote decides
    p_a = torch.tensor([0.0, 0.95, 0.05]).view(1, 3, 1, 1, 1)
    p_b = torch.tensor([0.3, 0.3, 0.4]).view(1, 3, 1, 1, 1)
    assert fuse(p_a, p_b).item() == 1


def test_fusion_by_union():
    p_a, p_b = random_logits(6, 2).softmax(1), random_logits(7, 2).softmax(1)
    expected = [int(a[1] > a[0] or b[1] > b[0]) for a, b in zip(voxels(p_a), voxels(p_b), strict=True)]
    fused = fuse(p_a, p_b, "union")
    assert fused.dtype == torch.int64
    assert flat(fused) == expected
    assert flat(fused) != flat(fuse(p_a, p_b, "mean"))


@pytest.mark.parametrize("num_classes", [3, 4])
def test_fusion_by_union_is_for_two_classes(num_classes):
    p = random_logits(8, num_classes).softmax(1)
    with pytest.raises(DualsegError, match="fusion"):
        fuse(p, p, "union")


# filtered supervision


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_value_and_gradient(num_classes, dtype):
    z, other = random_logits(9, num_classes, dtype), random_logits(10, num_classes, dtype)
    log_p, log_q = z.log_softmax(1), other.log_softmax(1)
    reliable = reliable_voxels(entropy(log_p), entropy(log_q), 0.5)
    assert 0 < reliable.sum() < NUM_VOXELS
    fused = fuse(log_p.exp(), log_q.exp())
    gradient = assert_loss(
        lambda z: entropy_filtered(z.log_softmax(1), fused, reliable), derived_filtered(flat(fused), flat(reliable)), z
    )
    outside = (~reliable)[:, None].expand_as(z).numpy()
    assert np.abs(gradient[outside]).max() == 0
    leaf = z.clone().requires_grad_()
    entropy_filtered(leaf.log_softmax(1), fused, reliable).backward()
    assert np.abs(leaf.grad.numpy()[outside]).max() == 0


def test_filter_and_label_carry_no_gradient():
    z, other = random_logits(11, 2).requires_grad_(), random_logits(12, 2).requires_grad_()
    log_p, log_q = z.log_softmax(1), other.log_softmax(1)
    reliable, fused = reliable_voxels(entropy(log_p), entropy(log_q)), fuse(log_p.exp(), log_q.exp())
    assert not reliable.requires_grad
    assert not fused.requires_grad
    entropy_filtered(log_p, fused, reliable).backward()
    assert z.grad.abs().sum() > 0
    assert other.grad is None


@pytest.mark.parametrize("num_classes", [2, 4])
def test_nothing_reliable(num_classes):
    leaf = random_logits(13, num_classes, torch.float32).requires_grad_()
    nothing = torch.zeros(2, *SPATIAL, dtype=torch.bool)
    assert_connected_zero(entropy_filtered(leaf.log_softmax(1), random_labels(14, num_classes), nothing), leaf)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_extreme_logits(num_classes):
    z, other = extreme_pairs(num_classes)
    leaf = z.clone().requires_grad_()
    log_p, log_q = leaf.log_softmax(1), other.log_softmax(1)
    reliable = reliable_voxels(entropy(log_p), entropy(log_q), 0.5)
    fused = fuse(log_p.detach().exp(), log_q.exp())
    value = entropy_filtered(log_p, fused, reliable)
    value.backward()
    assert value.item() == pytest.approx(derived_filtered(flat(fused), flat(reliable))(voxels(z)), rel=1e-5)
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("num_classes", [2, 4])
def test_empty_unlabeled_half(num_classes):
    leaf = torch.zeros(0, num_classes, *SPATIAL, requires_grad=True)
    log_p = leaf.log_softmax(1)
    p = log_p.detach().exp()
    reliable = reliable_voxels(entropy(log_p), entropy(log_p))
    assert_connected_zero(entropy_filtered(log_p, fuse(p, p), reliable), leaf)
