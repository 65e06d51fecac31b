"""The comparisons behind dualseg-check, on sources in memory."""

import time

import numpy as np
import pytest

from dualseg.data.checking import check_dataset
from dualseg.data.checking.content import (
    content_hash,
    flat_problem,
    mirror_ratios,
    mirrored_cases,
    offset_problem,
    wrapped_problem,
)
from dualseg.data.checking.geometry import grid_problem, spacing_by_direction
from dualseg.data.splits import Split
from dualseg.data.volumes import Grid, Image, VolumeSource

SHAPE = (20, 18, 16)


class InMemory(VolumeSource):
    """24 bright boxes off the centre, one channel; a test exchanges what it likes."""

    name = "memory"
    class_names = ("background", "box")
    channels = 1
    train_cases = tuple(f"c{k:02d}" for k in range(24))
    test_cases = ()

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.images, self.labels, self.affines = {}, {}, {}
        for case in self.train_cases:
            label = np.zeros(SHAPE, np.uint8)
            x, y, z = rng.integers(1, 4, 3)
            label[x : x + 6, y : y + 5, z : z + 4] = 1
            self.images[case] = (rng.normal(size=(1, *SHAPE)) + 1.5 * label).astype(np.float32)
            self.labels[case] = label
            self.affines[case] = np.diag([*rng.uniform(0.9, 1.1, 3), 1])

    def read_image(self, case: str) -> Image:
        return Image(self.images[case], self.affines[case])

    def read_label(self, case: str) -> np.ndarray:
        return self.labels[case]


def check(source: VolumeSource, unlabeled: int = 0) -> list[tuple[str, str, str]]:
    cases = source.train_cases
    split = Split(cases[: len(cases) - unlabeled], cases[len(cases) - unlabeled :], (), ())
    return [(f.kind, f.role, f.case) for f in check_dataset(source, split).found]


def test_a_label_that_was_mirrored_without_its_affine_is_told_by_the_voxels():
    source = InMemory()
    assert check(source) == []
    source.labels["c05"] = source.labels["c05"][::-1]
    source.labels["c11"] = source.labels["c11"][:, :, ::-1]
    split = Split(source.train_cases, (), (), ())
    found = check_dataset(source, split).found
    assert [(f.kind, f.case) for f in found] == [("flip", "c05"), ("flip", "c11")]
    assert "mirrored along axis 0" in found[0].text and "mirrored along axis 2" in found[1].text


def test_voxels_that_show_nothing_are_not_made_to_tell():
    source = InMemory()
    rng = np.random.default_rng(1)
    for case in source.images:  # the organ looks like what surrounds it
        source.images[case] = rng.normal(size=(1, *SHAPE)).astype(np.float32)
    source.labels["c05"] = source.labels["c05"][::-1]
    assert check(source) == []


def test_few_labels_do_not_say_what_is_usual():
    source = InMemory()
    source.labels["c05"] = source.labels["c05"][::-1]
    assert check(source, unlabeled=10) == []


def test_mirror_ratios_against_the_entropies():
    """I(X; Y) = H(X) + H(Y) - H(X, Y), from counts of pairs, for an image of few values."""
    rng = np.random.default_rng(2)
    image = rng.integers(0, 4, (8, 7, 6))
    label = (rng.integers(0, 3, image.shape) * (image > 1)).astype(np.uint8)

    def entropy(*maps):
        _, counts = np.unique(np.stack([m.ravel() for m in maps]), axis=1, return_counts=True)
        p = counts / counts.sum()
        return -(p * np.log(p)).sum()

    def information(y):
        return entropy(image) + entropy(y) - entropy(image, y)

    expected = [information(np.flip(label, axis)) / information(label) for axis in range(3)]
    np.testing.assert_allclose(mirror_ratios(image[None].astype(np.float32), label), expected, rtol=1e-9)
    assert np.isnan(mirror_ratios(image[None].astype(np.float32), 0 * label)).all()


def test_the_others_must_agree():
    fits = {f"c{k}": np.array([0.5, 0.5, 0.5]) for k in range(19)}
    odd = {"odd": np.array([0.7, 1.3, 0.9])}
    assert mirrored_cases({**fits, **odd}) == {"odd": (1, pytest.approx(1.3))}
    doubtful = {f"d{k}": np.array([0.5, 1.05, 0.5]) for k in range(2)}
    assert mirrored_cases({**fits, **odd, **doubtful}) == {}
    assert mirrored_cases({**fits, "nearly": np.array([1.05, 0.9, 0.9])}) == {}


