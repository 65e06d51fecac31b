"""The challenge's folders -> what `LeftAtrium` reads: values, crop, and every millimetre where it was."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from raw_files import ball, lps_affine, write_la

from dualseg.data import Image, LeftAtrium
from dualseg.data.left_atrium import case_list
from dualseg.data.reading import VolumeReader
from dualseg.errors import DualsegError
from dualseg.preparation.left_atrium import LeftAtriumPreparation
from dualseg.preparation.writing import prepare_case

CASE = case_list("train")[0]
SHAPE = (190, 180, 12)
AFFINE = lps_affine((0.625,) * 3, (-60.0, -75.5, 31.0))
LANDMARK = (88, 71, 5)


def volumes(low: tuple[int, int] = (60, 70), high: tuple[int, int] = (120, 110)) -> tuple[np.ndarray, np.ndarray]:
    """A body with noise, an atrium from low to high in x and y, and one voxel brighter than all."""
    rng = np.random.default_rng(0)
    image = np.zeros(SHAPE)
    image[10:180, 15:170] = rng.integers(80, 120, (170, 155, 12))
    label = np.zeros(SHAPE)
    label[low[0] : high[0], low[1] : high[1], 2:9] = 255
    image[label > 0] += 60
    image[LANDMARK] = 250
    return image, label


def prepare(raw: Path, out: Path, crop: str = "ground_truth") -> Path:
    preparation = LeftAtriumPreparation(crop)
    found = preparation.find(raw)
    assert not found.failed and [*found.cases] == [CASE]
    prepare_case(preparation, CASE, found.cases[CASE], out, None)
    return preparation.file(out, CASE)


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
@pytest.mark.parametrize("crop", ["ground_truth", "foreground"])
def test_a_landmark_comes_out_at_its_millimetre(tmp_path, written, crop, flips):
    """Whichever way the file's axes run; the place by ITK's own arithmetic."""
    image, label = volumes()
    write_la(tmp_path / "raw" / CASE, image, label, lps_affine((0.625,) * 3, (-60, -75.5, 31), np.diag(flips)))
    itk = sitk.ReadImage(str(tmp_path / "raw" / CASE / "lgemri.nrrd"))
    expected = np.array(itk.TransformIndexToPhysicalPoint(LANDMARK)) * (-1, -1, 1)
    case = written(prepare(tmp_path / "raw", tmp_path / "out", crop))
    np.testing.assert_allclose(case.centre_mm(case.image == case.image.max()), expected, atol=1e-4)
    np.testing.assert_allclose(case.affine[:3, :3], np.diag([-0.625, -0.625, 0.625]), atol=1e-6)
    atrium = np.array(itk.TransformContinuousIndexToPhysicalPoint(np.argwhere(label).mean(axis=0).tolist()))
    np.testing.assert_allclose(case.centre_mm(case.label == 1), atrium * (-1, -1, 1), atol=1e-4)
    assert case.record["crop"] == crop


def test_the_volume_is_normalised_whole_and_then_cropped_as_the_protocol_does(tmp_path, written):
    image, label = volumes()
    write_la(tmp_path / "raw" / "Training Set" / CASE, image, label, AFFINE)
    case = written(prepare(tmp_path / "raw", tmp_path / "out"))
    assert np.unique(case.label).tolist() == [0, 1]
    # the box, 60 x 40, widened to 112 x 112, plus 10 to 19 voxels a side: none of it reaches the edge
    assert case.image.shape[2] == SHAPE[2]
    start = np.round((np.linalg.inv(np.diag([-1, -1, 1, 1]) @ AFFINE) @ case.affine)[:3, 3]).astype(int)
    stop = start + case.image.shape
    margins = [60 - 26 - start[0], stop[0] - 120 - 26, 70 - 36 - start[1], stop[1] - 110 - 36]
    assert all(10 <= margin <= 19 for margin in margins), margins
    expected = (image - image.mean()) / image.std()
    inside = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    np.testing.assert_allclose(case.image, expected[inside], atol=1e-5)
    np.testing.assert_array_equal(case.label * 255, label[inside])


def test_margins_differ_between_cases_and_not_between_runs(tmp_path):
    image, label = volumes()
    shapes = set()
    for case in case_list("train")[:4]:
        write_la(tmp_path / case / case, image, label, AFFINE)
        preparation = LeftAtriumPreparation("ground_truth")
        files = preparation.find(tmp_path / case).cases[case]
        raw = preparation.read(case, files)
        first, second = preparation.prepare(case, raw), preparation.prepare(case, raw)
        assert np.array_equal(first.image.array, second.image.array)
        shapes.add((first.image.array.shape, first.image.affine[:3, 3].tobytes()))
    assert len(shapes) > 1


def test_foreground_is_the_body_without_a_look_at_the_label(tmp_path, written):
    image, label = volumes()
    write_la(tmp_path / "raw" / CASE, image, label, AFFINE)
    case = written(prepare(tmp_path / "raw", tmp_path / "out", "foreground"))
    assert case.image.shape == (170, 155, 12)
    write_la(tmp_path / "other" / CASE, image, np.roll(label, 20, axis=0), AFFINE)
    again = written(prepare(tmp_path / "other", tmp_path / "again", "foreground"))
    np.testing.assert_array_equal(again.image, case.image)


def test_a_scan_is_prepared_as_the_dataset_with_crop_foreground_is(tmp_path, written):
    image, label = volumes()
    write_la(tmp_path / "raw" / CASE, image, label, AFFINE)
    case = written(prepare(tmp_path / "raw", tmp_path / "out", "foreground"))
    preparation = LeftAtriumPreparation("foreground")
    raw = preparation.read(CASE, preparation.find(tmp_path / "raw").cases[CASE])
    source = LeftAtrium.for_scans({})
    scan = source.prepare_scan(raw.image)
    np.testing.assert_array_equal(scan.array[0], case.image)
    np.testing.assert_allclose(scan.affine, case.affine)


def test_a_scan_of_other_spacing_and_axes_keeps_its_place():
    shape, spacing = (90, 20, 100), (1.0, 1.25, 0.9)
    affine = np.array([[0, 0, 0.9, 5], [1.0, 0, 0, -7], [0, -1.25, 0, 11], [0, 0, 0, 1]])
    body = np.zeros(shape)
    body[10:80, :, 10:90] = 100
    blob = ball(shape, (40, 9, 61), 4, spacing)
    body[blob] = 300
    scan = LeftAtrium.for_scans({}).prepare_scan(Image(body[None].astype(np.float32), affine))
    assert np.allclose(np.linalg.norm(scan.affine[:3, :3], axis=0), 0.625, rtol=0.02)
    bright = scan.array[0] > scan.array[0].max() * 0.6
    place = (scan.affine @ [*np.argwhere(bright).mean(axis=0), 1])[:3]
    np.testing.assert_allclose(place, (affine @ [40, 9, 61, 1])[:3], atol=0.3)


def test_training_reads_what_was_written(tmp_path):
    image, label = volumes()
    write_la(tmp_path / "raw" / CASE, image, label, AFFINE)
    prepare(tmp_path / "raw", tmp_path / "out")
    image, label = VolumeReader(LeftAtrium(tmp_path / "out")).read_pair(CASE)
    assert image.shape[1:] == label.shape and label.max() == 1


# --- bad input


def damage_image(case: Path) -> str:
    path = case / "lgemri.nrrd"
    path.write_bytes(path.read_bytes()[:-200])
    return r"lgemri\.nrrd: cannot be read as NRRD"


def no_text(case: Path) -> str:
    (case / "laendo.nrrd").write_text("nothing")
    return r"laendo\.nrrd: cannot be read as NRRD"


def other_values(case: Path) -> str:
    image, label = volumes()
    return rewrite(case, image, label / 255, r"laendo\.nrrd: holds the values 0, 1; expected 0, 255")


def empty(case: Path) -> str:
    image, label = volumes()
    return rewrite(case, image, label * 0, "the label is empty")


def other_shape(case: Path) -> str:
    image, label = volumes()
    return rewrite(case, image, label[:-1], r"the label has shape \(189, 180, 12\), its image \(190, 180, 12\)")


def rewrite(case: Path, image: np.ndarray, label: np.ndarray, message: str) -> str:
    for path in case.iterdir():
        path.unlink()
    case.rmdir()
    write_la(case, image, np.zeros_like(image), AFFINE)
    (case / "laendo.nrrd").unlink()
    write_la(case / "x", image, label, AFFINE)
    (case / "x" / "laendo.nrrd").rename(case / "laendo.nrrd")
    (case / "x" / "lgemri.nrrd").unlink()
    (case / "x").rmdir()
    return message


def other_axes(case: Path) -> str:
    image, label = volumes()
    write_la(case / "x", image, label, lps_affine((0.625,) * 3, (0, 0, 0), np.diag([-1.0, 1, 1])))
    (case / "x" / "laendo.nrrd").rename(case / "laendo.nrrd")
    (case / "x" / "lgemri.nrrd").unlink()
    return "its axes are not those of"


@pytest.mark.parametrize("damage", [damage_image, no_text, other_values, empty, other_shape, other_axes])
def test_a_bad_case_names_its_file_and_leaves_nothing(tmp_path, damage):
    write_la(tmp_path / "raw" / CASE, *volumes(), AFFINE)
    message = damage(tmp_path / "raw" / CASE)
    with pytest.raises(DualsegError, match=message) as caught:
        prepare(tmp_path / "raw", tmp_path / "out")
    assert str(tmp_path / "raw" / CASE) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_case_without_label_or_found_twice_is_known_before_reading(tmp_path):
    for folder in ("Training Set", "copy"):
        write_la(tmp_path / folder / CASE, *volumes(), AFFINE)
    write_la(tmp_path / "OTHER", *volumes(), AFFINE, label_name="lawall")
    found = LeftAtriumPreparation("ground_truth").find(tmp_path)
    assert not found.cases
    assert "found more than once" in found.failed[CASE]
    assert "laendo.nrrd: missing" in found.failed["OTHER"]
