"""Contrast of uncertain voxels with reliable prototypes against method.md section 3, "Contrast"."""

import math

import numpy as np
import pytest
import torch
from loss_derivations import (
    NUM_VOXELS,
    SPATIAL,
    assert_connected_zero,
    finite_differences,
    flat,
    mean,
    normalise,
    random_labels,
    random_logits,
    voxels,
)
from loss_ranks import distributed_half

from dualseg.losses import Drawn, Prototypes, class_prototypes, contrast, draw_voxels

NUM_FEATURES = 5
KINDS = ["infonce", "distance"]
LOW_PRECISION = [torch.bfloat16, torch.float16]


def random_features(seed, dtype=torch.float32):
    return random_logits(seed, NUM_FEATURES, dtype)


def derived_prototypes(features, fused, reliable, num_classes):
    """None where a class has no voxel in R."""
    prototypes = []
    for k in range(num_classes):
        members = [normalise(f) for f, y, keep in zip(features, fused, reliable, strict=True) if keep and y == k]
        prototypes.append(normalise([mean(channel) for channel in zip(*members, strict=True)]) if members else None)
    return prototypes


def derived_contrast(predicted, drawn, prototypes, kind, temperature=0.1, margin=1.0):
    present = [k for k, c in enumerate(prototypes) if c is not None]

    def derivation(features):
        terms = []
        for v in drawn:
            own = predicted[v]
            if own not in present or len(present) < 2:
                continue
            f = normalise(features[v])
            if kind == "infonce":
                scores = [
                    math.fsum(a * b for a, b in zip(f, prototypes[k], strict=True)) / temperature for k in present
                ]
                top = max(scores)
                log_sum = top + math.log(math.fsum(math.exp(s - top) for s in scores))
                terms.append(log_sum - scores[present.index(own)])
            else:
                away = {k: math.dist(f, prototypes[k]) for k in present}
                terms.append(away[own] + math.fsum(max(0.0, margin - away[k]) for k in present if k != own))
        return mean(terms)

    return derivation


def as_prototypes(vectors):
    """Prototypes from a list of vectors, None where absent."""
    size = next(len(c) for c in vectors if c is not None)
    return Prototypes(
        torch.tensor([[0.0] * size if c is None else c for c in vectors], dtype=torch.float32),
        torch.tensor([c is not None for c in vectors]),
    )


def contrast_of(features, predicted, drawn, prototypes, *args, **settings):
    """The term for the voxels of a list, among further ones that were not drawn."""
    others = [9, 1, 17][: predicted.numel()] if predicted.numel() > 17 else []
    voxels = torch.tensor([*drawn, *others], dtype=torch.int64)
    value, support = contrast(
        features, predicted, Drawn(voxels, torch.arange(len(voxels)) < len(drawn)), prototypes, *args, **settings
    )
    owns = [flat(predicted)[v] for v in drawn]
    enough = int(prototypes.present.sum()) >= 2
    assert support == sum(bool(prototypes.present[own]) for own in owns) * enough
    return value


def assert_prototypes(prototypes, expected, atol=1e-6):
    assert prototypes.vectors.dtype == torch.float32
    assert not prototypes.vectors.requires_grad
    assert prototypes.present.tolist() == [c is not None for c in expected]
    for vector, c in zip(prototypes.vectors.tolist(), expected, strict=True):
        assert vector == pytest.approx([0.0] * len(vector) if c is None else c, rel=0, abs=atol)


def scenario(num_classes, seed=0):
    """Features, own predictions, drawn voxels and unit prototypes (as lists; class 1 of 4 is missing)."""
    features = random_features(seed)
    predicted = random_labels(seed + 1, num_classes)
    drawn = [17, 3, 8, 22, 0, 11, 14, 5]
    vectors = [normalise(v) for v in voxels(random_features(seed + 2).double())[:num_classes]]
    return features, predicted, drawn, [None if num_classes == 4 and k == 1 else c for k, c in enumerate(vectors)]


