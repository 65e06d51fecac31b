"""DICOM series of the balls of `predict_toys`, as scanners write them: a file a slice, names that say nothing."""

import warnings
from pathlib import Path

import numpy as np
from predict_toys import scene
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, generate_uid

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
    ras = np.diag([-1.0, -1, 1, 1]) @ affine
    image = scene(ras, shape)[0]
    folder.mkdir(parents=True, exist_ok=True)
    series, study = generate_uid(), generate_uid()
    for number, index in enumerate(rng.permutation(shape[2])):
        slope = 1 / 2000 if index % 2 else 1 / 1000
        write_slice(
            folder / f"{seed}-{number:03d}",
            image[:, :, index],
            affine,
            int(index),
            slope,
            {"SeriesInstanceUID": series, "StudyInstanceUID": study, **SECRETS},
        )
    return affine, series


def write_slice(
    path: Path, values: np.ndarray, affine: np.ndarray, index: int, slope: float, more: dict[str, str]
) -> None:
    """One CT slice of values (columns, rows), stored as int16 with `slope`."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.2")
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    for name, value in more.items():
        setattr(dataset, name, value)
    dataset.Modality = "CT"
    dataset.Columns, dataset.Rows = values.shape
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    directions = affine[:3, :3] / steps
    dataset.ImageOrientationPatient = [f"{x:.10f}"[:16] for x in (*directions[:, 0], *directions[:, 1])]
    dataset.ImagePositionPatient = [f"{x:.8f}"[:16] for x in (affine @ [0, 0, index, 1])[:3]]
    dataset.PixelSpacing = [steps[1], steps[0]]
    dataset.SliceThickness = steps[2]
    dataset.InstanceNumber = index + 1
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.RescaleSlope, dataset.RescaleIntercept = slope, 0
    dataset.PixelData = np.round(values.T / slope).astype("<i2").tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.save_as(path, enforce_file_format=True)


def compress(path: Path) -> None:
    """Turn a file into one whose pixels are said to be JPEG 2000, and are not."""
    import pydicom

    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset.PixelData = encapsulate([b"\xff\x4f\xff\x51" + bytes(60)])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)
