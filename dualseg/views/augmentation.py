"""One augmentation of patches on the device for all methods: nnU-Net's changes of intensity, boxes from other patches.

The host draws which patches change, and by how much, with a generator of its own: so it knows what to compute, and does
no work for a patch that stays as it is, without waiting for the device. Noise and boxes come from torch's generator.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dualseg.arguments import one_of, switch
from dualseg.views.boxes import contiguous_box
from dualseg.views.intensity import blur, contrast, gamma, low_resolution, noise
from dualseg.views.mixing import with_next

SIGMAS = (0.5, 1.0)  # of a blur, in voxels


class Change(NamedTuple):
    """A change of intensity, and when a patch undergoes it.

    Attributes:
        apply: (1, 1, W, H, D) and a number -> the changed channel.
        probability: of a patch.
        numbers: range of the number, which each channel draws for itself.
        of_channels: probability of each channel of such a patch.
        around_one: numbers below and above 1 come alike often, uniform on either side; else uniform on the range.
    """

    apply: Callable[[Tensor, float], Tensor]
    probability: float
    numbers: tuple[float, float]
    of_channels: float = 1.0
    around_one: bool = False

    def draw(self, patches: int, channels: int, rng: np.random.Generator) -> list[tuple[int, int, float]]:
        """(patch, channel, number) of those that change; the generator moves alike whatever comes out."""
        chosen = (rng.random((patches, 1)) < self.probability) & (rng.random((patches, channels)) < self.of_channels)
        low, high = self.numbers
        numbers = rng.uniform(low, high, (patches, channels))
        if self.around_one:
            below = rng.random((patches, channels)) < 0.5
            share = (numbers - low) / (high - low)
            numbers = np.where(below, low + share * (1 - low), 1 + share * (high - 1))
        return [(int(n), int(c), float(numbers[n, c])) for n, c in np.argwhere(chosen)]


def _one(image: Tensor, number: float) -> Tensor:
    """(1,), filled on the device: no value goes there from the host."""
    return torch.full((1,), number, device=image.device)


def _contrast(image: Tensor, factor: float) -> Tensor:
    return contrast(image, _one(image, factor)).clamp(image.amin(), image.amax())


def _gamma(image: Tensor, exponent: float) -> Tensor:
    changed = gamma(image, _one(image, exponent))
    return (changed - changed.mean()) / changed.std().clamp(min=1e-7) * image.std() + image.mean()


STRONG = (
    Change(noise, 0.1, (0.0, 0.1)),  # the deviation, which nnU-Net calls a variance
    Change(lambda image, sigma: blur(image, _one(image, sigma), SIGMAS[1]), 0.2, SIGMAS, of_channels=0.5),
    Change(torch.mul, 0.15, (0.75, 1.25), around_one=True),  # brightness
    Change(_contrast, 0.15, (0.75, 1.25), around_one=True),
    Change(lambda image, zoom: low_resolution(image, _one(image, zoom)), 0.25, (0.5, 1.0), of_channels=0.5),
    Change(lambda image, exponent: -_gamma(-image, exponent), 0.1, (0.7, 1.5), around_one=True),
    Change(_gamma, 0.3, (0.7, 1.5), around_one=True),
)
"""nnU-Net's, in its order: noise, blur, brightness, contrast within the range that there is, low resolution, gamma of
the inverted image and of the image, both of which keep mean and deviation.

Unlike there, a blur has one deviation for all axes, noise is drawn for each channel, and low resolution is along
all axes of thin patches too."""


def strong_intensity(image: Tensor, rng: np.random.Generator) -> Tensor:
    """The changes `STRONG`, drawn for each patch (N, C, W, H, D) on its own."""
    patches, channels = image.shape[:2]
    drawn = [(change, places) for change in STRONG if (places := change.draw(patches, channels, rng))]
    changed = image.clone() if drawn else image
    for change, places in drawn:
        for n, c, number in places:
            changed[n : n + 1, c : c + 1] = change.apply(changed[n : n + 1, c : c + 1], number)
    return changed


def mix_labeled(image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Copy-paste between labeled patches: x_i M + x_j (1 - M), where j is the next one and, after the last, the first.

    M is 0 in one box of 2/3 of each side, for the whole batch. So N labeled patches make N mixed ones.

    Args:
        image: (N, C, W, H, D), the labeled ones first; the others stay.
        label: (N_l, W, H, D), which are mixed alike.
    """
    n = len(label)
    outside = ~contiguous_box(image.shape[2:], device=image.device)  # M
    return torch.cat([with_next(image[:n], outside), image[n:]]), with_next(label, outside)


class Augmentation:
    """What happens to every batch on the device, whatever the method.

    Intensities come first: they stand for how one scan was acquired, and a box comes from another scan. A blur of the
    mixed patch would also wash out the seam.

    Args:
        intensity: `strong`, see `STRONG`; None: none.
        mix: labeled patches are mixed with one another, see `mix_labeled`.

    Raises:
        DualsegError: another value.
    """

    def __init__(self, intensity: Literal["strong"] | None = None, mix: bool = False) -> None:
        if intensity is not None:
            one_of("augmentation.intensity", intensity, ("strong",))
        switch("augmentation.mix", mix)
        self.intensity, self.mix = intensity, mix

    def __call__(self, image: Tensor, label: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Images (N, C, W, H, D), labeled ones first, and labels (N_l, W, H, D), changed."""
        if self.intensity == "strong":
            image = strong_intensity(image, rng)
        return mix_labeled(image, label) if self.mix and len(label) else (image, label)
