"""Small display copies of three orthogonal slices through a case."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dualseg.data.volumes import label_dtype

PLANES = {
    "sagittal": 0,
    "coronal": 1,
    "axial": 2,
}  # name -> axis that the plane is orthogonal to, volumes being (W, H, D)


def display_slices(
    image: Tensor,
    label: Tensor,
    spacing: Sequence[float],
    probabilities: Mapping[str, Tensor],
    record: str,
    members: Sequence[str],
) -> dict[str, np.ndarray]:
    """Slices through the centre of the reference (of the volume where it is empty), laid out [row, column].

    Args:
        image: (C, w, h, d); its first channel is shown, interpolated to the label's grid.
        label: (W, H, D), the reference.
        spacing: millimetres per voxel.
        probabilities: network name -> (K, W, H, D).
        record: the one that gives prediction and entropy.
        members: the networks whose mean that is.

    Returns:
        For each plane: <plane>_image (uint8, 1st to 99th percentile), _reference, _prediction (`label_dtype`), _entropy
        (uint8, 255 = log K), _disagreement (uint8, 1 where two members' labels differ), and aspect_<plane> (height of
        a pixel over its width).
    """
    p = probabilities[record]
    num_classes = p.shape[0]
    entropy = -(p * p.clamp(min=1e-12).log()).sum(dim=0) / math.log(num_classes)
    single = [probabilities[name].argmax(dim=0) for name in members]
    disagreement = torch.stack([q != single[0] for q in single]).any(dim=0)
    grey = F.interpolate(image[None, :1].float(), size=tuple(label.shape), mode="trilinear", align_corners=False)[0, 0]
    low, high = np.percentile(grey.cpu().numpy(), [1, 99])
    shown = {
        "image": ((grey - low) / max(high - low, 1e-6)).clamp(0, 1) * 255,
        "reference": label,
        "prediction": p.argmax(dim=0),
        "entropy": entropy.clamp(0, 1) * 255,
        "disagreement": disagreement,
    }
    foreground = label.nonzero().float()
    centre = foreground.mean(dim=0).round().long().tolist() if len(foreground) else [s // 2 for s in label.shape]
    slices: dict[str, np.ndarray] = {}
    for plane, axis in PLANES.items():
        column_axis, row_axis = [a for a in range(3) if a != axis]
        for what, volume in shown.items():
            # second axis downwards, flipped: superior or anterior is up
            picture = volume.select(axis, centre[axis]).T.flip(0)
            dtype = label_dtype(num_classes) if what in ("reference", "prediction") else np.uint8
            slices[f"{plane}_{what}"] = picture.cpu().numpy().astype(dtype)
        slices[f"aspect_{plane}"] = np.asarray(spacing[row_axis] / spacing[column_axis])
    return slices
