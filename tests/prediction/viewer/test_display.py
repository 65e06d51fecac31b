"""Display copies: the right voxels, at the right millimetre, within the limit."""

from itertools import product

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from scenes import SHAPE, ball, decoded

from dualseg.data.volumes import Image
from dualseg.prediction.viewer import display
from dualseg.prediction.viewer.display import DisplayCopy, display_copy


def arrays(copy: DisplayCopy) -> list[np.ndarray]:
    return [np.asarray(decoded(text).dataobj) for text in (copy.image, copy.label, copy.uncertainty)]


def test_a_small_scan_is_shown_voxel_by_voxel() -> None:
    scan, label, entropy = ball()
    copy = display_copy(scan, label, entropy, 10_000_000)
    image, shown_label, doubt = arrays(copy)
    assert image.dtype == shown_label.dtype == doubt.dtype == np.uint8
    assert copy.shape == SHAPE and copy.spacing == copy.scan_spacing == (1, 2, 3)
    np.testing.assert_array_equal(shown_label, label)
    np.testing.assert_allclose(doubt / 255, entropy, atol=0.5 / 255 + 1e-6)
    low, high = copy.window
    np.testing.assert_allclose(image / 255, np.clip((scan.array[0] - low) / (high - low), 0, 1), atol=0.5 / 255 + 1e-6)
    sums = [entropy.sum(axis=axes) for axes in ((1, 2), (0, 2), (0, 1))]
    assert all(own[at] > 0.99 * own.max() for own, at in zip(sums, copy.start, strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_every_orientation_keeps_the_millimetre(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(display, "MAX_VOXELS", int(rng.integers(300, 40000)))
    affine = np.eye(4)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    affine[:3, :3] = rotation * rng.uniform(0.5, 3, 3) * rng.choice([-1, 1], 3)
    affine[:3, 3] = rng.uniform(-200, 200, 3)
    shape = tuple(int(n) for n in rng.integers(16, 40, 3))
    place = tuple(int(rng.integers(n)) for n in shape)
    entropy = np.zeros(shape, np.float32)
    entropy[place] = 1
    copy = display_copy(Image(rng.random((1, *shape), np.float32), affine), np.zeros(shape, np.uint8), entropy, 10**7)
    found = decoded(copy.uncertainty)
    (there,) = np.argwhere(np.asarray(found.dataobj) == 255)
    assert tuple(there) == copy.start
    # in its block, whose faces are half a spacing away from the centre
    off = np.linalg.inv(found.affine[:3, :3]) @ (apply_affine(affine, place) - apply_affine(found.affine, there))
    assert (abs(off) < 0.5).all()
    assert nib.io_orientation(found.affine).tolist() == [[0, 1], [1, 1], [2, 1]]


def test_blocks_by_hand() -> None:
    rng = np.random.default_rng(1)
    shape, block = (7, 5, 4), np.array([3, 2, 1])
    label = rng.integers(0, 3, shape).astype(np.uint8)
    entropy = rng.random(shape, np.float32)
    image = rng.random(shape, np.float32)
    copy = display._copy(display._Full(image, label, entropy, np.eye(4)), block)
    shown, shown_label, doubt = arrays(copy)
    low, high = copy.window
    assert copy.shape == (3, 3, 4)
    for i, j, k in product(range(3), range(3), range(4)):
        own = np.s_[3 * i : 3 * i + 3, 2 * j : 2 * j + 2, k : k + 1]
        counts = np.bincount(label[own].ravel(), minlength=3)
        assert shown_label[i, j, k] == max(range(3), key=lambda value: (counts[value], value))
        assert doubt[i, j, k] == round(255 * float(entropy[own].max()))
        mean = np.clip((image[own].mean() - low) / (high - low), 0, 1)
        assert abs(int(shown[i, j, k]) - 255 * mean) < 0.51


def test_the_limit_holds_for_what_does_not_compress() -> None:
    rng = np.random.default_rng(2)
    shape = (120, 110, 40)
    scan = Image(rng.random((1, *shape), np.float32), np.diag([0.8, 0.8, 2.5, 1]))
    label, entropy = rng.integers(0, 2, shape).astype(np.uint8), rng.random(shape, np.float32)
    copy = display_copy(scan, label, entropy, 150_000)
    assert 75_000 < copy.size <= 150_000, "it is as fine as the limit allows"
    assert max(copy.spacing) < 2 * min(copy.spacing), "the finest axes give way first"
    assert copy.scan_spacing == pytest.approx((0.8, 0.8, 2.5))


def test_without_a_label_or_contrast() -> None:
    shape = (8, 8, 8)
    scan = Image(np.full((1, *shape), 7, np.float32), np.eye(4))
    copy = display_copy(scan, np.zeros(shape, np.uint8), np.zeros(shape, np.float32), 10**6)
    assert copy.window == (7, 8) and copy.start == (4, 4, 4)
    assert not np.any(arrays(copy))


def test_a_window_that_is_given_is_what_grey_is_spent_on() -> None:
    scan = Image(np.linspace(-1000, 1000, 512, dtype=np.float32).reshape(1, 8, 8, 8), np.eye(4))
    copy = display_copy(scan, np.zeros((8, 8, 8), np.uint8), np.zeros((8, 8, 8), np.float32), 10**6, (-160.0, 240.0))
    grey, *_ = arrays(copy)
    assert copy.window == (-160, 240)
    assert np.array_equal(grey, np.round(255 * (scan.array[0].clip(-160, 240) + 160) / 400))


def test_grey_is_spent_on_what_is_around_the_label() -> None:
    shape = (40, 40, 40)
    image = np.full((1, *shape), -1000, np.float32)
    image[0, 12:28, 12:28, 12:28] = np.linspace(0, 100, 16)
    label = np.zeros(shape, np.uint8)
    label[16:24, 16:24, 16:24] = 1
    copy = display_copy(Image(image, np.eye(4)), label, np.zeros(shape, np.float32), 10**6)
    assert 0 <= copy.window[0] < 20 and 80 < copy.window[1] <= 100
