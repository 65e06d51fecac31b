"""What a header says twice, or nowhere: where programs differ in what they read of it."""

from pathlib import Path

import numpy as np

from dualseg.data.checking.geometry import VOXEL_SHARE, largest_distance, spacing_of
from dualseg.data.formats import stored_volume
from dualseg.data.nifti import MILLIMETRES, UNREADABLE, header_of
from dualseg.data.problems import Problem, is_invertible
from dualseg.data.volumes import Grid
from dualseg.errors import DualsegError

# of the volume's diagonal: the three stored numbers of a quaternion leave an angle this uncertain, in radians
QUATERNION = 1e-3


def header_problems(path: Path) -> list[Problem]:
    """What makes the place of a file's voxels doubtful, by its header alone.

    A file that cannot be read has none: reading it says what is wrong. Analyze has neither qform nor sform.
    """
    try:
        header = header_of(path, corrected=False)
    except UNREADABLE:
        return _of_other_formats(path)
    edges = np.array(header["pixdim"][1:4], np.float64)
    if not (np.isfinite(edges) & (edges > 0)).all():
        text = f"has a pixdim of {_edges(edges)}; write the edges of a voxel there."
        return [Problem("pixdim", text)]
    scale = MILLIMETRES.get(int(header["xyzt_units"]) & 7, 1.0)
    shape = tuple(map(int, header.get_data_shape()[:3]))
    for name in ("qform", "sform"):
        if (code := int(header[f"{name}_code"])) not in range(6):
            text = f"has the {name}_code {code}, which means nothing, so that its {name} is ignored; give it 0 to 5."
            return [Problem("qform/sform", text)]
    sform = header.get_sform(coded=True)[0]
    try:
        qform = header.get_qform(coded=True)[0]
    except ValueError:
        return [Problem("qform/sform", "has a qform whose quaternion is no rotation; set it anew, or its code to 0.")]
    if sform is None and qform is None:
        fix = "find out how it lies, and set one of them with its code"
        text = f"has neither a qform nor a sform (both codes are 0), so that left and right are a guess; {fix}."
        return [Problem("no orientation", text)]
    if sform is None or not is_invertible(sform):  # a qform alone; or what `read_grid` refuses
        return []
    in_mm = np.diag([scale, scale, scale, 1.0])
    own = Grid(shape, in_mm @ sform)
    if qform is not None and (apart := largest_distance(own, Grid(shape, in_mm @ qform))) > _tolerance(own):
        fix = "find out which is right, and set both to it"
        text = f"has a qform that places it up to {apart:.3g} mm from its sform; programs read one or the other; {fix}."
        return [Problem("qform/sform", text)]
    sizes = spacing_of(own.affine)
    if ((np.array(shape) - 1) * np.abs(scale * edges - sizes)).max() > _tolerance(own):
        said = f"its pixdim says {_edges(scale * edges)} mm"
        return [Problem("pixdim", f"has voxels of {_edges(sizes)} mm by its sform, but {said}; ITK reads pixdim.")]
    return []


def _of_other_formats(path: Path) -> list[Problem]:
    try:
        missing = stored_volume(path).missing
    except DualsegError:
        return []
    if not missing:
        return []
    text = f"has no {' and no '.join(missing)} in its header, so that its spacing, or left and right, are a guess; "
    return [Problem("no orientation", f"{text}find out how it lies, and write it there.")]


def _tolerance(grid: Grid) -> float:
    sizes = spacing_of(grid.affine)
    return max(VOXEL_SHARE * float(sizes.min()), QUATERNION * float(np.linalg.norm(np.array(grid.shape) * sizes)))


def _edges(edges: np.ndarray) -> str:
    return " x ".join(f"{edge:.4g}" for edge in edges)
