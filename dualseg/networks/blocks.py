"""What the networks share: their output, padding, the convolutional blocks and the decoder (method.md section 2)."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

#: Four stages of stride 2: a network without a plan works on sides that are multiples of 2**4.
DIVISOR = 16
#: Names of a network's coarser logits begin with this: `logits_scale1` is the next to the finest, `logits_scale2` ...
SCALE = "logits_scale"


class SegmentationOutput(NamedTuple):
    """What every network returns.

    Attributes:
        logits: class scores before the softmax, (N, K, W, H, D).
        features: the tensor that the last convolution reads, after dropout, (N, F, W, H, D).
        others: further outputs by name, such as those of other decoders, scales or a signed distance: (N, ...) each.
            Methods read them in training; inference does not.
    """

    logits: Tensor
    features: Tensor
    others: Mapping[str, Tensor] = {}


def pad_to_multiple(image: Tensor, divisor: int | Sequence[int]) -> Tensor:
    """Zeros at the end of each spatial axis of an image (N, C, W, H, D), so that `divisor` divides its sides.

    Args:
        divisor: of all sides, or one for each axis.
    """
    divisors = [divisor] * 3 if isinstance(divisor, int) else divisor
    missing = [-side % own for side, own in zip(image.shape[2:], divisors, strict=True)]
    if not any(missing):
        return image
    return F.pad(image, [amount for axis in reversed(missing) for amount in (0, axis)])


def crop_output(output: SegmentationOutput, size: Sequence[int]) -> SegmentationOutput:
    """Undo `pad_to_multiple`: the first `size` = (W, H, D) voxels of logits, features, and others on their grid.

    Of coarser logits (`SCALE`), those voxels stay that hold one of the image.
    """
    padded = output.logits.shape[2:]
    if tuple(padded) == tuple(size):
        return output

    def crop(tensor: Tensor, name: str = "") -> Tensor:
        if tensor.shape[2:] != padded and not name.startswith(SCALE):
            return tensor
        w, h, d = (-(-own * side // whole) for own, side, whole in zip(size, tensor.shape[2:], padded, strict=True))
        return tensor[:, :, :w, :h, :d]

    others = {name: crop(tensor, name) for name, tensor in output.others.items()}
    return SegmentationOutput(crop(output.logits), crop(output.features), others)


# ReLU works in place after a BatchNorm, whose backward pass reads its input only. Additions to a skip and dropout do
# not: the ReLU before them needs its own output for the backward pass.


def conv_block(repeats: int, in_channels: int, channels: int) -> nn.Sequential:
    """Block(m, c): `repeats` times Conv3d 3x3x3, BatchNorm3d, ReLU; (N, in_channels, ...) -> (N, channels, ...)."""
    layers: list[nn.Module] = []
    for index in range(repeats):
        layers += [
            nn.Conv3d(in_channels if index == 0 else channels, channels, kernel_size=3, padding=1),
            nn.BatchNorm3d(channels),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def down(in_channels: int, channels: int) -> nn.Sequential:
    """Down(c): Conv3d kernel 2 stride 2, BatchNorm3d, ReLU; halves each side."""
    return nn.Sequential(
        nn.Conv3d(in_channels, channels, kernel_size=2, stride=2), nn.BatchNorm3d(channels), nn.ReLU(inplace=True)
    )


def up(in_channels: int, channels: int) -> nn.Sequential:
    """Up(c): ConvTranspose3d kernel 2 stride 2, BatchNorm3d, ReLU; doubles each side."""
    return nn.Sequential(
        nn.ConvTranspose3d(in_channels, channels, kernel_size=2, stride=2),
        nn.BatchNorm3d(channels),
        nn.ReLU(inplace=True),
    )


class _DecoderStep(nn.Module):
    def __init__(self, repeats: int, channels: int) -> None:
        super().__init__()
        self.up = up(2 * channels, channels)
        self.block = conv_block(repeats, channels, channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.block(self.up(x) + skip)


class Decoder(nn.Module):
    """Up(c) + skip, Block(m, c) for (m, c) = (3, 8n), (3, 4n), (2, 2n), (1, n); Dropout3d; Conv3d 1x1x1 to K classes.

    Args:
        base_channels: n, the channels of the finest scale and of the features.
        num_classes: K.
        dropout: probability that a channel of the features is zeroed while training.
    """

    def __init__(self, base_channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        n = base_channels
        self.steps = nn.ModuleList(
            _DecoderStep(repeats, channels) for repeats, channels in ((3, 8 * n), (3, 4 * n), (2, 2 * n), (1, n))
        )
        self.dropout = nn.Dropout3d(dropout)
        self.classifier = nn.Conv3d(n, num_classes, kernel_size=1)

    def forward(self, scales: Sequence[Tensor]) -> SegmentationOutput:
        """The encoder's five outputs, finest first, with n, 2n, 4n, 8n, 16n channels -> logits and features."""
        *skips, x = scales
        for step, skip in zip(self.steps, reversed(skips), strict=True):
            x = step(x, skip)
        features = self.dropout(x)
        return SegmentationOutput(self.classifier(features), features)


def initialize(network: nn.Module) -> None:
    """He-normal weights for convolutions and transposed convolutions; all else keeps PyTorch's default.

    That default is what the specification asks for: biases uniform by fan-in, BatchNorm scale 1 and shift 0.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(module.weight)
