"""Boxes, and what is cut out with them."""

import numpy as np
import pytest

from dualseg.data import Image
from dualseg.data.cropping import Box, cropped, largest_above, otsu
from dualseg.data.preprocessing import to_lps


def test_a_box_is_tight_and_of_nothing_is_everything():
    mask = np.zeros((9, 8, 7), bool)
    assert Box.around(mask) == ((0, 0, 0), (9, 8, 7))
    mask[2, 3, 4] = mask[6, 3, 5] = True
    assert Box.around(mask) == ((2, 3, 4), (7, 4, 6))


@pytest.mark.parametrize(
    "size, margins, start, stop",
    [
        ((0, 0, 0), [(0, 0)] * 3, (10, 10, 10), (20, 15, 11)),
        ((10, 8, 4), [(0, 0)] * 3, (10, 9, 9), (20, 17, 13)),
        ((12, 0, 0), [(1, 2), (3, 0), (0, 20)], (8, 7, 10), (23, 15, 30)),
        ((60, 0, 0), [(0, 0), (30, 30), (0, 0)], (0, 0, 10), (40, 35, 11)),
    ],
)
def test_a_box_grows_evenly_and_ends_with_the_volume(size, margins, start, stop):
    box = Box((10, 10, 10), (20, 15, 11))
    assert box.widened((40, 35, 30), size, margins) == (start, stop)


def test_cropping_moves_no_voxel():
    rng = np.random.default_rng(0)
    image = Image(rng.normal(size=(2, 9, 8, 7)).astype(np.float32), np.vstack([rng.normal(size=(3, 4)), [0, 0, 0, 1]]))
    part = cropped(image, Box((2, 1, 3), (6, 8, 5)))
    assert part.array.shape == (2, 4, 7, 2)
    assert part.array[1, 3, 2, 1] == image.array[1, 5, 3, 4]
    np.testing.assert_allclose(part.affine @ [3, 2, 1, 1], image.affine @ [5, 3, 4, 1])
    part.array[:] = 0
    assert image.array.any()


def test_to_lps_moves_no_voxel():
    rng = np.random.default_rng(1)
    affine = np.array([[0, 0.1, 2.0, 5], [-3.0, 0, 0.2, 6], [0.1, -1.5, 0, 7], [0, 0, 0, 1]])
    image = Image(rng.normal(size=(1, 5, 6, 7)).astype(np.float32), affine)
    turned = to_lps(image)
    assert (np.diag(turned.affine)[:3] * (-1, -1, 1) > 0).all()
    for index in ((0, 0, 0), (4, 0, 2), (3, 5, 6)):
        place = affine @ [*index, 1]
        voxel = np.round(np.linalg.solve(turned.affine, place)).astype(int)[:3]
        assert turned.array[0][tuple(voxel)] == image.array[0][index]


def test_the_largest_piece_alone():
    channel = np.zeros((10, 10, 10))
    channel[:3, :3, :3] = channel[5:9, 5:9, 5:9] = 2
    np.testing.assert_array_equal(np.argwhere(largest_above(channel, 1)).min(axis=0), (5, 5, 5))
    assert not largest_above(channel, 3).any()


def test_otsu_is_the_threshold_of_least_variance_within():
    """Against a search over all thresholds, in the definition's words."""
    rng = np.random.default_rng(2)
    values = np.concatenate([rng.normal(0, 1, 3000), rng.normal(6, 2, 1000)])
    threshold = otsu(values)

    def within(cut: float) -> float:
        low, high = values[values <= cut], values[values > cut]
        return (low.size * low.var() + high.size * high.var()) / values.size

    best = min(within(cut) for cut in np.linspace(values.min() + 0.01, values.max() - 0.01, 2000))
    assert within(threshold) == pytest.approx(best, rel=1e-3)