def test_many_labels_are_compared_at_once():
    """4,000 took minutes where each was compared with each."""
    fits = {f"c{k}": np.array([0.5, 0.6, 0.7]) for k in range(4000)}
    began = time.process_time()
    assert mirrored_cases({**fits, "odd": np.array([0.5, 1.3, 0.7])}) == {"odd": (1, 1.3)}
    assert time.process_time() - began < 1


def test_duplicates_inside_a_split_and_beside_test_cases():
    source = InMemory()
    for case in ("c03", "c20", "c23"):
        source.images[case] = source.images["c00"].copy()
        source.labels[case] = source.labels["c00"].copy()
    split = Split(source.train_cases[:10], source.train_cases[10:22], ("c22",), ("c23",))
    found = check_dataset(source, split).found
    assert [(f.kind, f.case) for f in found] == [
        ("duplicate", "c00"), ("duplicate", "c03"), ("unlabeled duplicate", "c20")
    ]  # fmt: skip
    assert all("test case c23" in f.text for f in found)
    split = Split(source.train_cases[:10], (), (), ())
    (twin,) = check_dataset(source, split).found
    assert twin.kind == "duplicate" and "labeled case c00" in twin.text


def test_content_is_voxels_and_shape():
    a = np.arange(24, dtype=np.float32).reshape(1, 4, 3, 2)
    assert content_hash(a) == content_hash(np.asfortranarray(a)) == content_hash(a.astype(np.int16))
    assert content_hash(a) != content_hash(a.reshape(1, 2, 3, 4)) != content_hash(a + 1)


@pytest.mark.parametrize("factor, told", [(1.4, False), (1.8, True), (0.5, True)])
def test_spacing_outliers_whatever_the_order_of_the_axes(factor, told):
    source = InMemory()
    affine = source.affines["c07"] @ np.diag([1, 1, factor, 1])
    source.affines["c07"] = affine[:, [2, 0, 1, 3]]  # the first voxel axis runs from feet to head
    np.testing.assert_allclose(spacing_by_direction(source.affines["c07"]), np.diag(affine)[:3])
    assert check(source) == ([("spacing", "labeled", "c07")] if told else [])


def test_spacings_that_differ_by_nature_are_no_outliers():
    source = InMemory()
    for case, thick in zip(source.train_cases, np.geomspace(0.5, 5, 24), strict=True):
        source.affines[case] = np.diag([1, 1, thick, 1])
    assert check(source) == []
    source.affines["c00"] = np.diag([1, 1, 900.0, 1])
    assert check(source) == [("spacing", "labeled", "c00")]


def test_an_affine_is_compared_in_millimetres_at_the_far_corner():
    affine = np.array([[-0.9, 0.1, 0, 4], [0.1, 0.9, 0.1, -7], [0, -0.1, 2.0, 1], [0, 0, 0, 1]])
    image = Grid((100, 100, 20), affine)
    rounded = Grid((100, 100, 20), affine.astype(np.float32).astype(float) + 1e-5)
    assert grid_problem(image, image) is None and grid_problem(image, rounded) is None
    angle = 0.002  # 0.2 mm at 100 mm
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    problem = grid_problem(image, Grid((100, 100, 20), turn @ affine))
    corners = np.array([[x, y, z, 1] for x in (0, 99) for y in (0, 99) for z in (0, 19)]).T
    apart = np.linalg.norm((turn @ affine @ corners - affine @ corners)[:3], axis=0).max()
    assert problem is not None and problem.kind == "affine" and f"{apart:.3g} mm" in problem.text


@pytest.mark.parametrize(
    "break_it, kind",
    [
        (lambda s: s.images.update(c02=s.images["c02"][0]), "shape"),
        (lambda s: s.images.update(c02=np.repeat(s.images["c02"], 2, axis=0)), "channels"),
        (lambda s: s.labels.update(c02=s.labels["c02"].astype(float) + np.nan), "NaN"),
        (lambda s: s.affines.update(c02=np.zeros((4, 4))), "affine"),
        (lambda s: s.images.pop("c02"), "unreadable"),  # a KeyError of the source's own
    ],
)
def test_a_source_of_ones_own_may_give_anything(break_it, kind):
    source = InMemory()
    break_it(source)
    found = set(check(source))
    assert (kind, "labeled", "c02") in found and {case for *_, case in found} == {"c02"}


