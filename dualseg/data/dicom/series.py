"""Slices -> volumes, by what their headers say.

Slices of one SeriesInstanceUID are one volume if they agree in study, patient, frame of reference, size and storage, in
orientation and spacing within tolerances, and lie on a regular grid. If they do not lie on one, they may be several
volumes, such as phases or echoes, which a trait of their headers tells apart. Never a volume of every second slice, and
never one of two scans: slices that seem to belong together and differ, or to belong apart and agree, are refused.
"""

from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dualseg.data.dicom.headers import Flawed, Slice
from dualseg.data.dicom.phases import SORT, Part, volumes_among
from dualseg.data.dicom.stacks import axes_of, is_regular, stack_of
from dualseg.data.volumes import Grid
from dualseg.errors import DualsegError

_ORIENTATION = 2e-3  # of the directions' components; slices of one volume are parallel
_SPACING = 1e-3  # of the spacing
_PARALLEL = np.cos(np.deg2rad(2))  # slices so parallel could be of one volume, were it not for the tolerance
_TOUCHING = 0.1  # of the distance of slices: so near are slices at one place
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class Series(NamedTuple):
    """A volume of a DICOM series, or what could be none.

    Attributes:
        uid: SeriesInstanceUID; a series may hold several volumes, with one uid.
        patient: PatientID. It may name a person: keep it out of what is written.
        shape: columns, rows.
        files: one a slice, in the order of their positions.
        doubles: further files and the slice that each repeats; `read_series` compares them.
        affine: (4, 4) column, row, slice -> mm (RAS+).
        problem: why it is no volume, one sentence with a file and the fix; empty: it is one.
    """

    uid: str
    patient: str
    shape: tuple[int, int]
    files: tuple[Path, ...]
    doubles: tuple[tuple[Path, Path], ...]
    affine: np.ndarray
    problem: str

    @property
    def grid(self) -> Grid:
        """Where its voxels lie. Raises: DualsegError where it is no volume."""
        if self.problem:
            raise DualsegError(self.problem)
        return Grid((*self.shape, len(self.files)), self.affine)


def volumes_of(slices: Sequence[Slice], flawed: Sequence[Flawed]) -> tuple[list[Series], list[Path]]:
    """The volumes of the files of one SeriesInstanceUID.

    Returns:
        volumes, those with a problem too; and files of single slices that belong to none.
    """
    parts = [part for alike in _alike(slices) for part in volumes_among(alike)]
    parts = _torn(parts)
    if flawed:
        parts = [part if part.loose else part._replace(problem=flawed[0].problem) for part in parts]
    volumes = [
        Series(
            part.slices[0].series,
            part.slices[0].patient,
            part.slices[0].shape,
            tuple(s.path for s in part.slices),
            part.doubles,
            _LPS_TO_RAS @ part.affine,
            part.problem,
        )
        for part in parts
        if not part.loose
    ]
    return volumes, [path for part in parts if part.loose for path in (part.slices[0].path, *dict(part.doubles))]


def _alike(slices: Sequence[Slice]) -> Iterator[list[Slice]]:
    """Slices that agree in all but their positions and traits."""
    groups: dict[Hashable, list[Slice]] = {}
    for own in slices:
        groups.setdefault((own.study, own.patient, own.frame, own.shape, own.storage), []).append(own)
    for group in groups.values():
        orientation = np.array([own.orientation for own in group])
        spacing = np.array([own.spacing for own in group])
        left = np.arange(len(group))
        while len(left):
            first = left[0]
            near = (np.abs(orientation[left] - orientation[first]) <= _ORIENTATION).all(axis=(1, 2))
            near &= (np.abs(spacing[left] / spacing[first] - 1) <= _SPACING).all(axis=1)
            yield [group[k] for k in left[near]]
            left = left[~near]


def _torn(parts: list[Part]) -> list[Part]:
    """The parts, where those that seem to be pieces of one volume are one part with a problem.

    They take turns, or one goes on where the other ends, though their headers differ.
    """
    piece_of = list(range(len(parts)))  # the first part of the volume that a part is a piece of
    for chosen in _suspects(parts):
        if _is_one([parts[k] for k in chosen]):
            joined = {piece_of[k] for k in chosen}
            piece_of = [min(joined) if first in joined else first for first in piece_of]
    volumes = []
    for first in dict.fromkeys(piece_of):
        pieces = [part for part, own in zip(parts, piece_of, strict=True) if own == first]
        volumes.append(pieces[0] if len(pieces) == 1 else _refused(pieces))
    return volumes


