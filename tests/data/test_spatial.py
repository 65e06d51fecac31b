"""Rotated, scaled and mirrored patches: how often and how far, against SciPy, and which voxels are read for them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.stats import binomtest, kstest

from dualseg.data import SpatialAugmentation
from dualseg.data.spatial import SpatialCut, resampled, with_side
from dualseg.errors import DualsegError

SHARED = Path(__file__).resolve().parents[3] / "shared"
SHAPE, PATCH = (40, 36, 44), (16, 20, 12)
CHANCE = 0.001  # that a test of a distribution fails although all is well; the draws are fixed
DRAWS = 4000


def changes(patch=PATCH, axes=(0, 1, 2), count=DRAWS):
    cut = SpatialCut(patch, axes)
    return [cut.draw(np.random.default_rng((1, i))) for i in range(count)]


def parts_of(matrix):
    """(scale, rotation) of their product."""
    scale = np.linalg.det(matrix) ** (1 / 3)
    return scale, matrix / scale


def test_probabilities_and_ranges():
    drawn = changes()
    parts = [parts_of(change.matrix) for change in drawn if change.matrix is not None]
    scales = [scale for scale, _ in parts if abs(scale - 1) > 1e-9]
    rotations = [rotation for _, rotation in parts if not np.allclose(rotation, np.eye(3))]
    for count, share in ((len(scales), 0.2), (len(rotations), 0.2), (len(parts), 1 - 0.8**2)):
        assert binomtest(count, DRAWS, share).pvalue > CHANCE
    assert kstest(scales, "uniform", (0.7, 0.7)).pvalue > CHANCE
    for rotation in rotations:
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    # R = X Y Z, so that its last column and first row say the three angles
    angles = np.degrees(
        [(math.atan2(-r[1, 2], r[2, 2]), math.asin(r[0, 2]), math.atan2(-r[0, 1], r[0, 0])) for r in rotations]
    )
    for axis in range(3):
        assert kstest(angles[:, axis], "uniform", (-30, 60)).pvalue > CHANCE
        assert binomtest(sum(axis in change.mirrored for change in drawn), DRAWS, 0.5).pvalue > CHANCE


def test_a_thin_patch_is_changed_in_its_plane_alone():
    matrices = [change.matrix for change in changes(patch=(64, 16, 64)) if change.matrix is not None]
    for matrix in matrices:
        assert matrix[1].tolist() == matrix[:, 1].tolist() == [0, 1, 0]
    angles = [math.degrees(math.atan2(m[0, 2], m[2, 2])) for m in matrices if abs(m[0, 2]) > 1e-9]
    scales = [np.hypot(m[0, 2], m[2, 2]) for m in matrices]
    assert kstest(angles, "uniform", (-30, 60)).pvalue > CHANCE and min(scales) < 0.75 and max(scales) > 1.35
    assert any(change.matrix is not None and change.matrix[1, 1] != 1 for change in changes(patch=(48, 16, 48)))


def test_only_the_given_axes_are_mirrored():
    assert {change.mirrored for change in changes(axes=(1, 2), count=200)} == {(), (1,), (2,), (1, 2)}
    assert {change.mirrored for change in changes(axes=(), count=50)} == {()}


@pytest.mark.parametrize("centre", [(20.5, 17.5, 21.0), (7.5, 28.0, 5.5)])
def test_one_interpolation_is_scipys(centre):
    """Slow and in float64: every voxel's place, then linear interpolation, zeros beyond the edges."""
    rng = np.random.default_rng(0)
    volume = rng.normal(size=(2, *SHAPE)).astype(np.float32)
    label = rng.integers(0, 300, SHAPE).astype(np.int16)
    for matrix in [change.matrix for change in changes(count=60) if change.matrix is not None]:
        steps = np.stack(np.meshgrid(*map(np.arange, PATCH), indexing="ij"), axis=-1) - (np.array(PATCH) - 1) / 2
        places = np.moveaxis(np.array(centre) + steps @ matrix.T, -1, 0)
        found = resampled(torch.from_numpy(volume), np.array(centre), matrix, PATCH, "bilinear").numpy()
        for channel in range(2):
            values = volume[channel].astype(np.float64)
            expected = ndimage.map_coordinates(values, places, order=1, mode="grid-constant")
            np.testing.assert_allclose(found[channel], expected, atol=2e-4)
        found = resampled(torch.from_numpy(label)[None], np.array(centre), matrix, PATCH, "nearest").numpy()[0]
        nearest = ndimage.map_coordinates(label, np.rint(places), order=0, mode="constant")
        clear = (np.abs(places - np.floor(places) - 0.5) > 1e-3).all(axis=0)
        assert np.array_equal(found[clear], nearest[clear]) and clear.mean() > 0.9


