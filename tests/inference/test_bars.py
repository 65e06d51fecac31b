"""Bar after bar against all windows at once, in memory and on disk."""

import numpy as np
import pytest
import torch

from dualseg.inference import SlidingWindow
from dualseg.inference.bars import bar_count, segment_into
from dualseg.inference.scratch import Scratch
from dualseg.networks import VNet


@pytest.fixture(scope="module")
def network() -> VNet:
    torch.manual_seed(0)
    return VNet(in_channels=1, num_classes=3, base_channels=2).eval()


@pytest.mark.parametrize("shape", [(40, 37, 29), (16, 16, 16), (9, 33, 12), (50, 10, 40)])
@pytest.mark.parametrize("stride", [(8, 8, 8), (5, 16, 7)])
def test_bars_give_what_the_sliding_window_gives(network, shape, stride) -> None:
    image = np.random.default_rng(1).normal(size=(1, *shape)).astype(np.float32)
    window = SlidingWindow((16, 16, 16), stride)
    store, calls = np.zeros((3, *shape), np.float32), []
    segment_into(store, network, image, window, torch.device("cpu"), lambda: calls.append(1))
    with torch.no_grad():
        expected = window({"a": network}, torch.from_numpy(image))["a"]
    np.testing.assert_allclose(store, expected, atol=1e-6)
    np.testing.assert_allclose(store.sum(axis=0), 1, atol=1e-5)
    assert len(calls) == bar_count(image.shape, window)


def test_on_disk_is_bit_for_bit_the_same_and_leaves_nothing(network, tmp_path) -> None:
    image = np.random.default_rng(2).normal(size=(1, 30, 20, 24)).astype(np.float32)
    window = SlidingWindow((16, 16, 16), (8, 8, 8), mirror=True)
    scratches = {"memory": Scratch(tmp_path, 10**6), "disk": Scratch(tmp_path, 1000)}
    stores = {}
    for name, scratch in scratches.items():
        stores[name] = scratch.zeros((3, 30, 20, 24), np.float32)
        segment_into(stores[name], network, image, window, torch.device("cpu"), scratch.let_go)
    assert scratches["memory"].on_disk == 0 and scratches["disk"].on_disk == 3 * 30 * 20 * 24 * 4
    np.testing.assert_array_equal(stores["disk"], stores["memory"])
    assert not any(tmp_path.iterdir())


def test_room_is_used_up_array_by_array(tmp_path) -> None:
    scratch = Scratch(tmp_path, 100)
    assert scratch.zeros((10, 10), np.uint8, "F").flags.f_contiguous and scratch.on_disk == 0
    on_disk = scratch.zeros((5, 4), np.float32, "F")
    assert on_disk.flags.f_contiguous and not on_disk.any() and scratch.on_disk == 80
    on_disk[2] = 7
    scratch.let_go()
    assert (on_disk[2] == 7).all() and on_disk.sum() == 28


def test_mirroring_is_the_mean_over_the_eight_mirror_images(network) -> None:
    image = torch.from_numpy(np.random.default_rng(3).normal(size=(1, 16, 16, 16)).astype(np.float32))
    with torch.no_grad():
        got = SlidingWindow((16, 16, 16), (16, 16, 16), mirror=True)({"a": network}, image)["a"]
        total = torch.zeros(3, 16, 16, 16, dtype=torch.float64)
        for code in range(8):
            axes = [1 + axis for axis in range(3) if code >> axis & 1]
            total += network(image.flip(axes)[None]).logits.softmax(dim=1)[0].flip(axes)
    np.testing.assert_allclose(got, total / 8, atol=1e-5)
    plain = SlidingWindow((16, 16, 16), (16, 16, 16))({"a": network}, image)["a"]
    assert (plain - got).abs().max() > 1e-3