# prototypes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *LOW_PRECISION])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_prototypes_voxel_by_voxel(num_classes, dtype):
    features = random_features(0, dtype)
    features[0, :, 0, 0, 0] = 0  # dropout and ReLU do leave voxels without any feature
    fused, reliable = random_labels(1, num_classes), random_labels(2, 3) > 0
    expected = derived_prototypes(voxels(features.double()), flat(fused), flat(reliable), num_classes)
    prototypes = class_prototypes(features.requires_grad_(), fused, reliable, num_classes)
    assert_prototypes(prototypes, expected)
    torch.testing.assert_close(torch.linalg.vector_norm(prototypes.vectors, dim=1), torch.ones(num_classes))


def test_prototypes_of_other_memory_layouts():
    features, fused, reliable = random_features(3), random_labels(4, 2), random_labels(5, 2).bool()
    expected = derived_prototypes(voxels(features.double()), flat(fused), flat(reliable), 2)
    assert_prototypes(class_prototypes(features.to(memory_format=torch.channels_last_3d), fused, reliable, 2), expected)
    strided = torch.stack([features, features], dim=-1)[..., 0]
    assert_prototypes(class_prototypes(strided, fused, reliable, 2), expected)


def test_prototype_is_the_mean_of_directions_not_of_lengths():
    features = torch.tensor([[300.0, 0.0], [0.0, 0.001]]).T.reshape(1, 2, 2, 1, 1)
    everything = torch.ones(1, 2, 1, 1)
    prototypes = class_prototypes(features, everything.long(), everything.bool(), 2)
    assert_prototypes(prototypes, [None, [math.sqrt(0.5), math.sqrt(0.5)]])


def test_absent_classes_and_unreliable_voxels_have_no_prototype():
    features, fused = random_features(6), random_labels(7, 2) * 2  # 0 and 2 of four
    reliable = fused == 2
    expected = derived_prototypes(voxels(features.double()), flat(fused), flat(reliable), 4)
    assert [c is not None for c in expected] == [False, False, True, False]
    assert_prototypes(class_prototypes(features, fused, reliable, 4), expected)
    nothing = torch.zeros_like(reliable)
    assert_prototypes(class_prototypes(features, fused, nothing, 4), [None] * 4)


def test_prototypes_of_an_empty_half():
    empty = torch.zeros(0, *SPATIAL)
    prototypes = class_prototypes(torch.zeros(0, NUM_FEATURES, *SPATIAL), empty.long(), empty.bool(), 3)
    assert prototypes.vectors.shape == (3, NUM_FEATURES)
    assert_prototypes(prototypes, [None] * 3)


def test_prototypes_of_zero_features_are_finite():
    everything = torch.ones(2, *SPATIAL, dtype=torch.bool)
    prototypes = class_prototypes(torch.zeros(2, NUM_FEATURES, *SPATIAL), everything.long(), everything, 2)
    assert prototypes.vectors.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_prototypes_of_a_large_patch(dtype):
    # the sum over 10^6 voxels lies far above the largest float16, and one float32 accumulator, added to voxel after
    # voxel, loses three digits
    direction = torch.tensor([0.6, 0.0, 0.8], dtype=dtype)
    features = direction.view(1, 3, 1, 1, 1).expand(1, 3, 100, 100, 100)
    everything = torch.ones(1, 100, 100, 100, dtype=torch.bool)
    prototypes = class_prototypes(features, everything.long(), everything, 2)
    assert_prototypes(prototypes, [None, normalise(direction.tolist())], atol=1e-5)


# momentum


def test_momentum_sequence_by_hand():
    prototypes = as_prototypes([None, None, [1.0, 0.0]])
    # 0 first appears: as it is; 1 absent; 2: 0.9 (1, 0) + 0.1 (0, 1)
    prototypes = prototypes.updated(as_prototypes([[0.6, 0.8], None, [0.0, 1.0]]), 0.9)
    second = normalise([0.9, 0.1])
    assert_prototypes(prototypes, [[0.6, 0.8], None, second])
    # 0 absent: keeps its own; 1 first appears; 2 again
    prototypes = prototypes.updated(as_prototypes([None, [0.0, -1.0], [0.0, 1.0]]), 0.9)
    third = normalise([0.9 * second[0], 0.9 * second[1] + 0.1])
    assert_prototypes(prototypes, [[0.6, 0.8], [0.0, -1.0], third])
    # only 2 again, with another momentum
    prototypes = prototypes.updated(as_prototypes([None, None, [0.6, -0.8]]), 0.5)
    assert_prototypes(prototypes, [[0.6, 0.8], [0.0, -1.0], normalise([third[0] / 2 + 0.3, third[1] / 2 - 0.4])])


