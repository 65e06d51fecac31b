"""Probabilities from the grid that the networks saw to the grid of the scan, by the two affines alone."""

from itertools import product

import numpy as np
import torch
from torch.nn import functional as F

# Voxels from the centres of the outermost ones to their faces. What lies further out was cropped away before the
# networks saw it, and is background.
_REACH = 0.5
_TOLERANCE = 1e-3  # voxels: affines are stored in float32


def to_slab(
    store: np.ndarray, to_store: np.ndarray, shape: tuple[int, int, int], start: int, stop: int
) -> torch.Tensor:
    """Trilinear probabilities on the voxels [start, stop) along the last axis of a grid of `shape`.

    Args:
        store: (K, w, h, d) float32, background first; read in the part that the slab needs.
        to_store: (4, 4), voxel indices of the grid -> voxel indices of `store`.

    Returns:
        (K, W, H, stop - start) float32.
    """
    slab = (shape[0], shape[1], stop - start)
    outside = torch.zeros(len(store), *slab)
    outside[0] = 1
    corners = np.array([[*c, 1] for c in product((0, shape[0] - 1), (0, shape[1] - 1), (start, stop - 1))])
    reached = (corners @ to_store.T)[:, :3]
    sizes = np.array(store.shape[1:])
    low = np.clip(np.floor(reached.min(axis=0) + _TOLERANCE), 0, None).astype(int)
    high = np.minimum(np.ceil(reached.max(axis=0) - _TOLERANCE), sizes - 1).astype(int)
    reach = _REACH + _TOLERANCE
    if (reached.max(axis=0) < -reach).any() or (reached.min(axis=0) > sizes - 1 + reach).any():
        return outside
    low, high = np.minimum(low, sizes - 1), np.maximum(high, 0)
    box = torch.from_numpy(np.ascontiguousarray(store[:, *(slice(a, b + 1) for a, b in zip(low, high, strict=True))]))
    axes = [torch.arange(n, dtype=torch.float64) for n in slab]
    axes[2] += start
    inside = torch.ones(slab, dtype=torch.bool)
    places = []
    for axis in range(3):
        along = [float(to_store[axis, k]) * axes[k].reshape([-1 if i == k else 1 for i in range(3)]) for k in range(3)]
        place = (along[0] + along[1] + (along[2] + float(to_store[axis, 3]))).float()
        inside &= (place >= -reach) & (place <= float(sizes[axis]) - 1 + reach)
        extent = max(int(high[axis] - low[axis]), 1)  # grid_sample's -1..1; over a single voxel any place is that voxel
        places.append((place - float(low[axis])) * (2 / extent) - 1)
    grid = torch.stack(places[::-1], dim=-1)  # grid_sample counts the axes from the last one on
    sampled = F.grid_sample(box[None], grid[None], mode="bilinear", padding_mode="border", align_corners=True)[0]
    return torch.where(inside, sampled, outside)
