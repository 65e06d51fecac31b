"""One DICOM file's header: the slice that it describes, or why there is none."""

import struct
import warnings
from collections.abc import Hashable
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from pydicom import uid as uids
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID
from pydicom.valuerep import VR

_SLICES = (uids.CTImageStorage, uids.MRImageStorage, uids.PositronEmissionTomographyImageStorage)
# volumes in one file, which this package does not read
_MULTI_FRAME = (
    uids.EnhancedCTImageStorage,
    uids.EnhancedMRImageStorage,
    uids.EnhancedMRColorImageStorage,
    uids.EnhancedPETImageStorage,
    uids.EnhancedUSVolumeStorage,
    uids.LegacyConvertedEnhancedCTImageStorage,
    uids.LegacyConvertedEnhancedMRImageStorage,
    uids.LegacyConvertedEnhancedPETImageStorage,
    uids.XRay3DAngiographicImageStorage,
    uids.XRay3DCraniofacialImageStorage,
    uids.BreastTomosynthesisImageStorage,
)
_PLACE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
# by which slices at one place may belong to different volumes, from the surest to the least sure
TRAITS: tuple[str | tuple[int, int], ...] = (
    *("EchoTime", "EchoNumbers", "DiffusionBValue", "TemporalPositionIdentifier", "ConvolutionKernel", "ImageType"),
    *("AcquisitionNumber", "DiffusionGradientOrientation", "SequenceName", "InversionTime", "FlipAngle", "KVP"),
    *((0x0019, 0x100C), (0x2001, 0x1003), (0x0043, 0x1039)),  # b-values of Siemens, Philips and GE
    *("NominalPercentageOfCardiacPhase", "FrameReferenceTime", "TriggerTime", "SliceThickness", "AcquisitionTime"),
    *("SeriesNumber", "SeriesDescription", "ContrastBolusAgent"),
)
_TAGS = [
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientID"),
    *("Modality", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation"),
    *("PixelRepresentation", "RescaleSlope", "RescaleIntercept", "SpacingBetweenSlices", *_PLACE),
    "InstanceNumber",
]
_TRAIT_TAGS = [Tag(tag) for tag in TRAITS]
_ECHO_TIME, _IMAGE_TYPE = Tag("EchoTime"), Tag("ImageType")
_READ = [*map(Tag, _TAGS), *_TRAIT_TAGS]
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".z")  # suffixes of files that hold another, lower case
_PREAMBLE = 128  # bytes before "DICM"; some exports leave both out
_SKEW = 2e-3  # by which a direction's length or two directions' product may be off; headers may have three decimals


class Slice(NamedTuple):
    """What a header says of a slice.

    Attributes:
        instance: SOPInstanceUID.
        patient: PatientID; public collections have the case's name there. It may name a person: write it nowhere.
        frame: FrameOfReferenceUID.
        shape: columns, rows.
        position: (3,) centre of the first voxel, mm, LPS.
        digit: (3,) mm, the value of the last digit with which each coordinate is written.
        orientation: (2, 3) directions of growing column and row indices, LPS.
        spacing: (2,) mm between columns, between rows.
        distance: SpacingBetweenSlices in mm, 0 where there is none.
        storage: how values are stored; the slices of a volume agree in it.
        traits: of `TRAITS`.
        number: InstanceNumber as it is written, None where there is none.
    """

    path: Path
    instance: str
    series: str
    study: str
    patient: str
    frame: str
    shape: tuple[int, int]
    position: np.ndarray
    digit: np.ndarray
    orientation: np.ndarray
    spacing: np.ndarray
    distance: float
    storage: tuple[Hashable, ...]
    traits: tuple[Hashable, ...]
    number: bytes | None


class Flawed(NamedTuple):
    """An image that cannot be a slice of a volume.

    Attributes:
        series: SeriesInstanceUID; empty: not even that can be read.
        problem: one sentence with the file and the fix.
        kind: what it is counted as where it is the only file of its series; empty: even then it is a scan that fails.
    """

    path: Path
    series: str
    problem: str
    kind: str = ""


