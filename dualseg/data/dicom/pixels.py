"""The volume of a series: each slice's pixels, decoded and rescaled by its own header."""

import warnings
from pathlib import Path

import numpy as np
import pydicom
from pydicom.pixels import apply_modality_lut
from pydicom.pixels.utils import get_expected_length
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dualseg.data.dicom.series import Series
from dualseg.data.volumes import Image
from dualseg.errors import DualsegError

_ALIKE = 1e-3  # of a slice's range, by which one that repeats it may differ


def read_series(series: Series) -> Image:
    """Read a series as one volume.

    Returns:
        array (1, columns, rows, slices) float32, rescaled (CT: Hounsfield units), slices along their normal; the
        affine into mm (RAS+).

    Raises:
        DualsegError: naming a file, where the series is no volume or cannot be decoded.
    """
    if series.problem:
        raise DualsegError(series.problem)
    array = np.empty((1, *series.shape, len(series.files)), np.float32)
    for index, path in enumerate(series.files):
        array[0, :, :, index] = _read_slice(path, series.shape)
    places = {path: index for index, path in enumerate(series.files)}
    for path, other in series.doubles:
        first = array[0, :, :, places[other]]
        if not np.allclose(_read_slice(path, series.shape), first, rtol=0, atol=_ALIKE * float(np.ptp(first))):
            raise DualsegError(f"{path}: lies where {other} does but differs from it; two scans in one? Take one out.")
    return Image(array, series.affine)


def _read_slice(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """(columns, rows) float32."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path, force=True)
    except Exception as error:  # pydicom raises whatever a damaged file leads to
        raise DualsegError(f"{path}: cannot be read as DICOM ({error}); download it again.") from error
    if "TransferSyntaxUID" not in dataset.file_meta:
        _name_syntax(dataset, path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored = dataset.pixel_array
            if not dataset.file_meta.TransferSyntaxUID.is_compressed:
                _check_length(dataset)
            if dataset.get("ModalityLUTSequence"):
                pixels = apply_modality_lut(stored, dataset).astype(np.float32)
            else:
                slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")  # None where empty
                pixels = stored.astype(np.float32) * np.float32(1 if slope is None else slope)
                pixels += np.float32(intercept or 0)
    except Exception as error:  # depends on the decoder, and on where the damage is
        syntax = dataset.file_meta.get("TransferSyntaxUID")
        reason = " ".join(str(error).split())
        if syntax is not None and syntax.is_compressed:
            fix = "decompress the series (gdcmconv --raw), or install a decoder (pip install pylibjpeg[all])"
            raise DualsegError(f"{path}: compressed as {syntax.name}, not decoded ({reason}); {fix}.") from error
        raise DualsegError(
            f"{path}: its header or pixels cannot be read ({reason}); download the file again."
        ) from error
    if pixels.shape != shape[::-1]:
        raise DualsegError(f"{path}: its pixels are {pixels.shape}, its series' {shape[::-1]}; download it again.")
    return pixels.T


def _check_length(dataset: pydicom.Dataset) -> None:
    """Raises: ValueError where the header leaves out rows; fewer bytes than one may be padding."""
    over = len(dataset.PixelData) - get_expected_length(dataset)
    if over > dataset.Columns * dataset.BitsAllocated // 8:
        raise ValueError(f"{over} bytes more than Rows x Columns")


def _name_syntax(dataset: pydicom.Dataset, path: Path) -> None:
    """Say how pixels are stored where no file meta information does: as the data elements are, uncompressed."""
    if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
        raise DualsegError(
            f"{path}: its pixels are compressed, and no file meta information says how; export it again with it."
        )
    implicit, little = dataset.original_encoding
    explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
