"""Networks: image (N, C, W, H, D) -> `SegmentationOutput(logits, features)`; one file per network."""

from dualseg.networks.blocks import SCALE, SegmentationOutput
from dualseg.networks.monai import TappedNetwork, monai_network
from dualseg.networks.plain_unet import PlainUNet
from dualseg.networks.planned import PlannedUNet
from dualseg.networks.residual_encoder import ResidualEncoderUNet
from dualseg.networks.resnet34_vnet import ResNet34VNet
from dualseg.networks.vnet import VNet

__all__ = [
    "SCALE",
    "PlainUNet",
    "PlannedUNet",
    "ResNet34VNet",
    "ResidualEncoderUNet",
    "SegmentationOutput",
    "TappedNetwork",
    "VNet",
    "monai_network",
]