class Other(NamedTuple):
    """DICOM, but no slice: its kind, such as `RT Structure Set`."""

    path: Path
    kind: str


class _FlawError(Exception):
    """What is wrong with a header and how to fix it, and its kind as in `Flawed`."""

    def __init__(self, problem: str, kind: str = "") -> None:
        super().__init__(problem)
        self.kind = kind


def read_header(path: Path) -> Slice | Flawed | Other | None:
    """Read the header of a file; None where it is not DICOM. Preamble and file meta information may be absent."""
    try:
        if not path.is_file():  # a pipe, a link to nothing
            return None
        with path.open("rb") as file:
            start = file.read(_PREAMBLE + 4)
    except OSError as error:
        return Flawed(path, "", f"{path}: cannot be read ({error.strerror}).")
    part_10 = start[_PREAMBLE:] == b"DICM"
    if not part_10 and not looks_like_dataset(start):
        return None
    series = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that break rules which do not matter here
            header = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=_READ)
            kind = UID(str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or ""))
            series = str(header.get("SeriesInstanceUID") or "")
            if not part_10 and not kind.startswith("1.2.840.10008."):
                return None  # bytes that happen to begin as a data element
            return _of_kind(path, header, kind, series)
    except _FlawError as flaw:
        return Flawed(path, series, f"{path}: {flaw}", flaw.kind)
    except Exception:  # pydicom raises whatever a damaged header leads to
        return Flawed(path, series, damage_of(path)) if part_10 else None


def damage_of(path: Path) -> str:
    """The message for a file that may be a slice, and whose header cannot be read."""
    if path.suffix.lower() in PACKED:
        return f"{path}: lies beside slices and is compressed; unpack it, or move it away."
    fix = "slices of the series beside it may be missing; download them again"
    return f"{path}: cannot be read as DICOM, its header is damaged or breaks off; {fix}."


def looks_like_dataset(start: bytes) -> bool:
    """Whether a file begins with a data element of group 2 or 8, as DICOM without a preamble does."""
    if len(start) < 8:
        return False
    representation, (length,) = start[4:6], struct.unpack("<I", start[4:8])
    explicit = representation in {vr.value.encode() for vr in VR}
    little, big = struct.unpack("<H", start[:2])[0], struct.unpack(">H", start[:2])[0]
    return (little in (2, 8) and (explicit or length < 1024)) or (big in (2, 8) and explicit)


def _of_kind(path: Path, header: pydicom.Dataset, kind: UID, series: str) -> Slice | Flawed | Other:
    """Raises: _FlawError, or whatever pydicom does."""
    if kind in _MULTI_FRAME:
        raise _FlawError("holds several frames; convert enhanced DICOM to one file a slice, or to NIfTI.")
    lacking = [tag for tag in (*_PLACE, "Rows", "Columns") if header.get(tag) is None]
    if kind and kind not in _SLICES and (kind != uids.SecondaryCaptureImageStorage or lacking):
        return Other(path, _name(kind))
    if b"LOCALIZER" in (_written(header, _IMAGE_TYPE) or b""):
        return Other(path, "localizer")
    if not series or "Rows" in lacking or "Columns" in lacking:
        return Flawed(path, series, damage_of(path))
    if lacking:
        fix = "export it again with all headers, or convert the series to NIfTI"
        raise _FlawError(
            f"lacks {', '.join(lacking)}, so that nobody knows where it lies; {fix}.", "image without a place"
        )
    return _slice(path, header, series)


