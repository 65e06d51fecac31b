"""DICOM and labels of other axes -> what `PancreasCT` reads: each other's voxels, 1 mm, the same millimetre."""

import gzip
import itertools
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from raw_files import ball, edit_slice, lps_affine, write_nifti_label, write_series
from scipy import ndimage

from dualseg.data import Image, PancreasCT
from dualseg.data.pancreas_ct import millimetre_grid, to_millimetre
from dualseg.data.reading import VolumeReader
from dualseg.data.volumes import Grid
from dualseg.errors import DualsegError
from dualseg.preparation.pancreas_ct import PancreasPreparation
from dualseg.preparation.writing import prepare_case

SHAPE = (110, 96, 40)
SPACING = (1.4, 1.4, 3.5)
AFFINE = lps_affine(SPACING, (-70.3, -61.9, -812.5))
# centre in voxels, radius in mm: three balls, no two alike, whose mirror images and turns are all elsewhere
BALLS = (((38, 40, 14), 12), ((66, 47, 19), 9), ((50, 60, 26), 6))


def volumes() -> tuple[np.ndarray, np.ndarray]:
    """HU of a body in air, and the label: balls of 130 HU in tissue of 0 HU."""
    rng = np.random.default_rng(0)
    body = np.zeros(SHAPE, bool)
    body[12:100, 10:88] = True
    label = np.logical_or.reduce([ball(SHAPE, centre, radius, SPACING) for centre, radius in BALLS])
    hounsfield = np.where(body, 0.0, -1000.0) + np.where(label, 130, 0) + rng.integers(-5, 6, SHAPE)
    return hounsfield, label


def write_raw(raw: Path, axes: str = "LAS", origin: bool = True, number: int = 1, **series) -> list[Path]:
    hounsfield, label = volumes()
    write_nifti_label(raw / "labels" / f"label{number:04d}.nii.gz", label, AFFINE, axes, origin)
    return write_series(raw / "dicom", hounsfield, AFFINE, f"PANCREAS_{number:04d}", **series)


def prepare(raw: Path, out: Path, crop: str = "ground_truth") -> Path:
    preparation = PancreasPreparation(crop)
    found = preparation.find(raw)
    assert not found.failed and [*found.cases] == ["image0001"]
    prepare_case(preparation, "image0001", found.cases["image0001"], out, None)
    return preparation.file(out, "image0001")


def all_axes() -> list[str]:
    """The 48 ways in which a label may lie in its file."""
    pairs = itertools.permutations(("LR", "PA", "IS"))
    return ["".join(axes) for order in pairs for axes in itertools.product(*order)]


@pytest.mark.parametrize("crop", ["ground_truth", "foreground"])
def test_landmarks_come_out_at_their_millimetre_in_image_and_label(tmp_path, written, crop):
    """Expected places by the DICOM standard's own formula: position + column * spacing * direction + ..."""
    write_raw(tmp_path / "raw")
    case = written(prepare(tmp_path / "raw", tmp_path / "out", crop))
    np.testing.assert_allclose(case.affine[:3, :3], np.diag([-1, -1, 1]), atol=1e-6)
    bright = case.image > (np.median(case.image[case.label == 1]) + np.median(case.image[case.label == 0])) / 2
    for mask in (case.label == 1, ndimage.binary_opening(bright)):
        pieces, count = ndimage.label(mask)
        assert count == len(BALLS)
        found = sorted((np.sum(pieces == k), *case.centre_mm(pieces == k)) for k in range(1, count + 1))
        for (centre, radius), (voxels, *place) in zip(reversed(BALLS), found, strict=True):
            i, j, k = centre
            x, y, z = -70.3 + 1.4 * i, -61.9 + 1.4 * j, -812.5 + 3.5 * k
            np.testing.assert_allclose(place, (-x, -y, z), atol=0.35)
            assert voxels == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.12)


