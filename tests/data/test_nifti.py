import gzip
import os
import warnings

import nibabel as nib
import numpy as np
import pytest

from dualseg.data.nifti import read_grid, read_nifti, write_nifti
from dualseg.errors import DualsegError

AFFINE = np.array([[-1.2, 0.1, 0, 30], [0.1, 1.1, 0.2, -20], [0, -0.2, 1.5, 5], [0, 0, 0, 1.0]])


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(7, 6, 5)).astype(np.float32)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_round_trip_of_one_channel_is_exact_and_readable_by_nibabel(tmp_path, volume, suffix):
    path = tmp_path / "new" / "folder" / f"case.one{suffix}"
    write_nifti(path, volume, AFFINE)
    array, affine = read_nifti(path)
    assert array.shape == (1, 7, 6, 5) and array.dtype == np.float32 and array.flags.c_contiguous
    np.testing.assert_array_equal(array[0], volume)
    np.testing.assert_allclose(affine, AFFINE, atol=1e-6)  # stored in float32
    image = nib.load(path)
    assert image.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_array_equal(np.asarray(image.dataobj), volume)
    assert list(path.parent.iterdir()) == [path]


def test_channels_are_the_last_axis_of_the_file(tmp_path, volume):
    channels = np.stack([volume, 2 * volume, volume - 1])
    write_nifti(tmp_path / "c.nii.gz", channels, AFFINE)
    assert nib.load(tmp_path / "c.nii.gz").shape == (7, 6, 5, 3)
    array, _ = read_nifti(tmp_path / "c.nii.gz")
    np.testing.assert_array_equal(array, channels)
    assert array.flags.c_contiguous


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.int64])
def test_the_arrays_type_is_stored(tmp_path, dtype):
    write_nifti(tmp_path / "x.nii.gz", np.arange(60).reshape(5, 4, 3).astype(dtype), AFFINE)
    assert nib.load(tmp_path / "x.nii.gz").get_data_dtype() == dtype


def test_masks_are_stored_as_uint8(tmp_path, volume):
    write_nifti(tmp_path / "m.nii.gz", volume > 0, AFFINE)
    assert nib.load(tmp_path / "m.nii.gz").get_data_dtype() == np.uint8
    np.testing.assert_array_equal(read_nifti(tmp_path / "m.nii.gz")[0][0], volume > 0)


def test_scale_and_offset_of_the_file_are_applied(tmp_path):
    image = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(4, 3, 2), AFFINE)
    image.header.set_slope_inter(0.5, -3)
    path = tmp_path / "scaled.nii"
    nib.save(image, path)
    raw = bytearray(path.read_bytes())  # nibabel resets the slope when it saves: put it into the header by hand
    raw[112:120] = np.array([0.5, -3], "<f4").tobytes()
    path.write_bytes(raw)
    stored = np.frombuffer(raw[352:], "<i2").reshape(4, 3, 2, order="F")
    np.testing.assert_allclose(read_nifti(path)[0][0], stored * 0.5 - 3)


@pytest.mark.parametrize("unit, per_mm", [("micron", 1000), ("meter", 0.001), ("mm", 1), ("unknown", 1)])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_affines_are_in_millimetres_whatever_the_unit_of_the_file(tmp_path, volume, unit, per_mm, kind):
    image = kind(volume, np.diag([per_mm, per_mm, per_mm, 1]) @ AFFINE)
    image.header.set_xyzt_units(unit, "sec")
    path = tmp_path / "u.nii"
    nib.save(image, path)
    for affine in (read_nifti(path)[1], read_grid(path).affine):
        np.testing.assert_allclose(affine, AFFINE, rtol=1e-6, atol=1e-6)


def test_same_input_gives_same_bytes(tmp_path, volume):
    write_nifti(tmp_path / "a.nii.gz", volume, AFFINE)
    write_nifti(tmp_path / "b.nii.gz", volume, AFFINE)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def fails(path, *words):
    with pytest.raises(DualsegError) as caught:
        read_nifti(path)
    for word in (path.name, *words):
        assert word in str(caught.value)


def test_missing_file(tmp_path):
    fails(tmp_path / "nothing.nii.gz", "no such file")


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.95])
def test_truncated_gzip(tmp_path, volume, keep):
    write_nifti(tmp_path / "cut.nii.gz", volume, AFFINE)
    whole = (tmp_path / "cut.nii.gz").read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: keep if keep >= 1 or keep == 0 else int(keep * len(whole))])
    fails(tmp_path / "cut.nii.gz", "cannot be read")


def test_truncated_without_gzip(tmp_path, volume):
    write_nifti(tmp_path / "cut.nii", volume, AFFINE)
    (tmp_path / "cut.nii").write_bytes((tmp_path / "cut.nii").read_bytes()[:-40])
    fails(tmp_path / "cut.nii", "cannot be read")


