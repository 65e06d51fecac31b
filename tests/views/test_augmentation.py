"""The augmentation of all methods: each change against a slow formula, how often it comes, and boxes of others."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.stats import binomtest, kstest

from dualseg.errors import DualsegError
from dualseg.views import Augmentation, low_resolution
from dualseg.views.augmentation import STRONG, mix_labeled, strong_intensity

SIZE = (12, 9, 6)
CHANCE = 0.001  # that a test of a distribution fails although all is well; the draws are fixed
NAMES = ("noise", "blur", "brightness", "contrast", "low resolution", "inverted gamma", "gamma")
CHANGES = dict(zip(NAMES, STRONG, strict=True))
# probability of a patch, of each of its channels, range of the number
EXPECTED = {
    "noise": (0.1, 1.0, (0.0, 0.1)),
    "blur": (0.2, 0.5, (0.5, 1.0)),
    "brightness": (0.15, 1.0, (0.75, 1.25)),
    "contrast": (0.15, 1.0, (0.75, 1.25)),
    "low resolution": (0.25, 0.5, (0.5, 1.0)),
    "inverted gamma": (0.1, 1.0, (0.7, 1.5)),
    "gamma": (0.3, 1.0, (0.7, 1.5)),
}


@pytest.fixture
def channel():
    return torch.randn(1, 1, *SIZE, generator=torch.Generator().manual_seed(0)) * 2 + 1


def gamma_by_hand(values, exponent):
    """x^exponent on the range, then the mean and deviation of before."""
    width = values.max() - values.min()
    changed = ((values - values.min()) / width) ** exponent * width + values.min()
    return (changed - changed.mean()) / changed.std() * values.std() + values.mean()


def contrast_by_hand(values, factor):
    return np.clip((values - values.mean()) * factor + values.mean(), values.min(), values.max())


@pytest.mark.parametrize(
    ("name", "number", "expected"),
    [
        ("brightness", 1.2, lambda x: 1.2 * x),
        ("contrast", 1.25, lambda x: contrast_by_hand(x, 1.25)),
        ("contrast", 0.75, lambda x: contrast_by_hand(x, 0.75)),
        ("gamma", 0.7, lambda x: gamma_by_hand(x, 0.7)),
        ("gamma", 1.5, lambda x: gamma_by_hand(x, 1.5)),
        ("inverted gamma", 1.5, lambda x: -gamma_by_hand(-x, 1.5)),
        ("blur", 1.0, lambda x: ndimage.gaussian_filter(x, 1.0, mode="nearest", radius=3)),
        ("blur", 0.5, lambda x: ndimage.gaussian_filter(x, 0.5, mode="nearest", radius=3)),
    ],
)
def test_each_change_by_hand(channel, name, number, expected):
    changed = CHANGES[name].apply(channel, number)
    wanted = expected(channel[0, 0].double().numpy())
    np.testing.assert_allclose(changed[0, 0], wanted, rtol=2e-4, atol=2e-4)
    assert not np.allclose(wanted, channel[0, 0])


def test_noise_and_low_resolution_have_their_numbers(channel):
    torch.manual_seed(0)
    zero = torch.zeros(1, 1, 50, 50, 50)
    assert CHANGES["noise"].apply(zero, 0.07).std() == pytest.approx(0.07, rel=0.01)
    coarse = CHANGES["low resolution"].apply(channel, 0.5)
    assert torch.equal(coarse, low_resolution(channel, torch.tensor([0.5]))) and not torch.equal(coarse, channel)


def test_a_constant_patch_stays_finite():
    for change in STRONG:
        assert change.apply(torch.full((1, 1, *SIZE), 2.0), 0.8).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_how_often_and_how_much(name):
    probability, of_channels, (low, high) = EXPECTED[name]
    rng, count, channels = np.random.default_rng(0), 4000, 2
    drawn = CHANGES[name].draw(count, channels, rng)
    each = probability * of_channels
    patches = len({n for n, _, _ in drawn})
    assert binomtest(patches, count, probability * (1 - (1 - of_channels) ** channels)).pvalue > CHANCE
    for c in range(channels):
        assert binomtest(sum(own == c for _, own, _ in drawn), count, each).pvalue > CHANCE
    numbers = [number for _, _, number in drawn]
    if low < 1 < high:
        below = [number for number in numbers if number < 1]
        assert binomtest(len(below), len(numbers), 0.5).pvalue > CHANCE
        assert kstest(below, "uniform", (low, 1 - low)).pvalue > CHANCE
        assert kstest([number for number in numbers if number >= 1], "uniform", (1, high - 1)).pvalue > CHANCE
    else:
        assert kstest(numbers, "uniform", (low, high - low)).pvalue > CHANCE
    by_patch = {}
    for n, _, number in drawn:
        by_patch.setdefault(n, set()).add(number)
    assert any(len(own) > 1 for own in by_patch.values()), "each channel draws for itself"


def batch(patches=8, channels=2):
    return torch.randn(patches, channels, *SIZE, generator=torch.Generator().manual_seed(1)) + 0.5


def test_a_patch_changes_by_its_own_draws_in_the_order_of_the_list():
    image = batch()
    before = image.clone()
    torch.manual_seed(0)
    changed = strong_intensity(image, np.random.default_rng(3))
    assert torch.equal(image, before)
    rng, expected = np.random.default_rng(3), image.clone()
    torch.manual_seed(0)
    drawn = [(change, change.draw(8, 2, rng)) for change in STRONG]
    touched = set()
    for change, places in drawn:
        for n, c, number in places:
            expected[n, c] = change.apply(expected[n, c][None, None], number)[0, 0]
            touched.add((n, c))
    assert torch.equal(changed, expected) and 3 < len(touched) < 16
    for n in range(8):
        for c in range(2):
            assert torch.equal(changed[n, c], image[n, c]) == ((n, c) not in touched)


def test_where_nothing_is_drawn_nothing_is_done():
    image = batch(1, 1)
    quiet = next(s for s in range(50) if not any(c.draw(1, 1, r) for r in [np.random.default_rng(s)] for c in STRONG))
    assert strong_intensity(image, np.random.default_rng(quiet)) is image


def test_boxes_of_the_next_labeled_patch():
    torch.manual_seed(0)
    image = torch.arange(5.0).view(5, 1, 1, 1, 1).expand(5, 2, *SIZE).clone()
    label = torch.arange(3).view(3, 1, 1, 1).expand(3, *SIZE).clone()
    places = set()
    for _ in range(20):
        mixed, its = mix_labeled(image, label)
        assert mixed.shape == image.shape and its.shape == label.shape and its.dtype == label.dtype
        assert torch.equal(mixed[3:], image[3:])
        box = its[0] == 1
        sides = [int(box.any(dim=[k for k in range(3) if k != axis]).sum()) for axis in range(3)]
        assert sides == [8, 6, 4] and box.sum() == math.prod(sides), "2/3 of each side, in one piece"
        for n in range(3):
            expected = torch.where(box, (n + 1) % 3, n)
            assert torch.equal(its[n], expected)
            assert torch.equal(mixed[n], expected.float().expand(2, *SIZE))
        places.add(tuple(box.nonzero()[0].tolist()))
    assert len(places) > 10


def test_intensities_come_before_boxes_and_labels_stay_without_them():
    image, label = batch(4), torch.randint(0, 3, (2, *SIZE), generator=torch.Generator().manual_seed(0))

    def augmented(**chosen):
        torch.manual_seed(5)
        return Augmentation(**chosen)(image, label, np.random.default_rng(3))

    same, its = augmented()
    assert same is image and its is label
    intense, its = augmented(intensity="strong")
    assert its is label and not torch.equal(intense, image)
    torch.manual_seed(5)
    first = strong_intensity(image, np.random.default_rng(3))
    expected = mix_labeled(first, label)
    both = augmented(intensity="strong", mix=True)
    assert all(torch.equal(a, b) for a, b in zip(both, expected, strict=True))


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"intensity": "weak"}, r"augmentation\.intensity=weak: choose from strong"),
        ({"mix": "yes"}, r"augmentation\.mix=yes: give true or false"),
    ],
)
def test_other_values_are_refused(chosen, message):
    with pytest.raises(DualsegError, match=message):
        Augmentation(**chosen)