def test_no_more_of_the_volume_is_touched_than_the_patch_needs():
    matrix = parts_of(np.eye(3))[1] * 1.4
    volume = torch.full((1, *SHAPE), math.nan)
    reach = [1.4 * (size - 1) / 2 + 3 for size in PATCH]
    near = [slice(max(0, int(20 - r)), int(20 + r) + 1) for r in reach]
    volume[(0, *near)] = 1.0
    patch = resampled(volume, np.array([20.0, 20.0, 20.0]), matrix, PATCH, "bilinear")
    assert torch.allclose(patch, torch.ones(1, *PATCH), atol=1e-5)


def ramps():
    """Channels that hold the place of each voxel: linear interpolation between them is exact."""
    return torch.from_numpy(np.stack(np.indices(SHAPE)).astype(np.float32)) + 1


def test_image_and_label_stay_together():
    image = torch.cat([ramps(), torch.ones(1, *SHAPE)])
    label = torch.from_numpy(np.random.default_rng(0).integers(1, 200, SHAPE).astype(np.uint8))
    cut = SpatialCut(PATCH, (0, 1, 2))
    crops = mirrored = 0
    for seed in range(80):
        patch, its = cut(image, label, None, seed)
        assert patch.shape == (4, *PATCH) and its.shape == PATCH
        place = patch[:3].double().numpy() - 1
        # without zeros of beyond the edges, and not halfway between voxels, where a hair decides
        clear = (patch[3].numpy() > 0.9999) & (np.abs(place - np.floor(place) - 0.5) > 0.01).all(axis=0)
        nearest = label.numpy()[tuple(np.rint(place[:, clear]).astype(int))]
        assert np.array_equal(its.numpy()[clear], nearest) and clear.mean() > 0.4
        change = cut.draw(np.random.default_rng(seed))
        signs = tuple(axis for axis in range(3) if patch[axis].diff(dim=axis).median() < 0)
        assert signs == change.mirrored
        crops += change.matrix is None
        mirrored += bool(signs)
        if change.matrix is None:  # a plain piece of the volume, to the last bit
            start = patch[:3].flatten(1).min(dim=1).values.int() - 1
            piece = image[(slice(None), *(slice(a, a + s) for a, s in zip(start.tolist(), PATCH, strict=True)))]
            assert torch.equal(patch.flip([axis - 3 for axis in signs]), piece)
    assert 30 < crops < 75 and mirrored > 50


def test_crops_are_uniform_over_all_origins():
    cut = SpatialCut(PATCH, ())
    plain = [seed for seed in range(3000) if cut.draw(np.random.default_rng(seed)).matrix is None]
    starts = np.array([cut(ramps(), None, None, seed)[0][:, 0, 0, 0].numpy() - 1 for seed in plain])
    for axis, (length, size) in enumerate(zip(SHAPE, PATCH, strict=True)):
        counts = np.bincount(starts[:, axis].astype(int), minlength=length - size + 1)
        expected = len(plain) / (length - size + 1)
        assert len(counts) == length - size + 1
        # chi-squared with at most 32 degrees of freedom is below 62.5 with probability 0.999
        assert ((counts - expected) ** 2 / expected).sum() < 62.5


