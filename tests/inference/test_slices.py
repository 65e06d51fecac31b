"""The display copies of three slices: which plane, which way up, which values."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dualseg.inference.slices import display_slices

SHAPE = (12, 10, 8)  # W left-right, H posterior-anterior, D inferior-superior
SPACING = (1.0, 1.5, 2.5)
AXES = {"sagittal": (0, 1, 2), "coronal": (1, 0, 2), "axial": (2, 0, 1)}  # plane -> through, columns along, rows along


@pytest.fixture
def case() -> dict:
    g = torch.Generator().manual_seed(0)
    label = torch.zeros(SHAPE, dtype=torch.uint8)
    label[4:9, 2:6, 3:6] = 1  # centre 6, 4 (3.5 to the even number), 4
    probabilities = {name: torch.randn(3, *SHAPE, generator=g).softmax(dim=0) for name in ("a", "b")}
    probabilities["ensemble"] = (probabilities["a"] + probabilities["b"]) / 2
    image = torch.randn(2, *SHAPE, generator=g)
    shown = {"record": "ensemble", "members": ("a", "b")}
    return {"image": image, "label": label, "spacing": SPACING, "probabilities": probabilities, **shown}


def pixels(volume: np.ndarray, plane: str, centre: tuple[int, int, int]) -> np.ndarray:
    """Row by row from the top, which is the far end of the second axis of the plane."""
    through, columns, rows = AXES[plane]
    picture = np.empty((SHAPE[rows], SHAPE[columns]), volume.dtype)
    for row in range(SHAPE[rows]):
        for column in range(SHAPE[columns]):
            place = [0, 0, 0]
            place[through], place[columns], place[rows] = centre[through], column, SHAPE[rows] - 1 - row
            picture[row, column] = volume[tuple(place)]
    return picture


@pytest.mark.parametrize("plane", AXES)
def test_slices_show_the_centre_of_the_reference_right_way_up(plane, case):
    slices = display_slices(**case)
    centre, p = (6, 4, 4), {name: q.double().numpy() for name, q in case["probabilities"].items()}
    _, columns, rows = AXES[plane]
    entropy = -(p["ensemble"] * np.log(p["ensemble"])).sum(axis=0) / math.log(3)
    first = case["image"][0].double().numpy()
    low, high = np.percentile(first, [1, 99])
    exact = {
        "reference": case["label"].numpy(),
        "prediction": p["ensemble"].argmax(axis=0),
        "disagreement": (p["a"].argmax(axis=0) != p["b"].argmax(axis=0)).astype(int),
    }
    for what, volume in exact.items():
        picture = slices[f"{plane}_{what}"]
        assert picture.dtype == np.uint8
        np.testing.assert_array_equal(picture, pixels(volume, plane, centre))
    grey = {"image": np.clip((first - low) / (high - low), 0, 1) * 255, "entropy": entropy * 255}
    for what, volume in grey.items():
        picture = slices[f"{plane}_{what}"]
        assert picture.dtype == np.uint8
        np.testing.assert_allclose(picture, pixels(volume, plane, centre), rtol=0, atol=1)  # rounded down
    assert float(slices[f"aspect_{plane}"]) == SPACING[rows] / SPACING[columns]


def test_an_empty_reference_shows_the_centre_of_the_volume(case):
    case["label"].zero_()
    slices = display_slices(**case)
    prediction = case["probabilities"]["ensemble"].argmax(dim=0).numpy()
    for plane in AXES:
        np.testing.assert_array_equal(slices[f"{plane}_prediction"], pixels(prediction, plane, (6, 5, 4)))
        assert not slices[f"{plane}_reference"].any()


def test_a_network_that_stands_for_the_run_shows_itself_and_no_disagreement(case):
    case |= {"record": "a", "members": ("a",)}
    slices = display_slices(**case)
    prediction = case["probabilities"]["a"].argmax(dim=0).numpy()
    np.testing.assert_array_equal(slices["axial_prediction"], pixels(prediction, "axial", (6, 4, 4)))
    assert not slices["axial_disagreement"].any()


def test_a_downsampled_image_is_shown_on_the_labels_grid(case):
    case["image"] = F.interpolate(case["image"][None], size=(6, 5, 4))[0]
    slices = display_slices(**case)
    shown = F.interpolate(case["image"][None, :1], size=SHAPE, mode="trilinear", align_corners=False)[0, 0].numpy()
    low, high = np.percentile(shown, [1, 99])
    expected = np.clip((shown - low) / (high - low), 0, 1) * 255
    np.testing.assert_allclose(slices["coronal_image"], pixels(expected, "coronal", (6, 4, 4)), rtol=0, atol=1.01)


def test_sure_and_constant_input_stays_finite(case):
    case["image"] = torch.zeros_like(case["image"])
    sure = F.one_hot(case["label"].long(), 3).movedim(-1, 0).float()
    case["probabilities"] = {"a": sure, "b": sure, "ensemble": sure}
    slices = display_slices(**case)
    assert not slices["axial_entropy"].any()
    np.testing.assert_array_equal(slices["axial_prediction"], slices["axial_reference"])
    uniform = torch.full((3, *SHAPE), 1 / 3)
    case |= {"probabilities": {"a": uniform}, "record": "a", "members": ("a",)}
    assert display_slices(**case)["axial_entropy"].min() >= 254
