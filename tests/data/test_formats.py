"""Volumes of every format that is read, written by ITK, pynrrd and nibabel: the same voxels in the same place."""

from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from scipy.spatial.transform import Rotation

from dualseg.data.formats import one_file_each, read_grid, read_volume, stem_of, stored_volume
from dualseg.errors import DualsegError
from dualseg.prediction.grid import ScanGrid

SHAPE = (9, 8, 7)
LPS_TO_RAS = np.diag([-1.0, -1, 1, 1])


def itk_image(seed: int, channels: int = 1, dtype: str = "int16") -> sitk.Image:
    """Oblique, anisotropic, away from the origin."""
    rng = np.random.default_rng(seed)
    array = rng.integers(0, 120, (*SHAPE[::-1], *([channels] if channels > 1 else []))).astype(dtype)
    image = sitk.GetImageFromArray(array, isVector=channels > 1)
    image.SetDirection(Rotation.from_rotvec(rng.normal(size=3)).as_matrix().ravel().tolist())
    image.SetSpacing(rng.uniform(0.5, 3, 3).tolist())
    image.SetOrigin(rng.uniform(-90, 90, 3).tolist())
    return image


def affine_of(image: sitk.Image) -> np.ndarray:
    """By ITK's own arithmetic."""
    affine = np.eye(4)
    origin = np.array(image.TransformIndexToPhysicalPoint((0, 0, 0)))
    for axis in range(3):
        affine[:3, axis] = np.array(image.TransformIndexToPhysicalPoint(np.eye(3, dtype=int)[axis].tolist())) - origin
    affine[:3, 3] = origin
    return LPS_TO_RAS @ affine


def voxels_of(image: sitk.Image) -> np.ndarray:
    """(C, W, H, D)"""
    array = sitk.GetArrayFromImage(image).T
    return array if array.ndim == 4 else array[None]


@pytest.mark.parametrize("packed", [False, True], ids=["raw", "packed"])
@pytest.mark.parametrize("name", ["x.nrrd", "x.NHDR", "x.mha", "x.MHD", "X.NII.GZ", "x.nii", "x.img", "x.img.gz"])
def test_what_itk_writes(tmp_path, name, packed) -> None:
    pair = "img" in name
    for number, dtype in enumerate(("int16", "uint8", "float32", "float64", "uint32")):
        image = itk_image(number, dtype=dtype)
        path = tmp_path / str(number) / name
        path.parent.mkdir()
        lower = path.with_name(name.lower())
        sitk.WriteImage(image, lower, useCompression=packed)
        lower.rename(path)
        array, affine = read_volume(path)
        assert array.dtype == np.float32 and array.flags.c_contiguous
        np.testing.assert_array_equal(array, voxels_of(image))
        np.testing.assert_allclose(affine, affine_of(image), atol=1e-3 if "n" in name.lower() or pair else 1e-6)
        shape, of_header = read_grid(path)[:2]
        assert shape == SHAPE and np.array_equal(of_header, affine)


@pytest.mark.parametrize("name", ["x.nrrd", "x.mha", "x.mhd"])
def test_channels_of_a_voxel(tmp_path, name) -> None:
    image = itk_image(0, channels=3)
    sitk.WriteImage(image, tmp_path / name)
    array, affine = read_volume(tmp_path / name)
    assert array.shape == (3, *SHAPE)
    np.testing.assert_array_equal(array, voxels_of(image))
    np.testing.assert_allclose(affine, affine_of(image), atol=1e-6)
    assert read_grid(tmp_path / name).shape == SHAPE


@pytest.mark.parametrize("name", ["x.nrrd", "x.mha"])
def test_a_fourth_axis_is_channels(tmp_path, name) -> None:
    array = np.random.default_rng(0).integers(0, 99, (2, *SHAPE)).astype(np.int16)
    image = sitk.GetImageFromArray(array.transpose(0, 3, 2, 1), isVector=False)
    image.SetSpacing((1.5, 2, 3, 1))
    sitk.WriteImage(image, tmp_path / name)
    got, affine = read_volume(tmp_path / name)
    np.testing.assert_array_equal(got, array)
    np.testing.assert_allclose(affine, np.diag([-1.5, -2, 3, 1]))


