"""Writes small datasets in the two layouts, with odd affines and spacings, by nibabel alone."""

import json
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.spatial.transform import Rotation

NEW = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "liver": 1, "tumour": 2}}
OLD = {"modality": {"0": "T1", "1": "T2"}, "labels": {"0": "background", "1": "liver", "2": "tumour"}}


def odd_affine(seed: int, spacing: Sequence[float] = (0.9, 1.2, 2.4)) -> np.ndarray:
    """Axes permuted and flipped at random, turned by some 10 degrees, away from the origin."""
    rng = np.random.default_rng(seed)
    permuted = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec(rng.normal(size=3) * 0.1).as_matrix() @ permuted @ np.diag(spacing)
    affine[:3, 3] = rng.uniform(-90, 90, 3)
    return affine


def volume(seed: int, channels: int = 2, classes: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(C, W, H, D) int16, (W, H, D) uint8 of two nested boxes, and an affine; all depend on the seed."""
    rng = np.random.default_rng(seed)
    shape = (34 + seed % 3, 30, 22 + seed % 2)
    label = np.zeros(shape, np.uint8)
    label[6:24, 5:20, 4:16] = 1
    if classes > 2:
        label[10:18, 9:15, 6 : 10 + seed % 4] = 2
    image = np.stack([rng.normal(100, 20, shape) + (40 + 20 * c) * label for c in range(channels)])
    spacing = (0.9, 1.2, 2.4) if seed % 2 else (1.0, 1.0, 3.0)
    return image.astype(np.int16), label, odd_affine(seed, spacing)


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def write_nnunet(
    root: Path, labeled: int = 5, unlabeled: int = 2, test: int = 0, channels: int = 2, description: dict | None = None
) -> Path:
    """Cases c00, c01, ...: first the labeled ones, then the unlabeled, then those of imagesTs."""
    described = description or NEW
    for number in range(labeled + unlabeled + test):
        image, label, affine = volume(number, channels, len(described["labels"]))
        end = "Ts" if number >= labeled + unlabeled else "Tr"
        for channel in range(channels):
            save(root / f"images{end}" / f"c{number:02d}_{channel:04d}.nii.gz", image[channel], affine)
        if number < labeled or end == "Ts":
            save(root / f"labels{end}" / f"c{number:02d}.nii.gz", label, affine)
    (root / "dataset.json").write_text(json.dumps({**described, "file_ending": ".nii.gz", "numTraining": labeled}))
    return root


def write_decathlon(root: Path, labeled: int = 5, unlabeled: int = 2, channels: int = 2) -> Path:
    """As `write_nnunet`: 4-D files, the labeled ones in the training list; one more image in imagesTs."""
    for number in range(labeled + unlabeled):
        image, label, affine = volume(number, channels)
        save(root / "imagesTr" / f"c{number:02d}.nii.gz", np.moveaxis(image, 0, -1), affine)
        if number < labeled:
            save(root / "labelsTr" / f"c{number:02d}.nii.gz", label, affine)
    (root / "imagesTr" / "._c00.nii.gz").write_bytes(b"what macOS leaves in archives")
    image, _, affine = volume(99, channels)
    save(root / "imagesTs" / "t99.nii.gz", np.moveaxis(image, 0, -1), affine)
    entries = [{"image": f"./imagesTr/c{n:02d}.nii.gz", "label": f"./labelsTr/c{n:02d}.nii.gz"} for n in range(labeled)]
    described = {**OLD, "name": "Livers", "training": entries, "test": ["./imagesTs/t99.nii.gz"]}
    (root / "dataset.json").write_text(json.dumps(described))
    return root
