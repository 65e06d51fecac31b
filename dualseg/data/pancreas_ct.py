"""NIH Pancreas-CT as prepared for MC-Net and MCF: <root>/image0001_norm.h5, the number being that of PANCREAS_0001."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from dualseg.data.checking.content import offset_problem, wrapped_problem
from dualseg.data.cropping import Box, cropped, largest_above
from dualseg.data.h5 import H5Source, shipped_list
from dualseg.data.preprocessing import to_lps, window, z_score
from dualseg.data.problems import Problem
from dualseg.data.volumes import Grid, Image
from dualseg.errors import DualsegError

PATCH = (96, 96, 96)
WINDOW = (-125.0, 275.0)  # HU
BODY = -500.0  # HU: between air and tissue
SPLITS = ("mcf_fold0", "mcnet")
NOT_IN_DOWNLOAD = ("image0025", "image0070")  # withdrawn from the public download, which has 80 of the 82 cases


class PancreasCT(H5Source):
    """62 training and 20 test volumes, 1 mm isotropic, already cropped and normalised (method.md section 5).

    Two public splits share 3 of their 20 test cases, so figures compare on the same one only:

    - mcf_fold0: fold 0 of MCF (CVPR 2023), which the release of arXiv:2509.13084 uses; cases 1-62 train, 63-82 test.
    - mcnet: the lists of MC-Net, and of most works that quote its figures.

    Args:
        root: folder of the files, `Pancreas_h5` in the public archives.
        split: `mcf_fold0` or `mcnet`.
        exclude: cases to leave out of the lists, whose order stays. None: those that dualseg-prepare has recorded in
            `root` as not in the download, as image0025 and image0070 are not in today's.

    Raises:
        DualsegError: `root` is missing, no such split, or `exclude` is no list of its cases.
    """

    name = "pancreas"
    class_names = ("background", "pancreas")
    file = "{case}_norm.h5"
    spacing = 1.0

    def __init__(self, root: str | Path, split: str = "mcf_fold0", exclude: Sequence[str] | None = None) -> None:
        if split not in SPLITS:
            raise DualsegError(f"data.source.split={split}: choose from {', '.join(SPLITS)}.")
        super().__init__(root)
        train, test = shipped_list(f"pancreas_{split}_train"), shipped_list(f"pancreas_{split}_test")
        if exclude is None:
            exclude = self.record.get("not_in_download", ())
        if isinstance(exclude, str) or not isinstance(exclude, Sequence) or not {*exclude} <= {*train, *test}:
            raise DualsegError(
                f"data.source.exclude={exclude}: give a list of cases of this dataset, such as "
                f"[{','.join(NOT_IN_DOWNLOAD)}]."
            )
        self._exclude = tuple(exclude)
        self.train_cases = tuple(case for case in train if case not in exclude)
        self.test_cases = tuple(case for case in test if case not in exclude)

    def fix_of_missing(self, case: str) -> str:
        if case not in NOT_IN_DOWNLOAD:
            return super().fix_of_missing(case)
        names = ",".join(dict.fromkeys([*self._exclude, *NOT_IN_DOWNLOAD]))
        return f"It is not in today's public download: put it there, or give data.source.exclude=[{names}]."

    @property
    def display_window(self) -> tuple[float, float]:
        return WINDOW

    def scan_doubts(self, scan: Image) -> list[Problem]:
        problem = wrapped_problem(scan.array[0]) or offset_problem(scan.array[0])
        return [problem] if problem else []

    def prepare_scan(self, scan: Image) -> Image:
        """The protocol, around the body in the place of the pancreas. The scan is in Hounsfield units."""
        image = to_millimetre(to_lps(scan))
        return normalised(cropped(image, foreground(image)))


def millimetre_grid(grid: Grid) -> Grid:
    """Voxels of exactly 1 mm along the axes of a grid, centred on its field of view, as many as fit it best."""
    sizes = voxel_sizes(grid.affine)
    shape = np.maximum(1, np.round(np.array(grid.shape) * sizes)).astype(int)
    to_own = np.diag([*(1 / sizes), 1.0])
    to_own[:3, 3] = (np.array(grid.shape) - 1) / 2 - (shape - 1) / 2 / sizes
    return Grid(tuple(map(int, shape)), grid.affine @ to_own)


def to_millimetre(image: Image) -> Image:
    """Resample (1, W, H, D) to `millimetre_grid` by cubic B-splines, without smoothing, as the protocol does.

    One axis after the other, each as a product with the matrix of its spline: several times faster than 64 weights for
    each voxel, and the same.
    """
    grid = millimetre_grid(Grid(image.array.shape[1:], image.affine))
    to_own = np.linalg.inv(image.affine) @ grid.affine  # diagonal but for rounding: the axes are the same
    array = image.array[0]
    for axis, (own, wanted) in enumerate(zip(image.array.shape[1:], grid.shape, strict=True)):
        scale, shift = (to_own[axis, axis], 1), (to_own[axis, 3], 0)
        spline = ndimage.affine_transform(np.eye(own), scale, shift, (wanted, own), order=3, mode="nearest")
        array = np.moveaxis(np.tensordot(spline.astype(np.float32), array, (1, axis)), 0, axis)
    return Image(np.ascontiguousarray(array)[None], grid.affine)


def normalised(image: Image) -> Image:
    """What was cropped from a CT (1, W, H, D) in HU: windowed to [0, 1], then z-scored."""
    return Image(z_score(window(image.array[0], *WINDOW))[None], image.affine)


def foreground(image: Image) -> Box:
    """The body's box, widened to the patch: the largest piece that is no air."""
    channel = image.array[0]
    return Box.around(largest_above(channel, BODY)).widened(channel.shape, PATCH, [(0, 0)] * 3)
