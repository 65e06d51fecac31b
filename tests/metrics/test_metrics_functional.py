import math

import numpy as np
import pytest
from medpy.metric import binary
from scipy import ndimage

from dualseg.metrics.functional import label_scores, scores


def noise_mask(rng, shape, sigma=2.0, share=0.2):
    """Random blobs, which also touch the volume's edges."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape), sigma)
    return field > np.quantile(field, 1 - share)


def medpy(prediction, reference, spacing=None):
    return (
        binary.dc(prediction, reference),
        binary.jc(prediction, reference),
        binary.hd95(prediction, reference, spacing),
        binary.asd(prediction, reference, spacing),
    )


def assert_equals_medpy(prediction, reference, spacing=None):
    result = scores(prediction, reference, spacing)
    assert result.empty == ""
    assert result[:4] == pytest.approx(medpy(prediction, reference, spacing), rel=0, abs=1e-9)


def slow_scores(prediction, reference, voxel):
    """Straight from the words of method.md section 5, voxel by voxel."""

    def surface(mask):
        points = []
        for p in np.ndindex(mask.shape):
            steps = [(axis, s) for axis in range(mask.ndim) for s in (-1, 1)]
            neighbours = [tuple(c + s * (a == axis) for a, c in enumerate(p)) for axis, s in steps]
            inside = [all(0 <= c < n for c, n in zip(q, mask.shape, strict=True)) and mask[q] for q in neighbours]
            if mask[p] and not all(inside):
                points.append([c * v for c, v in zip(p, voxel, strict=True)])
        return points

    a, b = surface(prediction), surface(reference)
    forward = [min(math.dist(p, q) for q in b) for p in a]
    both = sorted(forward + [min(math.dist(p, q) for q in a) for p in b])
    place = 0.95 * (len(both) - 1)
    low, high = both[math.floor(place)], both[math.ceil(place)]
    overlap = sum(bool(prediction[p] and reference[p]) for p in np.ndindex(prediction.shape))
    sizes = int(prediction.sum() + reference.sum())
    return (
        2 * overlap / sizes,
        overlap / (sizes - overlap),
        low + (high - low) * (place - math.floor(place)),
        sum(forward) / len(forward),
    )


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("spacing", [None, (0.625, 1.25, 3.0)])
def test_random_blobs_equal_medpy(seed, spacing):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(9, 40, size=3))
    prediction = noise_mask(rng, shape, sigma=rng.uniform(0, 3), share=rng.uniform(0.01, 0.5))
    reference = noise_mask(rng, shape, sigma=rng.uniform(0, 3), share=rng.uniform(0.01, 0.5))
    assert_equals_medpy(prediction, reference, spacing)


@pytest.mark.parametrize("seed", range(4))
def test_similar_masks_inside_a_larger_volume_equal_medpy(seed):
    rng = np.random.default_rng(seed)
    reference = np.zeros((40, 32, 28), bool)
    reference[12:30, 9:22, 8:20] = noise_mask(rng, (18, 13, 12), share=0.5)
    assert_equals_medpy(np.roll(reference, (1, -2, 1), (0, 1, 2)), reference)


@pytest.mark.parametrize("spacing", [None, (0.625, 1.25, 3.0)])
def test_stray_voxels_in_a_large_volume_equal_medpy(spacing):
    # A loose box takes the k-d tree: 0.3 % of its voxels are surface, of those of the boxes above at least 16 %.
    reference = np.zeros((80, 70, 60), bool)
    reference[20:34, 22:32, 30:38] = True
    prediction = np.roll(reference, (2, -1, 3), (0, 1, 2))
    prediction[0, 0, 0] = prediction[79, 69, 59] = prediction[60, 3, 40] = True
    assert_equals_medpy(prediction, reference, spacing)
    assert_equals_medpy(reference, prediction, spacing)


@pytest.mark.parametrize("shape", [(37,), (23, 31), (9, 10, 11)])
def test_any_number_of_dimensions_equals_slow_derivation(shape):
    rng = np.random.default_rng(len(shape))
    voxel = tuple(rng.uniform(0.5, 2, size=len(shape)))
    prediction, reference = noise_mask(rng, shape, 1.0), noise_mask(rng, shape, 1.0)
    assert scores(prediction, reference, voxel)[:4] == pytest.approx(
        slow_scores(prediction, reference, voxel), abs=1e-9
    )


def test_masks_at_the_edge_of_the_volume_equal_medpy():
    full, slab, corner = np.ones((6, 7, 8), bool), np.zeros((6, 7, 8), bool), np.zeros((6, 7, 8), bool)
    slab[:, :, 5:] = True
    corner[:3, :3, :3] = True
    masks = (full, slab, corner)
    for prediction in masks:
        for reference in masks:
            assert_equals_medpy(prediction, reference, (1.0, 2.0, 0.5))


def test_voxels_at_the_edge_of_the_volume_are_surface():
    # 3x3x3 full: 26 surface voxels, all but the centre; the reference is the centre alone. From the surface to the
    # centre: 6 faces at 1, 12 edges at sqrt 2, 8 corners at sqrt 3.
    reference = np.zeros((3, 3, 3), bool)
    reference[1, 1, 1] = True
    result = scores(np.ones((3, 3, 3), bool), reference)
    assert result.asd == pytest.approx((6 + 12 * math.sqrt(2) + 8 * math.sqrt(3)) / 26)


def test_single_voxels_by_hand():
    prediction, reference = np.zeros((5, 6, 7), bool), np.zeros((5, 6, 7), bool)
    prediction[1, 0, 2] = reference[4, 4, 2] = True
    assert scores(prediction, reference) == (0.0, 0.0, 5.0, 5.0, "")
    assert scores(prediction, reference, (2.0, 1.0, 9.0))[2:4] == pytest.approx([math.sqrt(52)] * 2)
    assert scores(reference, reference) == (1.0, 1.0, 0.0, 0.0, "")
    assert_equals_medpy(prediction, reference)


def test_asd_is_directed_and_hd95_is_not():
    reference = np.zeros((20, 5, 5), bool)
    reference[2, 2, 2] = True
    prediction = reference.copy()
    prediction[14, 2, 2] = True
    assert scores(prediction, reference).asd == 6.0
    assert scores(reference, prediction).asd == 0.0
    # Distances 0 and 12 one way, 0 the other: the three together, at 0.95 x 2 = 1.9 between the 2nd (0) and 3rd (12).
    # The maximum of the two percentiles, which is MONAI's definition, would be 11.4.
    assert scores(prediction, reference).hd95 == pytest.approx(10.8)
    assert scores(reference, prediction).hd95 == pytest.approx(10.8)


def test_degenerate_rules():
    nothing, something = np.zeros((10, 11, 12), bool), np.zeros((10, 11, 12), bool)
    something[3, 4, 5] = something[5, 7, 10] = True  # box of 3 x 4 x 6 voxels
    diagonal, diagonal_mm = math.sqrt(9 + 16 + 36), math.sqrt(6**2 + 2**2 + 6**2)
    spacing = (2.0, 0.5, 1.0)
    assert scores(nothing, nothing) == (1.0, 1.0, 0.0, 0.0, "both")
    assert scores(nothing, nothing, spacing) == (1.0, 1.0, 0.0, 0.0, "both")
    for prediction, reference, empty in ((nothing, something, "prediction"), (something, nothing, "reference")):
        assert scores(prediction, reference) == (0.0, 0.0, pytest.approx(diagonal), pytest.approx(diagonal), empty)
        in_mm = scores(prediction, reference, spacing)
        assert in_mm == (0.0, 0.0, pytest.approx(diagonal_mm), pytest.approx(diagonal_mm), empty)


def test_inputs_are_left_alone():
    rng = np.random.default_rng(0)
    prediction, reference = noise_mask(rng, (9, 9, 9)), noise_mask(rng, (9, 9, 9))
    copies = prediction.copy(), reference.copy()
    scores(prediction, reference)
    assert (prediction == copies[0]).all() and (reference == copies[1]).all()


def test_label_scores_takes_each_class_by_itself():
    rng = np.random.default_rng(5)
    reference = rng.integers(0, 3, size=(12, 13, 14)).astype(np.uint8)
    prediction = np.where(rng.random(reference.shape) < 0.8, reference, 0).astype(np.int64)
    results = label_scores(prediction, reference, 4, (1.0, 1.0, 2.0))
    assert len(results) == 3
    for k in (1, 2):
        assert results[k - 1][:4] == pytest.approx(medpy(prediction == k, reference == k, (1.0, 1.0, 2.0)), abs=1e-9)
    assert results[2] == (1.0, 1.0, 0.0, 0.0, "both")


def test_wrong_input_is_refused():
    mask = np.ones((3, 4, 5), bool)
    with pytest.raises(ValueError, match=r"bool .*not float64 and bool"):
        scores(mask.astype(float), mask)
    with pytest.raises(ValueError, match="differ in shape"):
        scores(mask, mask[:2])
    for spacing in [(1.0, 1.0), (1.0, 0.0, 1.0), (1.0, -1.0, 1.0), (1.0, math.nan, 1.0), 1.0]:
        with pytest.raises(ValueError, match="spacing"):
            scores(mask, mask, spacing)
    labels = mask.astype(np.uint8)
    with pytest.raises(ValueError, match=r"prediction has labels 2\.\.2, expected 0\.\.1"):
        label_scores(2 * labels, labels, 2)
    with pytest.raises(ValueError, match=r"reference has labels -1\.\.-1"):
        label_scores(labels, -mask.astype(np.int64), 2)
    with pytest.raises(ValueError, match="integer labels, not float32"):
        label_scores(labels.astype(np.float32), labels, 2)
