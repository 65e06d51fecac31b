"""DICOM series -> volumes: found by what the files say, whatever they and their folders are called.

Slices are sorted by position; doubled ones count once; each slice's own rescale slope and intercept are applied. What
cannot be a volume is refused: missing slices, a tilted gantry, several frames in a file, pixels that cannot be decoded.
Names and dates of patients are not read.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.uid import CTImageStorage, MRImageStorage, PositronEmissionTomographyImageStorage

from dualseg.data.volumes import Grid, Image
from dualseg.errors import DualsegError
from dualseg.files import files_below

# what groups files into series; PatientID is the case's name in public collections
_TAGS = ["SeriesInstanceUID", "PatientID", "Rows", "Columns", "ImagePositionPatient", "ImageOrientationPatient"]
_TAGS += ["PixelSpacing"]
# None: it breaks off before its kind
_SLICES = (None, CTImageStorage, MRImageStorage, PositronEmissionTomographyImageStorage)
_PREAMBLE = 132  # bytes before a DICOM file's first element, by which it is known
_SAME_PLACE = 1e-3  # mm
_UNEVEN = 0.05  # of the distance of slices; positions are written with few digits
_TILT = 1e-3  # sine of the angle between the slices' normal and the way from slice to slice
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class Series(NamedTuple):
    """Files of one series whose slices share size, spacing and orientation; unsorted.

    Attributes:
        uid: SeriesInstanceUID; a series whose slices differ in their grids comes as several with one uid.
        patient: PatientID. It may name a person: keep it out of what is written.
        shape: columns, rows.
    """

    uid: str
    patient: str
    shape: tuple[int, int]
    files: tuple[Path, ...]


class SeriesFound(NamedTuple):
    """`series`, in the order of their first files; `damaged`: DICOM files whose header cannot be read."""

    series: list[Series]
    damaged: list[Path]


def find_series(folder: Path) -> SeriesFound:
    """Every series of slices in a folder and below. Files that are not DICOM, or no slices, are passed over.

    An empty file, or one that breaks off in its preamble, counts as damaged beside slices with its suffix: it may have
    been the last one, which no gap would tell of.
    """
    groups: dict[tuple, list[Path]] = {}
    damaged: list[Path] = []
    cut_off: list[Path] = []
    for path in files_below(folder):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
            if any(header.get(tag) is None for tag in _TAGS if tag != "PatientID"):
                # a report, a segmentation, DICOMDIR: no slice; a header that breaks off is no error to pydicom
                if header.file_meta.get("MediaStorageSOPClassUID") in _SLICES:
                    damaged.append(path)
                continue
            place = tuple(np.round(np.asarray(header.ImageOrientationPatient, float), 4))
            place += tuple(np.round(np.asarray(header.PixelSpacing, float), 4))
            shape = (int(header.Columns), int(header.Rows))
            key = (str(header.SeriesInstanceUID), str(header.get("PatientID", "")), shape, place)
        except InvalidDicomError:
            if path.stat().st_size < _PREAMBLE and not path.read_bytes().strip(b"\0"):  # zeros, as a preamble is
                cut_off.append(path)
            continue
        except Exception:  # pydicom raises whatever a damaged header leads to
            damaged.append(path)
            continue
        groups.setdefault(key, []).append(path)
    of_series = {(file.parent, file.suffix) for files in groups.values() for file in files}
    damaged += [path for path in cut_off if (path.parent, path.suffix) in of_series]
    return SeriesFound(
        [Series(uid, patient, shape, tuple(files)) for (uid, patient, shape, _), files in groups.items()], damaged
    )


class _Slice(NamedTuple):
    path: Path
    position: np.ndarray  # (3,) centre of the first voxel, mm, LPS
    pixels: np.ndarray  # (columns, rows) float32


def read_series(series: Series) -> Image:
    """Read a series as one volume.

    Returns:
        array (1, columns, rows, slices) float32, rescaled (CT: Hounsfield units), slices along their normal; the
        affine into mm (RAS+).

    Raises:
        DualsegError: naming a file, where the series is no volume or cannot be decoded.
    """
    first = _header(series.files[0])
    columns, rows = np.asarray(first.ImageOrientationPatient, float).reshape(2, 3)  # directions of growing indices
    normal = np.cross(columns, rows)
    slices = sorted((_read_slice(path) for path in series.files), key=lambda s: float(s.position @ normal))
    slices = _without_doubles(slices, normal)
    step = _step(slices, normal)
    between_rows, between_columns = np.asarray(first.PixelSpacing, float)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = columns * between_columns, rows * between_rows, step
    affine[:3, 3] = slices[0].position
    return Image(np.stack([s.pixels for s in slices], axis=-1)[None], _LPS_TO_RAS @ affine)


def series_grid(series: Series) -> Grid:
    """The grid that a series has if it is a volume, by its headers alone.

    Raises:
        DualsegError: a header cannot be read.
    """
    headers = [_header(path, without_pixels=True) for path in series.files]
    first = headers[0]
    columns, rows = np.asarray(first.ImageOrientationPatient, float).reshape(2, 3)
    along = sorted(float(np.asarray(h.ImagePositionPatient, float) @ np.cross(columns, rows)) for h in headers)
    between_rows, between_columns = np.asarray(first.PixelSpacing, float)
    step = (along[-1] - along[0]) / max(len(along) - 1, 1)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([columns * between_columns, rows * between_rows, np.cross(columns, rows) * step], axis=1)
    return Grid((*series.shape, len(headers)), _LPS_TO_RAS @ affine)


def _header(path: Path, without_pixels: bool = False) -> pydicom.Dataset:
    try:
        return pydicom.dcmread(path, stop_before_pixels=without_pixels)
    except Exception as error:  # as in find_series
        raise DualsegError(f"{path}: cannot be read as DICOM ({error}); download it again.") from error


def _read_slice(path: Path) -> _Slice:
    dataset = _header(path)
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise DualsegError(f"{path}: holds several frames; convert enhanced DICOM to one file a slice, or to NIfTI.")
    try:
        pixels = dataset.pixel_array.T.astype(np.float32)
        slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")  # None also where left empty
        pixels = pixels * np.float32(1 if slope is None else slope) + np.float32(intercept or 0)
        return _Slice(path, np.asarray(dataset.ImagePositionPatient, float), pixels)
    except Exception as error:  # depends on the decoder, and on where the damage is
        syntax = dataset.file_meta.get("TransferSyntaxUID")
        reason = " ".join(str(error).split())
        if syntax is not None and syntax.is_compressed:
            mend = "decompress the series (gdcmconv --raw), or install a decoder (pip install pylibjpeg[all])"
            raise DualsegError(f"{path}: compressed as {syntax.name}, not decoded ({reason}); {mend}.") from error
        raise DualsegError(
            f"{path}: its header or pixels cannot be read ({reason}); download the file again."
        ) from error


def _without_doubles(slices: list[_Slice], normal: np.ndarray) -> list[_Slice]:
    """Of slices at one place only one, if they are alike."""
    kept = slices[:1]
    for here in slices[1:]:
        before = kept[-1]
        if (here.position - before.position) @ normal > _SAME_PLACE:
            kept.append(here)
        elif np.abs(here.position - before.position).max() > _SAME_PLACE or not np.allclose(
            here.pixels, before.pixels, atol=0.5
        ):
            raise DualsegError(
                f"{here.path}: lies where {before.path} does but differs from it; two scans in one? Take one out."
            )
    return kept


def _step(slices: list[_Slice], normal: np.ndarray) -> np.ndarray:
    """The way from slice to slice, (3,) mm, after a check that it is one and the same."""
    if len(slices) < 2:
        raise DualsegError(f"{slices[0].path}: the only slice of its series; a volume needs several.")
    positions = np.array([s.position for s in slices])
    gaps = np.diff(positions @ normal)
    usual = float(np.median(gaps))
    for gap, before, after in zip(gaps, slices, slices[1:], strict=False):
        if abs(gap - usual) > _UNEVEN * usual:
            missing = round(gap / usual) - 1
            what = f"{missing} missing" if missing > 0 else "uneven"
            raise DualsegError(
                f"{after.path}: lies {gap:.4g} mm from the slice before it ({before.path.name}), others "
                f"{usual:.4g} mm: slices {what}; download the series again."
            )
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    if np.linalg.norm(np.cross(step, normal)) > _TILT * np.linalg.norm(step):
        raise DualsegError(
            f"{slices[0].path}: the gantry was tilted, so slices are shifted; straighten the series first."
        )
    return step
