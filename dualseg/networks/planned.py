"""What the planned networks share: the stages of a plan, padding, and the logits of coarser scales."""

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from dualseg.arguments import counts, one_of, triples
from dualseg.errors import DualsegError
from dualseg.networks.blocks import SCALE, SegmentationOutput, crop_output, pad_to_multiple

SLOPE = 0.01  # of LeakyReLU below 0
Triple = tuple[int, int, int]
Norm = Literal["instance", "batch"]


class PlannedUNet(nn.Module):
    """A U-Net whose stages a plan decides; a subclass builds them and gives `decoded` and `heads`.

    Args:
        channels: of each stage, finest first.
        strides: of each stage, three for the axes, by which it divides its input; the first [1, 1, 1].
        kernels: sides of each stage's convolutions, three for the axes, odd.
        least: number of stages that there must be.

    Attributes:
        feature_channels: F, channels of the features (those of the finest stage).
        divisor: what the strides divide each side by. Images are padded with zeros at their end to multiples of it.
        deep_supervision: whether training gives the coarser logits; see `supervise_scales`.

    Raises:
        DualsegError: stages that cannot be.
    """

    feature_channels: int

    def __init__(
        self, channels: Sequence[int], strides: Sequence[Sequence[int]], kernels: Sequence[Sequence[int]], least: int
    ) -> None:
        super().__init__()
        counts("channels", channels)
        triples("strides", strides)
        triples("kernels", kernels)
        check_lengths({"channels": channels, "strides": strides, "kernels": kernels})
        if len(channels) < least:
            raise DualsegError(f"channels={[*channels]}: {type(self).__name__} needs at least {least} stages.")
        if any(side != 1 for side in strides[0]):
            raise DualsegError(f"strides={plain(strides)}: the first stage is the image's own grid; give it [1,1,1].")
        if any(side % 2 == 0 for kernel in kernels for side in kernel):
            raise DualsegError(f"kernels={plain(kernels)}: give odd sides, 1 or 3 for example.")
        self.feature_channels = channels[0]
        self.divisor = tuple(math.prod(axis) for axis in zip(*strides, strict=True))
        self.deep_supervision = False

    @property
    def heads(self) -> Sequence[nn.Module]:
        """The 1x1x1 convolutions that make logits of decoder stages, finest first: of all but the coarsest."""
        raise NotImplementedError

    def decoded(self, image: Tensor) -> list[Tensor]:
        """Outputs of the decoder's stages, finest first; sides of the image are multiples of `divisor`."""
        raise NotImplementedError

    def supervise_scales(self, on: bool) -> None:
        """Whether training gives coarser logits. Else their heads are frozen, since DDP waits for what is not."""
        self.deep_supervision = on
        for head in self.heads[1:]:
            head.requires_grad_(on)

    def forward(self, image: Tensor) -> SegmentationOutput:
        """(N, C, W, H, D) -> logits (N, K, W, H, D), features (N, F, W, H, D) and, in training, coarser logits.

        These are `others`: `logits_scale1` is of half the resolution where the second stage has stride 2, and so on,
        of all decoder stages but the coarsest.

        Raises:
            DualsegError: the coarsest stage would be one voxel, of which InstanceNorm makes 0 whatever it holds.
        """
        padded = pad_to_multiple(image, self.divisor)
        if tuple(padded.shape[2:]) == self.divisor:
            raise DualsegError(
                f"patch of {tuple(image.shape[2:])} voxels: strides that divide it by {self.divisor} leave one voxel, "
                "which InstanceNorm cannot normalise; give larger patches, or fewer strides."
            )
        stages = self.decoded(padded)
        heads = self.heads if self.training and self.deep_supervision else self.heads[:1]
        logits, *coarser = (head(stage) for head, stage in zip(heads, stages, strict=False))
        others = {f"{SCALE}{number}": tensor for number, tensor in enumerate(coarser, start=1)}
        return crop_output(SegmentationOutput(logits, stages[0], others), image.shape[2:])


def check_lengths(stages: dict[str, Sequence[object]]) -> None:
    """Raises: DualsegError unless all of these are of as many stages as the first."""
    (first, value), *others = stages.items()
    for name, other in others:
        if len(other) != len(value):
            raise DualsegError(
                f"{name}: has {len(other)} stages, {first} {len(value)}; give both for the same number of stages."
            )


def plain(stages: Sequence[Sequence[int]]) -> list[Triple]:
    """Strides or kernels in plain containers, whatever a configuration is made of."""
    return [(x, y, z) for x, y, z in stages]


def set_norm(network: nn.Module, norm: Norm) -> None:
    """Give a network that is built with InstanceNorm BatchNorm instead, where `norm` says so; at its default weights.

    Raises:
        DualsegError: another value.
    """
    one_of("norm", norm, ("instance", "batch"))
    if norm == "instance":
        return
    for module in [*network.modules()]:
        for name, child in module.named_children():
            if isinstance(child, nn.InstanceNorm3d):
                setattr(module, name, nn.BatchNorm3d(child.num_features, child.eps))


def initialize_leaky(network: nn.Module) -> None:
    """He-normal weights for LeakyReLU and biases of 0, for convolutions and transposed convolutions."""
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight, a=SLOPE)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
