"""Geometry is checked in millimetres, with nibabel and SimpleITK beside our own arithmetic."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from nibabel.affines import apply_affine
from scipy.spatial.transform import Rotation

from dualseg.data.preprocessing import grid_of_spacing, resample, resample_to_spacing, to_ras, window, z_score
from dualseg.data.volumes import Grid, Image

SHAPE = (22, 17, 12)


def odd_affine(seed: int, spacing=(0.9, 1.3, 2.6)) -> np.ndarray:
    """Turned by up to 35 degrees, with axes permuted and flipped, away from the origin."""
    rng = np.random.default_rng(seed)
    turn = Rotation.from_rotvec(rng.normal(size=3) * 0.2).as_matrix()
    permuted = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)
    affine = np.eye(4)
    affine[:3, :3] = turn @ permuted @ np.diag(spacing)
    affine[:3, 3] = rng.uniform(-90, 90, 3)
    return affine


def blob(shape, affine, centre_mm, sigma=4.0) -> np.ndarray:
    """(W, H, D) float32: a Gaussian around a place in millimetres."""
    places = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    return np.exp(-((places - centre_mm) ** 2).sum(-1) / (2 * sigma**2)).astype(np.float32)


def centre_of(array, affine) -> np.ndarray:
    """Centre of mass in millimetres."""
    voxels = np.moveaxis(np.indices(array.shape), 0, -1).reshape(-1, 3)
    return apply_affine(affine, np.average(voxels, axis=0, weights=array.ravel()))


@pytest.mark.parametrize("seed", range(12))
def test_reorienting_moves_no_voxel(seed):
    affine = odd_affine(seed)
    array = np.random.default_rng(seed).normal(size=(2, *SHAPE)).astype(np.float32)
    turned = to_ras(Image(array, affine))
    assert "".join(nib.aff2axcodes(turned.affine)) == "RAS"
    ours = nib.Nifti1Image(np.moveaxis(array, 0, -1), affine)
    theirs = nib.as_closest_canonical(ours)
    np.testing.assert_array_equal(np.moveaxis(turned.array, 0, -1), np.asarray(theirs.dataobj))
    np.testing.assert_allclose(turned.affine, theirs.affine, atol=1e-5)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.1, 1.3, 0.7), (3.0, 3.0, 3.0)])
def test_a_landmark_stays_at_its_millimetre_position(seed, spacing):
    affine = odd_affine(seed)
    middle = apply_affine(affine, np.array(SHAPE) / 2 + 0.3)
    image = to_ras(Image(blob(SHAPE, affine, middle, sigma=2.5)[None], affine))
    small = resample_to_spacing(image, spacing)
    np.testing.assert_allclose(
        centre_of(small.array[0], small.affine), centre_of(image.array[0], image.affine), atol=0.1
    )
    brightest = np.unravel_index(small.array[0].argmax(), small.array[0].shape)
    assert np.linalg.norm(apply_affine(small.affine, brightest) - middle) < np.linalg.norm(small.affine[:3, :3].sum(1))
    edges = nib.affines.voxel_sizes(small.affine)
    for axis in range(3):  # of a number of voxels that is rounded
        assert abs(edges[axis] / spacing[axis] - 1) <= 0.5 / small.array.shape[1 + axis] + 1e-9


@pytest.mark.parametrize("seed", range(6))
def test_the_field_of_view_stays(seed):
    grid = Grid(SHAPE, odd_affine(seed))
    target = grid_of_spacing(grid, (1.7, 0.8, 4.0))
    for corner in np.ndindex(2, 2, 2):
        was = apply_affine(grid.affine, np.array(corner) * grid.shape - 0.5)
        now = apply_affine(target.affine, np.array(corner) * target.shape - 0.5)
        np.testing.assert_allclose(now, was, atol=1e-9)


def itk_image(array, affine) -> sitk.Image:
    image = sitk.GetImageFromArray(array.T)
    to_lps = np.diag([-1.0, -1.0, 1.0])
    spacing = nib.affines.voxel_sizes(affine)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((to_lps @ affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin((to_lps @ affine[:3, 3]).tolist())
    return image


@pytest.mark.parametrize("order, theirs", [(0, sitk.sitkNearestNeighbor), (1, sitk.sitkLinear)])
@pytest.mark.parametrize("turned", [False, True])
def test_resampling_agrees_with_simpleitk(order, theirs, turned):
    """On a grid that is finer, so that nothing is smoothed: over the same field of view, and turned, partly outside."""
    affine = odd_affine(3)
    rng = np.random.default_rng(3)
    array = rng.normal(size=SHAPE).astype(np.float32)
    target = grid_of_spacing(Grid(SHAPE, affine), (0.77, 0.83, 1.9))
    if turned:
        about = np.eye(4)
        about[:3, :3] = Rotation.from_rotvec([0.2, -0.1, 0.3]).as_matrix()
        target = target._replace(affine=about @ target.affine)
    ours = resample(array, affine, target, order, outside=-7)
    reference = sitk.GetImageFromArray(np.zeros(target.shape[::-1], np.float32))
    reference.CopyInformation(itk_image(np.zeros(target.shape, np.float32), target.affine))
    expected = sitk.GetArrayFromImage(
        sitk.Resample(itk_image(array, affine), reference, sitk.Transform(), theirs, -7.0)
    ).T
    assert turned == (expected == -7).any()
    different = np.abs(ours - expected) > 1e-4
    assert different.mean() < 1e-3, "but for places that rounding puts half way, or on the outermost faces"


def test_labels_keep_their_values_and_type_and_shrunk_images_their_mean():
    rng = np.random.default_rng(0)
    affine = odd_affine(1, (1, 1, 1))
    label = rng.choice([0, 3, 7], SHAPE).astype(np.uint8)
    target = grid_of_spacing(Grid(SHAPE, affine), (1.9, 2.3, 0.6))
    small = resample(label, affine, target, 0)
    assert small.dtype == np.uint8 and set(np.unique(small)) == {0, 3, 7}
    checks = np.indices((40, 40, 40)).sum(0) % 2  # finer than the target: any single voxel would be 0 or 1
    coarse = resample(checks.astype(np.float32), affine, grid_of_spacing(Grid(checks.shape, affine), (4, 4, 4)), 1)
    assert np.abs(coarse - 0.5).max() < 0.1


def test_nothing_is_resampled_where_the_spacing_is_already_there():
    image = Image(np.zeros((1, *SHAPE), np.float32), odd_affine(2))
    assert resample_to_spacing(image, nib.affines.voxel_sizes(image.affine) * 1.001) is image


def test_intensities():
    rng = np.random.default_rng(0)
    channel = rng.normal(50, 20, (9, 8, 7)).astype(np.float32)
    scaled = z_score(channel)
    assert scaled.dtype == np.float32 and abs(scaled.mean()) < 1e-6 and abs(scaled.std() - 1) < 1e-6
    body = rng.random(channel.shape) > 0.5
    inside = z_score(channel, body)
    np.testing.assert_allclose(inside[body], (channel[body] - channel[body].mean()) / channel[body].std(), rtol=1e-4)
    assert not inside[~body].any()
    assert not z_score(np.full((3, 3, 3), 5)).any() and not z_score(channel, np.zeros(channel.shape, bool)).any()
    hu = np.array([[[-1000.0, -125.0, 75.0, 275.0, 3000.0]]])
    np.testing.assert_allclose(window(hu, -125, 275), [[[0, 0, 0.5, 1, 1]]])
