"""Volumes -> batches."""

from dualseg.data.datamodule import SemiSupervisedDataModule
from dualseg.data.left_atrium import LeftAtrium
from dualseg.data.phantom import Phantom
from dualseg.data.transforms import flips_and_rotations
from dualseg.data.volumes import Image, VolumeSource

__all__ = ["Image", "LeftAtrium", "Phantom", "SemiSupervisedDataModule", "VolumeSource", "flips_and_rotations"]
