"""What NIfTI headers contradict, against how nibabel writes them and ITK reads them."""

import gzip

import nibabel as nib
import nrrd
import numpy as np
import pytest
import SimpleITK
from folder_layouts import odd_affine
from scipy.spatial.transform import Rotation

from dualseg.data import formats
from dualseg.data.checking.geometry import nearest_rigid, shear_problem, spacing_of
from dualseg.data.checking.header import header_problems
from dualseg.data.nifti import read_grid
from dualseg.data.volumes import Grid
from dualseg.errors import DualsegError

SHAPE = (40, 30, 20)


def write(path, affine, qform=None, codes=(1, 1), kind=nib.Nifti1Image, unit="mm", **fields):
    """A file whose sform is `affine` and whose qform is `qform` or the same; `fields`: of the header, as they are."""
    image = kind(np.zeros(SHAPE, np.uint8), affine)
    image.header.set_xyzt_units(unit)
    image.set_qform(affine if qform is None else qform, codes[0])
    image.set_sform(affine, codes[1])
    for name, value in fields.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def kinds(path):
    return [problem.kind for problem in header_problems(path)]


def moved(affine, mm):
    affine = affine.copy()
    affine[1, 3] += mm
    return affine


@pytest.mark.parametrize("seed", range(5))
def test_what_nibabel_writes_does_not_contradict_itself(tmp_path, seed):
    affine = odd_affine(seed)
    for unit, per_mm in (("mm", 1), ("meter", 0.001), ("micron", 1000), ("unknown", 1)):
        scaled = np.diag([per_mm, per_mm, per_mm, 1]) @ affine
        assert kinds(write(tmp_path / "a.nii.gz", scaled, unit=unit)) == []
    for codes in ((1, 0), (0, 2), (2, 4)):
        assert kinds(write(tmp_path / "b.nii", affine, codes=codes)) == []
    for kind, name in ((nib.Nifti2Image, "c.nii"), (nib.Nifti1Pair, "d.img")):
        assert kinds(write(tmp_path / name, affine, kind=kind)) == []
        assert kinds(write(tmp_path / name, affine, moved(affine, 10), kind=kind)) == ["qform/sform"]
    swapped = nib.load(tmp_path / "b.nii")
    swapped = nib.Nifti1Image(np.asarray(swapped.dataobj), None, swapped.header.as_byteswapped(">"))
    nib.save(swapped, tmp_path / "e.nii")
    assert kinds(tmp_path / "e.nii") == []


