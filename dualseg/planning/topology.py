"""How often each axis of a patch is halved, and how wide kernels are: nnU-Net's rules (Isensee et al., 2021)."""

from collections.abc import Sequence
from typing import NamedTuple

STAGES = 6  # at most; nnU-Net halves five times
LEAST_STAGES = 3  # of MONAI's plain U-Net
LEAST_SIDE = 4  # voxels of a patch at the coarsest stage
DIVISOR = 16  # what a network that names no strides halves each side of a patch to, in four steps
WIDEST = 320  # channels; nnU-Net's limit for 3-D
BLOCKS = {"small": (1, 2, 2, 2, 2, 2), "full": (1, 3, 4, 6, 6, 6)}  # residual blocks a stage; `full` is nnU-Net's
SMALL = 8  # channels at full resolution up to which `small` is enough

Triple = tuple[int, int, int]


class Topology(NamedTuple):
    """The shape of a U-Net; one entry a stage.

    Attributes:
        strides: of the first convolution of a stage along each axis; the first is 1, 1, 1.
        kernels: sides of the convolutions.
    """

    strides: list[list[int]]
    kernels: list[list[int]]

    @property
    def divisor(self) -> Triple:
        """What the sides of a patch are multiples of."""
        return divisor_of(self.strides)


def divisor_of(strides: Sequence[Sequence[int]]) -> Triple:
    """How often each axis is halved over all stages, as a factor."""
    factors = [1, 1, 1]
    for stride in strides:
        factors = [factor * step for factor, step in zip(factors, stride, strict=True)]
    return factors[0], factors[1], factors[2]


def topology_of(patch: Sequence[int], spacing: Sequence[float]) -> Topology:
    """Halve the axes whose voxels are finest, while a patch keeps `LEAST_SIDE` voxels along them.

    An axis is left out of a stage while its voxels are more than twice as long as the shortest that can be halved; a
    kernel is 1 voxel long along an axis until its voxels are less than twice as long as the shortest. Of very small
    patches any axis of 3 voxels is halved until there are `LEAST_STAGES`, which may pad it.

    Args:
        patch: voxels along each axis.
        spacing: mm, or any other unit: ratios count.
    """
    sides, edges = [float(side) for side in patch], [float(edge) for edge in spacing]
    strides, kernels = [[1, 1, 1]], [[_kernel(edge, min(edges)) for edge in edges]]
    while len(strides) < STAGES:
        can = [axis for axis in range(3) if sides[axis] >= 2 * LEAST_SIDE]
        if not can and len(strides) < LEAST_STAGES:
            can = [axis for axis in range(3) if sides[axis] > 2]
        if not can:
            break
        finest = min(edges[axis] for axis in can)
        stride = [2 if axis in can and edges[axis] < 2 * finest else 1 for axis in range(3)]
        sides = [-(-side // step) for side, step in zip(sides, stride, strict=True)]
        edges = [edge * step for edge, step in zip(edges, stride, strict=True)]
        strides.append(stride)
        before = kernels[-1]
        kernels.append([max(own, _kernel(edge, min(edges))) for own, edge in zip(before, edges, strict=True)])
    return Topology(strides, kernels)


def _kernel(edge: float, shortest: float) -> int:
    return 3 if edge < 2 * shortest else 1


def channels_of(base_channels: int, stages: int) -> list[int]:
    """Doubled at each stage, up to `WIDEST`."""
    return [min(base_channels * 2**stage, max(WIDEST, base_channels)) for stage in range(stages)]


def blocks_of(base_channels: int, stages: int) -> list[int]:
    """Residual blocks of each stage of the encoder."""
    return list(BLOCKS["small" if base_channels <= SMALL else "full"][:stages])
