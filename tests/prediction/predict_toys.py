"""Two balls in space, a dataset that resamples them, and networks whose answer is known: a threshold.

In ball A the value rises from 0 at radius 2R to 1 at the centre, in ball B it falls to -1: beyond +-0.5, at radius R,
the classes `bright` and `dark` begin.
"""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import yaml
from scipy.ndimage import map_coordinates
from torch import Tensor, nn

from dualseg import __version__
from dualseg.data.volumes import Image, VolumeSource
from dualseg.files import write_json
from dualseg.methods.base import CHECKPOINT_FORMAT
from dualseg.networks import SegmentationOutput

TRUST = ("trust=predict_toys.Rising", "trust=predict_toys.Threshold")
BALLS = {"bright": (np.array([-9.0, 5, 7]), 8.0), "dark": (np.array([12.0, -6, -8]), 6.0)}  # mm from the middle, R


class Rising(VolumeSource):
    """Cuts the world into voxels of 2 mm, RAS, over all that the scan covers; `root` must exist to construct it."""

    name = "rising"
    class_names = ("background", "bright", "dark")
    channels = 1
    train_cases = test_cases = ()

    def __init__(self, root: str) -> None:
        assert Path(root).is_dir()

    def read_image(self, case: str) -> Image:
        raise AssertionError("the dataset is not there")

    def read_label(self, case: str) -> np.ndarray:
        raise AssertionError("the dataset is not there")

    def prepare_scan(self, scan: Image) -> Image:
        sizes = np.array(scan.array.shape[1:]) - 1
        corners = scan.affine[:3, :3] @ (np.array(np.meshgrid(*[[0, n] for n in sizes])).reshape(3, -1))
        corners += scan.affine[:3, 3:]
        low, high = corners.min(axis=1), corners.max(axis=1)
        affine = np.diag([2.0, 2, 2, 1])
        affine[:3, 3] = low
        shape = np.ceil((high - low) / 2).astype(int) + 1
        matrix = np.linalg.inv(scan.affine) @ affine
        places = np.einsum("ij,jxyz->ixyz", matrix[:3, :3], np.indices(shape)) + matrix[:3, 3].reshape(3, 1, 1, 1)
        return Image(np.stack([map_coordinates(c, places, order=1, mode="constant") for c in scan.array]), affine)


class Threshold(nn.Module):
    """Class 1 above `threshold`, class 2 below its negative."""

    def __init__(self, in_channels: int, num_classes: int, threshold: float = 0.5) -> None:
        super().__init__()
        assert num_classes == 3
        self.threshold = nn.Parameter(torch.tensor(threshold))

    def forward(self, x: Tensor) -> SegmentationOutput:
        mean = x.mean(dim=1, keepdim=True)
        logits = 40 * torch.cat([torch.zeros_like(mean), mean - self.threshold, -mean - self.threshold], dim=1)
        return SegmentationOutput(logits, logits)


def write_run(folder: Path, **data: Any) -> Path:
    """What training leaves of two networks, a at threshold 0.45 and b at 0.55. `data`: other values there."""
    settings = {"patch_size": [16, 16, 16], "stride": [4, 4, 4], "downsample": 1, **data}
    source = {"_target_": "predict_toys.Rising", "root": "/nowhere"}
    network = {"_target_": "predict_toys.Threshold", "architecture": "threshold"}
    config = {
        "data": {"name": "rising", "root": "/nowhere", "source": source, **settings},
        "networks": {"a": network, "b": network},
        "inference": {"batch_size": 4},
        "trainer": {"channels_last": True, "threads": None},
        "seed": 0,
    }
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    write_json(folder / "preprocessing.json", Rising.for_scans({}).scan_record())
    state = {"networks.a.threshold": torch.tensor(0.45), "networks.b.threshold": torch.tensor(0.55)}
    checkpoint = {"state_dict": state, "dualseg": {"format": CHECKPOINT_FORMAT, "version": __version__}}
    torch.save(checkpoint, folder / "checkpoints" / "iteration-000100.ckpt")
    return folder


def world(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(3, W, H, D), mm of every voxel's centre from the middle of the volume."""
    from_middle = np.indices(shape) - (np.array(shape).reshape(3, 1, 1, 1) - 1) / 2
    return np.einsum("ij,jxyz->ixyz", affine[:3, :3], from_middle)


def scene(affine: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Image float32 and true label of the two balls around the middle of a volume."""
    places = world(affine, shape)
    image, label = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    for value, (sign, (centre, radius)) in enumerate(zip((1, -1), BALLS.values(), strict=True), start=1):
        away = np.linalg.norm(places - centre.reshape(3, 1, 1, 1), axis=0)
        image += sign * np.clip(1 - away / (2 * radius), 0, None)
        label[away < radius] = value
    return image, label


def random_affine(rng: np.random.Generator, sheared: bool = False) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Rotation x spacing x flips, moved; and a shape that covers some 64 mm along each axis."""
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    if rng.random() < 0.3:  # along the axes, as most scans are
        rotation = rng.permutation(np.eye(3))
    spacing = rng.uniform(1.2, 3.0, 3)
    affine = np.eye(4)
    shear = np.eye(3)
    if sheared:
        shear[np.triu_indices(3, 1)] = rng.uniform(-0.3, 0.3, 3)
    affine[:3, :3] = rotation @ shear @ np.diag(spacing * rng.choice([-1, 1], 3))
    affine[:3, 3] = rng.uniform(-200, 200, 3)
    width, height, depth = np.ceil(64 / spacing).astype(int) + rng.integers(0, 5, 3)
    return affine, (int(width), int(height), int(depth))


def save(path: Path, array: np.ndarray, affine: np.ndarray, code: int = 1) -> nib.Nifti1Image:
    """A NIfTI file as scanners' software writes them: qform and sform with a code, mm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, code)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)
    return image
