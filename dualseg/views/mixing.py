"""Two patches into one."""

import torch
from torch import Tensor
from torch.distributions import Beta


def paste(inside: Tensor, outside: Tensor, mask: Tensor) -> Tensor:
    """`inside` where the mask is true, else `outside`.

    Args:
        inside, outside: (N, C, W, H, D) images, or (N, W, H, D) labels.
        mask: (N, W, H, D) or (1, W, H, D) bool.
    """
    return torch.where(mask if inside.ndim == mask.ndim else mask[:, None], inside, outside)


def with_next(patches: Tensor, mask: Tensor) -> Tensor:
    """Each patch where the mask is true, elsewhere the next one of the batch; after the last comes the first.

    Args:
        patches, mask: as of `paste`.
    """
    return paste(patches, patches.roll(-1, dims=0), mask)


def mixup(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """share x first + (1 - share) x second.

    Args:
        first, second: (N, ...) images or probabilities.
        share: (N,), as `mixup_share` draws it.
    """
    s = share.view(-1, *(1 for _ in first.shape[1:]))
    return s * first + (1 - s) * second


def mixup_share(count: int, alpha: float = 0.2, device: torch.device | None = None) -> Tensor:
    """(N,) drawn from Beta(alpha, alpha) (Zhang et al., ICLR 2018)."""
    concentration = torch.full((count,), alpha, device=device)
    return Beta(concentration, concentration, validate_args=False).sample()