def test_momentum_of_an_absent_batch():
    old = as_prototypes([[0.6, 0.8], None])
    absent = Prototypes(torch.zeros(2, 2), torch.tensor([False, False]))
    assert_prototypes(old.updated(absent, 0.5), [[0.6, 0.8], None])
    assert_prototypes(absent.updated(old, 0.5), [[0.6, 0.8], None])


def test_momentum_zero_is_this_batch_only_and_one_is_the_first():
    old, new = as_prototypes([[1.0, 0.0]]), as_prototypes([[0.6, 0.8]])
    assert_prototypes(old.updated(new, 0.0), [[0.6, 0.8]])
    assert_prototypes(old.updated(new, 1.0), [[1.0, 0.0]])
    assert_prototypes(
        as_prototypes([None, [1.0, 0.0]]).updated(as_prototypes([[0.6, 0.8], None]), 1.0), [[0.6, 0.8], [1.0, 0.0]]
    )


def test_momentum_of_opposite_prototypes_is_finite():
    assert as_prototypes([[1.0, 0.0]]).updated(as_prototypes([[-1.0, 0.0]]), 0.5).vectors.isfinite().all()


# distributed


def test_two_ranks_have_the_prototypes_of_the_whole_batch(of_two_ranks):
    halves = [distributed_half(rank) for rank in range(2)]
    features, fused, reliable = (torch.cat(parts) for parts in zip(*halves, strict=True))
    expected = derived_prototypes(voxels(features.double()), flat(fused), flat(reliable), 4)
    assert [c is not None for c in expected] == [True, True, True, False]
    assert_prototypes(class_prototypes(features, fused, reliable, 4), expected)
    for rank in range(2):
        assert_prototypes(Prototypes(*of_two_ranks[rank][:2]), expected)
        # the mean of the ranks' own prototypes is something else: the test sees the difference
        alone = class_prototypes(*halves[rank], 4)
        assert (alone.vectors[0] - torch.tensor(expected[0])).abs().max() > 0.01


# drawing


def drawn_of(unreliable):
    voxels, counts = draw_voxels(unreliable)
    return voxels[counts]


def test_one_percent_is_exact_for_every_count():
    mask = torch.zeros(5000, dtype=torch.bool)
    for count in range(5001):
        assert draw_voxels(mask).counts.sum() == count // 100, count
        if count < 5000:
            mask[count] = True


@pytest.mark.parametrize(("count", "expected"), [(409_599, 4095), (409_600, 4096), (409_700, 4096), (600_000, 4096)])
def test_cap(count, expected):
    assert len(drawn_of(torch.ones(count, dtype=torch.bool))) == expected


def test_drawn_are_distinct_unreliable_voxels():
    unreliable = torch.rand(2, 20, 30, 40, generator=torch.Generator().manual_seed(0)) < 0.3
    drawn = drawn_of(unreliable)
    assert drawn.dtype == torch.int64
    assert len(drawn) == int(unreliable.sum()) // 100
    assert len(set(drawn.tolist())) == len(drawn)
    assert set(drawn.tolist()) <= {v for v, inside in enumerate(flat(unreliable)) if inside}


def test_the_seed_decides():
    unreliable = torch.ones(1, 20, 20, 20, dtype=torch.bool)
    torch.manual_seed(5)
    first, second = drawn_of(unreliable), drawn_of(unreliable)
    torch.manual_seed(5)
    assert torch.equal(drawn_of(unreliable), first)
    assert not torch.equal(first, second)


