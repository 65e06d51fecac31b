"""DICOM series as scanners write them: a file a slice, names that say nothing; of any volume, or of `predict_toys`.

`dicom_slice` makes one slice, `write_volume` the files of a volume; any element can be given or changed by its keyword.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from predict_toys import scene
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, generate_uid

SECRETS = {
    "PatientName": "Doe^Jane",
    "PatientID": "MRN-4711",
    "PatientBirthDate": "19611224",
    "AccessionNumber": "ACC-0815",
    "InstitutionName": "Klinikum Nirgendwo",
    "StudyDate": "20260131",
    "ReferringPhysicianName": "House^Gregory",
}


def lps_affine(rng: np.random.Generator) -> np.ndarray:
    """Turned a little out of the axes; columns, rows, slices; mm, LPS."""
    angle = np.linalg.qr(np.eye(3) + 0.3 * rng.normal(size=(3, 3)))[0]
    angle *= np.sign(np.diag(angle))
    if np.linalg.det(angle) < 0:
        angle[:, 2] *= -1
    affine = np.eye(4)
    affine[:3, :3] = angle @ np.diag([1.6, 1.9, 2.5])
    affine[:3, 3] = rng.uniform(-100, 100, 3)
    return affine


def write_series(folder: Path, seed: int = 0, shape: tuple[int, int, int] = (42, 36, 28)) -> tuple[np.ndarray, UID]:
    """One series of the scene, its slices in random order; the affine (LPS) and the SeriesInstanceUID."""
    rng = np.random.default_rng(seed)
    affine = lps_affine(rng)
    image = scene(np.diag([-1.0, -1, 1, 1]) @ affine, shape)[0]
    series, names = generate_uid(), np.argsort(rng.permutation(shape[2]))
    write_volume(
        folder,
        image,
        affine,
        lambda k: {"slope": 1 / 2000 if k % 2 else 1 / 1000, "SeriesInstanceUID": series, **SECRETS},
        lambda k: f"{seed}-{names[k]:03d}",
    )
    return affine, series


def write_volume(
    folder: Path,
    volume: np.ndarray,
    affine: np.ndarray,
    elements: Callable[[int], dict[str, Any]] = lambda k: {},
    name: Callable[[int], str] = "IM{:04d}.dcm".format,
) -> list[Path]:
    """A file for each slice of a volume (columns, rows, slices), in the order of the slices.

    Args:
        affine: columns, rows, slices -> mm, LPS.
        elements: of each slice, over those of `dicom_slice`.
        name: of each slice's file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name(k) for k in range(volume.shape[2])]
    for k, path in enumerate(paths):
        save_slice(path, dicom_slice(volume[:, :, k], affine, k, **elements(k)))
    return paths


def dicom_slice(
    values: np.ndarray, affine: np.ndarray, index: int, slope: float = 1.0, intercept: float = 0.0, **elements: Any
) -> Dataset:
    """One CT slice of values (columns, rows), stored as int16 with `slope` and `intercept`.

    Args:
        affine: columns, rows, slices -> mm, LPS; `index`: of the slice.
        elements: keyword -> value, over what follows from the others; None: without that element.
    """
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.PatientID = "1.2.3", "1.2.3.4", "nobody"
    dataset.Modality = "CT"
    dataset.Columns, dataset.Rows = values.shape
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :3] / steps
    dataset.ImageOrientationPatient = [f"{x:.10f}"[:16] for x in (*directions[:, 0], *directions[:, 1])]
    dataset.ImagePositionPatient = [f"{x:.8f}"[:16] for x in (affine @ [0, 0, index, 1])[:3]]
    dataset.PixelSpacing = [float(steps[1]), float(steps[0])]
    dataset.SliceThickness = float(steps[2])
    dataset.InstanceNumber = index + 1
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
    dataset.PixelData = np.round((values.T - intercept) / slope).astype("<i2").tobytes()
    change(dataset, elements)
    return dataset


def change(dataset: Dataset, elements: dict[str, Any]) -> None:
    """Set elements by keyword; None takes one out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that break the standard's rules
        for keyword, value in elements.items():
            if value is not None:
                setattr(dataset, keyword, value)
            elif keyword in dataset:
                delattr(dataset, keyword)


def edit(path: Path, **elements: Any) -> None:
    """Change elements of a file."""
    dataset = dcmread(path)
    change(dataset, elements)
    save_slice(path, dataset)


def save_slice(path: Path, dataset: Dataset) -> None:
    """A file of DICOM part 10."""
    meta = dataset.file_meta
    meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", CTImageStorage)
    meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", "1.2.3.4.5")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.save_as(path, enforce_file_format=True)


def strip_header(path: Path, implicit: bool = True, little: bool = True) -> None:
    """Leave the data elements alone: neither preamble nor file meta information."""
    dataset, bare = dcmread(path), DicomBytesIO()
    bare.is_implicit_VR, bare.is_little_endian = implicit, little
    if not little:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
    write_dataset(bare, dataset)
    path.write_bytes(bare.getvalue())


def compress(path: Path) -> None:
    """Turn a file into one whose pixels are said to be JPEG 2000, and are not."""
    dataset = dcmread(path)
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset.PixelData = encapsulate([b"\xff\x4f\xff\x51" + bytes(60)])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)
