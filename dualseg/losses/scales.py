"""Deep supervision: a loss of a network's logits at several resolutions (Isensee et al., Nature Methods 2021)."""

from collections.abc import Callable, Sequence

from torch import Tensor


def over_scales(loss: Callable[[Tensor, Tensor], Tensor], outputs: Sequence[Tensor], label: Tensor) -> Tensor:
    """Mean of a loss over scales with weights 1, 1/2, 1/4, ...; of one scale alone, the loss itself.

    Args:
        loss: (output, label of its grid) -> scalar.
        outputs: (N, K, w, h, d) each, finest first; the finest on the label's grid, of others each side a whole part.
        label: (N, W, H, D) int64; a coarser scale has the label of the nearest voxel, the first where several are.

    >>> import torch
    >>> outputs = torch.ones(1, 1, 4, 4, 4), 4 * torch.ones(1, 1, 2, 2, 2)
    >>> over_scales(lambda output, label: output.mean(), outputs, torch.zeros(1, 4, 4, 4))
    tensor(2.)
    """
    if len(outputs) == 1:
        return loss(outputs[0], label)
    values = [0.5**k * loss(output, label_at(label, output.shape[2:])) for k, output in enumerate(outputs)]
    total = sum(values[1:], values[0])
    return total / (2 - 0.5 ** (len(outputs) - 1))  # the sum of the weights


def label_at(label: Tensor, size: Sequence[int]) -> Tensor:
    """(N, W, H, D) labels on a coarser grid of `size` voxels: those at 0, s, 2s, ... along each axis.

    >>> import torch
    >>> label_at(torch.arange(4).view(1, 4, 1, 1), (2, 1, 1)).flatten()
    tensor([0, 2])
    """
    w, h, d = (-(-side // own) for side, own in zip(label.shape[1:], size, strict=True))
    return label[:, ::w, ::h, ::d]