def test_forms_of_nrrd(tmp_path) -> None:
    """Spaces, spacings without directions, channels last, big-endian, data in another file."""
    array = np.random.default_rng(0).integers(0, 999, SHAPE).astype(np.int16)
    directions = np.array([[0, 2.0, 0], [1, 0, 0.1], [0, 0.2, 3]])
    place = {"space directions": directions, "space origin": [5, 6, 7]}
    for space, signs in (("left-posterior-superior", (-1, -1, 1)), ("LAS", (-1, 1, 1)), ("RAS", (1, 1, 1))):
        nrrd.write(str(tmp_path / "x.nrrd"), array, {**place, "space": space})
        got, affine = read_volume(tmp_path / "x.nrrd")
        np.testing.assert_array_equal(got[0], array)
        np.testing.assert_allclose(affine[:3, :3], np.diag(signs) @ directions.T)
        np.testing.assert_allclose(affine[:3, 3], np.array(signs) * (5, 6, 7))
    nrrd.write(str(tmp_path / "plain.nrrd"), array.astype(">i2"), {"spacings": [1, 2, 3], "encoding": "raw"})
    got, affine = read_volume(tmp_path / "plain.nrrd")
    np.testing.assert_array_equal(got[0], array)
    np.testing.assert_allclose(affine, np.diag([-1, -2, 3, 1]))
    both = np.stack([array, array + 1], axis=-1)
    last = {"space": "RAS", "space directions": np.vstack([directions, np.full(3, np.nan)]), "space origin": [5, 6, 7]}
    nrrd.write(str(tmp_path / "last.nrrd"), both, {**last, "kinds": ["domain"] * 3 + ["list"]})
    got, affine = read_volume(tmp_path / "last.nrrd")
    np.testing.assert_array_equal(got, np.moveaxis(both, -1, 0))
    np.testing.assert_allclose(affine[:3, :3], directions.T)
    nrrd.write(str(tmp_path / "apart.nhdr"), array, detached_header=True)
    np.testing.assert_array_equal(read_volume(tmp_path / "apart.nhdr")[0][0], array)


@pytest.mark.parametrize("order", ["<", ">"])
def test_analyze_is_read_as_a_pair_that_does_not_say_where_it_lies(tmp_path, order) -> None:
    """SPM's scale, which nibabel does not write, is applied."""
    array = np.random.default_rng(0).integers(0, 999, SHAPE).astype(order + "i2")
    image = nib.AnalyzeImage(array, np.diag([-1.5, 2, 3, 1]), nib.AnalyzeHeader(endianness=order))
    nib.save(image, tmp_path / "a.img")
    header = bytearray((tmp_path / "a.hdr").read_bytes())
    header[112:116] = np.array(0.5, order + "f4").tobytes()
    (tmp_path / "a.hdr").write_bytes(header)
    for name in ("a.img", "a.hdr"):
        got, affine = read_volume(tmp_path / name)
        np.testing.assert_array_equal(got[0], 0.5 * array)
        np.testing.assert_allclose(np.abs(affine[:3, :3]), np.diag([1.5, 2, 3]))
        as_nifti = stored_volume(tmp_path / name).header
        assert as_nifti is not None and (as_nifti["qform_code"], as_nifti["sform_code"]) == (0, 0)