def ct(seed: int = 0) -> np.ndarray:
    """A body of soft tissue with bones and a lung in air, in HU."""
    rng = np.random.default_rng(seed)
    array = np.full((40, 36, 30), -1000.0)
    array[8:32, 8:28] = 40
    array[8:12, 8:28] = -100  # fat
    array[14:20, 12:18] = -800
    array[24:27, 16:20] = 700
    return (array + rng.normal(0, 12, array.shape)).astype(np.float32)


def with_padding(array: np.ndarray, value: float) -> np.ndarray:
    array = array.copy()
    array[:, :3] = value
    return array


@pytest.mark.parametrize(
    "array",
    [
        ct(),
        np.clip(ct(), -1024, 3071),
        with_padding(ct(), -2000),
        with_padding(ct() * 1.0, -3024),
        np.clip(ct(), -160, 240),
        ct()[12:30, 10:26] * (ct()[12:30, 10:26] > -500),  # cut out of the body, lungs 0
        with_padding(ct(), 30_000),  # metal
    ],
)
def test_hounsfield_units_are_left_alone(array):
    assert wrapped_problem(array) is None and offset_problem(array) is None


@pytest.mark.parametrize(
    "array",
    [
        np.clip(ct() + 1024, 0, None),
        ct() + 1024,  # noise around 0
        with_padding(ct() + 1024, -2000),
        with_padding(np.clip(ct() + 1024, 0, None), -1024),
        with_padding(ct() + 1024, -1024),
        with_padding(np.clip(ct() + 1000, 0, None), 0),
        (np.clip(ct(), -1000, 1000) + 1000) / 2000,
        np.round((np.clip(ct(), -160, 240) + 160) * 255 / 400),
    ],
)
def test_a_ct_that_is_not_in_hounsfield_units(array):
    problem = offset_problem(array)
    assert problem is not None and problem.kind == "CT values" and f"{array.max():.6g}" in problem.text
    assert wrapped_problem(array) is None


def test_values_that_no_ct_has():
    problem = offset_problem(with_padding(ct(), -32768))
    assert problem is not None and problem.kind == "CT values" and "-32768" in problem.text
    assert offset_problem(with_padding(ct(), -4096)) is None


def test_a_ct_without_its_signs():
    wrapped = ct().astype(np.int16).view(np.uint16).astype(np.float32)
    problem = wrapped_problem(wrapped)
    assert problem is not None and problem.kind == "CT values" and "65535" in problem.text
    rng = np.random.default_rng(0)
    assert wrapped_problem(rng.uniform(0, 65535, SHAPE)) is None, "16 bits that are all used, as in micro-CT"
    assert wrapped_problem(rng.uniform(0, 3000, SHAPE)) is None


@pytest.mark.parametrize("far", [0, 1e3, 1e5, 1e9, 3e38, -3e38])
def test_a_few_voxels_far_off_make_all_others_one_value(far):
    channel = np.random.default_rng(0).normal(100, 10, (100, 100, 100)).astype(np.float32)
    channel[1, 2, 3] = far
    problem = flat_problem(channel)
    assert (problem is not None) == (abs(far) > 1e8)
    if problem:
        assert problem.kind == "constant" and f"{far:.4g}" in problem.text
    channel[10:20, 10:90, 10:90] = far  # many voxels
    assert (flat_problem(channel) is not None) == (abs(far) > 1e30)
    assert flat_problem(np.full(SHAPE, 7.0)) is not None
    assert flat_problem(np.full(SHAPE, 3e38, np.float32)) is not None
    sparse = np.zeros((50, 50, 50), np.float32)
    sparse[20:30, 20:30, 20:30] = 1
    assert flat_problem(sparse) is None


def test_one_empty_channel_of_several_is_named():
    class Two(InMemory):
        channels = 2

        def read_image(self, case):
            array, affine = super().read_image(case)
            return Image(np.concatenate([array, array * (case != "c02")]), affine)

    source = Two()
    (found,) = check_dataset(source, Split(source.train_cases, (), (), ())).found
    assert (found.kind, found.case) == ("constant", "c02") and "channel 1" in found.text
