"""What a training iteration of the planned pair takes of memory, about."""

import math
from collections.abc import Sequence

from dualseg.planning.topology import Topology, blocks_of, channels_of

NETWORKS = 2
KEPT = 2  # tensors of a convolution, its norm and activation that the backward pass reads
BYTES = 4  # float32; mixed precision takes about half, which is left as a margin
LOSSES = 8  # tensors of K classes at full resolution: logits, their softmax, its logarithm, gradients, targets


def training_bytes(patch: Sequence[int], patches: int, topology: Topology, base_channels: int, num_classes: int) -> int:
    """Bytes of the activations of both networks on `patches` patches, kept for the backward pass.

    Weights, their gradients and the workspace of convolutions are not in it: with patches worth planning for they are
    small beside it.
    """
    stages = len(topology.strides)
    channels, blocks = channels_of(base_channels, stages), blocks_of(base_channels, stages)
    voxels = float(math.prod(patch))
    elements = 0.0
    for stage in range(stages):
        voxels /= math.prod(topology.strides[stage])
        encoder = 2 * blocks[stage] + 1  # two convolutions a block; and the skip path, or the stem
        decoder = 2 if stage < stages - 1 else 0  # one transposed, one plain
        elements += voxels * channels[stage] * KEPT * (encoder + decoder)
    losses = LOSSES * num_classes * math.prod(patch)
    return int(BYTES * patches * NETWORKS * (elements + losses))