def test_damaged_gzip_and_foreign_content(tmp_path, volume):
    write_nifti(tmp_path / "bad.nii.gz", volume, AFFINE)
    raw = bytearray((tmp_path / "bad.nii.gz").read_bytes())
    raw[200:230] = b"\xff" * 30
    (tmp_path / "bad.nii.gz").write_bytes(raw)
    fails(tmp_path / "bad.nii.gz", "cannot be read")
    (tmp_path / "text.nii.gz").write_bytes(b"not gzip at all" * 50)
    fails(tmp_path / "text.nii.gz", "cannot be read")
    (tmp_path / "zipped.nii.gz").write_bytes(gzip.compress(b"not nifti at all" * 50))
    fails(tmp_path / "zipped.nii.gz", "cannot be read")
    nib.save(nib.MGHImage(volume, AFFINE), tmp_path / "other.mgz")
    fails(tmp_path / "other.mgz", "not NIfTI")


def test_colour_and_complex_voxels(tmp_path):
    colour = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colour, AFFINE), tmp_path / "rgb.nii")
    fails(tmp_path / "rgb.nii", "not plain numbers")
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.complex64), AFFINE), tmp_path / "complex.nii")
    fails(tmp_path / "complex.nii", "not plain numbers")


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (8, 8, 4, 1, 3)])
def test_not_a_volume(tmp_path, shape):
    nib.save(nib.Nifti1Image(np.zeros(shape, np.float32), AFFINE), tmp_path / "flat.nii.gz")
    fails(tmp_path / "flat.nii.gz", " x ".join(map(str, shape)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite(tmp_path, volume, value):
    volume[1, 2, 3] = value
    nib.save(nib.Nifti1Image(volume, AFFINE), tmp_path / "holes.nii.gz")
    fails(tmp_path / "holes.nii.gz", "NaN or infinite")


@pytest.mark.parametrize("damage", ["zero", "nan", "zero column", "flat"])
def test_affine_that_is_not_invertible(tmp_path, volume, damage):
    path = tmp_path / "affine.nii"
    write_nifti(path, volume, AFFINE)
    affine = AFFINE.copy()
    if damage == "zero":
        affine[:] = 0
    elif damage == "nan":
        affine[0, 3] = np.nan
    elif damage == "zero column":
        affine[:3, 1] = 0
    else:
        affine[:3, 1] = 2 * affine[:3, 0]
    raw = bytearray(path.read_bytes())
    raw[280:328] = affine[:3].astype("<f4").tobytes()  # srow_x, srow_y, srow_z of the NIfTI-1 header
    path.write_bytes(raw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fails(path, "affine is not invertible")
    with pytest.raises(DualsegError, match=r"new\.nii.* not invertible"):
        write_nifti(tmp_path / "new.nii", volume, affine)
    assert not (tmp_path / "new.nii").exists()


def test_writing_refuses_other_suffixes_and_shapes(tmp_path, volume):
    with pytest.raises(DualsegError, match=r"x\.mha.*\.nii"):
        write_nifti(tmp_path / "x.mha", volume, AFFINE)
    with pytest.raises(DualsegError, match=r"x\.nii"):
        write_nifti(tmp_path / "x.nii", volume[0], AFFINE)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("step", ["save", "fsync", "replace"])
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path, volume, monkeypatch, step):
    path = tmp_path / "case.nii.gz"
    write_nifti(path, volume, AFFINE)
    before = path.read_bytes()

    def full(*args, **kwargs):
        if step == "save":
            args[1].write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib if step == "save" else os, step, full)
    with pytest.raises(DualsegError, match=r"case\.nii\.gz.*No space left"):
        write_nifti(path, volume + 1, AFFINE)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_target_folder_is_a_file(tmp_path, volume):
    (tmp_path / "occupied").write_text("")
    with pytest.raises(DualsegError, match="cannot be written"):
        write_nifti(tmp_path / "occupied" / "case.nii", volume, AFFINE)


def test_the_temporary_file_is_complete_before_it_takes_the_name(tmp_path, volume, monkeypatch):
    """What a kill right before the rename would leave: no target, and a hidden file that is whole, beside it."""
    seen = {}

    def watch(source, target, replace=os.replace):
        seen["temporary"], seen["existed"] = source, target.exists()
        np.testing.assert_array_equal(read_nifti(source)[0][0], volume)
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    write_nifti(tmp_path / "case.nii.gz", volume, AFFINE)
    assert not seen["existed"]
    assert seen["temporary"].parent == tmp_path and seen["temporary"].name.startswith(".")