@pytest.mark.parametrize("angle", [0, 1e-5, 3e-4, 1e-3, 0.1])
def test_a_quaternion_of_few_digits_is_no_contradiction(tmp_path, angle):
    """A scan in DICOM's axes is turned by 180 degrees, where a tilt is least certain in the numbers of a qform."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_rotvec([angle, 0, 0]).as_matrix() @ np.diag([-0.7, -0.7, 0.7])
    image = nib.Nifti1Image(np.zeros((1, 1, 1), np.uint8), affine)
    image.header.set_data_shape((512, 512, 600))
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    (tmp_path / "a.nii").write_bytes(image.header.binaryblock)
    assert kinds(tmp_path / "a.nii") == []
    image.set_qform(moved(affine, 1.5), 1)
    (tmp_path / "a.nii").write_bytes(image.header.binaryblock)
    assert kinds(tmp_path / "a.nii") == ["qform/sform"]


def test_two_places_are_told_in_millimetres(tmp_path):
    affine = np.diag([0.001, 0.001, 0.002, 1])
    (problem,) = header_problems(write(tmp_path / "a.nii.gz", affine, moved(affine, 0.01), unit="meter"))
    assert problem.kind == "qform/sform" and "10 mm" in problem.text
    turned = affine @ np.diag([-1, -1, 1, 1])
    assert kinds(write(tmp_path / "b.nii.gz", affine, turned, unit="meter")) == ["qform/sform"]
    assert kinds(write(tmp_path / "c.nii.gz", affine, moved(affine, 5e-5), unit="meter")) == []


@pytest.mark.parametrize("pixdim", [(1, 0, 2, 2), (1, 2, -2, 2), (1, 2, 2, np.nan), (1, 0, 0, 0)])
@pytest.mark.parametrize("codes", [(1, 0), (0, 1)])
def test_edges_that_are_none(tmp_path, pixdim, codes):
    path = write(tmp_path / "a.nii", np.diag([2.0, 2, 2, 1]), codes=codes)
    raw = bytearray(path.read_bytes())
    raw[76:92] = np.array(pixdim, "<f4").tobytes()
    path.write_bytes(raw)
    assert kinds(path) == ["pixdim"]


def test_edges_that_itk_reads_otherwise(tmp_path):
    path = write(tmp_path / "a.nii", np.diag([2.0, 2, 3, 1]), codes=(0, 1), pixdim=[1, 1, 1, 1, 0, 0, 0, 0])
    assert spacing_of(read_grid(path).affine).tolist() == [2, 2, 3]
    assert SimpleITK.ReadImage(str(path)).GetSpacing() == (1, 1, 1)
    assert kinds(path) == ["pixdim"]


def test_a_file_without_orientation(tmp_path):
    assert kinds(write(tmp_path / "a.nii.gz", np.eye(4), codes=(0, 0))) == ["no orientation"]


def test_other_files_have_no_header_to_look_at(tmp_path):
    nib.save(nib.MGHImage(np.zeros(SHAPE, np.float32), np.eye(4)), tmp_path / "a.mgz")
    nib.save(nib.AnalyzeImage(np.zeros(SHAPE, np.int16), np.eye(4)), tmp_path / "b.img")
    (tmp_path / "c.nii.gz").write_bytes(gzip.compress(bytes(1000))[:-20])
    (tmp_path / "d.nii").write_bytes(b"short")
    assert kinds(tmp_path / "b.img") == ["no orientation"]
    for name in ("a.mgz", "c.nii.gz", "d.nii", "missing.nii"):
        assert kinds(tmp_path / name) == []


@pytest.mark.parametrize("lean", [0, 5e-5, 4e-4, 0.01, 0.3])
def test_shear_is_what_itk_refuses_and_the_nearest_rigid_affine_is_taken(tmp_path, lean):
    affine = odd_affine(3)
    affine[:3, 1] += lean * affine[:3, 0]
    grid = Grid(SHAPE, affine)
    problem = shear_problem(grid)

    def itk_reads(matrix):
        path = write(tmp_path / "a.nii", matrix, codes=(0, 1))
        raw = bytearray(path.read_bytes())
        raw[80:92] = spacing_of(matrix).astype("<f4").tobytes()
        path.write_bytes(raw)
        try:
            return SimpleITK.ReadImage(str(path))
        except RuntimeError as error:
            assert "orthonormal" in str(error)
            return None

    assert (itk_reads(affine) is None) == (problem is not None)
    rigid = nearest_rigid(grid)
    assert itk_reads(rigid) is not None and shear_problem(Grid(SHAPE, rigid)) is None
    np.testing.assert_allclose(spacing_of(rigid), spacing_of(affine))
    middle = [*((np.array(SHAPE) - 1) / 2), 1]
    np.testing.assert_allclose(rigid @ middle, affine @ middle)
    assert np.linalg.det(rigid) * np.linalg.det(affine) > 0
    # no orthogonal matrix is nearer: not one that is turned a little
    unit, own = affine[:3, :3] / spacing_of(affine), rigid[:3, :3] / spacing_of(rigid)
    for turn in Rotation.random(20, random_state=0).as_rotvec() * 0.01:
        assert np.linalg.norm(Rotation.from_rotvec(turn).as_matrix() @ own - unit) >= np.linalg.norm(own - unit)
    if problem:
        assert problem.kind == "shear" and f"{rigid[0, 0]:.6g}" in problem.text


def test_other_formats_may_not_say_how_they_lie(tmp_path):
    image = SimpleITK.GetImageFromArray(np.zeros(SHAPE, np.uint8))
    for name, fields in (("a.mha", ("ElementSpacing", "TransformMatrix")), ("a.nrrd", ("space", "space directions"))):
        path = tmp_path / name
        SimpleITK.WriteImage(image, path)
        assert kinds(path) == []
        content = path.read_bytes()
        for field in fields:
            lines = [line for line in content.split(b"\n") if line.split(b" =")[0].split(b":")[0] != field.encode()]
            if field == "space":
                lines.insert(2, b"space dimension: 3")
            path.write_bytes(b"\n".join(line for line in lines if field != "space directions" or b"origin" not in line))
            (problem,) = header_problems(path)
            assert problem.kind == "no orientation" and f"has no {field} in" in problem.text
    nrrd.write(str(tmp_path / "b.nrrd"), np.zeros(SHAPE, np.uint8), {"spacings": [1, 1, -2]})
    assert kinds(tmp_path / "b.nrrd") == []
    with pytest.raises(DualsegError, match="spacings are"):
        formats.read_grid(tmp_path / "b.nrrd")