def test_drawing_is_uniform():
    torch.manual_seed(0)
    unreliable = torch.zeros(2, 10, 5, 4, dtype=torch.bool)
    unreliable.view(-1)[1::2] = True  # 200 of 400: two a draw
    draws = 10_000
    counts = np.bincount(torch.cat([drawn_of(unreliable) for _ in range(draws)]).numpy(), minlength=400)
    assert counts[::2].sum() == 0
    expected = draws * 2 / 200
    statistic = ((counts[1::2] - expected) ** 2 / expected).sum()
    assert 120 < statistic < 290  # chi-square of 199 degrees of freedom: 199 +- 20


@pytest.mark.parametrize("shape", [(0, *SPATIAL), (2, *SPATIAL)])
def test_nothing_to_draw(shape):
    assert len(drawn_of(torch.zeros(shape, dtype=torch.bool))) == 0


def test_the_size_of_the_result_depends_on_the_shape_alone():
    """No GPU is waited for: how many are drawn is known on the device only."""
    some = torch.rand(2, 20, 30, 40, generator=torch.Generator().manual_seed(1)) < 0.1
    assert draw_voxels(some).voxels.shape == draw_voxels(~some).voxels.shape == (480,)


# contrast


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.5, "margin": 1.7}])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *LOW_PRECISION])
def test_value_and_gradient(dtype, num_classes, kind, settings):
    features, predicted, drawn, vectors = scenario(num_classes)
    leaf = features.to(dtype).requires_grad_()
    owns = [flat(predicted)[v] for v in drawn]
    assert len(set(owns)) == num_classes  # the scenario draws every class, the missing one too
    derivation = derived_contrast(flat(predicted), drawn, vectors, kind, **settings)
    value = contrast_of(leaf, predicted, drawn, as_prototypes(vectors), kind, **settings)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(derivation(voxels(leaf.detach().double())), rel=2e-6)
    value.backward()
    derived = finite_differences(derivation, leaf)
    scale = np.abs(derived).max()
    assert scale > 1e-3
    tolerance = {torch.bfloat16: 4e-3, torch.float16: 5e-4}.get(dtype, 1e-5)  # half a unit in the gradient's last place
    np.testing.assert_allclose(leaf.grad.double().numpy(), derived, rtol=0, atol=scale * tolerance)
    undrawn = sorted(set(range(NUM_VOXELS)) - set(drawn))
    assert leaf.grad.movedim(1, -1).reshape(NUM_VOXELS, -1)[undrawn].abs().max() == 0


def test_infonce_is_the_default():
    features, predicted, drawn, vectors = scenario(2)
    prototypes = as_prototypes(vectors)
    assert contrast_of(features, predicted, drawn, prototypes) == contrast_of(
        features, predicted, drawn, prototypes, "infonce"
    )
    assert contrast_of(features, predicted, drawn, prototypes) != contrast_of(
        features, predicted, drawn, prototypes, "distance"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_prototypes_carry_no_gradient(kind):
    features, predicted, drawn, _ = scenario(2)
    fused, reliable = random_labels(50, 2), torch.ones(2, *SPATIAL, dtype=torch.bool)  # drawn voxels are members too
    frozen = derived_prototypes(voxels(features.double()), flat(fused), flat(reliable), 2)
    leaf = features.clone().requires_grad_()
    contrast_of(leaf, predicted, drawn, class_prototypes(leaf, fused, reliable, 2), kind).backward()
    derived = finite_differences(derived_contrast(flat(predicted), drawn, frozen, kind), features)
    np.testing.assert_allclose(leaf.grad.numpy(), derived, rtol=0, atol=1e-5 * np.abs(derived).max())


@pytest.mark.parametrize("kind", KINDS)
def test_an_absent_class_is_nowhere_in_the_term(kind):
    features, predicted, drawn, vectors = scenario(4)
    full = contrast_of(features, predicted, drawn, as_prototypes(vectors), kind)
    spoiled = as_prototypes(vectors)
    spoiled.vectors[1] = 100.0
    assert contrast_of(features, predicted, drawn, spoiled, kind).item() == full.item()


@pytest.mark.parametrize("dtype", [torch.float32, *LOW_PRECISION])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["nothing drawn", "one prototype", "no prototype", "only absent classes drawn"])
def test_zero_and_connected(case, kind, dtype):
    features, predicted, drawn, vectors = scenario(4)
    if case == "nothing drawn":
        drawn = drawn[:0]
    elif case == "one prototype":
        vectors = [None, None, None, vectors[3]]
    elif case == "only absent classes drawn":
        predicted = torch.ones_like(predicted)
    prototypes = as_prototypes(vectors)
    if case == "no prototype":
        prototypes = Prototypes(torch.zeros(4, NUM_FEATURES), torch.zeros(4, dtype=torch.bool))
    leaf = features.to(dtype).requires_grad_()
    assert_connected_zero(contrast_of(leaf, predicted, drawn, prototypes, kind), leaf)


