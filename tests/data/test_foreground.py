"""Labeled patches around the foreground: how often, around which class, around which voxel."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from dualseg.data import flips_and_rotations
from dualseg.data.foreground import MOST_POSITIONS, ForegroundSampling, positions_of
from dualseg.data.patches import PatchDataset
from dualseg.data.sampling import SampleKey, foreground_generator, sample_seed
from dualseg.data.spatial import SpatialCut
from dualseg.data.transforms import WholeVolumeCut, cut, plain_tensors, start_around, training_transform

SHAPE, PATCH = (24, 22, 26), (16, 16, 16)
CHANCE = 0.001  # that a chi-square test fails although all is well; the draws are fixed


def labels():
    """Two classes of 3 and 40 voxels in one case, one class in another, none in the third."""
    two = torch.zeros(SHAPE, dtype=torch.uint8)
    two[8, 9, 8:11] = 4
    two[12:14, 9:13, 10:15] = 1
    one = torch.zeros(SHAPE, dtype=torch.uint8)
    one[10, 10, 10] = 2
    return {"two": two, "one": one, "none": torch.zeros(SHAPE, dtype=torch.uint8)}


def drawn(sampling, case, count):
    return [sampling.draw(case, foreground_generator(3, SampleKey(i, 0))) for i in range(count)]


def test_positions_are_the_voxels_of_each_class():
    label = np.random.default_rng(0).choice([0, 1, 3, 290], size=SHAPE, p=[0.7, 0.1, 0.1, 0.1]).astype(np.int16)
    found = positions_of(label)
    assert [f.tolist() for f in found] == [np.flatnonzero(label == k).tolist() for k in (1, 3, 290)]
    assert positions_of(np.zeros(SHAPE, np.uint8)) == []


def test_of_a_large_class_every_stretch_gives_one_position():
    label = np.zeros((100, 100, 64), np.uint8)
    label[:, :, 7:57] = 1  # rows of 50 voxels: 500,000, so that stretches of 50 are rows
    (positions,) = positions_of(label)
    (all_of_it,) = [np.flatnonzero(label == 1)]
    place = np.searchsorted(all_of_it, positions)
    assert np.array_equal(all_of_it[place], positions) and len(positions) == MOST_POSITIONS
    assert np.array_equal(place // 50, np.arange(MOST_POSITIONS))
    assert chisquare(np.bincount(place % 50, minlength=50)).pvalue > CHANCE, "not the same column of every row"
    assert np.array_equal(positions_of(label)[0], positions)


@pytest.mark.parametrize("share", [0.33, 0.8])
def test_the_share_of_patches_around_the_foreground(share):
    around = sum(voxel is not None for voxel in drawn(ForegroundSampling(labels(), share), "two", 3000))
    assert chisquare([around, 3000 - around], [3000 * share, 3000 * (1 - share)]).pvalue > CHANCE


def test_classes_come_alike_often_and_so_do_the_voxels_of_each():
    label = labels()["two"]
    voxels = drawn(ForegroundSampling(labels(), 1.0), "two", 4000)
    classes = [int(label[voxel]) for voxel in voxels]
    assert chisquare([classes.count(1), classes.count(4)]).pvalue > CHANCE
    for k in (1, 4):
        places = [tuple(place.tolist()) for place in (label == k).nonzero()]
        counts = [voxels.count(place) for place in places]
        assert sum(counts) == classes.count(k) and chisquare(counts).pvalue > CHANCE


def test_a_case_without_foreground_is_cut_anywhere():
    sampling = ForegroundSampling(labels(), 1.0)
    assert drawn(sampling, "none", 20) == [None] * 20
    assert drawn(sampling, "one", 5) == [(10, 10, 10)] * 5


def dataset(cut_of, share, seed=3):
    """Two labeled patches and an unlabeled one, of images that say where each voxel came from."""
    image = torch.arange(1, 1 + int(np.prod(SHAPE)), dtype=torch.float32).reshape(1, *SHAPE)
    volumes = {case: (image, label) for case, label in labels().items()} | {"bare": (image, None)}
    sampling = ForegroundSampling(labels(), share) if share else None
    return PatchDataset(volumes, ("two",), ("bare",), 2, 1, cut_of, seed, sampling)


CUTS = {
    "crop": lambda: WholeVolumeCut(PATCH),
    "flips": lambda: WholeVolumeCut(PATCH, flips_and_rotations()),
    "strong": lambda: SpatialCut(PATCH, (0, 1, 2)),
}


@pytest.mark.parametrize("name", ["crop", "flips"])
def test_the_voxel_is_in_the_middle_as_far_as_the_volume_allows(name):
    found = dataset(CUTS[name](), 1.0)
    for iteration in range(40):
        key = SampleKey(iteration, 0)
        voxel = found.foreground.draw("two", foreground_generator(3, key))
        sample = found[key]
        place = (sample["image"][0] == 1 + float(np.ravel_multi_index(voxel, SHAPE))).nonzero()
        assert len(place) == 1 and sample["label"][tuple(place[0])] == labels()["two"][voxel]
        within = [{v - min(max(v - 8, 0), n - 16) for v in (v, n - 1 - v)} for v, n in zip(voxel, SHAPE, strict=True)]
        if name == "crop":
            expected = [v - min(max(v - 8, 0), n - 16) for v, n in zip(voxel, SHAPE, strict=True)]
            assert place[0].tolist() == expected
        else:  # a flip counts from the other end, a turn exchanges the first two axes
            turns = (within, [within[1], within[0], within[2]])
            assert any(all(p in w for p, w in zip(place[0].tolist(), turn, strict=True)) for turn in turns)
        assert (sample["image"] > 0).all(), "clipped to the volume, not padded"


@pytest.mark.parametrize("name", CUTS)
def test_what_is_cut_anywhere_stays_as_it_was(name):
    before, after = dataset(CUTS[name](), 0), dataset(CUTS[name](), 0.5)
    same = []
    for iteration in range(30):
        for position in (0, 1, 2):
            first, second = before[SampleKey(iteration, position)], after[SampleKey(iteration, position)]
            same.append(torch.equal(first["image"], second["image"]))
            assert same[-1] or position < 2, "unlabeled patches are cut anywhere"
    assert 30 + 15 < sum(same) < 30 + 45


def test_without_it_a_patch_is_what_the_transforms_make_of_its_seed():
    found, plain = dataset(CUTS["flips"](), 0), training_transform(PATCH, flips_and_rotations())
    for iteration in range(5):
        key = SampleKey(iteration, 1)
        image, label = found.volumes["two"]
        plain.set_random_state(seed=sample_seed(3, key))
        with plain_tensors():
            expected = plain({"image": image, "label": label[None]})
        assert torch.equal(found[key]["image"], expected["image"])
        assert torch.equal(found[key]["label"], expected["label"][0].long())


@pytest.mark.parametrize("shape", [(20, 24, 18), (16, 16, 16), (5, 30, 16), (7, 3, 40)])
def test_without_augmentation_a_crop_is_the_one_of_monais_transforms(shape):
    image, label = torch.rand(1, *shape), torch.randint(0, 3, shape, dtype=torch.uint8)
    found, plain = WholeVolumeCut(PATCH), training_transform(PATCH)
    for seed in (0, 1, 12345, 2**32 - 1):
        plain.set_random_state(seed=seed)
        with plain_tensors():
            expected = plain({"image": image, "label": label[None]})
        patch, its = found(image, label, None, seed)
        assert torch.equal(patch, expected["image"])
        assert torch.equal(its, expected["label"][0]) and its.dtype == torch.uint8


def test_a_volume_that_is_smaller_than_the_patch_is_in_its_middle():
    volume = torch.ones(1, 5, 20, 10)
    assert start_around((2, 1, 9), (5, 20, 10), PATCH) == (-5, 0, -3)
    patch = cut(volume, (-5, 0, -3), PATCH)
    assert patch.shape == (1, *PATCH) and patch.sum() == 5 * 16 * 10
    assert patch[0, 5:10, :, 3:13].all()


def test_a_transform_that_loses_the_voxel_gives_a_patch_all_the_same():
    def losing(sample):
        return {key: value[:, :, :, 16:] for key, value in sample.items()}

    image, label = torch.rand(1, *SHAPE), labels()["two"]
    patch, its = WholeVolumeCut(PATCH, [losing])(image, label, (8, 9, 8), seed=0)
    assert patch.shape == (1, *PATCH) and its.shape == PATCH
