"""Changes of intensity; each patch its own. Numbers such as `factor` are (N,) tensors, as `uniform` draws them."""

import torch
from torch import Tensor
from torch.nn import functional as F


def uniform(image: Tensor, low: float, high: float) -> Tensor:
    """One number a patch, uniform in [low, high), on its device: (N, C, W, H, D) -> (N,)."""
    return low + (high - low) * torch.rand(len(image), device=image.device)


def _each(numbers: Tensor) -> Tensor:
    return numbers.view(-1, 1, 1, 1, 1)


def noise(image: Tensor, std: float = 0.1, limit: float | None = None) -> Tensor:
    """Gaussian noise of this standard deviation, cut off at +-limit (mean teachers: 0.1 and 0.2)."""
    added = std * torch.randn_like(image)
    return image + (added if limit is None else added.clamp(-limit, limit))


def brightness(image: Tensor, shift: Tensor) -> Tensor:
    """A patch plus a constant."""
    return image + _each(shift)


def contrast(image: Tensor, factor: Tensor) -> Tensor:
    """Distances from the mean of each channel times a factor."""
    mean = image.mean(dim=(2, 3, 4), keepdim=True)
    return (image - mean) * _each(factor) + mean


def gamma(image: Tensor, exponent: Tensor, eps: float = 1e-7) -> Tensor:
    """x^exponent on each channel's range, mapped to 0..1 and back."""
    low = image.amin(dim=(2, 3, 4), keepdim=True)
    width = image.amax(dim=(2, 3, 4), keepdim=True) - low
    return ((image - low) / (width + eps)).pow(_each(exponent)) * width + low


def blur(image: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Gaussian filter along each axis; edges are repeated.

    Args:
        sigma: (N,) standard deviations in voxels.
        largest: that `sigma` can have: it decides the length of the filter, three deviations to each side.
    """
    if not len(image):  # a convolution of no groups is refused
        return image
    radius = max(1, int(3 * largest + 0.5))
    places = torch.arange(-radius, radius + 1, device=image.device)
    kernel = torch.softmax(-0.5 * (places / sigma.clamp(min=1e-3)[:, None]) ** 2, dim=1)  # (N, k), adds up to 1
    kernel = kernel.repeat_interleave(image.shape[1], dim=0)
    stacked = image.flatten(0, 1)[None]  # a group a patch and channel
    for axis in range(3):
        shape = [len(kernel), 1, *(len(places) if k == axis else 1 for k in range(3))]
        padding = [radius if k == axis else 0 for k in (2, 2, 1, 1, 0, 0)]
        stacked = F.conv3d(F.pad(stacked, padding, mode="replicate"), kernel.view(shape), groups=len(kernel))
    return stacked.view_as(image)


def low_resolution(image: Tensor, zoom: Tensor) -> Tensor:
    """A patch as from a coarser grid: the nearest voxel for each coarse one, then linear interpolation back.

    Args:
        zoom: (N,) coarse voxels per voxel, 0 < zoom <= 1.
    """
    for axis in (2, 3, 4):
        image = _coarse_along(image, zoom[:, None], axis)
    return image


def _coarse_along(image: Tensor, zoom: Tensor, axis: int) -> Tensor:
    """`low_resolution` along one axis; zoom (N, 1)."""
    size = image.shape[axis]
    shape = [len(image), 1, *(size if k == axis else 1 for k in (2, 3, 4))]
    place = (torch.arange(size, device=image.device) + 0.5) * zoom - 0.5  # (N, size), among the coarse voxels
    last = (size * zoom).round().clamp(min=1) - 1

    def values_of(coarse: Tensor) -> Tensor:
        voxel = (coarse.minimum(last).clamp(min=0) + 0.5) / zoom - 0.5
        nearest = voxel.round().long().clamp(0, size - 1)
        return image.gather(axis, nearest.view(shape).expand_as(image))

    below = place.floor()
    return torch.lerp(values_of(below), values_of(below + 1), (place - below).view(shape))
