"""The grid of a scan, and maps written on exactly that grid."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import nibabel as nib
import numpy as np

from dualseg.data.nifti import affine_in_mm
from dualseg.data.voxels import Stored
from dualseg.files import replacing

# what says where the voxels lie; names and descriptions stay behind, which may tell of the patient
QFORM = ("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
GEOMETRY = (*QFORM, "sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units")


@dataclass(frozen=True)
class ScanGrid:
    """Voxels in space.

    Attributes:
        shape: (W, H, D).
        affine: (4, 4), voxel indices -> millimetres (RAS+).
        header: the NIfTI header of maps on this grid: its qform, sform, their codes and units are those of the scan.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    header: nib.Nifti1Header

    @classmethod
    def of_stored(cls, stored: Stored) -> Self:
        """The grid of a volume's file."""
        if stored.header is not None:
            return cls.of_header(stored.header)
        width, height, depth = stored.grid.shape
        return cls.of_affine((width, height, depth), stored.affine)

    @classmethod
    def of_header(cls, given: nib.Nifti1Header) -> Self:
        """The grid of a NIfTI file whose first three axes are space."""
        header = nib.Nifti2Header() if isinstance(given, nib.Nifti2Header) else nib.Nifti1Header()
        shape = given.get_data_shape()[:3]
        header.set_data_shape(shape)
        for name in GEOMETRY:
            header[name] = given[name]
        header["pixdim"][:4] = given["pixdim"][:4]
        return cls(shape, affine_in_mm(given), header)

    @classmethod
    def of_affine(cls, shape: tuple[int, int, int], affine: np.ndarray) -> Self:
        """The grid of a scan that has no NIfTI header; its maps say scanner coordinates, in mm."""
        header = nib.Nifti1Header()
        header.set_data_shape(shape)
        header.set_xyzt_units("mm")
        header.set_qform(affine, code="scanner")
        header.set_sform(affine, code="scanner")
        return cls(shape, affine, header)

    @property
    def voxel_ml(self) -> float:
        """Millilitres of a voxel."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000

    def write(self, path: Path, array: np.ndarray) -> None:
        """Write a map (W, H, D), or (W, H, D, K), in its own type.

        Raises:
            DualsegError: the file cannot be written; then nothing of it stays.
        """
        kind = nib.Nifti2Image if isinstance(self.header, nib.Nifti2Header) else nib.Nifti1Image
        # without an affine of its own, the image keeps that of the header, to the bit
        image = kind(array, None, self.header, dtype=array.dtype)
        with replacing(path) as temporary:
            nib.save(image, temporary)