def test_around_a_voxel_that_voxel_is_in_the_middle():
    cut = SpatialCut(PATCH, ())
    for seed in range(40):
        patch, _ = cut(ramps(), None, (20, 17, 30), seed)
        middle = [patch[axis, 8, 10, 6] - 1 for axis in range(3)]
        # the patch turns about the middle of its voxels, half a voxel from that one
        assert np.abs(np.array(middle) - (20, 17, 30)).max() < 1.3
        if cut.draw(np.random.default_rng(seed)).matrix is None:
            assert middle == [20, 17, 30]


def test_a_smaller_volume_is_padded_with_zeros():
    image, label = torch.ones(1, 8, 30, 6), torch.ones(8, 30, 6, dtype=torch.uint8)
    for seed in range(20):
        patch, its = SpatialCut(PATCH, (0, 1, 2))(image, label, None, seed)
        assert patch.shape == (1, *PATCH) and its.shape == PATCH
        assert patch[0, 0, 0, 0] == its[0, 0, 0] == 0 and its[8, 10, 6] == 1
        assert patch[0, 8, 10, 6] == pytest.approx(1)


def test_a_patch_depends_on_its_seed_alone():
    cut = SpatialCut(PATCH, (0, 1, 2))
    first = [cut(ramps(), None, None, seed)[0] for seed in range(10)]
    np.random.seed(4)  # noqa: NPY002 - whatever others draw
    torch.manual_seed(4)
    again = [cut(ramps(), None, None, seed)[0] for seed in reversed(range(10))]
    assert all(torch.equal(a, b) for a, b in zip(first, reversed(again), strict=True))


@pytest.mark.parametrize(
    "name",
    [
        *("Left Kidney", "kidney_l", "parotid_R", "right_parotid", "ctx-lh-insula", "L_Femur", "LeftHippocampus"),
        *("lung_upper_lobe_left", "OpticNerve_Lt", "R parotid", "KidneyR"),
    ],
)
def test_names_with_a_side(name):
    assert with_side(("background", "brainstem", name)) == [name]


@pytest.mark.parametrize(
    "name",
    [
        *("Anterior", "posterior", "atrium", "vertebrae_L1", "liver", "bright lesion", "l", "T1 r weighted", "LV"),
        *("pulmonary artery", "lesion", "rib", "whole_tumour", "roi34"),
    ],
)
def test_names_without_one(name):
    assert with_side(("background", name)) == []


@pytest.mark.parametrize(("folder", "axes"), [("head-neck-ct", (1, 2)), ("hippocampus", (0, 1, 2))])
def test_the_names_of_two_real_datasets(folder, axes):
    file = SHARED / folder / "dataset.json"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    labels = json.loads(file.read_text())["labels"]
    names = list(labels.values()) if "0" in labels else list(labels)
    auto = SpatialAugmentation()
    assert auto.axes_for(names) == axes
    note = auto.note(names)
    assert (note is None) == (axes == (0, 1, 2))
    assert note is None or ("right_parotid, left_parotid" in note and "mirror_axes=[0,1,2]" in note)


def test_a_list_of_axes_wins():
    names = ("background", "left", "right")
    assert SpatialAugmentation().axes_for(names) == (1, 2)
    for axes in ([0, 1, 2], [0], []):
        augmentation = SpatialAugmentation(axes)
        assert augmentation.axes_for(names) == tuple(axes) and augmentation.note(names) is None


@pytest.mark.parametrize("axes", ["all", [3], [0, 0], [True], [0.0], None, 1])
def test_other_axes_are_refused(axes):
    with pytest.raises(DualsegError, match=r"data\.augmentation\.mirror_axes=.*auto, .*\[0,1,2\]"):
        SpatialAugmentation(axes)
