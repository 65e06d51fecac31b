"""Where the voxels of an image and of its label lie, by their files' affines."""

import nibabel as nib
import numpy as np

from dualseg.data.problems import Problem
from dualseg.data.volumes import Grid

PERPENDICULAR = 1e-4  # cosine of the angle between two axes; ITK 5.4 refuses 2e-4 and takes 1e-4
VOXEL_SHARE = 0.1  # of the smallest edge of a voxel: headers are rounded, a shift this small changes no label


def grid_problem(image: Grid, label: Grid) -> Problem | None:
    """How a label's grid differs from its image's: another shape, mirrored, or elsewhere in millimetres.

    Mirrored counts whether or not the voxels were mirrored with the affine: who reads both by their indices sees one of
    them the wrong way round.
    """
    if image.shape != label.shape:
        return Problem("shape", f"has shape {label.shape}, its image {image.shape}; they must be the same grid.")
    turned = [axis for axis, cosine in enumerate(_cosines(image.affine, label.affine)) if cosine < -0.5]
    if turned or np.linalg.det(image.affine[:3, :3]) * np.linalg.det(label.affine[:3, :3]) < 0:
        return Problem(
            "flip",
            f"runs towards {axis_codes(label.affine)}, its image towards {axis_codes(image.affine)}; write both with "
            "one orientation.",
        )
    apart = largest_distance(image, label)
    if apart > VOXEL_SHARE * spacing_of(image.affine).min():
        return Problem("affine", f"lies up to {apart:.3g} mm from its image; give both files the affine that is right.")
    return None


def shear_problem(grid: Grid) -> Problem | None:
    """Axes that are not perpendicular, and the nearest affine whose axes are."""
    axes = grid.affine[:3, :3] / spacing_of(grid.affine)
    leaning = np.abs(axes.T @ axes - np.eye(3)).max()
    if leaning <= PERPENDICULAR:
        return None
    rigid = nearest_rigid(grid)
    moved = largest_distance(grid, Grid(grid.shape, rigid))
    rows = ", ".join("[" + ", ".join(f"{number:.6g}" for number in row) + "]" for row in rigid)
    return Problem(
        "shear",
        f"has an affine whose axes are not perpendicular (two meet at {np.degrees(np.arccos(leaning)):.3g} degrees): "
        "ITK and 3D Slicer refuse such files, label maps on this grid too. Resample it to perpendicular axes, or give "
        f"image and label the nearest such affine, which moves no voxel by more than {moved:.2g} mm: [{rows}].",
    )


def nearest_rigid(grid: Grid) -> np.ndarray:
    """(4, 4) affine with perpendicular axes, the spacing and the centre of `grid`, nearest to its own.

    By the polar decomposition: of all orthogonal matrices the nearest in the Frobenius norm (Higham 1986).
    """
    sizes = spacing_of(grid.affine)
    left, _, right = np.linalg.svd(grid.affine[:3, :3] / sizes)
    rigid = np.eye(4)
    rigid[:3, :3] = left @ right * sizes
    middle = (np.array(grid.shape) - 1) / 2
    rigid[:3, 3] = grid.affine[:3, 3] + (grid.affine[:3, :3] - rigid[:3, :3]) @ middle
    return rigid


def spacing_of(affine: np.ndarray) -> np.ndarray:
    """(3,) edges of a voxel in mm, along the voxel axes."""
    return np.linalg.norm(affine[:3, :3], axis=0)


def spacing_by_direction(affine: np.ndarray) -> np.ndarray:
    """(3,) edges of a voxel in mm nearest to left-right, back-front and feet-head, whatever the order of its axes."""
    spacing = np.full(3, np.nan)
    spacing[nib.io_orientation(affine)[:, 0].astype(int)] = spacing_of(affine)
    return spacing


def axis_codes(affine: np.ndarray) -> str:
    """Where the voxel axes run to, such as RAS."""
    return "".join(nib.aff2axcodes(affine))


def _cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of the angle between each voxel axis of one affine and the same axis of the other."""
    a, b = first[:3, :3] / spacing_of(first), second[:3, :3] / spacing_of(second)
    return (a * b).sum(axis=0)


def largest_distance(image: Grid, label: Grid) -> float:
    """mm between a corner of the volume by one affine and by the other: nothing in between is farther apart."""
    ends = [(0, size - 1) for size in image.shape]
    corners = np.stack([c.ravel() for c in np.meshgrid(*ends, indexing="ij")])  # (3, 8)
    difference = image.affine - label.affine
    return float(np.linalg.norm(difference[:3, :3] @ corners + difference[:3, 3:], axis=0).max())
