"""What can be wrong with one volume: dualseg-check lists it all, training stops at it or warns of it."""

from typing import Literal, NamedTuple, Self, get_args

import numpy as np

from dualseg.errors import DualsegError

Kind = Literal[
    "unreadable",
    "channels",
    "shape",
    "NaN",
    "affine",
    "flip",
    "qform/sform",
    "no orientation",
    "pixdim",
    "shear",
    "CT values",
    "constant",
    "label values",
    "empty label",
    "lost class",
    "spacing",
    "memory",
    "duplicate",
    "unlabeled duplicate",
    "near duplicate",
    "not read",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
ALMOST = 1e-3  # so far from a whole number, a value of a label still is one


class Problem(NamedTuple):
    """`kind`: the row of dualseg-check's table. `text`: goes on where the name of the file ends."""

    kind: Kind
    text: str

    def in_channel(self, number: int, channels: int) -> Self:
        """The same of one of several channels."""
        return self._replace(text=f"in channel {number} {self.text}") if channels > 1 else self


class VolumeError(DualsegError):
    """A volume that was found and cannot be used. `kind`: its row in dualseg-check's table."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def image_problems(array: np.ndarray, channels: int) -> list[Problem]:
    """What keeps an image from being used as (C, W, H, D) with `channels` channels and finite voxels."""
    problems = []
    if array.ndim != 4 or 0 in array.shape or array.shape[0] != channels:
        kind: Kind = "channels" if array.ndim == 4 and 0 not in array.shape else "shape"
        problems.append(Problem(kind, f"has shape {array.shape}; expected ({channels}, W, H, D)."))
    if not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        fix = "repair the file or take the case out of the list (values near 3e38 overflow when they are normalised)"
        problems.append(Problem("NaN", f"holds {count} NaN or infinite voxels; {fix}."))
    return problems


def whole_numbers(label: np.ndarray) -> np.ndarray:
    """The label with its values that are almost whole numbers, as a scaled mask or a header's scale leaves, rounded."""
    if np.issubdtype(label.dtype, np.integer) or all((np.rint(slab) == slab).all() for slab in label):
        return label
    near = np.rint(label)
    with np.errstate(invalid="ignore"):  # infinite ones
        return np.where(np.abs(label - near) <= ALMOST, near, label)


def label_problems(label: np.ndarray, image_shape: tuple[int, ...] | None, num_classes: int) -> list[Problem]:
    """What keeps a label from being used with an image of spatial shape `image_shape` (None: unknown)."""
    problems = []
    if image_shape is not None and label.shape != image_shape:
        text = f"has shape {label.shape}, its image {image_shape}; they must be the same grid."
        problems.append(Problem("shape", text))
    if np.issubdtype(label.dtype, np.integer) and np.iinfo(label.dtype).max < num_classes - 1:
        text = f"is read as {label.dtype}, which cannot hold {num_classes} classes; read it as float32, for example."
        problems.append(Problem("label values", text))
    values = np.unique(label)
    wrong = values[~((values >= 0) & (values < num_classes) & (np.rint(values) == values))]
    if wrong.size:
        shown = ", ".join(map(_shown, values if values.size <= 8 else wrong[:8]))
        kind: Kind = "label values" if np.isfinite(values).all() else "NaN"
        problems.append(Problem(kind, f"holds the values {shown}; expected whole numbers 0..{num_classes - 1}."))
    return problems


def _shown(value: np.number) -> str:
    """With as many digits as tell it from the numbers beside it."""
    short = f"{value:g}"
    return short if np.isnan(value) or float(short) == float(value) else str(value)


def is_invertible(affine: np.ndarray) -> bool:
    """Whether an affine says where voxels lie: (4, 4), finite, and its axes do not fall into one plane."""
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        return False
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    # the volume of the unit parallelepiped: 1 for perpendicular axes
    return bool(spacing.min() > 0 and abs(np.linalg.det(affine[:3, :3] / spacing)) > 1e-6)
