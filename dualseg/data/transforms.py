"""From a volume to a training patch: MONAI's transforms of the whole volume, then a crop."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from monai.data import get_track_meta, set_track_meta
from monai.data.utils import get_random_patch
from monai.transforms import Compose, MapTransform, RandFlipd, RandRotate90d, RandSpatialCropd, SpatialPadd
from monai.transforms.transform import MAX_SEED
from torch import Tensor
from torch.nn import functional as F

KEYS = ("image", "label")


def flips_and_rotations(probability: float = 0.5) -> list[MapTransform]:
    """Flips along each axis and right-angle rotations in the first two (in-plane) axes, each with `probability`."""
    flips = [RandFlipd(KEYS, prob=probability, spatial_axis=axis, allow_missing_keys=True) for axis in range(3)]
    rotation = RandRotate90d(KEYS, prob=probability, max_k=3, spatial_axes=(0, 1), allow_missing_keys=True)
    return [*flips, rotation]


def training_transform(patch_size: Sequence[int], augmentation: Sequence[MapTransform] = ()) -> Compose:
    """Augmentation, zero-padding (centred) up to the patch where a volume is smaller, then one uniform random crop.

    The crop comes last, so that a rotation of an oblong patch cannot change its shape.
    """
    return Compose(
        [
            *augmentation,
            SpatialPadd(KEYS, spatial_size=patch_size, allow_missing_keys=True),
            RandSpatialCropd(KEYS, roi_size=patch_size, random_size=False, allow_missing_keys=True),
        ]
    )


class WholeVolumeCut:
    """Transforms of the whole volume, then one crop: anywhere, or around a voxel.

    Args:
        patch_size: (W, H, D) of the patch.
        augmentation: MONAI dictionary transforms on "image" and "label".
    """

    def __init__(self, patch_size: Sequence[int], augmentation: Sequence[MapTransform] = ()) -> None:
        self.patch_size = tuple(patch_size)
        self.anywhere = training_transform(patch_size, augmentation)
        self.augmentation = Compose(list(augmentation))

    def __call__(
        self, image: Tensor, label: Tensor | None, voxel: tuple[int, ...] | None, seed: int
    ) -> tuple[Tensor, Tensor | None]:
        """One patch, a pure function of its arguments.

        Args:
            image: (C, w, h, d) of the volume.
            label: (w, h, d); None: it has none.
            voxel: of the label, that the patch is cut around; None: anywhere.

        Returns:
            (C, W, H, D) and (W, H, D).
        """
        if not self.augmentation.transforms:
            shape, size = image.shape[1:], self.patch_size
            start = start_anywhere(shape, size, seed) if voxel is None else start_around(voxel, shape, size)
            return cut(image, start, size), None if label is None else cut(label, start, size)
        with plain_tensors():
            if label is not None and voxel is not None:
                found = self._transformed(image, label, voxel, seed)
                if found is not None:
                    return _cut_around(*found, self.patch_size)
            sample = {"image": image} if label is None else {"image": image, "label": label[None]}
            self.anywhere.set_random_state(seed=seed)
            patch = self.anywhere(sample)
        return patch["image"], None if label is None else patch["label"][0]

    def _transformed(
        self, image: Tensor, label: Tensor, voxel: tuple[int, ...], seed: int
    ) -> tuple[Tensor, Tensor, tuple[int, ...]] | None:
        """Volume, label and where the voxel went, by a marker that goes along; None: it is lost, as in a zoom."""
        marker = torch.zeros_like(label)
        marker[voxel] = 1
        self.augmentation.set_random_state(seed=seed)
        moved = self.augmentation({"image": image, "label": torch.stack([label, marker])})
        label, marker = moved["label"]
        if not marker.any():
            return None
        return moved["image"], label, tuple(map(int, torch.unravel_index(marker.argmax(), marker.shape)))


def start_anywhere(shape: Sequence[int], size: Sequence[int], seed: int) -> tuple[int, ...]:
    """First voxel of the patch that `training_transform` cuts with this seed where there is no augmentation.

    MONAI's upkeep of dictionaries and random states takes ten times as long as this, which a GPU would wait for.
    """
    own = np.random.RandomState(seed).randint(MAX_SEED, dtype="uint32")  # a Compose seeds its parts
    rng = np.random.RandomState(own)
    padded = [max(n, s) for n, s in zip(shape, size, strict=True)]
    corner = [part.start for part in get_random_patch(padded, size, rng)]
    return tuple(first - max(s - n, 0) // 2 for first, n, s in zip(corner, shape, size, strict=True))


def start_around(voxel: Sequence[int], shape: Sequence[int], size: Sequence[int]) -> tuple[int, ...]:
    """First voxel of the patch that has `voxel` in its middle as far as the volume allows.

    Along an axis along which the volume is smaller than the patch, it is in the patch's middle.
    """
    sides = zip(voxel, shape, size, strict=True)
    return tuple(min(max(v - s // 2, 0), n - s) if n >= s else -((s - n) // 2) for v, n, s in sides)


def cut(volume: Tensor, start: Sequence[int], size: Sequence[int]) -> Tensor:
    """(..., w, h, d) -> (..., W, H, D) from the voxel `start`, which may lie outside; zeros beyond the volume.

    Zero is what the field pads with: of a z-scored image it is the mean, of a label the background.
    """
    inside = volume
    padding: list[int] = []
    for axis, (first, length) in enumerate(zip(start, size, strict=True), start=-3):
        end = volume.shape[axis]
        low, high = max(first, 0), min(first + length, end)
        inside = inside.narrow(axis, low, high - low)
        padding = [low - first, first + length - high, *padding]  # from the last axis on, as torch wants it
    return F.pad(inside, padding) if any(padding) else inside


def _cut_around(image: Tensor, label: Tensor, voxel: tuple[int, ...], size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    start = start_around(voxel, label.shape, size)
    return cut(image, start, size), cut(label, start, size)


@contextmanager
def plain_tensors() -> Iterator[None]:
    """Inside, MONAI's transforms give plain tensors; the upkeep of MetaTensors takes longer than crops and flips do."""
    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)
