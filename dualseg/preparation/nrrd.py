"""NRRD files, with the affine that their header gives."""

from pathlib import Path

import nrrd
import numpy as np

from dualseg.data.problems import is_invertible
from dualseg.errors import DualsegError

# of the axes of `space` -> RAS
_SPACES = {
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
}


def read_nrrd(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a volume.

    Returns:
        array (W, H, D) in the file's type, first index fastest in the file; affine (4, 4), voxel indices -> mm (RAS+).

    Raises:
        DualsegError: the file is damaged, no volume, or does not say where its voxels lie.
    """
    try:
        array, header = nrrd.read(str(path))
    except Exception as error:  # pynrrd, zlib and NumPy each have their own
        raise DualsegError(f"{path}: cannot be read as NRRD ({error}); download it again.") from error
    if array.ndim != 3:
        raise DualsegError(f"{path}: has {array.ndim} axes; a volume of 3 is needed.")
    space = str(header.get("space", "left-posterior-superior")).lower()
    if space not in _SPACES:
        raise DualsegError(f"{path}: its space is {space}; {', '.join(list(_SPACES)[::2])} are known.")
    affine = np.eye(4)
    if "space directions" in header:
        affine[:3, :3] = np.asarray(header["space directions"], float).T
        affine[:3, 3] = np.asarray(header.get("space origin", (0, 0, 0)), float)
    elif "spacings" in header:
        affine[:3, :3] = np.diag(np.asarray(header["spacings"], float))
    affine = np.diag([*_SPACES[space], 1.0]) @ affine
    if not is_invertible(affine):
        raise DualsegError(f"{path}: its space directions are not invertible ({affine.tolist()}); download it again.")
    return array, affine
