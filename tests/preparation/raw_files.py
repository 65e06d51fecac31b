"""Small volumes in exactly the form of the three public downloads, written by other libraries than those that read."""

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

RAS_OF_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def lps_affine(spacing: Sequence[float], origin: Sequence[float], direction: np.ndarray | None = None) -> np.ndarray:
    """Voxel -> mm in DICOM's own axes (LPS)."""
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if direction is None else direction) * np.asarray(spacing)
    affine[:3, 3] = origin
    return affine


def ball(shape: Sequence[int], centre: Sequence[float], radius: float, spacing: Sequence[float]) -> np.ndarray:
    """Bool mask of a ball; centre in voxels, radius in mm."""
    axes = np.meshgrid(*[(np.arange(n) - c) * s for n, c, s in zip(shape, centre, spacing, strict=True)], indexing="ij")
    return sum(a**2 for a in axes) <= radius**2


def write_la(
    folder: Path, image: np.ndarray, label: np.ndarray, affine: np.ndarray, label_name: str = "laendo"
) -> None:
    """CASE/lgemri.nrrd and CASE/laendo.nrrd, uint8, by ITK. `affine` in LPS."""
    folder.mkdir(parents=True)
    for name, array in (("lgemri", image), (label_name, label)):
        volume = sitk.GetImageFromArray(array.T.astype(np.uint8))
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        volume.SetSpacing(spacing.tolist())
        volume.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
        volume.SetOrigin(affine[:3, 3].tolist())
        sitk.WriteImage(volume, str(folder / f"{name}.nrrd"), useCompression=True)


def write_series(
    folder: Path,
    hounsfield: np.ndarray,
    affine: np.ndarray,
    patient: str,
    prefix: str = "",
    uid: str | None = None,
    slopes: Sequence[tuple[float, float]] = ((1.0, -1024.0),),
    seed: int = 0,
) -> list[Path]:
    """A CT series, one file a slice; names say nothing of the order. `affine` (LPS) maps (column, row, slice).

    Args:
        slopes: rescale slope and intercept of the slices, in turn.

    Returns:
        The files in the order of the slices.
    """
    folder.mkdir(parents=True, exist_ok=True)
    uid = uid or generate_uid()
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    count = hounsfield.shape[2]
    names = np.random.default_rng(seed).permutation(count)
    paths = []
    for k in range(count):
        slope, intercept = slopes[k % len(slopes)]
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{prefix}{names[k]:06d}"  # no suffix
        slice_ = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        slice_.Modality, slice_.PatientID, slice_.PatientName = "CT", patient, "Doe^Jane"
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID = "1.2.3", uid
        slice_.InstanceNumber = int(names[k]) + 1  # as little to be trusted
        slice_.ImagePositionPatient = [f"{x:.6f}" for x in (affine @ [0, 0, k, 1])[:3]]
        slice_.ImageOrientationPatient = [f"{x:.8f}" for x in (affine[:3, :2] / spacing[:2]).T.ravel()]
        slice_.PixelSpacing = [f"{spacing[1]:.6f}", f"{spacing[0]:.6f}"]  # between rows, between columns
        slice_.SliceThickness = "9.9"  # not the distance of slices
        slice_.Columns, slice_.Rows = hounsfield.shape[:2]
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
        slice_.RescaleSlope, slice_.RescaleIntercept = str(slope), str(intercept)
        pixels = np.round((hounsfield[:, :, k].T - intercept) / slope).astype(np.int16)
        slice_.PixelData = pixels.tobytes()
        slice_.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def write_nifti_label(path: Path, label: np.ndarray, affine: np.ndarray, axes: str, origin: bool = True) -> None:
    """A label on a grid in LPS, stored along `axes` such as RAS, and without the scanner's origin if asked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(label.astype(np.uint8), RAS_OF_LPS @ affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes))
    image = image.as_reoriented(turn)
    if not origin:
        moved = image.affine.copy()
        moved[:3, 3] = 0
        image = nib.Nifti1Image(np.asarray(image.dataobj), moved)
    nib.save(image, path)


def edit_slice(path: Path, **values: object) -> None:
    """Change elements of a DICOM file."""
    dataset = pydicom.dcmread(path)
    for name, value in values.items():
        setattr(dataset, name, value)
    dataset.save_as(path)


BRATS_AFFINE = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])


def write_brats(folder: Path, case: str, modalities: dict[str, np.ndarray], label: np.ndarray) -> None:
    """CASE/CASE_flair.nii.gz, ... and CASE_seg.nii.gz, int16, with BraTS's affine."""
    (folder / case).mkdir(parents=True)
    for name, array in (*modalities.items(), ("seg", label)):
        image = nib.Nifti1Image(array.astype(np.int16), BRATS_AFFINE)
        nib.save(image, folder / case / f"{case}_{name}.nii.gz")
