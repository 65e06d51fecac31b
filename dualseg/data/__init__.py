"""Volumes -> batches.

Names are resolved when they are used: the sources and splits need no torch, and a mistake in them must answer at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dualseg.data.datamodule import SemiSupervisedDataModule
    from dualseg.data.left_atrium import LeftAtrium
    from dualseg.data.phantom import Phantom
    from dualseg.data.transforms import flips_and_rotations
    from dualseg.data.volumes import Image, VolumeSource

__all__ = ["Image", "LeftAtrium", "Phantom", "SemiSupervisedDataModule", "VolumeSource", "flips_and_rotations"]

_HOMES = {
    "Image": "volumes",
    "LeftAtrium": "left_atrium",
    "Phantom": "phantom",
    "SemiSupervisedDataModule": "datamodule",
    "VolumeSource": "volumes",
    "flips_and_rotations": "transforms",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
