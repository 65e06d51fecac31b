"""Network A of the paper: a ResNet-34 encoder under the V-Net's decoder (method.md section 2)."""

import torch.nn.functional as F
from torch import Tensor, nn

from dualseg.networks.blocks import DIVISOR, Decoder, SegmentationOutput, crop_output, initialize, pad_to_multiple


class _ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions beside a shortcut, which is a strided 1x1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv3d(in_channels, channels, kernel_size=3, stride=stride, padding=1, bias=False),
            nn.BatchNorm3d(channels),
            nn.ReLU(inplace=True),
            nn.Conv3d(channels, channels, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm3d(channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv3d(in_channels, channels, kernel_size=1, stride=stride, bias=False), nn.BatchNorm3d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        # In place: nobody else reads the BatchNorm's output.
        return F.relu_(self.residual(x).add_(self.shortcut(x)))


class _Encoder(nn.Module):
    def __init__(self, in_channels: int, base_channels: int) -> None:
        super().__init__()
        n = base_channels
        stem = nn.Sequential(
            nn.Conv3d(in_channels, n, kernel_size=7, padding=3, bias=False), nn.BatchNorm3d(n), nn.ReLU(inplace=True)
        )
        self.stages = nn.ModuleList([stem])
        for repeats, channels in ((3, 2 * n), (4, 4 * n), (6, 8 * n), (3, 16 * n)):
            blocks = [_ResidualBlock(channels // 2, channels, stride=2)]
            blocks += [_ResidualBlock(channels, channels, stride=1) for _ in range(repeats - 1)]
            self.stages.append(nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> list[Tensor]:
        scales = []
        for stage in self.stages:
            x = stage(x)
            scales.append(x)
        return scales


class ResNet34VNet(nn.Module):
    """The paper's ResNet-34 variant (method.md section 2, network A); 17,930,354 parameters by default.

    Args:
        in_channels: C, channels of the image.
        num_classes: K, background included.
        base_channels: n, channels of the finest scale; all widths scale with it.
        dropout: probability of Dropout3d before the last convolution.

    Attributes:
        feature_channels: F, channels of the features (= `base_channels`).
    """

    feature_channels: int

    def __init__(
        self, in_channels: int = 1, num_classes: int = 2, base_channels: int = 16, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.feature_channels = base_channels
        self.encoder = _Encoder(in_channels, base_channels)
        self.decoder = Decoder(base_channels, num_classes, dropout)
        initialize(self)

    def forward(self, image: Tensor) -> SegmentationOutput:
        """(N, C, W, H, D) -> logits (N, K, W, H, D) and features (N, F, W, H, D).

        Sides that are not multiples of 16 are padded with zeros at their end, and the outputs cropped back.
        """
        output = self.decoder(self.encoder(pad_to_multiple(image, DIVISOR)))
        return crop_output(output, image.shape[2:])
