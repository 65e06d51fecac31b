"""NIH Pancreas-CT: DICOM series of PatientID PANCREAS_00NN and label00NN.nii.gz, anywhere below raw."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from nibabel.affines import voxel_sizes

from dualseg.data import pancreas_ct as dataset
from dualseg.data.cropping import Box, cropped
from dualseg.data.dicom import Series, damage_of, find_series, read_series
from dualseg.data.h5 import shipped_list
from dualseg.data.nifti import read_grid, read_nifti
from dualseg.data.preprocessing import resample, to_lps
from dualseg.data.volumes import Grid, Image
from dualseg.errors import DualsegError
from dualseg.files import files_below
from dualseg.preparation.base import Found, Preparation, Volume, check_pair, check_values, cut, once

MARGIN = 25  # voxels a side
TISSUE = (-50.0, 250.0)  # HU: the median inside a label that lies on a pancreas is far from both ends
_PATIENT = re.compile(r"PANCREAS_(\d{4})", re.IGNORECASE)
_LABEL = re.compile(r"label(\d{4})\.nii(\.gz)?", re.IGNORECASE)


class PancreasPreparation(Preparation):
    source = dataset.PancreasCT
    not_in_download: ClassVar[Sequence[str]] = dataset.NOT_IN_DOWNLOAD

    def listed(self) -> tuple[str, ...]:
        return tuple(sorted(shipped_list("pancreas_mcnet_train") + shipped_list("pancreas_mcnet_test")))

    def find(self, raw: Path) -> Found:
        found = Found()
        labels: dict[str, list[Path]] = {}
        for path in files_below(raw):
            if match := _LABEL.fullmatch(path.name):
                labels.setdefault(f"image{match[1]}", []).append(path)
        scans: dict[str, list[Series]] = {}
        dicom = find_series(raw)
        for one in dicom.series:
            if match := _PATIENT.fullmatch(one.patient):
                scans.setdefault(f"image{match[1]}", []).append(one)
            elif not one.patient and one.problem:  # nobody knows whose it is
                found.problems.append(one.problem)
        found.problems += [damage_of(path) for path in dicom.damaged]
        found.left_out = {kind: len(files) for kind, files in dicom.left_out.items()}
        label_of = once({case: paths for case, paths in labels.items() if case in scans}, found.failed)
        for case, candidates in scans.items():
            if case in label_of:
                found.cases[case] = {"series": candidates, "label": label_of[case]}
            elif case not in found.failed:
                found.failed[case] = f"label{case[-4:]}.nii.gz: not below {raw}; download the labels too."
        return found

    def read(self, case: str, files: Mapping[str, Any]) -> Volume:
        path: Path = files["label"]
        image = to_lps(read_series(_series_of(files["series"], path)))
        array, affine = read_nifti(path)
        check_values(array, (0, 1), str(path))
        label = to_lps(Image(array, affine))
        remarks = _check_orientation(image, label, path)
        return Volume(image, label.array[0].astype(np.uint8), remarks)

    def prepare(self, case: str, raw: Volume) -> Volume:
        image = dataset.to_millimetre(raw.image)
        label = resample(raw.label, raw.image.affine, Grid(image.array.shape[1:], image.affine), order=0)
        if self.crop == "foreground":
            box = dataset.foreground(image)
        else:
            box = Box.around(label > 0).widened(label.shape, dataset.PATCH, [(MARGIN, MARGIN)] * 3)
        return Volume(dataset.normalised(cropped(image, box)), cut(label, box))


def _series_of(candidates: Sequence[Series], label: Path) -> Series:
    """The series that was labeled: the one with the label's grid, where a patient has several."""
    if len(candidates) == 1:
        return candidates[0]
    *in_plane, slices = read_grid(label).shape
    fitting = [one for one in candidates if sorted(one.shape) == sorted(in_plane) and len(one.files) == slices]
    if len(fitting) != 1:
        grids = "; ".join(f"{' x '.join(map(str, one.shape))} x {len(one.files)} slices" for one in candidates)
        problems = " ".join(one.problem for one in candidates if one.problem)
        raise DualsegError(
            f"{label}: its grid, {' x '.join(map(str, (*in_plane, slices)))}, is that of {len(fitting)} of the "
            f"patient's series ({grids}; {candidates[0].files[0].parent}); leave the right one alone below raw. "
            f"{problems}".rstrip()
        )
    return fitting[0]


def _check_orientation(image: Image, label: Image, path: Path) -> tuple[str, ...]:
    """Check that image and label, each turned to one orientation by its own header, lie on each other.

    The collection's labels are written with other axes than the DICOM files, and their header gives the axes but not
    always the scanner's origin. So voxel lies on voxel once the axes are the same; sizes and intensities must agree.

    Raises:
        DualsegError: they do not.
    """
    check_pair(image, label.array[0], str(path))
    sizes, label_sizes = voxel_sizes(image.affine), voxel_sizes(label.affine)
    if not np.allclose(sizes, label_sizes, rtol=0.02):
        shown = [" x ".join(f"{size:.3f}" for size in own) for own in (label_sizes, sizes)]
        raise DualsegError(f"{path}: voxels of {shown[0]} mm, those of the DICOM series are {shown[1]} mm.")
    median = float(np.median(image.array[0][label.array[0] > 0]))
    if not TISSUE[0] < median < TISSUE[1]:
        raise DualsegError(
            f"{path}: the median inside the label is {median:.0f} HU, which no pancreas has; the label lies elsewhere "
            "(another series, or a header that names the wrong axes)."
        )
    shift = np.abs(label.affine[:3, 3] - image.affine[:3, 3]).max()
    return () if shift < sizes.max() / 2 else (f"the label's header has another origin, {shift:.1f} mm off",)
