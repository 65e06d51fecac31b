"""The largest component of an array, and of a batch against a flood fill."""

import itertools

import numpy as np
import pytest
import torch

from dualseg.views import keep_largest, largest_component
from dualseg.views.components import keep_largest_on_device


def test_only_the_largest_component_of_the_given_classes_stays():
    label = np.zeros((12, 10, 8), np.uint8)
    label[1:4, 1:4, 1:4] = 1
    label[4, 4, 4] = 1  # touches by a corner
    label[8:10, 8:10, 6:8] = 1
    label[0, 0, 7], label[11, 0, 7] = 2, 2
    expected = label.copy()
    expected[8:10, 8:10, 6:8] = 0
    keep_largest(label, [1, 3])
    np.testing.assert_array_equal(label, expected)
    keep_largest(label, [2])
    expected[11, 0, 7] = 0  # of two as large the first
    np.testing.assert_array_equal(label, expected)


def components(mask):
    """Sets of voxels that hang together by faces, edges or corners."""
    left, found = {tuple(v) for v in np.argwhere(mask)}, []
    while left:
        todo, own = [left.pop()], set()
        while todo:
            voxel = todo.pop()
            own.add(voxel)
            for step in itertools.product((-1, 0, 1), repeat=3):
                other = tuple(np.add(voxel, step))
                if other in left:
                    left.remove(other)
                    todo.append(other)
        found.append(own)
    return found


def test_each_patch_keeps_its_own():
    label = torch.randint(0, 9, (3, 9, 8, 7), generator=torch.Generator().manual_seed(0))
    label = label.where(label < 3, 0)
    cleaned, seconds = largest_component(label, iter([1, 2]))
    for before, after in zip(label.numpy(), cleaned.numpy(), strict=True):
        for value in (1, 2):
            largest = max(map(len, components(before == value)))
            (kept,) = components(after == value)
            assert len(kept) == largest and all(before[v] == value for v in kept)
    assert cleaned.dtype == torch.int64 and seconds > 0
    assert label.max() == 2 and not torch.equal(cleaned, label), "the argument stays"


def test_other_classes_and_empty_patches_stay():
    label = torch.zeros(2, 6, 6, 6, dtype=torch.long)
    label[0, 0, 0, 0] = label[0, 3:, 3:, 3:] = 2
    label[0, 0, 5, 5] = 1
    assert torch.equal(largest_component(label, [1]).label, label)
    assert largest_component(label, [2]).label[0, 0, 0, 0] == 0


def test_labels_beyond_a_byte():
    label = torch.zeros(1, 6, 6, 6, dtype=torch.long)
    label[0, 0, 0, 0] = label[0, 3:, 3:, 3:] = 300
    label[0, 0, 5, 5] = 300 - 256
    cleaned = largest_component(label, range(1, 301)).label
    assert cleaned[0, 0, 0, 0] == 0
    assert (cleaned[0, 3:, 3:, 3:] == 300).all() and cleaned[0, 0, 5, 5] == 44


@pytest.mark.parametrize("share", [0.02, 0.07, 0.1, 0.5, 1.0])
def test_on_a_device_the_same_voxels_stay(share):
    """A seventeenth and less of noise falls apart into hundreds of pieces, a tenth hangs together."""
    generator = torch.Generator().manual_seed(1)
    label = torch.randint(1, 4, (3, 17, 16, 15), generator=generator)
    label = label.where(torch.rand(label.shape, generator=generator) < share, 0)
    expected = label.numpy().astype(np.int16)
    for patch in expected:
        keep_largest(patch, [1, 3])
    assert keep_largest_on_device(label[:0], [1]).shape == (0, 17, 16, 15)
    found = keep_largest_on_device(label, iter([1, 3]))
    assert found.dtype == torch.int64 and found.device == label.device
    np.testing.assert_array_equal(found.numpy(), expected)


def test_on_a_device_a_long_component_and_two_as_large():
    """A line that winds through the whole patch; and of two cubes of 8 voxels the first in the order of voxels."""
    label = torch.zeros(2, 33, 33, 3, dtype=torch.long)
    label[0, :, ::2, 1] = 1
    label[0, 32, 1::4, 1] = label[0, 0, 3::4, 1] = 1
    label[0, 16, 16, 1] = 0  # cuts it in two, of which the second is longer by two voxels
    label[0, 0, 0, 1] = label[0, 1, 0, 1] = 0
    label[1, 8:10, 4:6, :2] = label[1, 2:4, 20:22, :2] = 1
    expected = label.numpy().astype(np.int16)
    for patch in expected:
        keep_largest(patch, [1])
    found = keep_largest_on_device(label, [1])
    np.testing.assert_array_equal(found.numpy(), expected)
    assert found[1].sum() == 8 and found[1, 2, 20, 0] == 1
    assert 0 < found[0].sum() < label[0].sum()
