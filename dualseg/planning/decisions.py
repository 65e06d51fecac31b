"""From a fingerprint to a plan, each decision with its reason."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dualseg.errors import DualsegError
from dualseg.machine import size_text
from dualseg.planning.fingerprint import DatasetFingerprint, Foreground
from dualseg.planning.memory import training_bytes
from dualseg.planning.topology import Topology, blocks_of, channels_of, topology_of

ANISOTROPIC = 3  # times the others' edges, from which an axis is taken finer than its median
FINER_PERCENTILE = 10
FIELD = 256.0  # side of a patch in voxels to begin with, as a cube of the same length in mm along each axis
LEAST_SIDE = 16  # voxels of a patch, where the volumes have as many
LEAST_BATCH, MOST_BATCH = 2, 4  # labeled patches an iteration; as many unlabeled ones come with them

DECISIONS = (
    "spacing",
    "intensity",
    "patch_size",
    "stride",
    "batch",
    "base_channels",
    "channels",
    "strides",
    "kernels",
    "blocks",
)


@dataclass(frozen=True)
class Plan:
    """What was decided, and why.

    Attributes:
        values: each of `DECISIONS`.
        reasons: a sentence for each of those that need one.
        gpu: whether it was made for a GPU; None: unknown.
    """

    values: dict[str, Any]
    reasons: dict[str, str]
    gpu: bool | None = None


def decide(
    found: DatasetFingerprint, given: Mapping[str, Any], memory: int, downsample: float = 1.0, multiple: int = 1
) -> Plan:
    """Plan what is not given.

    Args:
        found: what is known of the dataset.
        given: decisions that are the user's: they stand, and the others follow them. `base_channels` is among them;
            `spacing` may be `median`.
        memory: bytes that the activations of a training iteration may take.
        downsample: factor by which networks see volumes smaller.
        multiple: what networks that are not planned need the sides of a patch to be multiples of.

    Raises:
        DualsegError: even the smallest patch takes more memory.
    """
    spacing, why_spacing = _spacing(found)
    if "spacing" in given:
        spacing, why_spacing = given["spacing"], "given"
        spacing = found.median_spacing if spacing == "median" else list(spacing)
    edges = np.array(spacing) * downsample
    shape = np.maximum(1, np.round(np.median(found.shapes * found.spacings / edges, axis=0))).astype(int).tolist()
    base, classes = given["base_channels"], len(found.class_names)
    if given.get("patch_size"):
        patch, why_patch = list(given["patch_size"]), "given"
    else:
        patch, why_patch = _patch(shape, edges.tolist(), base, classes, memory, multiple)
        why_patch += f", in multiples of {multiple} for networks that are not planned" if multiple > 1 else ""
    unet = topology_of(patch, edges.tolist())
    batch = _batch(patch, unet, base, classes, memory)
    intensity, why_intensity = _intensity(found.foreground)
    values = {
        "spacing": spacing,
        "intensity": intensity,
        "patch_size": patch,
        "stride": [max(1, side // 2) for side in patch],
        "batch": batch,
        **networks_of(unet, base),
    }
    taken = size_text(training_bytes(patch, 2 * batch, unet, base, classes))
    reasons = {
        "spacing": why_spacing,
        "intensity": why_intensity,
        "patch_size": f"{why_patch}; the median volume has {by_text(shape)} voxels at this spacing",
        "stride": "half a patch",
        "batch": f"labeled patches an iteration, with as many unlabeled ones; two networks would take about {taken} "
        f"of plan.memory {size_text(memory)}",
        "strides": f"{len(unet.strides)} stages; halved along axes of similar edges, down to 4 voxels at least",
    }
    return Plan(values, reasons)


def networks_of(unet: Topology, base_channels: int) -> dict[str, Any]:
    """The decisions that networks are built from."""
    stages = len(unet.strides)
    return {
        "base_channels": base_channels,
        "channels": channels_of(base_channels, stages),
        "strides": unet.strides,
        "kernels": unet.kernels,
        "blocks": blocks_of(base_channels, stages),
    }


def _spacing(found: DatasetFingerprint) -> tuple[list[float], str]:
    edges = found.median_spacing
    axis = int(np.argmax(edges))
    others = max(edge for k, edge in enumerate(edges) if k != axis)
    if edges[axis] < ANISOTROPIC * others:
        return edges, f"median of {len(found.spacings)} images"
    finer = max(float(np.percentile(found.spacings[:, axis], FINER_PERCENTILE)), others)
    edges[axis] = float(f"{finer:.6g}")
    name = ("left-right", "back-front", "feet-head")[axis]
    return edges, (
        f"median of {len(found.spacings)} images; {name}, {ANISOTROPIC} times coarser than the others, their "
        f"{FINER_PERCENTILE}th percentile"
    )


def _intensity(foreground: Sequence[Foreground | None]) -> tuple[list[Any], str]:
    """One entry a channel, as `Folder` takes them."""
    each: list[Any] = []
    for found in foreground:
        if found is None:
            each.append("zscore")
        else:
            each.append({"clip": [found.low, found.high], "mean": found.mean, "deviation": found.deviation})
    kinds = []
    if None in foreground:
        kinds.append("each scan by its own mean and deviation")
    if any(foreground):
        kinds.append("CT clipped to percentiles 0.5 and 99.5 of the labeled voxels, then by their mean and deviation")
    return each, "; ".join(kinds)


def _patch(
    shape: Sequence[int], edges: Sequence[float], base_channels: int, classes: int, memory: int, multiple: int
) -> tuple[list[int], str]:
    """The largest patch of the volumes' form that fits: start at a cube in mm, cut to the median volume, shrink.

    Shrunk along the axis of which it covers the largest share, by what that axis is halved to.
    """
    cube = FIELD * math.prod(edges) ** (1 / 3)
    patch = [max(1, min(side, round(cube / edge))) for side, edge in zip(shape, edges, strict=True)]
    covers = patch == list(shape)
    while True:
        unet = topology_of(patch, edges)
        steps = [math.lcm(step, multiple) for step in unet.divisor]
        patch = [-(-side // step) * step for side, step in zip(patch, steps, strict=True)]
        if training_bytes(patch, 2 * LEAST_BATCH, unet, base_channels, classes) <= memory:
            return patch, "the whole volume" if covers else "the largest that fits into memory"
        covers = False
        axes = [axis for axis in range(3) if patch[axis] - steps[axis] >= min(LEAST_SIDE, shape[axis])]
        if not axes:
            raise DualsegError(
                f"plan.memory={size_text(memory)}: does not hold a patch of {by_text(patch)} voxels; give more, or "
                "lower base_channels."
            )
        axis = max(axes, key=lambda k: patch[k] / shape[k])
        patch[axis] -= steps[axis]


def _batch(patch: Sequence[int], unet: Topology, base_channels: int, classes: int, memory: int) -> int:
    for batch in range(MOST_BATCH, LEAST_BATCH, -1):
        if training_bytes(patch, 2 * batch, unet, base_channels, classes) <= memory:
            return batch
    return LEAST_BATCH


def by_text(sizes: Sequence[int]) -> str:
    """Three sizes for people: 40x56x40."""
    return "x".join(map(str, sizes))
