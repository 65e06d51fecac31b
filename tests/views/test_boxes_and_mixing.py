"""Boxes and mixing against their definitions, voxel by voxel."""

import numpy as np
import pytest
import torch

from dualseg.views import contiguous_box, cutmix_boxes, mixup, mixup_share, paste

SIZE = (12, 9, 7)


def extents(mask):
    """First voxel and side of each axis; asserts that the mask is a full box."""
    places = np.argwhere(mask.numpy())
    start, stop = places.min(axis=0), places.max(axis=0) + 1
    assert mask.sum() == np.prod(stop - start)
    return start, stop - start


def test_a_contiguous_box_has_two_thirds_of_each_side():
    masks = contiguous_box((112, 112, 80), count=3)
    assert masks.shape == (3, 112, 112, 80) and masks.dtype == torch.bool
    for mask in masks:
        assert extents(mask)[1].tolist() == [74, 74, 53]
    assert masks[0].float().mean() == pytest.approx(0.289, abs=0.001)


def test_its_corner_is_uniform():
    torch.manual_seed(0)
    starts = np.array([extents(mask)[0] for mask in contiguous_box(SIZE, count=4000)])
    for axis, side in enumerate((8, 6, 4)):
        counts = np.bincount(starts[:, axis], minlength=SIZE[axis] - side)
        assert len(counts) == SIZE[axis] - side, "from 0 to below size - side"
        expected = 4000 / len(counts)
        assert ((counts - expected) ** 2 / expected).sum() < 16  # chi-square of at most 3 degrees of freedom


def test_a_box_of_the_whole_side_starts_at_zero():
    assert contiguous_box(SIZE, share=1.0).all()


def test_cutmix_boxes_have_the_drawn_volume_and_aspect():
    torch.manual_seed(1)
    size = (40, 40, 40)
    for mask in cutmix_boxes(size, (0.05, 0.2), (0.5, 2.0), count=300):
        start, sides = extents(mask)
        assert (start >= 0).all() and (start + sides <= 40).all()
        volume = (sides.prod() / 64000).item()
        assert 0.03 < volume < 0.25  # sides are whole voxels
        assert sides[0] * sides[1] == pytest.approx(sides[2] ** 2, rel=0.25)
        assert 0.4 < sides[1] ** 3 / sides[2] ** 3 < 2.4


def test_the_same_box_is_given_again_after_the_same_seed():
    torch.manual_seed(3)
    first = cutmix_boxes(SIZE, count=2)
    torch.manual_seed(3)
    assert torch.equal(cutmix_boxes(SIZE, count=2), first)
    assert not torch.equal(cutmix_boxes(SIZE, count=2), first)


def test_paste_takes_the_one_inside_and_the_other_outside():
    inside, outside = torch.randn(2, 3, *SIZE), torch.randn(2, 3, *SIZE)
    mask = contiguous_box(SIZE, count=2)
    mixed = paste(inside, outside, mask)
    for n, c, x, y, z in np.ndindex(*mixed.shape):
        assert mixed[n, c, x, y, z] == (inside if mask[n, x, y, z] else outside)[n, c, x, y, z]
    labels = torch.zeros(2, *SIZE, dtype=torch.long), torch.ones(2, *SIZE, dtype=torch.long)
    assert torch.equal(paste(*labels, mask[:1]) == 0, mask[:1].expand(2, -1, -1, -1))


def test_mixup_is_the_weighted_sum_of_two():
    first, second, share = torch.randn(2, 1, *SIZE), torch.randn(2, 1, *SIZE), torch.tensor([0.25, 1.0])
    mixed = mixup(first, second, share)
    torch.testing.assert_close(mixed[0], 0.25 * first[0] + 0.75 * second[0])
    torch.testing.assert_close(mixed[1], first[1])


def test_the_share_of_a_mixup_is_beta():
    torch.manual_seed(0)
    drawn = mixup_share(20000, 0.2).numpy()
    assert drawn.min() >= 0 and drawn.max() <= 1
    assert drawn.mean() == pytest.approx(0.5, abs=0.01)
    assert drawn.var() == pytest.approx(1 / (4 * (2 * 0.2 + 1)), rel=0.03)  # of Beta(a, a)
