"""Overlap and surface distance of one case, in the field's definitions (method.md section 5).

Equal to MedPy's `dc`, `jc`, `hd95` and `asd`, except where a mask is empty: MedPy raises there, this module follows the
rules of method.md. Faster, because the four share the work: everything happens in the box around both masks, and each
surface and each directed set of distances is computed once.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

Empty = Literal["", "prediction", "reference", "both"]

# Stray voxels far from the object make a loose box, mostly without surface. There a k-d tree, whose time goes with the
# surface, is several times faster than the distance transform, whose time goes with the box; on dense noise it is the
# slower. This share of surface voxels (of both masks) in the box parts the two: somewhat below the 0.03 where they are
# even on a left atrium with salt noise, the tree's bad case.
_LOOSE = 0.025


class Scores(NamedTuple):
    """The four metrics of one binary mask pair, and which of the masks was empty.

    `dice` and `jaccard` lie in 0..1; `hd95` and `asd` are in voxels, or in the unit of the spacing where one was given.
    """

    dice: float
    jaccard: float
    hd95: float
    asd: float
    empty: Empty


def scores(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing: Sequence[float] | None = None
) -> Scores:
    """Dice, Jaccard, 95HD and ASD of two binary masks (method.md section 5).

    The surface of a mask is its voxels with a face neighbour outside the mask or outside the volume. 95HD is the 95th
    percentile (linear) of the two directed sets of surface distances taken together; ASD is the mean distance of the
    prediction's surface to the reference's: it is directed, so the order of the arguments matters.

    Both masks empty: Dice and Jaccard 1, distances 0. Exactly one empty: Dice and Jaccard 0, both distances the
    diagonal of the other mask's bounding box (max - min + 1 voxels a side).

    Args:
        prediction: bool, (W, H, D) or any shape of one to three dimensions.
        reference: bool, of the same shape.
        spacing: size of a voxel along each axis, in mm; None counts in voxels.

    Raises:
        ValueError: masks that are not bool or differ in shape; a spacing that is not one positive number per axis.

    >>> scores(np.array([0, 1, 1, 0], bool), np.array([0, 0, 1, 1], bool))
    Scores(dice=0.5, jaccard=0.3333333333333333, hd95=1.0, asd=0.5, empty='')
    """
    if prediction.dtype != np.bool_ or reference.dtype != np.bool_:
        raise ValueError(f"masks must be bool arrays, not {prediction.dtype} and {reference.dtype}")
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction {prediction.shape} and reference {reference.shape} differ in shape")
    voxel = np.ones(prediction.ndim) if spacing is None else np.asarray(spacing, dtype=np.float64)
    if voxel.shape != (prediction.ndim,) or not (np.isfinite(voxel) & (voxel > 0)).all():
        raise ValueError(f"spacing {spacing} must be one positive number for each of {prediction.ndim} axes")

    union = prediction | reference
    if not union.any():
        return Scores(1.0, 1.0, 0.0, 0.0, "both")
    # Whatever lies outside the box of the union is background in both, as is what lies outside the volume (border
    # value 0 of the erosion): neither the surfaces nor the distances between them change.
    box = _bounding_box(union)
    prediction, reference = prediction[box], reference[box]
    size_prediction, size_reference = int(prediction.sum()), int(reference.sum())
    if not size_prediction or not size_reference:
        diagonal = float(np.linalg.norm(np.array(prediction.shape) * voxel))
        return Scores(0.0, 0.0, diagonal, diagonal, "reference" if size_prediction else "prediction")

    intersection = int((prediction & reference).sum())
    surface_prediction, surface_reference = _surface(prediction), _surface(reference)
    to_reference = _distances(surface_prediction, surface_reference, voxel)
    to_prediction = _distances(surface_reference, surface_prediction, voxel)
    return Scores(
        dice=2 * intersection / (size_prediction + size_reference),
        jaccard=intersection / (size_prediction + size_reference - intersection),
        hd95=float(np.percentile(np.concatenate((to_reference, to_prediction)), 95)),
        asd=float(to_reference.mean()),
        empty="",
    )


def label_scores(
    prediction: NDArray[np.integer],
    reference: NDArray[np.integer],
    num_classes: int,
    spacing: Sequence[float] | None = None,
    regions: Sequence[Sequence[int]] | None = None,
) -> list[Scores]:
    """`scores` of each foreground class 1..K-1 of two label volumes, or of unions of classes.

    Args:
        prediction: integers 0..K-1, (W, H, D) or any shape of one to three dimensions.
        reference: the same, of the same shape.
        num_classes: K, the background included.
        spacing: as for `scores`.
        regions: the labels of each union; None: each class alone.

    Returns:
        K - 1 scores, of class 1 first; or one for each region.

    Raises:
        ValueError: values that are not integers 0..K-1; and as `scores`.
    """
    for name, labels in (("prediction", prediction), ("reference", reference)):
        if not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"{name} must hold integer labels, not {labels.dtype}")
        if labels.min() < 0 or labels.max() >= num_classes:
            raise ValueError(f"{name} has labels {labels.min()}..{labels.max()}, expected 0..{num_classes - 1}")
    if regions is None:
        regions = [(k,) for k in range(1, num_classes)]
    return [scores(_union(prediction, labels), _union(reference, labels), spacing) for labels in regions]


def _union(volume: NDArray[np.integer], labels: Sequence[int]) -> NDArray[np.bool_]:
    """The voxels that have one of the labels; == is several times faster than np.isin on so few."""
    return np.logical_or.reduce([volume == label for label in labels])


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The smallest box that holds all of a mask that is not empty."""
    axes = range(mask.ndim)
    filled = [np.flatnonzero(mask.any(axis=tuple(a for a in axes if a != axis))) for axis in axes]
    return tuple(slice(int(f[0]), int(f[-1]) + 1) for f in filled)


def _surface(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The voxels of a mask that have a face neighbour outside it; outside the array nothing is mask."""
    return mask ^ ndimage.binary_erosion(mask)


def _distances(start: NDArray[np.bool_], target: NDArray[np.bool_], voxel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of every `start` voxel to the nearest `target` voxel, (number of start voxels,)."""
    points = np.argwhere(start)
    if len(points) + np.count_nonzero(target) < _LOOSE * start.size:
        return KDTree(np.argwhere(target) * voxel).query(points * voxel)[0]
    # Asked for indices only, scipy does not work out the distances of all the voxels that nobody reads.
    nearest = ndimage.distance_transform_edt(~target, sampling=voxel, return_distances=False, return_indices=True)
    offsets = (nearest[:, start].T - points) * voxel
    return np.sqrt((offsets**2).sum(axis=1))