def replaced(path: Path, *pairs: tuple[bytes, bytes]) -> None:
    content = path.read_bytes()
    for old, new in pairs:
        assert old in content
        content = content.replace(old, new, 1)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("x.nrrd", b"encoding: raw", b"encoding: hex", "encoding is hex"),
        ("x.nrrd", b"type: short", b"type: block", "'block'"),
        ("x.nrrd", b"endian: little\n", b"", "'endian'"),
        ("x.nrrd", b"left-posterior-superior", b"scanner-xyz", "space is scanner-xyz"),
        ("x.nrrd", b"\nencoding", b'\nspace units: "um" "um" "um"\nencoding', "not in mm"),
        ("x.nrrd", b"encoding", b"data file: slice%03d.raw 1 7 1\nencoding", "several files"),
        ("x.nrrd", b"encoding", b"data file: gone.raw\nencoding", "gone.raw, but there is no such file"),
        ("x.nrrd", b"NRRD0004", b"NRRD0009", "cannot be read as NRRD"),
        ("x.nrrd", b"sizes: 9 8 7", b"sizes: 9 8 -7", "9 x 8 x -7"),
        ("x.nrrd", b"kinds: domain domain domain", b"kinds: domain domain vector", "domain x domain x vector"),
        ("x.mha", b"LOCAL", b"LIST", "several files"),
        ("x.mha", b"BinaryData = True", b"BinaryData = False", "text"),
        ("x.mha", b"MET_SHORT", b"MET_STRING", "MET_STRING"),
        ("x.mha", b"DimSize = 9 8 7", b"DimSize = 504 1 1", "504 x 1 x 1"),
        ("x.mha", b"NDims", b"DistanceUnits = um\nNDims", "not mm"),
        ("x.mha", b"NDims", b"ElementToIntensityFunctionSlope = 2\nNDims", "ElementToIntensityFunctionSlope"),
        ("x.mha", b"ElementDataFile = LOCAL\n", b"", "header"),
        ("x.mha", b"ElementSpacing = 1", b"ElementSpacing = -1", "ElementSpacing is -1 1 1"),
        ("x.mha", b"ElementSpacing = 1", b"ElementSpacing = 0", "ElementSpacing is 0 1 1"),
        ("x.mha", b"Offset = ", b"Offset = nan ", "cannot be read as MetaImage"),
    ],
)
def test_forms_that_are_not_read_are_named(tmp_path, name, old, new, words) -> None:
    image = sitk.GetImageFromArray(np.ones(SHAPE[::-1], np.int16))
    sitk.WriteImage(image, tmp_path / name)
    replaced(tmp_path / name, (old, new))
    with pytest.raises(DualsegError) as caught:
        read_volume(tmp_path / name)
    assert name in str(caught.value) and words in str(caught.value)


def test_what_is_not_there_or_no_file(tmp_path) -> None:
    def fails(name: str, *words: str) -> None:
        for read in (read_volume, read_grid):
            with pytest.raises(DualsegError) as caught:
                read(tmp_path / name)
            for word in (name, *words):
                assert word in str(caught.value)

    fails("none.nrrd", "no such file")
    (tmp_path / "folder.nii.gz").mkdir()
    fails("folder.nii.gz", "is a folder")
    (tmp_path / "link.mha").symlink_to(tmp_path / "gone.mha")
    fails("link.mha", "link", "gone.mha")
    (tmp_path / "x.mgz").write_bytes(b"")
    fails("x.mgz", "of a kind that is not read")
    (tmp_path / "lone.hdr").write_bytes(b"")
    fails("lone.hdr", "cannot be read as NIfTI")
    (tmp_path / "lone.hdr").rename(tmp_path / "lone.img")
    with pytest.raises(DualsegError, match=r"lone\.hdr: no such file"):
        read_volume(tmp_path / "lone.img")
    for name in ("empty.nii", "empty.nii.gz", "empty.nrrd", "empty.mha"):
        (tmp_path / name).touch()
        fails(name, "cannot be read")


def test_the_header_alone_is_read_for_a_grid(tmp_path) -> None:
    image = itk_image(0)
    for name in ("x.nii.gz", "x.nrrd", "x.mha"):
        sitk.WriteImage(image, tmp_path / name, useCompression=True)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2 + 200])
        assert read_grid(tmp_path / name).shape == SHAPE


def test_names_of_files(tmp_path) -> None:
    assert [stem_of(name) for name in ("a.nii.gz", "A.NII", "b.c.nrrd", "d.img.gz", "e.json")] == [
        "a", "A", "b.c", "d", "e.json"
    ]  # fmt: skip
    names = ("a.nii.gz", "b.img", "b.hdr", "lone.hdr", "C.IMG", "C.HDR", "d.mhd", "d.raw", "e.mgz")
    assert [path.name for path in one_file_each(Path(name) for name in names)] == [
        "a.nii.gz", "b.img", "lone.hdr", "C.IMG", "d.mhd"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["x.nrrd", "x.mha", "x.nii.gz"])
def test_a_map_lies_where_its_scan_does(tmp_path, name) -> None:
    """By ITK, which reads both."""
    sitk.WriteImage(itk_image(1), tmp_path / name)
    ScanGrid.of_stored(stored_volume(tmp_path / name)).write(tmp_path / "map.nii.gz", np.ones(SHAPE, np.uint8))
    scan, written = sitk.ReadImage(tmp_path / name), sitk.ReadImage(tmp_path / "map.nii.gz")
    assert written.GetSize() == scan.GetSize()
    np.testing.assert_allclose(written.GetSpacing(), scan.GetSpacing(), rtol=1e-5)
    np.testing.assert_allclose(written.GetOrigin(), scan.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(written.GetDirection(), scan.GetDirection(), atol=1e-5)
