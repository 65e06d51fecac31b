"""The embedded dataset: an atrium-like chamber among look-alike neighbours, made by arithmetic and written as NIfTI.

No anatomy is claimed. What is kept of a blood-pool MR of the left atrium is what makes it hard: a chamber that varies
in shape, size, pose and contrast; veins of which only the ostia belong to it; a ventricle, a right atrium and vessels
as bright as the chamber, divided from it by walls that are thin and incomplete; bias field, blur and noise.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from dualseg.data.nifti import read_grid, read_nifti, write_nifti
from dualseg.data.problems import VolumeError
from dualseg.data.volumes import Grid, Image, VolumeSource
from dualseg.errors import DualsegError
from dualseg.files import sweep_below, write_text

GENERATOR_VERSION = 1  # raise it whenever a change alters any voxel
FIELD_OF_VIEW = np.array([77.0, 77.0, 61.0])  # mm, in the mean; voxel axes point left, anterior, superior
MOST_CASES = 1000
MOST_VOXELS = 512  # along an axis
OSTIUM_LENGTH = 6.0  # mm of every vein, from the chamber's surface, that still carry the chamber's label


class Phantom(VolumeSource):
    """Procedural volumes under `root`: images/CASE.nii.gz (z-scored), labels/CASE.nii.gz and dataset.json.

    Volumes that are missing are made on construction, each one written atomically, so that an interrupted construction
    is completed by the next. A case depends on (seed, its index, shape) alone.

    Args:
        root: folder of the dataset; made if missing.
        train: number of training cases, the first ones.
        test: number of test cases, after the training cases.
        shape: voxels (W, H, D); the field of view in millimetres stays, so a smaller shape is a coarser grid.
        seed: seed of the whole dataset, at least 0.

    Raises:
        DualsegError: an argument out of range, `root` holds another dataset, or it cannot be written.
    """

    name = "phantom"
    class_names = ("background", "atrium")
    channels = 1

    def __init__(
        self, root: str | Path, train: int = 24, test: int = 8, shape: Sequence[int] = (64, 64, 48), seed: int = 0
    ) -> None:
        if train < 1 or test < 0 or seed < 0:
            raise DualsegError(f"phantom: train={train} must be >= 1, test={test} and seed={seed} must be >= 0")
        if train + test > MOST_CASES:
            raise DualsegError(f"phantom: train={train} and test={test} must be {MOST_CASES} cases together, or fewer")
        if len(shape) != 3 or min(shape) < 16 or max(shape) > MOST_VOXELS:
            raise DualsegError(f"phantom: shape={list(shape)} must be three sizes of 16 to {MOST_VOXELS} voxels")
        self.root = Path(root)
        cases = tuple(f"phantom_{index:03d}" for index in range(train + test))
        self.train_cases, self.test_cases = cases[:train], cases[train:]
        self._claim_root(
            {"generator": GENERATOR_VERSION, "seed": seed, "train": train, "test": test, "shape": [*map(int, shape)]}
        )
        missing = [
            (index, case)
            for index, case in enumerate(cases)
            if not (self._path("images", case).is_file() and self._path("labels", case).is_file())
        ]
        if missing:
            sweep_below(self.root)
        for index, case in tqdm(missing, desc=f"phantom volumes to {self.root}", unit="volume", delay=1, disable=None):
            image, label, affine = make_phantom(seed, index, shape)
            write_nifti(self._path("images", case), image, affine)
            write_nifti(self._path("labels", case), label, affine)

    def read_image(self, case: str) -> Image:
        return Image(*read_nifti(self._path("images", case)))

    def read_label(self, case: str) -> np.ndarray:
        path = self._path("labels", case)
        label = read_nifti(path)[0][0]
        if not np.isin(label, (0, 1)).all():
            raise VolumeError(
                "label values", f"{path}: label values must be 0 or 1; delete the file and it is made again"
            )
        return label.astype(np.uint8)

    def stored_grid(self, case: str, kind: Literal["image", "label"]) -> Grid:
        return read_grid(self._path(f"{kind}s", case))

    def stored_files(self, case: str, kind: Literal["image", "label"]) -> Sequence[Path]:
        return (self._path(f"{kind}s", case),)

    def where(self, case: str, kind: str) -> str:
        return f"{self._path(f'{kind}s', case)}: {kind}"

    def _path(self, kind: str, case: str) -> Path:
        return self.root / kind / f"{case}.nii.gz"

    def _claim_root(self, request: dict) -> None:
        """Record what the folder holds before the first volume, so that no two requests can mix in one folder."""
        path = self.root / "dataset.json"
        remedy = f"choose another data.root, or delete the folder {self.root}"
        try:
            if path.is_file():
                if (found := json.loads(path.read_text())) != request:
                    raise DualsegError(f"{path}: holds {found}, asked for {request}; {remedy}")
                return
            if any((self.root / kind).exists() for kind in ("images", "labels")):
                raise DualsegError(f"{self.root}: holds volumes but no dataset.json that says which; {remedy}")
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise DualsegError(f"{path}: cannot be read ({error}); {remedy}") from error
        write_text(path, json.dumps(request) + "\n")


def make_phantom(
    seed: int, index: int, shape: Sequence[int] = (64, 64, 48)
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make case `index` of the dataset `seed`.

    Returns:
        image: (W, H, D) float32, mean 0 and deviation 1 but for rounding.
        label: (W, H, D) uint8, 1 in the chamber and the ostia of its veins.
        affine: (4, 4) float64, voxel indices -> millimetres (RAS+): spacing near FIELD_OF_VIEW / shape, oblique.
    """
    rng = np.random.default_rng([seed, index])
    shape = tuple(shape)
    spacing = np.round(FIELD_OF_VIEW / shape * rng.uniform(0.93, 1.07, 3), 3)
    image, label = _draw(rng, shape, spacing)
    return image, label, _affine(rng, shape, spacing)


