"""DICOM series: found by reading, sorted, rescaled, placed in space, or refused."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from pydicom.uid import JPEG2000Lossless, RLELossless
from raw_files import edit_slice, lps_affine, write_series

from dualseg.data.dicom import find_series, read_series
from dualseg.data.volumes import Image
from dualseg.errors import DualsegError

SHAPE = (11, 7, 6)  # columns, rows, slices
AFFINE = lps_affine((0.7, 0.9, 2.5), (-31.5, 12.25, -400.125))


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1500, SHAPE).astype(float)


def read(folder: Path) -> Image:
    (series,) = find_series(folder).series
    return read_series(series)


def turned() -> np.ndarray:
    """An oblique right-handed direction matrix."""
    first, second = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0][:, :2].T
    return np.stack([first, second, np.cross(first, second)], axis=1)


@pytest.mark.parametrize("direction", [None, turned()])
def test_slices_out_of_order_come_out_in_order_and_at_their_millimetre(tmp_path, direction):
    volume, affine = noise(), lps_affine((0.7, 0.9, 2.5), (-31.5, 12.25, -400.125), direction)
    files = write_series(tmp_path / "a", volume, affine, "X")
    image = read(tmp_path)
    np.testing.assert_array_equal(image.array[0], volume)
    np.testing.assert_allclose(image.affine, np.diag([-1, -1, 1, 1]) @ affine, atol=1e-4)
    # ITK, told the order
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(path) for path in files])
    itk = reader.Execute()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(itk).T, image.array[0])
    for index in ((0, 0, 0), (10, 0, 0), (0, 6, 0), (3, 2, 5)):
        ours = (image.affine @ [*index, 1])[:3] * (-1, -1, 1)
        np.testing.assert_allclose(ours, itk.TransformIndexToPhysicalPoint(index), atol=1e-3)


def test_each_slice_has_its_own_rescaling(tmp_path):
    volume = np.round(noise() / 10) * 10
    write_series(tmp_path, volume, AFFINE, "X", slopes=[(1, -1024), (2, 0), (0.5, -10)])
    np.testing.assert_allclose(read(tmp_path).array[0], volume, atol=1e-3)


def test_several_series_in_one_folder_are_told_apart(tmp_path):
    write_series(tmp_path, noise(1), AFFINE, "A", prefix="a")
    write_series(tmp_path, noise(2), AFFINE, "B", prefix="b")
    write_series(tmp_path, noise(2)[:, :, :1], AFFINE, "A", prefix="c")
    (tmp_path / "LICENSE").write_text("text")
    (tmp_path / ".hidden").write_bytes((tmp_path / "a000000").read_bytes())
    found = find_series(tmp_path)
    assert sorted((s.patient, len(s.files)) for s in found.series) == [("A", 6), ("B", 6)]
    assert not found.damaged
    assert {kind: len(paths) for kind, paths in found.left_out.items()} == {"single slice": 1, "hidden slice": 1}
    for series in found.series:
        np.testing.assert_array_equal(read_series(series).array[0], noise(1 if series.patient == "A" else 2))


def test_one_uid_with_two_grids_at_the_same_places_is_two_series(tmp_path):
    """Two fields of view of one scan."""
    write_series(tmp_path, noise(), AFFINE, "A", prefix="a", uid="1.2.3.4")
    write_series(tmp_path, noise()[:8], AFFINE, "A", prefix="b", uid="1.2.3.4")
    assert sorted(s.shape for s in find_series(tmp_path).series) == [(8, 7), (11, 7)]


def test_links_are_followed_once(tmp_path):
    write_series(tmp_path / "data", noise(), AFFINE, "A")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "link").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "raw")
    assert [len(s.files) for s in find_series(tmp_path / "raw").series] == [6]


def test_a_doubled_slice_counts_once(tmp_path):
    files = write_series(tmp_path, noise(), AFFINE, "A")
    (tmp_path / "again").write_bytes(files[2].read_bytes())
    image = read(tmp_path)
    np.testing.assert_array_equal(image.array[0], noise())
    np.testing.assert_allclose(image.affine, np.diag([-1, -1, 1, 1]) @ AFFINE, atol=1e-4)


def test_rle_is_decoded(tmp_path):
    for path in write_series(tmp_path, noise(), AFFINE, "A"):
        dataset = pydicom.dcmread(path)
        dataset.compress(RLELossless)
        dataset.save_as(path)
    np.testing.assert_array_equal(read(tmp_path).array[0], noise())


# --- bad input


def lose(files: list[Path]) -> str:
    files[3].unlink()
    return r"lies 5 mm from the slice before it \(\d+\), others 2\.5 mm: slices 1 missing; download the series again"


def shift(files: list[Path]) -> str:
    edit_slice(files[3], ImagePositionPatient=["-31.5", "12.25", "-392"])
    return "slices uneven"


def differ(files: list[Path]) -> str:
    dataset = pydicom.dcmread(files[2])
    dataset.PixelData = np.zeros((7, 11), np.int16).tobytes()
    dataset.save_as(files[0].with_name("other"))
    return r"lies where .* does but differs from it"


def move(files: list[Path]) -> str:
    (files[0].with_name("other")).write_bytes(files[2].read_bytes())
    edit_slice(files[0].with_name("other"), ImagePositionPatient=["0", "12.25", "-395.125"])
    return r"lies where .* does but differs from it"


def tilt(files: list[Path]) -> str:
    for k, path in enumerate(files):
        edit_slice(path, ImagePositionPatient=["-31.5", str(12.25 + 0.5 * k), str(-400.125 + 2.5 * k)])
    return "gantry was tilted"


def compress(files: list[Path]) -> str:
    dataset = pydicom.dcmread(files[4])
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51" + bytes(60)])
    dataset["PixelData"].VR = "OB"
    dataset.save_as(files[4])
    return r"compressed as JPEG 2000 .*not decoded .*pylibjpeg"


def truncate(files: list[Path]) -> str:
    files[1].write_bytes(files[1].read_bytes()[:-40])
    return "its header or pixels cannot be read"


def frames(files: list[Path]) -> str:
    edit_slice(files[1], NumberOfFrames=2)
    return "holds several frames"


@pytest.mark.parametrize("damage", [lose, shift, differ, move, tilt, compress, truncate, frames])
def test_what_is_no_volume_is_refused_by_name(tmp_path, damage):
    files = write_series(tmp_path, noise(), AFFINE, "A")
    message = damage(files)
    with pytest.raises(DualsegError, match=message) as caught:
        read(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))
    assert "Doe" not in str(caught.value)


def garble(path: Path, text: bytes) -> None:
    content = path.read_bytes()
    assert text in content
    path.write_bytes(content.replace(text, b"x" * len(text), 1))


def test_a_header_that_cannot_be_read_fails_its_series_alone(tmp_path):
    files = write_series(tmp_path, noise(), AFFINE, "A")
    write_series(tmp_path, noise(1), AFFINE, "B", prefix="b")
    garble(files[0], b"0.900000")  # of PixelSpacing
    found = find_series(tmp_path)
    assert not found.damaged
    by_patient = {series.patient: series for series in found.series}
    assert read_series(by_patient["B"]).array.shape == (1, *SHAPE)
    with pytest.raises(DualsegError, match=f"{files[0]}: PixelSpacing"):
        read_series(by_patient["A"])
