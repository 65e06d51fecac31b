"""From the networks' grid to the scan's, against scipy's interpolation and by hand."""

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from dualseg.inference.mapping import to_slab


def smooth(shape: tuple[int, ...], seed: int) -> np.ndarray:
    p = np.random.default_rng(seed).random((3, *shape)).astype(np.float32)
    return p / p.sum(axis=0)


def reference(store: np.ndarray, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Voxel by voxel list of places; scipy interpolates, with the border's values beyond the border."""
    indices = np.stack([*np.indices(shape), np.ones(shape)]).reshape(4, -1)
    places = (matrix @ indices)[:3].reshape(3, *shape)
    values = np.stack([map_coordinates(p.astype(np.float64), places, order=1, mode="nearest") for p in store])
    sizes = np.array(store.shape[1:]).reshape(3, 1, 1, 1)
    outside = ((places < -0.501) | (places > sizes - 0.499)).any(axis=0)
    values[:, outside] = np.array([1, 0, 0])[:, None]
    return values


@pytest.mark.parametrize("seed", range(20))
def test_any_affine_against_scipy_slab_by_slab(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    store, shape = smooth((9, 7, 11), seed), (10, 12, 13)
    matrix = np.eye(4)
    matrix[:3, :3] = rotation @ np.diag(rng.uniform(0.4, 1.3, 3)) @ rng.permutation(np.eye(3))
    # the middle of the one grid on the middle of the other, more or less: inside and outside both occur
    matrix[:3, 3] = np.array([4, 3, 5]) - matrix[:3, :3] @ np.array([4.5, 5.5, 6]) + rng.uniform(-1, 1, 3)
    expected = reference(store, matrix, shape)
    for step in (1, 4, 13):
        slabs = [to_slab(store, matrix, shape, z, min(z + step, 13)).numpy() for z in range(0, 13, step)]
        got = np.concatenate(slabs, axis=-1)
        np.testing.assert_allclose(got, expected, atol=2e-5)
    assert (expected[0] == 1).any() and (expected[0] < 1).any()


def test_the_same_grid_gives_the_same_probabilities() -> None:
    store = smooth((30, 20, 25), 0)
    np.testing.assert_allclose(to_slab(store, np.eye(4), (30, 20, 25), 3, 17), store[..., 3:17], atol=1e-5)


def test_a_crop_is_put_back_and_what_was_cropped_away_is_background() -> None:
    store = smooth((5, 4, 6), 1)
    matrix = np.eye(4)
    matrix[:3, 3] = [-3, -2, -1]
    whole = to_slab(store, matrix, (12, 10, 9), 0, 9).numpy()
    np.testing.assert_allclose(whole[:, 3:8, 2:6, 1:7], store, atol=1e-6)
    whole[0, 3:8, 2:6, 1:7] = 1
    assert (whole[0] == 1).all()


@pytest.mark.parametrize("axis", range(3))
def test_a_grid_of_one_voxel_and_one_far_away(axis: int) -> None:
    shape = [4, 4, 4]
    shape[axis] = 1
    store = smooth((shape[0], shape[1], shape[2]), 2)
    np.testing.assert_allclose(to_slab(store, np.eye(4), (shape[0], shape[1], shape[2]), 0, shape[2]), store, atol=1e-6)
    far = np.eye(4)
    far[axis, 3] = 40
    got = to_slab(store, far, (4, 4, 4), 0, 4)
    assert (got[0] == 1).all() and (got[1:] == 0).all()
