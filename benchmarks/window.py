"""Sliding-window inference with both networks against a plain loop over the same windows, one by one."""

import copy
import itertools
import math
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from training import training

from dualseg.data.phantom import make_phantom
from dualseg.inference import SlidingWindow

RATIO_LIMIT = 0.75
DIFFERENCE_LIMIT = 1e-5
TRAINING = 100  # iterations
VOLUME, PATCH, STRIDE = (180, 138, 88), (112, 112, 80), (18, 18, 4)


def origins(size: int, patch: int, stride: int) -> list[int]:
    """0, s, 2s, ... along one axis, the last clamped to the edge."""
    last = size - patch
    return [*range(0, last, stride), last]


def part_with(windows: int) -> tuple[int, ...]:
    """The part of VOLUME, from its corner, with as many windows as possible up to `windows`."""
    full = [len(origins(*axis)) for axis in zip(VOLUME, PATCH, STRIDE, strict=True)]
    counts = max(
        (c for c in itertools.product(*(range(1, n + 1) for n in full)) if math.prod(c) <= windows), key=math.prod
    )
    return tuple(
        min(size, patch + stride * (n - 1))
        for size, patch, stride, n in zip(VOLUME, PATCH, STRIDE, counts, strict=True)
    )


def volume(la_root: Path | None) -> tuple[str, Tensor]:
    """Source and image (1, *VOLUME): the first Left Atrium case that is large enough, cropped, or a phantom."""
    if la_root:
        import h5py

        for case in sorted(la_root.glob("*/mri_norm2.h5")):
            with h5py.File(case) as file:
                if all(n >= wanted for n, wanted in zip(file["image"].shape, VOLUME, strict=True)):
                    image = file["image"][tuple(slice(n) for n in VOLUME)]
                    return f"Left Atrium case {case.parent.name}", torch.from_numpy(image)[None].float()
    return "phantom", torch.from_numpy(make_phantom(0, 0, VOLUME)[0])[None]


def trained_networks(base_channels: int) -> dict[str, nn.Module]:
    """Both networks, in channels-last, after a short run of the method on phantoms.

    Float32 itself is too coarse for the bound on the difference while networks are random: through their layers
    rounding grows until either side is 2e-5 off the same networks in float64. Training shrinks it tenfold.
    """
    overrides = ["data.patch_size=[32,32,32]", "batch.labeled=1", "batch.unlabeled=1", f"base_channels={base_channels}"]
    schedule = ["optimizer.lr=0.05", "lr_schedule=polynomial"]
    with tempfile.TemporaryDirectory() as folder:
        _, data, method, trainer = training(Path(folder), TRAINING, [*overrides, *schedule])
        trainer.fit(method, data)
    return dict(method.eval().networks.items())


@torch.no_grad()
def plain_loop(networks: Mapping[str, nn.Module], image: Tensor) -> dict[str, Tensor]:
    """Window after window, network after network, whatever memory format the networks have."""
    size = image.shape[1:]
    sums = {name: torch.zeros(2, *size) for name in networks}
    counts = torch.zeros(size)
    for corner in itertools.product(*(origins(*axis) for axis in zip(size, PATCH, STRIDE, strict=True))):
        region = tuple(slice(start, start + side) for start, side in zip(corner, PATCH, strict=True))
        window = image[None, :, *region].contiguous()
        for name, network in networks.items():
            sums[name][:, *region] += network(window).logits.softmax(dim=1)[0]
        counts[region] += 1
    probabilities = {name: total / counts for name, total in sums.items()}
    return {**probabilities, "ensemble": sum(probabilities.values()) / len(probabilities)}


def run(base_channels: int = 16, windows: int = 45, repeats: int = 1, la_root: Path | None = None) -> dict[str, Any]:
    """Time both over the part of the volume that has `windows` windows (45: all of it), in turn, `repeats` times.

    `la_root`: folder of `<case>/mri_norm2.h5`, None for the environment's DUALSEG_LA_ROOT.
    """
    if la_root is None and (environment := os.environ.get("DUALSEG_LA_ROOT")):
        la_root = Path(environment)
    source, image = volume(la_root)
    part = part_with(windows)
    image = image[:, *(slice(n) for n in part)].contiguous()
    networks = trained_networks(base_channels)
    plain_networks = {
        name: copy.deepcopy(network).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        for name, network in networks.items()
    }
    sliding_window = SlidingWindow(PATCH, STRIDE)
    sides = {
        "ours": lambda x: torch.no_grad()(sliding_window)(networks, x),
        "plain": lambda x: plain_loop(plain_networks, x),
    }
    for call in sides.values():
        call(image[:, : PATCH[0], : PATCH[1], : PATCH[2]])  # warm-up: oneDNN writes its kernels
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    results: dict[str, dict[str, Tensor]] = {}
    for _ in range(repeats):
        for name, call in sides.items():
            start = time.perf_counter()
            results[name] = call(image)
            seconds[name].append(time.perf_counter() - start)
    ratio = statistics.median(a / b for a, b in zip(seconds["ours"], seconds["plain"], strict=True))
    difference = max(float((results["ours"][k] - p).abs().max()) for k, p in results["plain"].items())
    return {
        "name": "window",
        "subject": (
            f"{_count(part)} of the {_count(VOLUME)} windows of a {_x(VOLUME)} volume ({source}), those of its corner "
            f"of {_x(part)}, patch {_x(PATCH)}, stride {_x(STRIDE)}, both networks with base_channels {base_channels}, "
            f"{sliding_window.batch_size} windows a pass; each side {repeats} x"
        ),
        "facts": {
            "sliding window": f"{statistics.median(seconds['ours']):.2f} s",
            "plain loop": f"{statistics.median(seconds['plain']):.2f} s",
        },
        "checks": [("time / plain loop", ratio, RATIO_LIMIT), ("largest difference", difference, DIFFERENCE_LIMIT)],
    }


def _count(size: Sequence[int]) -> int:
    return math.prod(len(origins(*axis)) for axis in zip(size, PATCH, STRIDE, strict=True))


def _x(size: Sequence[int]) -> str:
    return "x".join(map(str, size))
