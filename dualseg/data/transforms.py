"""Random transforms of training patches, MONAI's."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from monai.data import get_track_meta, set_track_meta
from monai.transforms import Compose, MapTransform, RandFlipd, RandRotate90d, RandSpatialCropd, SpatialPadd

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


@contextmanager
def plain_tensors() -> Iterator[None]:
    """Inside, MONAI's transforms give plain tensors; the upkeep of MetaTensors takes longer than crops and flips do."""
    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)
