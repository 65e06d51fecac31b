"""How much of a patch that is cut anywhere each class fills, on average."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor


def class_shares(labels: Iterable[Tensor], patch_size: Sequence[int], classes: int) -> Tensor:
    """Expected share of each class in a patch cut uniformly from a volume, mean over volumes.

    A voxel counts as often as there are places of the patch that hold it, so one near the border counts less. Where the
    volume is smaller than the patch, what is filled up is background.

    Args:
        labels: (w, h, d) each, integers below K.
        patch_size: (W, H, D).
        classes: K.

    Returns:
        (K,) float32; zeros where there are no labels.
    """
    shares = [_of_volume(label.numpy(), patch_size, classes) for label in labels]
    mean = np.mean(shares, axis=0) if shares else np.zeros(classes)
    return torch.from_numpy(mean).float()


def _of_volume(label: np.ndarray, patch_size: Sequence[int], classes: int) -> np.ndarray:
    x, y, z = (_coverage(*pair) for pair in zip(label.shape, patch_size, strict=True))
    plane = np.outer(y, z).ravel()
    shares = np.zeros(classes)
    for weight, layer in zip(x, label, strict=True):  # layer by layer: weights of a whole CT would take gigabytes
        shares += weight * np.bincount(layer.ravel(), plane, classes)
    shares[0] = 1 - shares[1:].sum()
    return shares


def _coverage(length: int, side: int) -> np.ndarray:
    """(length,) the probability that a voxel of the patch, drawn at random, is this one of the volume."""
    places = max(length - side, 0) + 1
    voxel = np.arange(length)
    holding = np.minimum(voxel, places - 1) - np.maximum(voxel - side + 1, 0) + 1
    return holding / (places * side)
