"""A network over a volume that need not fit into memory: bar after bar, into an array that may lie on disk."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from dualseg.inference.folding import fold_batch_norm
from dualseg.inference.sliding_window import SlidingWindow


def window_starts(size: int, patch: int, stride: int) -> list[int]:
    """Where the windows along one axis begin: 0, s, 2s, ..., the last clamped to the edge."""
    return [*range(0, size - patch, stride), max(size - patch, 0)]


def segment_into(
    store: np.ndarray,
    network: nn.Module,
    image: np.ndarray,
    window: SlidingWindow,
    device: torch.device,
    after_bar: Callable[[], None] = lambda: None,
) -> None:
    """Add the window-averaged probabilities of one network to `store`.

    A bar is all windows that share their place along the first two axes; `SlidingWindow` averages within a bar, and the
    bars are averaged here with the same weight for every window, as if all windows had been averaged at once. Where the
    arrays lie changes no bit of the result.

    Args:
        store: (K, w, h, d) float32, zeros.
        network: on `device`, returns (logits, features).
        image: (C, w, h, d) float32.
        window: how the volume is cut.
        after_bar: called after each bar.
    """
    folded = fold_batch_norm(network)  # once, and not for each bar
    starts, shares = [], []
    for axis in (0, 1):
        size, patch = image.shape[1 + axis], window.patch_size[axis]
        starts.append(window_starts(size, patch, window.stride[axis]))
        count = np.zeros(size, np.float32)
        for start in starts[axis]:
            count[start : start + patch] += 1
        shares.append(1 / count)
    for x in starts[0]:
        for y in starts[1]:
            rows, columns = slice(x, x + window.patch_size[0]), slice(y, y + window.patch_size[1])
            bar = torch.from_numpy(np.ascontiguousarray(image[:, rows, columns])).to(device)
            with torch.inference_mode():
                p = window({"": folded}, bar)[""].cpu().numpy()
            store[:, rows, columns] += p * np.outer(shares[0][rows], shares[1][columns])[:, :, None]
            after_bar()


def bar_count(shape: tuple[int, ...], window: SlidingWindow) -> int:
    """How often `segment_into` calls `after_bar` for an image (C, w, h, d)."""
    rows, columns = (
        len(window_starts(shape[1 + axis], window.patch_size[axis], window.stride[axis])) for axis in (0, 1)
    )
    return rows * columns


def bar_bytes(window: SlidingWindow, classes: int, voxels: int) -> int:
    """What the probabilities of a bar take in `segment_into`, about: an image of so many voxels is taken for a cube."""
    length = max(window.patch_size[2], round(voxels ** (1 / 3)))
    return 2 * 4 * classes * window.patch_size[0] * window.patch_size[1] * length  # MONAI's sum and what becomes of it
