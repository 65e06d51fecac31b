"""Networks: image (N, C, W, H, D) -> `SegmentationOutput(logits, features)`; one file per network."""

from dualseg.networks.blocks import SegmentationOutput
from dualseg.networks.monai import TappedNetwork, monai_network
from dualseg.networks.resnet34_vnet import ResNet34VNet
from dualseg.networks.vnet import VNet

__all__ = ["ResNet34VNet", "SegmentationOutput", "TappedNetwork", "VNet", "monai_network"]
