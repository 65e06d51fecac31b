"""nnU-Net's residual-encoder U-Net (Isensee et al., MICCAI 2024, arXiv:2404.09556), of planned stages."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualseg.arguments import counts
from dualseg.networks.planned import (
    SLOPE,
    Norm,
    PlannedUNet,
    Triple,
    check_lengths,
    initialize_leaky,
    plain,
    set_norm,
)


class _Convolution(nn.Module):
    """Convolution, InstanceNorm and, if `active`, LeakyReLU; sides are divided by the stride, rounded up."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel: Triple,
        stride: Triple = (1, 1, 1),
        bias: bool = True,
        active: bool = True,
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.conv = nn.Conv3d(in_channels, channels, kernel, stride, padding, bias=bias)
        self.norm = nn.InstanceNorm3d(channels, eps=1e-5, affine=True)
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return F.leaky_relu_(x, SLOPE) if self.active else x


class _Convolutions(nn.Module):
    """A single `_Convolution`, under the name that nnU-Net's stacks of them have."""

    def __init__(self, in_channels: int, channels: int, kernel: Triple) -> None:
        super().__init__()
        self.convs = nn.Sequential(_Convolution(in_channels, channels, kernel))

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(x)


class _ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, the block D of ResNet: average pooling where the block strides, then a 1x1x1
    convolution where it changes the channels."""

    def __init__(self, in_channels: int, channels: int, kernel: Triple, stride: Triple) -> None:
        super().__init__()
        self.conv1 = _Convolution(in_channels, channels, kernel, stride)
        self.conv2 = _Convolution(channels, channels, kernel, active=False)
        shortcut: list[nn.Module] = []
        if any(side != 1 for side in stride):
            shortcut.append(nn.AvgPool3d(stride, stride))
        if in_channels != channels:
            shortcut.append(_Convolution(in_channels, channels, (1, 1, 1), bias=False, active=False))
        self.skip = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        # In place: nobody else reads the norm's output.
        return F.leaky_relu_(self.conv2(self.conv1(x)).add_(self.skip(x)), SLOPE)


class _Stage(nn.Module):
    def __init__(self, blocks: int, in_channels: int, channels: int, kernel: Triple, stride: Triple) -> None:
        super().__init__()
        first = _ResidualBlock(in_channels, channels, kernel, stride)
        rest = (_ResidualBlock(channels, channels, kernel, (1, 1, 1)) for _ in range(blocks - 1))
        self.blocks = nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class _Encoder(nn.Module):
    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        strides: Sequence[Triple],
        kernels: Sequence[Triple],
        blocks: Sequence[int],
    ) -> None:
        super().__init__()
        self.stem = _Convolutions(in_channels, channels[0], kernels[0])
        inputs = (channels[0], *channels[:-1])
        self.stages = nn.ModuleList(map(_Stage, blocks, inputs, channels, kernels, strides))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Outputs of the stages, finest first."""
        x = self.stem(x)
        scales = []
        for stage in self.stages:
            x = stage(x)
            scales.append(x)
        return scales


class _Decoder(nn.Module):
    """From the coarsest stage up: a transposed convolution, concatenation with the encoder's output, a convolution."""

    def __init__(
        self,
        num_classes: int,
        channels: Sequence[int],
        strides: Sequence[Triple],
        kernels: Sequence[Triple],
    ) -> None:
        super().__init__()
        levels = range(len(channels) - 2, -1, -1)
        self.stages = nn.ModuleList(_Convolutions(2 * channels[k], channels[k], kernels[k]) for k in levels)
        self.transpconvs = nn.ModuleList(
            nn.ConvTranspose3d(channels[k + 1], channels[k], strides[k + 1], strides[k + 1]) for k in levels
        )
        self.seg_layers = nn.ModuleList(nn.Conv3d(channels[k], num_classes, kernel_size=1) for k in levels)

    def forward(self, scales: Sequence[Tensor]) -> list[Tensor]:
        """The encoder's outputs, finest first -> those of the stages, finest first."""
        *skips, x = scales
        outputs: list[Tensor] = []
        for enlarge, stage, skip in zip(self.transpconvs, self.stages, reversed(skips), strict=True):
            x = stage(torch.cat([enlarge(x), skip], dim=1))
            outputs.insert(0, x)
        return outputs


class ResidualEncoderUNet(PlannedUNet):
    """A deep encoder of residual blocks under a light decoder, as nnU-Net's (arXiv:2404.09556) `ResidualEncoderUNet`.

    Weights of `dynamic_network_architectures` 0.4 load by their names, those of its nnU-Net presets among them. Its
    state dict has every tensor of a convolution and of the encoder several times: leave out the names with
    `.all_modules.` in them and those that begin with `decoder.encoder.`, and `load_state_dict` takes the rest, none
    missing. `experiments/beside_nnunet/compare_networks.py` does it and compares the outputs.

    Args:
        in_channels: C, channels of the image.
        num_classes: K, background included.
        channels, strides, kernels: see `PlannedUNet`; at least two stages.
        blocks: residual blocks of each stage; nnU-Net's presets have 1, 3, 4, 6, 6, 6.
        deep_supervision: give the logits of coarser decoder stages in training.
        norm: `instance`, of each patch alone; `batch`, BatchNorm, whose statistics of mixed patches do not fit whole
            ones.

    Attributes:
        others: see `PlannedUNet`.

    Raises:
        DualsegError: stages that cannot be.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        kernels: Sequence[Sequence[int]],
        blocks: Sequence[int],
        deep_supervision: bool = True,
        norm: Norm = "instance",
    ) -> None:
        super().__init__(channels, strides, kernels, least=2)
        counts("blocks", blocks)
        check_lengths({"channels": channels, "blocks": blocks})
        self.encoder = _Encoder(in_channels, [*channels], plain(strides), plain(kernels), [*blocks])
        self.decoder = _Decoder(num_classes, [*channels], plain(strides), plain(kernels))
        initialize_leaky(self)
        set_norm(self, norm)
        for module in self.modules():
            if isinstance(module, _ResidualBlock):  # every block starts as its shortcut
                nn.init.zeros_(module.conv2.norm.weight)
        if len(channels) > 2:  # of the coarsest stage: there for the weights of nnU-Net, which does not train it either
            self.decoder.seg_layers[0].requires_grad_(False)
        self.supervise_scales(deep_supervision)

    @property
    def heads(self) -> Sequence[nn.Module]:
        layers = [*self.decoder.seg_layers][::-1]
        return layers[: max(1, len(layers) - 1)]

    def decoded(self, image: Tensor) -> list[Tensor]:
        return self.decoder(self.encoder(image))