@pytest.mark.parametrize("axes", all_axes())
def test_a_label_of_any_axes_lies_on_its_pancreas(tmp_path, axes):
    write_raw(tmp_path, axes)
    preparation = PancreasPreparation("ground_truth")
    raw = preparation.read("image0001", preparation.find(tmp_path).cases["image0001"])
    np.testing.assert_array_equal(raw.image.array[0] > 65, raw.label == 1)
    assert not raw.remarks


@pytest.mark.parametrize("axes", ["LAS", "RAS", "LPS", "LAI"])
def test_a_label_without_the_scanners_origin_lies_on_its_pancreas_and_is_remarked(tmp_path, axes):
    write_raw(tmp_path, axes, origin=False)
    preparation = PancreasPreparation("ground_truth")
    raw = preparation.read("image0001", preparation.find(tmp_path).cases["image0001"])
    np.testing.assert_array_equal(raw.image.array[0] > 65, raw.label == 1)
    assert "another origin" in raw.remarks[0]


def test_the_result_does_not_depend_on_how_the_raw_files_lie(tmp_path, written):
    write_raw(tmp_path / "raw" / "a", "LAS")
    plain = written(prepare(tmp_path / "raw", tmp_path / "out"))
    files = write_raw(tmp_path / "mess", "RPI", seed=5, prefix="z", slopes=[(1, -1024), (2, 0), (0.5, -1000)])
    (tmp_path / "mess" / "again").write_bytes(files[7].read_bytes())
    hounsfield, _ = volumes()
    write_series(tmp_path / "mess" / "dicom", hounsfield[:, :, :9], AFFINE, "PANCREAS_0001", prefix="scout")
    other = written(prepare(tmp_path / "mess", tmp_path / "out2"))
    np.testing.assert_allclose(other.image, plain.image, atol=0.05)  # steps of 2 HU
    np.testing.assert_array_equal(other.label, plain.label)
    np.testing.assert_allclose(other.affine, plain.affine, atol=1e-4)


