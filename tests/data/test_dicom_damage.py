"""DICOM that nobody made for a test of this package: pydicom's awkward files, and series that chance has damaged."""

from pathlib import Path

import numpy as np
import pydicom.data
import pytest
from dicom_mutants import judge, mutant

from dualseg.data.dicom import Series, find_series, read_series
from dualseg.data.dicom.headers import Slice, read_header
from dualseg.errors import DualsegError
from dualseg.files import files_below
from dualseg.prediction.inputs import find_scans

AWKWARD = Path(pydicom.data.__file__).parent


@pytest.mark.parametrize("seed", range(60))
def test_of_a_damaged_series_come_the_right_volumes_or_an_error_that_names_a_file(tmp_path, seed):
    truths = mutant(tmp_path, seed)
    assert not judge(tmp_path, truths), truths[0].changed


def test_every_file_that_pydicom_tests_with_is_in_a_volume_or_named_or_counted():
    found = find_series(AWKWARD)
    told = [path for series in found.series for path in series.files] + found.damaged
    told += [path for paths in found.left_out.values() for path in paths]
    assert len(told) == len({*told}) > 100
    untold = {*files_below(AWKWARD)} - {*told}
    assert not {path for path in untold if path.read_bytes()[128:132] == b"DICM"}
    kinds = {"DICOMDIR", "RT Structure Set", "Segmentation", "localizer", "single slice", "Secondary Capture Image"}
    assert kinds <= {*found.left_out}
    outcomes = []
    for scan in find_scans([AWKWARD], 1).scans:
        try:
            outcomes.append(scan.read(1).image.array.shape)
        except DualsegError as error:
            assert str(AWKWARD) in str(error)
    assert (1, 16, 16, 5) in outcomes


def test_every_slice_that_pydicom_tests_with_is_decoded_or_named():
    """Each as a volume of its own, twice."""
    slices = [header for path in files_below(AWKWARD) if isinstance(header := read_header(path), Slice)]
    decoded = 0
    for own in slices:
        try:
            image = read_series(Series("", "", own.shape, (own.path, own.path), (), np.eye(4), ""))
        except DualsegError as error:
            assert str(own.path) in str(error)
        else:
            decoded += 1
            assert image.array.shape == (1, *own.shape, 2) and np.isfinite(image.array).all()
    assert len(slices) > decoded > 20