def _slice(path: Path, header: pydicom.Dataset, series: str) -> Slice:
    if int(header.get("NumberOfFrames") or 1) > 1:
        raise _FlawError("holds several frames; convert enhanced DICOM to one file a slice, or to NIfTI.")
    colours = str(header.get("PhotometricInterpretation") or "MONOCHROME2")
    if colours != "MONOCHROME2" or int(header.get("SamplesPerPixel") or 1) != 1:
        fix = "leave the series out, or convert it to NIfTI with growing values for brighter voxels"
        raise _FlawError(f"its pixels are {colours}, not MONOCHROME2; {fix}.", "colour or inverted image")
    position, directions, spacing = (_numbers(header, tag, n) for tag, n in zip(_PLACE, (3, 6, 2), strict=True))
    orientation = directions.reshape(2, 3)
    if np.abs(orientation @ orientation.T - np.eye(2)).max() > _SKEW * 2:  # a length's square is off by twice as much
        raise _FlawError(
            "ImageOrientationPatient holds directions that are not of length 1 or not perpendicular to each other; "
            "export it again, or convert the series to NIfTI."
        )
    shape = (int(header.Columns), int(header.Rows))
    if (spacing <= 0).any() or min(shape) < 1:
        raise _FlawError(
            f"PixelSpacing is {spacing[0]:g} and {spacing[1]:g} mm, for {shape[1]} rows and {shape[0]} columns; all "
            "must be positive; export it again."
        )
    rescale = [header.get(tag) for tag in ("RescaleSlope", "RescaleIntercept")]
    slope, intercept = (float(1 if value is None else value) for value in rescale)  # None also where left empty
    if slope == 0 or not np.isfinite((slope, intercept)).all():
        raise _FlawError(f"RescaleSlope is {slope:g} and RescaleIntercept {intercept:g}; export it again.")
    distance = abs(float(header.get("SpacingBetweenSlices") or 0))
    signed = header.get("PixelRepresentation")
    signed = None if signed is None else int(signed)  # raises for several values, as a wrong length makes them
    storage = (signed, *(value is None for value in rescale), str(header.get("Modality")))
    instance, study, patient, frame = (
        str(header.get(tag) or "").strip()
        for tag in ("SOPInstanceUID", "StudyInstanceUID", "PatientID", "FrameOfReferenceUID")
    )
    return Slice(
        path=path,
        instance=instance,
        series=series,
        study=study,
        patient=patient,
        frame=frame,
        shape=shape,
        position=position,
        digit=np.array([_digit(value) for value in header.ImagePositionPatient]),
        orientation=orientation,
        spacing=spacing[::-1],
        distance=distance if np.isfinite(distance) else 0.0,
        storage=storage,
        traits=tuple(_trait(header, tag) for tag in _TRAIT_TAGS),
        number=_written(header, Tag("InstanceNumber")),
    )


def _numbers(header: pydicom.Dataset, tag: str, count: int) -> np.ndarray:
    try:
        numbers = np.asarray(header.get(tag), float)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise _FlawError(f"{tag} is not {count} finite numbers; export it again, or download it again.")
    return numbers


def _digit(value: object) -> float:
    exponent = Decimal(str(getattr(value, "original_string", value)).strip()).as_tuple().exponent
    assert isinstance(exponent, int)  # it is finite
    return 10.0**exponent


def _trait(header: pydicom.Dataset, tag: BaseTag) -> Hashable:
    """As it is written, for one that breaks the standard's rules is as good; an echo time as a number."""
    text = _written(header, tag)
    if tag == _IMAGE_TYPE and text:
        return tuple(part.strip() for part in text.split(b"\\")[2:])  # what follows ORIGINAL\PRIMARY
    if tag == _ECHO_TIME and text:
        with suppress(ValueError):
            return float(text)
    return text


def _written(header: pydicom.Dataset, tag: BaseTag) -> bytes | None:
    """An element's bytes; None where it is empty or absent, or no value but a sequence."""
    value = header.get_item(tag).value if tag in header else None
    return value.strip(b" ") or None if isinstance(value, bytes) else None


def _name(kind: UID) -> str:
    if kind == uids.MediaStorageDirectoryStorage:
        return "DICOMDIR"
    return "file of a private kind" if kind.name == kind else kind.name.removesuffix(" Storage")
