"""Network B of the paper: a V-Net without residual connections inside its blocks (method.md section 2)."""

from torch import Tensor, nn

from dualseg.networks.blocks import (
    DIVISOR,
    Decoder,
    SegmentationOutput,
    conv_block,
    crop_output,
    down,
    initialize,
    pad_to_multiple,
)


class _Encoder(nn.Module):
    def __init__(self, in_channels: int, base_channels: int, dropout: float) -> None:
        super().__init__()
        n = base_channels
        self.stages = nn.ModuleList([conv_block(1, in_channels, n)])
        for repeats, channels in ((2, 2 * n), (3, 4 * n), (3, 8 * n), (3, 16 * n)):
            self.stages.append(nn.Sequential(down(channels // 2, channels), conv_block(repeats, channels, channels)))
        self.dropout = nn.Dropout3d(dropout)

    def forward(self, x: Tensor) -> list[Tensor]:
        scales = []
        for stage in self.stages:
            x = stage(x)
            scales.append(x)
        scales[-1] = self.dropout(scales[-1])
        return scales


class VNet(nn.Module):
    """The paper's V-Net variant (method.md section 2, network B); 9,448,866 parameters by default.

    Args:
        in_channels: C, channels of the image.
        num_classes: K, background included.
        base_channels: n, channels of the finest scale; all widths scale with it.
        dropout: probability of Dropout3d at the bottleneck and before the last convolution.

    Attributes:
        feature_channels: F, channels of the features (= `base_channels`).
    """

    feature_channels: int

    def __init__(
        self, in_channels: int = 1, num_classes: int = 2, base_channels: int = 16, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.feature_channels = base_channels
        self.encoder = _Encoder(in_channels, base_channels, dropout)
        self.decoder = Decoder(base_channels, num_classes, dropout)
        initialize(self)

    def forward(self, image: Tensor) -> SegmentationOutput:
        """(N, C, W, H, D) -> logits (N, K, W, H, D) and features (N, F, W, H, D).

        Sides that are not multiples of 16 are padded with zeros at their end, and the outputs cropped back.
        """
        output = self.decoder(self.encoder(pad_to_multiple(image, DIVISOR)))
        return crop_output(output, image.shape[2:])
