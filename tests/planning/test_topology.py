"""Where axes are halved: nnU-Net's own plans of public datasets, and what any topology must keep."""

import math

import numpy as np
import pytest

from dualseg.planning.memory import training_bytes
from dualseg.planning.topology import LEAST_SIDE, blocks_of, channels_of, topology_of

# nnU-Net's published 3d_fullres plans: patch, spacing, and along each axis how many of its first five halvings touch it
PUBLISHED = {
    "hippocampus": ((40, 56, 40), (1.0, 1.0, 1.0), (3, 3, 3)),
    "prostate": ((320, 256, 20), (0.625, 0.625, 3.6), (5, 5, 2)),
    "liver": ((128, 128, 128), (0.77, 0.77, 1.0), (5, 5, 5)),
    "brain tumour": ((128, 128, 128), (1.0, 1.0, 1.0), (5, 5, 5)),
    "heart": ((192, 160, 80), (1.25, 1.25, 1.37), (5, 5, 4)),
    "cardiac cine": ((256, 224, 14), (1.5625, 1.5625, 10.0), (5, 5, 1)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_halvings_are_those_of_published_plans(name):
    patch, spacing, halved = PUBLISHED[name]
    assert topology_of(patch, spacing).divisor == tuple(2**n for n in halved)


def test_kernels_of_thick_slices_are_flat_until_voxels_are_about_as_long_as_wide():
    assert topology_of((320, 256, 20), (0.625, 0.625, 3.6)).kernels[:4] == [[3, 3, 1], [3, 3, 1], [3, 3, 3], [3, 3, 3]]


def test_a_thin_slab_is_not_padded_along_its_slices():
    unet = topology_of((512, 512, 12), (0.5, 0.5, 5.0))
    assert unet.divisor[2] in (1, 2, 4) and 12 % unet.divisor[2] == 0


@pytest.mark.parametrize("seed", range(20))
def test_any_patch_keeps_its_least_side_and_the_axes_their_order(seed):
    rng = np.random.default_rng(seed)
    patch, spacing = rng.integers(1, 300, 3).tolist(), rng.uniform(0.3, 6, 3)
    unet = topology_of(patch, spacing)
    sides = np.array(patch, float)
    assert unet.strides[0] == [1, 1, 1] and len(unet.strides) == len(unet.kernels) <= 6
    for stride, before, after in zip(unet.strides[1:], unet.kernels, unet.kernels[1:], strict=False):
        halved = np.array(stride) == 2
        assert halved.any()
        sides = np.ceil(sides / stride)
        assert (sides[halved] >= LEAST_SIDE).all() or len(unet.strides) == 3
        assert (np.array(after) >= before).all()  # a kernel never gets flat again
    turned = topology_of(patch[::-1], spacing[::-1])  # axes have no names here
    assert turned.strides == [stride[::-1] for stride in unet.strides]


@pytest.mark.parametrize("patch", [(12, 12, 12), (8, 9, 10), (6, 6, 6)])
def test_a_very_small_patch_still_has_the_stages_that_networks_need(patch):
    unet = topology_of(patch, (1, 1, 1))
    assert len(unet.strides) == 3 and unet.divisor == (4, 4, 4)


def test_channels_double_up_to_the_limit_and_blocks_follow_the_width():
    assert channels_of(32, 6) == [32, 64, 128, 256, 320, 320]
    assert channels_of(8, 4) == [8, 16, 32, 64]
    assert blocks_of(8, 4) == [1, 2, 2, 2] and blocks_of(16, 6) == [1, 3, 4, 6, 6, 6]


def test_memory_grows_with_voxels_patches_and_channels():
    unet = topology_of((64, 64, 64), (1, 1, 1))
    one = training_bytes((64, 64, 64), 2, unet, 8, 2)
    assert training_bytes((64, 64, 64), 4, unet, 8, 2) == pytest.approx(2 * one)
    assert training_bytes((128, 64, 64), 2, unet, 8, 2) == pytest.approx(2 * one)
    assert one < training_bytes((64, 64, 64), 2, unet, 16, 2) < math.inf
