"""Which windows are really cut, and that their average is that of a plain loop."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dualseg.inference import SlidingWindow
from dualseg.networks import SegmentationOutput, VNet


class Recorder(nn.Module):
    """Reads the coordinates (from 1; 0 is padding) that the image encodes in its three channels off every window."""

    def __init__(self) -> None:
        super().__init__()
        self.windows: list[list[tuple[int, int]]] = []
        self.batches: list[int] = []

    def forward(self, windows: Tensor) -> SegmentationOutput:
        self.batches.append(len(windows))
        for window in windows:
            axes = []
            for axis in range(3):
                along = window[axis].amax(dim=[a for a in range(3) if a != axis])
                inside = along.nonzero().flatten()
                first = int(inside[0])
                assert torch.equal(along[inside].diff(), torch.ones(len(inside) - 1)), "one run of voxels, unmixed"
                axes.append((round(float(along[first])) - 1 - first, len(along)))
            self.windows.append(axes)
        return SegmentationOutput(windows[:, :2], windows)


def coordinates(size: Sequence[int]) -> Tensor:
    return torch.stack(torch.meshgrid(*(torch.arange(1.0, s + 1) for s in size), indexing="ij"))


def specified_origins(size: int, patch: int, stride: int) -> list[int]:
    """0, s, 2s, ... and the last clamped to the edge; a volume smaller than the patch lies centred in one window."""
    if size <= patch:
        return [-((patch - size) // 2)]
    origins = [0]
    while origins[-1] + patch < size:
        origins.append(min(origins[-1] + stride, size - patch))
    return origins


@pytest.mark.parametrize(
    ("size", "patch", "stride"),
    [
        ((180, 138, 88), (112, 112, 80), (18, 18, 4)),  # Left Atrium, the protocol
        ((112, 113, 81), (112, 112, 80), (18, 18, 4)),  # just the patch, and one voxel more
        ((130, 131, 84), (112, 112, 80), (18, 18, 4)),  # a whole number of strides, and one voxel more
        ((150, 140, 121), (96, 96, 96), (16, 16, 16)),  # Pancreas-CT
        ((155, 150, 140), (96, 96, 96), (64, 64, 64)),  # BraTS
        ((70, 60, 50), (48, 48, 32), (16, 16, 16)),  # the embedded dataset
        ((61, 47, 30), (48, 48, 32), (8, 8, 8)),  # smaller than the patch along two axes
        ((20, 21, 33), (32, 32, 32), (32, 32, 32)),  # no overlap, smaller along two
        ((100, 64, 65), (32, 32, 32), (32, 31, 1)),  # edge to edge; all but one voxel; every voxel
        ((50, 37, 41), (16, 16, 16), (7, 3, 15)),
    ],
)
def test_window_origins(size, patch, stride):
    recorder = Recorder()
    SlidingWindow(patch, stride, batch_size=4)({"a": recorder}, coordinates(size))
    expected = [specified_origins(*axis) for axis in zip(size, patch, stride, strict=True)]
    origins = [tuple(origin for origin, _ in window) for window in recorder.windows]
    assert sorted(origins) == sorted(itertools.product(*expected)), "each window once"
    assert {tuple(length for _, length in window) for window in recorder.windows} == {patch}


def test_every_stride_of_the_usual_patches():
    """MONAI floors patch * (1 - overlap), which rounding may take one below the stride: 17 for 112 and 18."""
    wrong = []
    for patch in (16, 32, 48, 64, 80, 96, 112, 128, 160):
        for stride in range(1, patch + 1):
            recorder = Recorder()
            size = patch + 2 * stride + 1
            SlidingWindow((patch, 2, 2), (stride, 2, 2), batch_size=64)({"a": recorder}, coordinates((size, 2, 2)))
            origins = [window[0][0] for window in recorder.windows]
            if origins != specified_origins(size, patch, stride):
                wrong.append((patch, stride, origins))
    assert wrong == []


def test_windows_come_in_batches():
    recorder = Recorder()
    SlidingWindow((16, 16, 16), (8, 8, 8), batch_size=5)({"a": recorder}, coordinates((32, 24, 16)))
    assert recorder.batches == [5, 1]


def networks(num_classes: int = 3) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    pair = {name: VNet(num_classes=num_classes, base_channels=2).eval() for name in ("a", "b")}
    for network in pair.values():  # untrained statistics leave the logits all but constant
        network.train()
        with torch.no_grad():
            network(torch.randn(4, 1, 16, 16, 16))
        network.eval()
    return pair


def plain_loop(network: nn.Module, image: Tensor, patch: Sequence[int], stride: Sequence[int]) -> np.ndarray:
    """Windows one by one, probabilities summed and divided by their count, in float64."""
    size = image.shape[1:]
    low = [max(0, p - s) // 2 for s, p in zip(size, patch, strict=True)]
    high = [max(0, p - s) - before for s, p, before in zip(size, patch, low, strict=True)]
    padded = np.pad(image.numpy(), [(0, 0), *zip(low, high, strict=True)])
    total = np.zeros((3, *padded.shape[1:]))
    count = np.zeros(padded.shape[1:])
    starts = [specified_origins(s, p, t) for s, p, t in zip(padded.shape[1:], patch, stride, strict=True)]
    for origin in itertools.product(*starts):
        here = tuple(slice(o, o + p) for o, p in zip(origin, patch, strict=True))
        logits = network(torch.from_numpy(padded[(slice(None), *here)])[None]).logits[0].double().numpy()
        exponentials = np.exp(logits - logits.max(axis=0))
        total[(slice(None), *here)] += exponentials / exponentials.sum(axis=0)
        count[here] += 1
    assert count.min() >= 1
    inner = tuple(slice(before, before + s) for before, s in zip(low, size, strict=True))
    return (total / count)[(slice(None), *inner)]


@pytest.mark.parametrize("size", [(37, 30, 24), (16, 20, 11), (9, 10, 11)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@torch.no_grad()
def test_equals_a_plain_loop(size, memory_format):
    patch, stride = (16, 16, 16), (6, 9, 5)
    pair = networks()
    image = torch.randn(1, *size, generator=torch.Generator().manual_seed(1))
    expected = {name: plain_loop(network, image, patch, stride) for name, network in pair.items()}
    nn.ModuleDict(pair).to(memory_format=memory_format)
    result = SlidingWindow(patch, stride, 3, memory_format)(pair, image)
    assert list(result) == ["a", "b", "ensemble"]
    for name, p in expected.items():
        assert result[name].shape == (3, *size)
        assert result[name].dtype == torch.float32
        np.testing.assert_allclose(result[name].numpy(), p, rtol=0, atol=1e-5)
    np.testing.assert_allclose(result["ensemble"].numpy(), (expected["a"] + expected["b"]) / 2, rtol=0, atol=1e-5)
    assert np.abs(expected["a"] - expected["b"]).max() > 0.05, "the networks differ"


@torch.no_grad()
def test_interpolates_back_to_the_own_grid():
    pair = networks()
    image = torch.randn(1, 20, 18, 16, generator=torch.Generator().manual_seed(2))
    window = SlidingWindow((16, 16, 16), (8, 8, 8))
    coarse, fine = window(pair, image), window(pair, image, size=(47, 55, 33))
    for name, p in coarse.items():
        expected = F.interpolate(p[None].double(), size=(47, 55, 33), mode="trilinear", align_corners=False)[0]
        assert fine[name].shape == (3, 47, 55, 33)
        np.testing.assert_allclose(fine[name].numpy(), expected.numpy(), rtol=0, atol=1e-5)
        torch.testing.assert_close(fine[name].sum(dim=0), torch.ones(47, 55, 33), rtol=0, atol=1e-5)
    same = window(pair, image, size=(20, 18, 16))
    assert all(torch.equal(same[name], p) for name, p in coarse.items())


@torch.no_grad()
def test_one_network_has_no_ensemble_and_several_channels_pass():
    torch.manual_seed(0)
    network = VNet(in_channels=2, num_classes=4, base_channels=2).eval()
    result = SlidingWindow((16, 16, 16), (16, 16, 16))({"a": network}, torch.randn(2, 20, 16, 16))
    assert list(result) == ["a"]
    assert result["a"].shape == (4, 20, 16, 16)


@torch.no_grad()
def test_half_precision_is_averaged_in_float32():
    class Half(nn.Module):
        def forward(self, windows: Tensor) -> SegmentationOutput:
            logits = torch.cat([windows, -windows], dim=1).bfloat16()
            return SegmentationOutput(logits, logits)

    image = torch.randn(1, 24, 16, 16, generator=torch.Generator().manual_seed(3))
    p = SlidingWindow((16, 16, 16), (8, 8, 8))({"a": Half()}, image)["a"]
    assert p.dtype == torch.float32
    expected = torch.cat([image, -image]).bfloat16().float().softmax(dim=0)
    torch.testing.assert_close(p, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("stride", [(0, 8, 8), (8, 17, 8), (8, 8)])
def test_impossible_strides_are_refused(stride):
    with pytest.raises(ValueError, match=r"needs 1\.\.patch_size"):
        SlidingWindow((16, 16, 16), stride)