def _draw(rng: np.random.Generator, shape: tuple[int, ...], spacing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Image and label on a grid of the given spacing. All lengths are in mm, the origin is the grid's centre."""
    axes = [(np.arange(n, dtype=np.float32) - (n - 1) / 2) * np.float32(s) for n, s in zip(shape, spacing, strict=True)]
    position = np.stack(np.meshgrid(*axes, indexing="ij"))  # (3, W, H, D)
    # One smooth warp for everything bends vessels and walls alike.
    position += np.stack([_smooth(rng, shape, 3, 2.0) for _ in range(3)])
    size = rng.uniform(0.88, 1.12)
    centre = rng.uniform(-4, 4, 3)
    turn = _rotation(rng.uniform(-0.25, 0.25, 3))
    position -= centre[:, None, None, None].astype(np.float32)
    local = np.einsum("ij,j...->i...", turn.T.astype(np.float32), position)

    # The chamber: an ellipsoid whose surface undulates; `outside` is roughly the signed distance to it.
    semi = size * np.array([rng.uniform(16, 22), rng.uniform(12, 17), rng.uniform(12, 17)])
    outside = _ellipsoid(local, np.zeros(3), semi) + _smooth(rng, shape, 5, 1.6)
    chamber = outside < 0

    # Veins leave it sideways and backwards, in the mean four: left and right, upper and lower.
    veins = np.zeros(shape, bool)
    slots = [(side, level) for side in (-1, 1) for level in (-1, 1)] + [(rng.choice([-1, 1]), 0.0)]
    for slot in rng.permutation(5)[: rng.integers(3, 6)]:
        side, level = slots[slot]
        start = semi * (0.55 * side, -0.3, 0.45 * level)
        towards = np.array([side, rng.uniform(-0.9, 0.1), 0.5 * level]) + rng.normal(0, 0.2, 3)
        veins |= _tube(local, start, towards, rng.uniform(3.2, 5.5)) < 0

    # Neighbours as bright as the chamber. Each one keeps a wall of its own to the chamber; walls have gaps.
    ventricle_semi = size * rng.uniform([15, 17, 17], [20, 24, 24])
    ventricle_centre = np.array([0.45, 0.75, -0.6]) * (semi + ventricle_semi) * rng.uniform(0.85, 1.05, 3)
    ventricle = _ellipsoid(local, ventricle_centre, ventricle_semi) + _smooth(rng, shape, 5, 1.5)
    right_semi = size * rng.uniform([12, 13, 15], [17, 19, 22])
    right_centre = np.array([-0.85, 0.45, -0.1]) * (semi + right_semi) * rng.uniform(0.85, 1.05, 3)
    right = _ellipsoid(local, right_centre, right_semi) + _smooth(rng, shape, 5, 1.5)
    descending = _tube(
        local,
        np.array([0.5 * semi[0], -semi[1] - rng.uniform(6, 12), -60.0]),
        rng.normal([0, 0, 1], 0.08),
        rng.uniform(7, 10),
        120,
    )
    ascending = _tube(
        local,
        np.array([-4.0, semi[1] + rng.uniform(8, 13), -6.0]),
        rng.normal([0, 0.1, 1], 0.15),
        rng.uniform(8, 11),
        80,
    )
    pulmonary = _tube(
        local,
        np.array([-40.0, 0.1 * semi[1], semi[2] + rng.uniform(6, 11)]),
        rng.normal([1, 0, 0.05], 0.12),
        rng.uniform(5, 8),
        90,
    )

    # Paint from the back to the front: tissue and lung, muscle around the cavities, blood.
    tissue = rng.uniform(0.38, 0.48)
    image = np.where(_smooth(rng, shape, 4, 1.0) > 0.35, np.float32(rng.uniform(0.08, 0.18)), np.float32(tissue))
    image += _smooth(rng, shape, 10, 0.05)
    muscle = np.float32(tissue + rng.uniform(0.0, 0.15))
    image[ventricle < rng.uniform(5, 9)] = muscle
    blood = rng.uniform(0.8, 1.0)
    for cavity in (descending, pulmonary, right, ventricle, ascending):
        image[cavity < 1.2] = muscle
        image[cavity < 0] = blood * rng.uniform(0.9, 1.1)
    gap = _smooth(rng, shape, 6, 1.0) > 0.8
    image[(outside < rng.uniform(1.0, 2.5)) & ~gap] = muscle
    own = blood * rng.uniform(0.9, 1.1)
    image[veins | chamber] = own
    label = chamber | (veins & (outside < OSTIUM_LENGTH))

    # The scanner: uneven blood, blur, coil sensitivity, noise.
    image *= 1 + _smooth(rng, shape, 9, 0.06)
    image = ndimage.gaussian_filter(image, rng.uniform(0.8, 1.3) / spacing, truncate=3.0)
    image *= np.exp(_smooth(rng, shape, 3, rng.uniform(0.08, 0.2)))
    image += rng.uniform(0.04, 0.09) * rng.standard_normal(shape, dtype=np.float32)
    image = (image - image.mean()) / image.std()
    # Rounding to 1/256 halves the files and hides last-bit differences between machines.
    return np.round(image * 256) / np.float32(256), label.astype(np.uint8)


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], modes: int, deviation: float) -> np.ndarray:
    """A smooth random field: the lowest `modes` cosines along every axis, the constant left out."""
    weights = rng.standard_normal((modes,) * 3, dtype=np.float32)
    weights[0, 0, 0] = 0
    # A cosine's variance over the grid is 1/2 per axis on which it varies.
    varying = (np.indices(weights.shape) > 0).sum(0)
    weights *= deviation / np.sqrt((weights**2 * 0.5**varying).sum())
    bases = [np.cos(np.pi * np.outer((np.arange(n) + 0.5) / n, np.arange(modes))).astype(np.float32) for n in shape]
    return np.einsum("ijk,xi,yj,zk->xyz", weights, *bases, optimize=True)