@pytest.mark.parametrize("dtype", LOW_PRECISION)
def test_zero_is_float32(dtype):
    features, predicted, drawn, vectors = scenario(2)
    assert contrast_of(features.to(dtype), predicted, drawn[:0], as_prototypes(vectors)).dtype == torch.float32


def test_zero_of_a_large_half_patch():
    # finite float16 features whose sum is not a float16
    leaf = torch.full((1, 2, 50, 50, 50), 3.0, dtype=torch.float16, requires_grad=True)
    predicted = torch.zeros(1, 50, 50, 50, dtype=torch.long)
    prototypes = as_prototypes([[1.0, 0.0], [0.0, 1.0]])
    assert_connected_zero(contrast_of(leaf, predicted, [], prototypes), leaf)


@pytest.mark.parametrize("kind", KINDS)
def test_empty_unlabeled_half(kind):
    leaf = torch.zeros(0, NUM_FEATURES, *SPATIAL, requires_grad=True)
    predicted = torch.zeros(0, *SPATIAL, dtype=torch.long)
    drawn = draw_voxels(predicted.bool())
    assert_connected_zero(contrast(leaf, predicted, drawn, as_prototypes(scenario(2)[3]), kind)[0], leaf)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-7, 1e4, 6e4])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_features(dtype, kind, scale):
    features, predicted, drawn, vectors = scenario(4)
    leaf = (features / features.abs().max() * scale).to(dtype).requires_grad_()
    value = contrast_of(leaf, predicted, drawn, as_prototypes(vectors), kind)
    value.backward()
    derivation = derived_contrast(flat(predicted), drawn, vectors, kind)
    assert value.item() == pytest.approx(derivation(voxels(leaf.detach().double())), rel=1e-5)
    assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_voxel_on_its_prototype(kind):
    # |f - c| has no derivative at 0
    leaf = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1, 1).requires_grad_()
    prototypes = as_prototypes([[1.0, 0.0], [0.0, 1.0]])
    for own in (0, 1):
        leaf.grad = None
        value = contrast_of(leaf, torch.tensor(own).view(1, 1, 1, 1), [0], prototypes, kind)
        value.backward()
        expected = derived_contrast([own], [0], [[1.0, 0.0], [0.0, 1.0]], kind)([[1.0, 0.0]])
        assert value.item() == pytest.approx(expected, rel=1e-6, abs=1e-6)
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_half_features_that_dropout_left_empty(kind):
    """Under 16-bit mixed precision the features come through ReLU and Dropout3d, and many voxels keep none at all.

    The derivative of x / max(|x|, eps) is 1/eps = 1e6 there, which no float16 holds: infinity times dropout's 0 is NaN.
    """
    before = torch.tensor([0.0, 1.0]).half().view(1, 2, 1, 1, 1).repeat(1, 1, 10, 1, 1).requires_grad_()
    dropout = torch.tensor([2.0, 0.0]).half().view(1, 2, 1, 1, 1)  # as Dropout3d(0.5) draws one time in four
    features = before.relu() * dropout
    prototypes = as_prototypes([[1.0, 0.0], [0.6, 0.8]])
    value = contrast_of(features, torch.zeros(1, 10, 1, 1, dtype=torch.long), range(10), prototypes, kind)
    value.backward()
    assert value.isfinite()
    assert before.grad.isfinite().all()
