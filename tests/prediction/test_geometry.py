"""The label is at the right millimetre and the file on the scan's grid: read back with nibabel and with SimpleITK."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from predict_toys import BALLS, random_affine, save, scene, world, write_run

AFFINES = 200
SHEARED = 40
WIDE = [32, 32, 32]  # few windows; how they are cut has tests of its own


def same_grid(scan: Path, label: Path) -> None:
    """By nibabel: shape, affine, orientation, codes, units."""
    given, got = nib.load(scan), nib.load(label)
    assert got.shape == given.shape[:3]
    assert got.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(got.affine, given.affine)
    assert nib.aff2axcodes(got.affine) == nib.aff2axcodes(given.affine)
    assert got.header.get_xyzt_units() == given.header.get_xyzt_units()
    for form in ("qform", "sform"):
        ours, theirs = (getattr(image.header, f"get_{form}")(coded=True) for image in (got, given))
        assert ours[1] == theirs[1]
        if theirs[0] is not None:
            np.testing.assert_array_equal(ours[0], theirs[0])


def offs(label: np.ndarray, to_mm: Callable, affine: np.ndarray, shape: tuple[int, ...]) -> list[np.ndarray]:
    """How far the centre of each class, by `to_mm` (voxel -> mm RAS), is off that of the ball, in voxels.

    The balls are 4 to 13 voxels wide: no more than a quarter of a voxel.
    """
    middle, found = (affine @ [*((np.array(shape) - 1) / 2), 1])[:3], []
    for value, (centre, _) in enumerate(BALLS.values(), start=1):
        voxels = np.argwhere(label == value)
        assert len(voxels)
        off = to_mm(voxels.mean(axis=0)) - middle - centre
        found.append(np.linalg.solve(affine[:3, :3], off))
        assert abs(found[-1]).max() < 0.25
    return found


def overlap(label: np.ndarray, truth: np.ndarray) -> float:
    return min(2 * ((label == k) & (truth == k)).sum() / ((label == k).sum() + (truth == k).sum()) for k in (1, 2))


def test_round_trip_of_200_random_affines(predict, tmp_path) -> None:
    rng = np.random.default_rng(0)
    cases = {}
    for index in range(AFFINES):
        affine, shape = random_affine(rng)
        image, truth = scene(affine, shape)
        path = tmp_path / "in" / f"scan{index:03d}.nii"
        save(path, image, affine, code=int(rng.integers(1, 5)))
        cases[path] = affine, shape, truth
    run = write_run(tmp_path / "wide", patch_size=WIDE, stride=WIDE)
    outcome = predict(f"run={run}", f"input={tmp_path / 'in'}")
    assert outcome.code == 0, outcome.err
    flips, by_nibabel, by_itk = set(), [], []
    for path, (affine, shape, truth) in cases.items():
        out = tmp_path / "out" / "labels" / f"{path.stem}.nii.gz"
        same_grid(path, out)
        image = nib.load(out)
        label = np.asarray(image.dataobj)
        by_nibabel += offs(label, lambda v, a=image.affine: nib.affines.apply_affine(a, v), affine, shape)
        assert overlap(label, truth) > 0.85
        flips.add(np.linalg.det(affine[:3, :3]) < 0)
        # the other reader: its axes are LPS, its arrays [z, y, x]
        given, got = SimpleITK.ReadImage(str(path)), SimpleITK.ReadImage(str(out))
        for what in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_array_equal(getattr(got, what)(), getattr(given, what)(), err_msg=f"{path} {what}")
        array = SimpleITK.GetArrayFromImage(got).T
        np.testing.assert_array_equal(array, label)
        lps = lambda v, got=got: np.array(got.TransformContinuousIndexToPhysicalPoint(v.tolist())) * [-1, -1, 1]  # noqa: E731
        by_itk += offs(array, lps, affine, shape)
    assert flips == {True, False}
    for all_offs in (by_nibabel, by_itk):  # no part of a voxel in common: what half a voxel somewhere would leave
        np.testing.assert_allclose(np.mean(all_offs, axis=0), 0, atol=0.01)


def test_round_trip_of_sheared_affines(predict, tmp_path) -> None:
    """NIfTI's sform can hold them, ITK's directions cannot."""
    rng = np.random.default_rng(1)
    cases = {}
    for index in range(SHEARED):
        affine, shape = random_affine(rng, sheared=True)
        image, truth = scene(affine, shape)
        path = tmp_path / "in" / f"scan{index:03d}.nii.gz"
        save(path, image, affine)
        cases[path] = affine, shape, truth
    run = write_run(tmp_path / "wide", patch_size=WIDE, stride=WIDE)
    assert predict(f"run={run}", f"input={tmp_path / 'in'}").code == 0
    by_nibabel = []
    for path, (affine, shape, truth) in cases.items():
        out = tmp_path / "out" / "labels" / path.name
        same_grid(path, out)
        image = nib.load(out)
        label = np.asarray(image.dataobj)
        by_nibabel += offs(label, lambda v, a=image.affine: nib.affines.apply_affine(a, v), affine, shape)
        assert overlap(label, truth) > 0.85
    np.testing.assert_allclose(np.mean(by_nibabel, axis=0), 0, atol=0.02)


@pytest.mark.parametrize("downsample", [1.0, 1.5, 2.0])
def test_down_sampling_moves_nothing(predict, tmp_path, downsample) -> None:
    """The centre of a label stays that of its ball, to an eighth of a coarse voxel of 2 mm times the factor.

    Not closer, for torch's area interpolation averages over whole voxels: their middle is not always the coarse one's.
    """
    run = write_run(tmp_path / "coarse", downsample=downsample)
    affine, shape = np.diag([1.5, 1.5, 1.5, 1]), (48, 44, 46)
    save(tmp_path / "scan.nii.gz", scene(affine, shape)[0], affine)
    assert predict(f"run={run}", f"input={tmp_path / 'scan.nii.gz'}").code == 0
    label = np.asarray(nib.load(tmp_path / "out" / "labels" / "scan.nii.gz").dataobj)
    places = world(affine, shape)
    for value, (centre, _) in enumerate(BALLS.values(), start=1):
        np.testing.assert_allclose(places[:, label == value].mean(axis=1), centre, atol=0.25 * downsample)


AFFINE = np.array([[-1.2, 0.3, 0, 40], [0.3, 1.2, 0, -80], [0, 0, 2.0, 10], [0, 0, 0, 1]])  # oblique in one plane
SHAPE = (50, 48, 32)


def written(path: Path, kind: str) -> None:
    """The scene in one of the forms that NIfTI files come in."""
    image = scene(AFFINE, SHAPE)[0]
    header = nib.Nifti1Header()
    if kind == "int16 with slope":
        header.set_data_dtype(np.int16)
        stored = nib.Nifti1Image(image, AFFINE, header)  # nibabel chooses slope and offset
    elif kind == "4-D with one volume":
        stored = nib.Nifti1Image(image[..., None], AFFINE)
        stored.header["pixdim"][4] = 2.5
    elif kind == "NIfTI-2":
        stored = nib.Nifti2Image(image, AFFINE)
    elif kind == "big-endian":
        stored = nib.Nifti1Image(image, AFFINE, nib.Nifti1Header(endianness=">"))
    elif kind in ("micrometres", "metres"):
        scale = 1000 if kind == "micrometres" else 0.001
        stored = nib.Nifti1Image(image, np.diag([scale, scale, scale, 1]) @ AFFINE)
        stored.header.set_xyzt_units("micron" if kind == "micrometres" else "meter")
    else:
        stored = nib.Nifti1Image(image, AFFINE)
        if kind in ("sform only", "neither form"):
            stored.set_qform(None, 0)
        if kind in ("qform only", "neither form"):
            stored.set_sform(None, 0)
    path.parent.mkdir(exist_ok=True)
    nib.save(stored, path)


KINDS = ("plain", "int16 with slope", "4-D with one volume", "NIfTI-2", "big-endian", "micrometres", "metres")
KINDS = (*KINDS, "sform only", "qform only", "neither form")


@pytest.mark.parametrize("kind", KINDS)
def test_forms_of_nifti(predict, tmp_path, kind) -> None:
    written(tmp_path / "in" / "scan.nii.gz", kind)
    outcome = predict(f"input={tmp_path / 'in'}", "probabilities=true", "uncertainty=true")
    assert outcome.code == 0, outcome.err
    out = tmp_path / "out" / "labels" / "scan.nii.gz"
    same_grid(tmp_path / "in" / "scan.nii.gz", out)
    image = nib.load(out)
    assert isinstance(image, nib.Nifti2Image) == (kind == "NIfTI-2")
    if kind != "neither form":  # without one, the axes of the file are all there is, and the balls lie elsewhere
        assert overlap(np.asarray(image.dataobj), scene(AFFINE, SHAPE)[1]) > 0.85
        # the volumes of the balls, in ml whatever the units of the file
        row = (tmp_path / "out" / "summary.csv").read_text().splitlines()[1].split(",")
        for ml, (_, radius) in zip(row[3:5], BALLS.values(), strict=True):
            assert float(ml) == pytest.approx(4 / 3 * np.pi * radius**3 / 1000, rel=0.1)
    for kind_of_map, shape in (("probabilities", (*SHAPE, 3)), ("entropy", SHAPE), ("disagreement", SHAPE)):
        other = nib.load(tmp_path / "out" / kind_of_map / "scan.nii.gz")
        assert other.shape == shape
        np.testing.assert_array_equal(other.affine, image.affine)
        assert other.header.get_xyzt_units()[0] == image.header.get_xyzt_units()[0]