def _ellipsoid(position: np.ndarray, centre: np.ndarray, semi: np.ndarray) -> np.ndarray:
    """Roughly the signed distance (mm) of (3, W, H, D) positions to an ellipsoid, negative inside."""
    squares = sum(((p - np.float32(c)) / np.float32(s)) ** 2 for p, c, s in zip(position, centre, semi, strict=True))
    return (np.sqrt(squares) - 1) * np.float32(semi.mean())


def _tube(
    position: np.ndarray, start: np.ndarray, towards: np.ndarray, radius: float, length: float = 60.0
) -> np.ndarray:
    """Signed distance (mm) of (3, W, H, D) positions to a round tube from `start`, negative inside."""
    direction = (towards / np.linalg.norm(towards)).astype(np.float32)
    offset = [p - np.float32(s) for p, s in zip(position, start, strict=True)]
    along = np.clip(sum(o * d for o, d in zip(offset, direction, strict=True)), 0, np.float32(length))
    squares = sum((o - along * d) ** 2 for o, d in zip(offset, direction, strict=True))
    return np.sqrt(squares) - np.float32(radius)


def _rotation(angles: np.ndarray) -> np.ndarray:
    """Rotation matrix (3, 3): about the three axes, one after the other, angles in radians."""
    rotation = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3)
        step[i, i] = step[j, j] = np.cos(angle)
        step[j, i], step[i, j] = np.sin(angle), -np.sin(angle)
        rotation = step @ rotation
    return rotation


def _affine(rng: np.random.Generator, shape: tuple[int, ...], spacing: np.ndarray) -> np.ndarray:
    """An oblique frame: first axis to the left (a flip in RAS+), up to 0.3 rad about each axis, off the origin."""
    affine = np.eye(4)
    affine[:3, :3] = _rotation(rng.uniform(-0.3, 0.3, 3)) @ np.diag([-1.0, 1.0, 1.0]) * spacing
    affine[:3, 3] = rng.uniform(-40, 40, 3) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine
