"""Features at a coarser grid than the network gives them."""

from torch import Tensor


def block_mean(tensor: Tensor, stride: int) -> Tensor:
    """Means of blocks of stride x stride x stride voxels, (N, C, W, H, D) -> (N, C, W // stride, ...).

    Voxels at the end of a side that fill no block are left out; a side shorter than a block is one block. Unlike
    torch's pooling its gradient is deterministic on a GPU.

    >>> import torch
    >>> block_mean(torch.arange(4.0).view(1, 1, 4, 1, 1), 2).flatten()
    tensor([0.5000, 2.5000])
    """
    for axis in (2, 3, 4):
        size = min(stride, tensor.shape[axis])
        count = tensor.shape[axis] // size
        tensor = tensor.narrow(axis, 0, count * size).unflatten(axis, (count, size)).mean(dim=axis + 1)
    return tensor


def block_centre(label: Tensor, stride: int) -> Tensor:
    """The voxel in the middle of each block of `block_mean`, (N, W, H, D) -> (N, W // stride, ...).

    >>> import torch
    >>> block_centre(torch.arange(4).view(1, 4, 1, 1), 2).flatten()
    tensor([1, 3])
    """
    for axis in (1, 2, 3):
        size = min(stride, label.shape[axis])
        count = label.shape[axis] // size
        label = label.narrow(axis, 0, count * size).unflatten(axis, (count, size)).select(axis + 1, size // 2)
    return label