def _refused(pieces: Sequence[Part]) -> Part:
    one, other = pieces[0].slices[0], pieces[1].slices[0]
    problem = (
        f"{other.path}: differs in {', '.join(_differences(one, other))} from {one.path.name} of its series, while "
        f"together they seem to be slices of one volume; export the series again, or {SORT}."
    )
    slices, doubles = (tuple(item for part in pieces for item in getattr(part, name)) for name in ("slices", "doubles"))
    return Part(slices, doubles, pieces[0].affine, problem)


def _suspects(parts: Sequence[Part]) -> Iterator[tuple[int, ...]]:
    """Sets of parts that are not alike, and parallel or, of a slice alone, where the next of a volume would be.

    Several phases are alike, and each is as it should be.
    """
    normals = np.array([axes_of(part.slices)[2] for part in parts]).reshape(-1, 3)
    several = [k for k, part in enumerate(parts) if len(part.slices) > 1]
    for a in several:
        parallel = np.abs(normals @ normals[a]) > _PARALLEL
        for b, part in enumerate(parts):
            if (b > a or len(part.slices) == 1) and _differences(parts[a].slices[0], part.slices[0]):
                follows = len(part.slices) == 1 and not stack_of([*parts[a].slices, *part.slices]).problem
                if parallel[b] or follows:
                    yield a, b
    left = np.arange(len(parts))
    while len(left):
        parallel = np.abs(normals[left] @ normals[left[0]]) > _PARALLEL
        for chosen in (left[parallel], [k for k in left[parallel] if k in several]):
            if len(chosen) > 2:
                yield tuple(map(int, chosen))
        left = left[~parallel]


def _is_one(parts: Sequence[Part]) -> bool:
    """Whether the slices of several parts together look like one volume, or those of two lie between each other."""
    normal = axes_of(max(parts, key=lambda part: len(part.slices)).slices)[2]
    own = [np.array([s.position for s in part.slices]) @ normal for part in parts]
    along = np.concatenate(own)
    order = along.argsort()
    digit = float(np.abs(normal) @ np.min([s.digit for part in parts for s in part.slices], axis=0))
    regular = len(along) > 2 and is_regular(along[order], digit)
    if len(parts) > 2 or _other_space(parts[0].slices[0], parts[1].slices[0]):
        # scans of several patients may follow each other in space, but not take turns
        owner = np.repeat(np.arange(len(parts)), [len(part.slices) for part in parts])[order]
        turns = 1 + int((np.diff(owner) != 0).sum())
        return regular and (turns > len(parts) or min(map(len, own)) == 1)
    return regular or _lies_between(*own) or _lies_between(*own[::-1])


def _other_space(one: Slice, other: Slice) -> bool:
    """Whether two slices cannot be of one volume by what their headers say, rather than by what these lack."""
    values = [(getattr(one, name), getattr(other, name)) for name in ("study", "patient", "frame")]
    return any(own and others and own != others for own, others in values)


def _lies_between(here: np.ndarray, there: np.ndarray) -> bool:
    """Whether one of several positions lies between others, and not on one of them."""
    if min(len(here), len(there)) < 2:
        return False
    near = _TOUCHING * float(np.median(np.diff(np.sort(there))))
    inside = here[(here > there.min() + near) & (here < there.max() - near)]
    return bool((np.abs(inside[:, None] - there).min(axis=1, initial=np.inf) > near).any())


def _differences(one: Slice, other: Slice) -> list[str]:
    return [
        name
        for name, differs in {
            "StudyInstanceUID": one.study != other.study,
            "PatientID": one.patient != other.patient,
            "FrameOfReferenceUID": one.frame != other.frame,
            "Rows and Columns": one.shape != other.shape,
            "ImageOrientationPatient": np.abs(one.orientation - other.orientation).max() > _ORIENTATION,
            "PixelSpacing": np.abs(one.spacing / other.spacing - 1).max() > _SPACING,
            "Modality, PixelRepresentation or rescaling": one.storage != other.storage,
        }.items()
        if differs
    ]
