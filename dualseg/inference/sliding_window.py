"""Sliding-window probabilities of several networks over one volume, through MONAI."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn
from torch.nn import functional as F

from dualseg.inference.folding import fold_batch_norm

_VOXEL_BYTES = 512  # of feature maps of full width, for each voxel of the windows in one pass


class SlidingWindow:
    """Windows at 0, s, 2s, ... along each axis, the last clamped to the edge; probabilities averaged in overlaps.

    Volumes smaller than the patch are zero-padded, centred (method.md section 5).

    Args:
        patch_size: window, voxels.
        stride: distance between windows per axis, voxels, 1..patch_size.
        batch_size: windows in one forward pass.
        memory_format: of the windows; give the networks' own.
        mirror: average the probabilities over the eight mirror images of each window.

    Raises:
        ValueError: a stride outside 1..patch_size.
    """

    def __init__(
        self,
        patch_size: Sequence[int],
        stride: Sequence[int],
        batch_size: int = 4,
        memory_format: torch.memory_format = torch.channels_last_3d,
        mirror: bool = False,
    ) -> None:
        if len(patch_size) != len(stride) or not all(1 <= s <= p for s, p in zip(stride, patch_size, strict=True)):
            raise ValueError(f"stride {list(stride)}: needs 1..patch_size {list(patch_size)} on each of three axes.")
        self.patch_size, self.stride = tuple(patch_size), tuple(stride)
        self.batch_size = batch_size
        self.memory_format = memory_format
        self.mirrors = [axes for n in range(4 if mirror else 1) for axes in combinations((2, 3, 4), n)]
        # MONAI takes an overlap fraction and floors patch * (1 - overlap), which for 112 and 18 gives 17. Half a
        # voxel of slack makes the floor give the stride that was asked for.
        self.overlap = tuple(0.0 if s == p else 1 - (s + 0.5) / p for s, p in zip(stride, patch_size, strict=True))

    def pass_bytes(self, classes: int, networks: int = 1) -> int:
        """What one forward pass of each network takes, about: feature maps or, of many classes, their scores.

        Those are logits, probabilities, the other networks' probabilities and the sum over mirror images; float32.
        """
        scores = 4 * classes * (networks + 1 + (len(self.mirrors) > 1))
        return math.prod(self.patch_size) * self.batch_size * max(_VOXEL_BYTES, scores)

    def __call__(
        self,
        networks: Mapping[str, nn.Module],
        image: Tensor,
        size: Sequence[int] | None = None,
        ensemble: Sequence[str] | None = None,
    ) -> dict[str, Tensor]:
        """Window-averaged probabilities of each network, and their mean as `ensemble` where there are several.

        Args:
            networks: name -> network that returns (logits, features).
            image: (C, w, h, d) float32, on the networks' device.
            size: (W, H, D) of the grid to interpolate the probabilities to; None keeps the image's.
            ensemble: the networks whose mean that is; None: all.

        Returns:
            name -> (K, W, H, D) float32.
        """
        folded = [fold_batch_norm(network) for network in networks.values()]

        def predict(windows: Tensor) -> Tensor:
            return torch.cat([self._probabilities(network, windows) for network in folded], dim=1)

        stacked = sliding_window_inference(
            image[None], self.patch_size, self.batch_size, predict, overlap=self.overlap, mode="constant"
        )
        assert isinstance(stacked, Tensor)
        if size is not None and tuple(size) != tuple(image.shape[1:]):
            stacked = F.interpolate(stacked, size=tuple(size), mode="trilinear", align_corners=False)
        probabilities = dict(zip(networks, stacked[0].chunk(len(networks)), strict=True))
        members = tuple(networks if ensemble is None else ensemble)
        if len(members) > 1:
            probabilities["ensemble"] = torch.stack([probabilities[name] for name in members]).mean(dim=0)
        return probabilities

    def _probabilities(self, network: nn.Module, windows: Tensor) -> Tensor:
        """(N, K, w, h, d) of windows (N, C, w, h, d), averaged over the mirror images."""
        total: Tensor | None = None
        for axes in self.mirrors:
            seen = windows.flip(axes).contiguous(memory_format=self.memory_format)
            p = network(seen).logits.float().softmax(dim=1).flip(axes)
            total = p if total is None else total + p
        assert total is not None
        return total / len(self.mirrors)
