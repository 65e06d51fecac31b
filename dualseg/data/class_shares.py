"""What the labeled volumes say of each class: how much of a patch it fills, whether it is in one piece."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

ONE_PIECE = 0.95


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


def classes_in_one_piece(labels: Iterable[Tensor], classes: int) -> tuple[int, ...]:
    """The foreground classes of which the largest connected component holds at least 95 % of the voxels.

    Args:
        labels: (w, h, d) each, integers below K; counted together. Components hang together by faces, edges or corners.
        classes: K.

    Returns:
        Their numbers; a class without a voxel is none of them.
    """
    largest, voxels = np.zeros(classes), np.zeros(classes)
    for label in labels:
        array = label.numpy()
        for value, region in enumerate(ndimage.find_objects(array), start=1):
            if region is not None:
                components, _ = ndimage.label(array[region] == value, np.ones((3, 3, 3), bool))
                sizes = np.bincount(components.ravel())[1:]
                largest[value] += sizes.max()
                voxels[value] += sizes.sum()
    return tuple(k for k in range(1, classes) if voxels[k] and largest[k] >= ONE_PIECE * voxels[k])


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
