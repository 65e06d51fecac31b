"""Changes of intensity against plain loops, SciPy, and their statistics."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from dualseg.views import blur, brightness, contrast, gamma, low_resolution, noise, uniform

SIZE = (11, 8, 6)


@pytest.fixture
def image():
    return torch.randn(3, 2, *SIZE, generator=torch.Generator().manual_seed(0)) * 2 + 1


def channels(image):
    return [(n, c, image[n, c].double().numpy()) for n in range(len(image)) for c in range(image.shape[1])]


def test_uniform_draws_one_number_a_patch(image):
    torch.manual_seed(0)
    drawn = torch.cat([uniform(image, -0.5, 1.5) for _ in range(2000)])
    assert drawn.shape == (6000,)
    assert -0.5 <= drawn.min() < -0.48 and 1.48 < drawn.max() < 1.5
    assert drawn.mean() == pytest.approx(0.5, abs=0.03)


def test_noise_has_its_deviation_and_its_limit(image):
    torch.manual_seed(0)
    zero = torch.zeros(1, 1, 60, 60, 60)
    assert noise(zero, 0.1).std() == pytest.approx(0.1, rel=0.01)
    assert noise(zero, 0.1).abs().max() > 0.4
    limited = noise(zero, 0.1, 0.2)
    assert limited.abs().max() == pytest.approx(0.2)
    assert (limited.abs() < 0.2).float().mean() == pytest.approx(0.9545, abs=0.003)  # within two deviations
    assert not torch.equal(noise(image)[0] - image[0], noise(image)[1] - image[1])


def test_brightness_and_contrast_by_hand(image):
    factor, shift = torch.tensor([0.5, 1.0, 1.7]), torch.tensor([-1.0, 0.0, 2.0])
    brighter, steeper = brightness(image, shift), contrast(image, factor)
    for n, c, values in channels(image):
        np.testing.assert_allclose(brighter[n, c], values + float(shift[n]), rtol=1e-5, atol=1e-5)
        expected = (values - values.mean()) * float(factor[n]) + values.mean()
        np.testing.assert_allclose(steeper[n, c], expected, rtol=1e-4, atol=1e-5)


def test_gamma_by_hand(image):
    exponent = torch.tensor([0.7, 1.0, 1.5])
    changed = gamma(image, exponent)
    for n, c, values in channels(image):
        width = values.max() - values.min()
        expected = ((values - values.min()) / width) ** float(exponent[n]) * width + values.min()
        np.testing.assert_allclose(changed[n, c], expected, rtol=1e-4, atol=1e-4)
    assert gamma(torch.full((1, 1, *SIZE), 3.0), torch.tensor([0.5])).isfinite().all()


def test_no_patch_is_blurred():
    assert blur(torch.zeros(0, 2, *SIZE), torch.zeros(0), largest=2.0).shape == (0, 2, *SIZE)


def test_blur_is_scipys_gaussian_filter(image):
    sigma = torch.tensor([0.4, 1.0, 1.5])
    blurred = blur(image, sigma, largest=1.5)
    for n, c, values in channels(image):
        s = float(sigma[n])
        expected = ndimage.gaussian_filter(values, s, mode="nearest", truncate=5 / s)
        np.testing.assert_allclose(blurred[n, c], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(blur(image, torch.zeros(3), largest=1.0), image)


def coarse_and_back(values, zoom):
    """One axis after another: the nearest voxel of each coarse one, then np.interp between the coarse ones."""
    for axis, size in enumerate(values.shape):
        count = max(1, round(size * zoom))
        picked = [min(max(round((k + 0.5) / zoom - 0.5), 0), size - 1) for k in range(count)]
        rows = np.moveaxis(values, axis, -1)[..., picked]
        places = (np.arange(size) + 0.5) * zoom - 0.5
        back = np.apply_along_axis(lambda row, p=places, n=count: np.interp(p, np.arange(n), row), -1, rows)
        values = np.moveaxis(back, -1, axis)
    return values


def test_low_resolution_by_hand(image):
    zoom = torch.tensor([1.0, 0.5, 0.73])
    coarse = low_resolution(image, zoom)
    torch.testing.assert_close(coarse[0], image[0])
    for n, c, values in channels(image):
        np.testing.assert_allclose(coarse[n, c], coarse_and_back(values, float(zoom[n])), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: noise(x),
        lambda x: brightness(x, uniform(x, -1, 1)),
        lambda x: contrast(x, uniform(x, 0.5, 1.5)),
        lambda x: gamma(x, uniform(x, 0.7, 1.5)),
        lambda x: blur(x, uniform(x, 0.5, 1.0), 1.0),
        lambda x: low_resolution(x, uniform(x, 0.5, 1.0)),
    ],
)
def test_nothing_changes_its_argument(image, change):
    before = image.clone()
    changed = change(image)
    assert torch.equal(image, before)
    assert changed.shape == image.shape and not torch.equal(changed, image) and changed.isfinite().all()
