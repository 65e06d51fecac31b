"""Volumes -> batches.

Names are resolved when they are used: the sources and splits need no torch, and a mistake in them must answer at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dualseg.data.brats2019 import BraTS2019
    from dualseg.data.datamodule import SemiSupervisedDataModule
    from dualseg.data.folder import Folder
    from dualseg.data.left_atrium import LeftAtrium
    from dualseg.data.pancreas_ct import PancreasCT
    from dualseg.data.phantom import Phantom
    from dualseg.data.spatial import SpatialAugmentation
    from dualseg.data.transforms import flips_and_rotations
    from dualseg.data.volumes import Grid, Image, VolumeSource

__all__ = [
    "BraTS2019",
    "Folder",
    "Grid",
    "Image",
    "LeftAtrium",
    "PancreasCT",
    "Phantom",
    "SemiSupervisedDataModule",
    "SpatialAugmentation",
    "VolumeSource",
    "flips_and_rotations",
]

_HOMES = {
    "BraTS2019": "brats2019",
    "Folder": "folder",
    "Grid": "volumes",
    "Image": "volumes",
    "LeftAtrium": "left_atrium",
    "PancreasCT": "pancreas_ct",
    "Phantom": "phantom",
    "SemiSupervisedDataModule": "datamodule",
    "SpatialAugmentation": "spatial",
    "VolumeSource": "volumes",
    "flips_and_rotations": "transforms",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