def test_crop_and_intensities_are_the_protocols(tmp_path, written):
    write_raw(tmp_path / "raw")
    case = written(prepare(tmp_path / "raw", tmp_path / "out"))
    assert case.image.mean(dtype=np.float64) == pytest.approx(0, abs=1e-4)
    assert case.image.std(dtype=np.float64) == pytest.approx(1, abs=1e-4)
    # before the z-score: air is 0, 0 HU is 125 / 400
    step = np.median(case.image[ndimage.binary_erosion(case.label == 1, iterations=3)]) - case.image.min()
    tissue = np.median(case.image[(case.label == 0) & (case.image > case.image.min() + 0.1)]) - case.image.min()
    assert step / tissue == pytest.approx(255 / 125, rel=0.02)
    # where the pancreas begins and ends in the volume of 1 mm, and where the crop does
    first = np.round((-1, -1, 1) * (case.affine[:3, 3] - first_voxel_of_1_mm())).astype(int)
    start, stop = first + np.argwhere(case.label).min(axis=0), first + np.argwhere(case.label).max(axis=0) + 1
    for axis, voxels in enumerate((154, 134, 140)):
        widened = max(0, 96 - (stop[axis] - start[axis]))
        assert first[axis] == max(0, start[axis] - widened // 2 - 25)
        assert first[axis] + case.image.shape[axis] == min(voxels, stop[axis] + (widened + 1) // 2 + 25)


def first_voxel_of_1_mm() -> np.ndarray:
    """mm (RAS+) of the first voxel of 154 x 134 x 140 voxels of 1 mm in the middle of the field of view."""
    centre = np.array([-70.3, -61.9, -812.5]) + (np.array(SHAPE) - 1) / 2 * SPACING
    return (centre - np.array([153, 133, 139]) / 2) * (-1, -1, 1)


def test_the_b_spline_is_itks(tmp_path):
    """scipy's cubic spline against ITK's, on the grid that the preparation takes."""
    rng = np.random.default_rng(1)
    array = ndimage.gaussian_filter(rng.normal(size=(40, 36, 18)), 1.0).astype(np.float32)
    affine = np.diag([-1, -1, 1, 1]) @ lps_affine((0.8, 0.8, 2.2), (3, -7, 11))
    ours = to_millimetre(Image(array[None], affine))
    itk = sitk.GetImageFromArray(array.T)
    itk.SetSpacing((0.8, 0.8, 2.2))
    itk.SetOrigin((3, -7, 11))
    origin = (np.diag([-1, -1, 1, 1]) @ ours.affine)[:3, 3]
    theirs = sitk.Resample(
        itk, ours.array.shape[1:], sitk.Transform(), sitk.sitkBSpline, origin.tolist(), (1.0, 1.0, 1.0)
    )
    inside = (slice(8, -8),) * 3  # they continue the volume differently beyond its edge
    np.testing.assert_allclose(ours.array[0][inside], sitk.GetArrayFromImage(theirs).T[inside], atol=2e-3)


def test_the_b_spline_along_each_axis_is_the_one_of_the_volume():
    rng = np.random.default_rng(2)
    array = rng.normal(size=(14, 11, 9)).astype(np.float32)
    affine = np.diag([-1, -1, 1, 1]) @ lps_affine((0.8, 0.7, 2.2), (3, -7, 11))
    ours = to_millimetre(Image(array[None], affine))
    back = np.linalg.inv(affine) @ ours.affine
    whole = ndimage.affine_transform(array, back[:3, :3], back[:3, 3], ours.array.shape[1:], order=3, mode="nearest")
    np.testing.assert_allclose(ours.array[0], whole, atol=1e-5)


def test_the_grid_of_one_millimetre_is_centred_on_the_field_of_view():
    affine = lps_affine((0.7, 0.9, 2.5), (5, 6, 7))
    grid = millimetre_grid(Grid((100, 90, 41), affine))
    assert grid.shape == (70, 81, 102)
    np.testing.assert_allclose(np.linalg.norm(grid.affine[:3, :3], axis=0), 1)
    centre = (grid.affine @ [*((np.array(grid.shape) - 1) / 2), 1])[:3]
    np.testing.assert_allclose(centre, (affine @ [49.5, 44.5, 20, 1])[:3])


def test_a_scan_is_prepared_as_the_dataset_with_crop_foreground_is(tmp_path, written):
    write_raw(tmp_path / "raw")
    case = written(prepare(tmp_path / "raw", tmp_path / "out", "foreground"))
    preparation = PancreasPreparation("foreground")
    raw = preparation.read("image0001", preparation.find(tmp_path / "raw").cases["image0001"])
    ras = Image(raw.image.array[:, ::-1, ::-1], raw.image.affine @ mirror(SHAPE))
    for scan in (raw.image, ras):
        prepared = PancreasCT.for_scans({}).prepare_scan(scan)
        np.testing.assert_allclose(prepared.array[0], case.image, atol=1e-4)
        np.testing.assert_allclose(prepared.affine, case.affine, atol=1e-6)


def mirror(shape: tuple[int, ...]) -> np.ndarray:
    """Voxels of an array mirrored in its first two axes -> voxels of the array."""
    affine = np.diag([-1.0, -1, 1, 1])
    affine[:2, 3] = shape[0] - 1, shape[1] - 1
    return affine


def test_training_reads_what_was_written(tmp_path):
    write_raw(tmp_path / "raw")
    prepare(tmp_path / "raw", tmp_path / "out")
    image, label = VolumeReader(PancreasCT(tmp_path / "out")).read_pair("image0001")
    assert image.shape[1:] == label.shape and label.max() == 1


# --- bad input


def missing_slice(raw: Path, files: list[Path]) -> str:
    files[10].unlink()
    return "slices 1 missing"


def missing_end(raw: Path, files: list[Path]) -> str:
    files[0].unlink()
    return r"label0001\.nii\.gz: the label has shape \(110, 96, 40\), its image \(110, 96, 39\)"


def wrong_header(raw: Path, files: list[Path]) -> str:
    """The label's header claims axes that are not those of its voxels: the label is mirrored out of the body."""
    _, label = volumes()
    moved = np.roll(label, -40, axis=0)
    write_nifti_label(raw / "labels" / "label0001.nii.gz", moved[::-1], AFFINE, "LPS")
    return r"the median inside the label is -(99\d|100\d) HU, which no pancreas has"


def wrong_size(raw: Path, files: list[Path]) -> str:
    for path in files:
        edit_slice(path, PixelSpacing=["0.7", "0.7"])
    return r"voxels of 1\.400 x 1\.400 x 3\.500 mm, those of the DICOM series are 0\.700 x 0\.700 x 3\.500"


def two_series_alike(raw: Path, files: list[Path]) -> str:
    write_series(raw / "dicom2", volumes()[0], AFFINE, "PANCREAS_0001")
    return r"is that of 2 of the patient's series"


def of_several_a_damaged_one(raw: Path, files: list[Path]) -> str:
    write_series(raw / "dicom2", volumes()[0][:, :, :9], AFFINE, "PANCREAS_0001")
    files[10].unlink()
    return r"is that of 0 of the patient's series.*slices 1 missing"


def labels_of_another_kind(raw: Path, files: list[Path]) -> str:
    write_nifti_label(raw / "labels" / "label0001.nii.gz", 3 * volumes()[1].astype(int), AFFINE, "LPS")
    return r"label0001\.nii\.gz: holds the values 0, 3; expected 0, 1"


def truncated_label(raw: Path, files: list[Path]) -> str:
    path = raw / "labels" / "label0001.nii.gz"
    path.write_bytes(path.read_bytes()[:-60])
    return r"label0001\.nii\.gz: cannot be read as NIfTI"


@pytest.mark.parametrize(
    "damage",
    [
        missing_slice,
        missing_end,
        wrong_header,
        wrong_size,
        two_series_alike,
        of_several_a_damaged_one,
        labels_of_another_kind,
        truncated_label,
    ],
)
def test_a_bad_case_names_its_file_and_leaves_nothing(tmp_path, damage):
    files = write_raw(tmp_path / "raw")
    message = damage(tmp_path / "raw", files)
    with pytest.raises(DualsegError, match=message) as caught:
        prepare(tmp_path / "raw", tmp_path / "out")
    assert str(tmp_path / "raw") in str(caught.value)
    assert "Doe" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_files_that_add_to_no_volume_are_counted_and_series_of_nobody_are_told(tmp_path):
    files = write_raw(tmp_path)
    (tmp_path / "dicom" / "again").write_bytes(files[3].read_bytes())
    write_series(tmp_path / "dicom", volumes()[0][:, :, :1], AFFINE, "PANCREAS_0001", prefix="scout")
    for path in write_series(tmp_path / "other", volumes()[0][:, :, :3], AFFINE, "", prefix="x"):
        edit_slice(path, NumberOfFrames=2)
    found = PancreasPreparation("ground_truth").find(tmp_path)
    assert [*found.cases] == ["image0001"] and found.left_out == {"repeated slice": 1, "single slice": 1}
    (problem,) = found.problems
    assert str(tmp_path / "other") in problem and "several frames" in problem


def test_a_slice_that_is_hidden_or_compressed_is_told(tmp_path):
    files = write_raw(tmp_path)
    packed = files[-1].with_name(files[-1].name + ".gz")
    packed.write_bytes(gzip.compress(files[-1].read_bytes()))
    files[-1].unlink()
    hidden = files[0].rename(files[0].with_name("." + files[0].name))
    found = PancreasPreparation("ground_truth").find(tmp_path)
    (problem,) = found.problems
    assert str(packed) in problem
    (series,) = found.cases["image0001"]["series"]
    assert str(hidden) in series.problem


def test_a_series_without_its_label_is_known_before_reading(tmp_path):
    write_raw(tmp_path)
    (tmp_path / "labels" / "label0001.nii.gz").unlink()
    assert "label0001.nii.gz: not below" in PancreasPreparation("ground_truth").find(tmp_path).failed["image0001"]
