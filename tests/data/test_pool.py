"""What dualseg-check says of the pool beside the labeled and the held-out scans, on scans drawn from formulas."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import cache

import numpy as np
import pytest

from dualseg.data.checking import Findings, check_dataset
from dualseg.data.checking.look import look_at
from dualseg.data.patients import patients
from dualseg.data.splits import Split
from dualseg.data.volumes import Image, VolumeSource

EXTENT = (80.0, 72.0, 64.0)  # mm
SHAPE = (40, 36, 32)


def blobs(seed: int, count: int, width: float) -> Callable[[np.ndarray], np.ndarray]:
    """A sum of Gaussians at random places of the unit cube."""
    rng = np.random.default_rng(seed)
    centres, signs = rng.uniform(0, 1, (count, 3)), rng.choice((-1, 1), count)

    def value(axes: Sequence[np.ndarray]) -> np.ndarray:
        each = [np.exp(-(((axes[k][:, None] - centres[:, k]) / width) ** 2) / 2) for k in range(3)]
        return np.einsum("xn,yn,zn,n->xyz", *each, signs, optimize=True)

    return value


@cache
def scan(patient: int, part: int = 0, shape=SHAPE, start=(0.0, 0.0, 0.0), share=(1.0, 1.0, 1.0)) -> Image:
    """A patient: what all have in this part of the body, and what this one alone has.

    Args:
        patient: seed.
        part: seed of the part of the body.
        shape: of the grid over the field of view.
        start: where the field of view begins, as a share of the whole.
        share: of the whole that it covers.
    """
    axes = [s + f * (np.arange(n) + 0.5) / n for s, f, n in zip(start, share, shape, strict=True)]
    common, own = blobs(1000 + part, 12, 0.15), blobs(patient, 300, 0.035)
    array = 500 + 200 * common(axes) + 60 * own(axes)
    spacing = np.array(EXTENT) * share / shape
    affine = np.diag([*spacing, 1])
    affine[:3, 3] = np.array(EXTENT) * start + spacing / 2
    image = Image(array[None].astype(np.float32), affine)
    for shared in image:
        shared.flags.writeable = False
    return image


class Scans(VolumeSource):
    """8 labeled, 12 unlabeled, 2 validation, 3 test and 1 unscored scan, each of another patient."""

    name = "scans"
    class_names = ("background", "box")
    channels = 1
    unscored_cases = ("imagesTs/u0",)

    def __init__(self) -> None:
        counts = {"l": 8, "p": 12, "v": 2, "t": 3}
        names = {role: tuple(f"{role}{k:02d}" for k in range(count)) for role, count in counts.items()}
        self.split = Split(names["l"], names["p"], names["v"], names["t"])
        self.train_cases, self.test_cases = names["l"] + names["p"], names["t"]
        everything = [*self.train_cases, *names["v"], *names["t"], *self.unscored_cases]
        self.scans = {case: scan(patient) for patient, case in enumerate(everything)}
        self.read: list[tuple[str, str]] = []

    def read_image(self, case: str) -> Image:
        self.read.append(("image", case))
        return self.scans[case]

    def read_label(self, case: str) -> np.ndarray:
        self.read.append(("label", case))
        label = np.zeros(self.scans[case].array.shape[1:], np.uint8)
        label[5:15, 5:15, 5:15] = 1
        return label

    def check(self) -> Findings:
        return check_dataset(self, self.split)


def found(findings: Findings) -> list[tuple[str, str, str]]:
    return [(finding.kind, finding.role, finding.case) for finding in findings.found]


@pytest.fixture
def source() -> Scans:
    return Scans()


def test_scans_of_one_kind_are_alike(source):
    findings = source.check()
    assert findings.notes == [] and findings.found == []
    assert {scan.case for scan in findings.pool} == {*source.split.unlabeled}
    assert all(0 < scan.distance < 1 and scan.nearest in source.split.labeled for scan in findings.pool)
    assert all(scan.look.pictures == () for scan in findings.pool)


def brighter(image: Image) -> Image:
    return Image(4 * image.array, image.affine)


def shifted_values(image: Image) -> Image:
    return Image(image.array + 3000, image.affine)


UNLIKE = [
    (brighter(scan(77)), "intensity"),
    (shifted_values(scan(77)), "intensity"),
    (scan(77, shape=(40, 36, 10)), "spacing"),
    (scan(77, shape=(90, 36, 32)), "spacing"),
    (scan(77, shape=(40, 36, 16), share=(1, 1, 0.5)), "field of view"),
    (scan(77, shape=(40, 72, 32), share=(1, 2, 1)), "field of view"),
    (scan(77, part=1), "content"),
    (Image(1000 - scan(77).array, scan(77).affine), "content"),  # the contrast reversed
]


@pytest.mark.parametrize("image, part", UNLIKE)
def test_an_unlike_scan_is_named_with_what_is_unlike(source, image, part):
    source.scans["p05"] = image
    findings = source.check()
    assert any(note.startswith("1 of 12 ") and note.endswith(f" in {part}: p05.") for note in findings.notes)
    assert all("p05." in note for note in findings.notes), "and no other"
    first = findings.pool[0]
    assert first.case == "p05" and first.parts[part] > 1 > findings.pool[1].distance
    assert {kind for kind, *_ in found(findings)} <= {"spacing"}, "unlike is not wrong"


def test_what_labeled_scans_show_as_well_is_not_unlike(source):
    source.scans["p05"], source.scans["l03"] = scan(77, part=1), scan(78, part=1)
    findings = source.check()
    assert findings.notes == []
    (own,) = [scan for scan in findings.pool if scan.case == "p05"]
    assert own.nearest == "l03"


@pytest.mark.parametrize("times, unlike", [(5, False), (100, True)])
def test_where_labeled_scans_differ_a_pool_may_too(source, times, unlike):
    """Each labeled scan has three times the values of the one before: five times the last is not far, a hundred is."""
    for number, case in enumerate(source.split.labeled):
        source.scans[case] = Image(3**number * source.scans[case].array, source.scans[case].affine)
    source.scans["p05"] = Image(times * source.scans["l07"].array[:, ::-1], source.scans["l07"].affine)
    assert any(note.startswith("1 of 12 ") and "intensity: p05." in note for note in source.check().notes) == unlike


def test_every_channel_counts(source):
    """What is far off in the second of two is far off; what is the same in one of two is no copy."""
    source.channels = 2

    def both(first: Image, second: Image) -> Image:
        return Image(np.concatenate([first.array, second.array]), first.affine)

    source.scans = {case: both(image, scan(200 + k)) for k, (case, image) in enumerate(source.scans.items())}
    assert source.check().notes == [] and source.check().found == []
    source.scans["p05"] = both(scan(500), scan(501))
    source.scans["t01"] = both(COPIES["coarser"](500), COPIES["coarser"](501))
    source.scans["t02"] = both(scan(500), scan(502))
    (finding,) = source.check().found
    assert finding.case == "p05" and "test case t01" in finding.text
    source.scans["p03"] = both(scan(503), brighter(scan(504)))
    (note,) = source.check().notes
    assert note.startswith("1 of 12 ") and note.endswith(" in intensity: p03.")


def test_many_are_counted_and_a_few_named(source):
    for number in range(5):
        case = f"p{number:02d}"
        source.scans[case] = Image((4 + number) * source.scans[case].array, source.scans[case].affine)
    (note,) = source.check().notes
    assert note.startswith("5 of 12 ") and note.endswith(" in intensity: p04, p03, p02 and 2 more.")


def test_of_few_labeled_scans_the_pool_says_what_is_usual(source):
    labeled, rest = source.split.labeled[:2], source.split.labeled[2:]
    source.split = Split(labeled, (*rest, *source.split.unlabeled), source.split.validation, source.split.test)
    assert source.check().notes == []
    source.scans["p05"] = brighter(scan(77))
    first, second = source.check().notes
    assert first.startswith("1 of 18 ") and first.endswith(" in intensity: p05.")
    assert second.startswith("With 2 labeled scans, ")


def test_an_unlabeled_or_a_labeled_pool_alone_is_not_compared(source):
    source.split = Split(source.train_cases, (), (), ())
    assert source.check().pool == []
    source.split = Split((), source.train_cases, (), ())
    assert source.check().pool == []


def flipped(axes: Sequence[int]) -> Callable[[int], Image]:
    return lambda patient: Image(np.flip(scan(patient).array, [1 + axis for axis in axes]), scan(patient).affine)


def noisy(patient: int) -> Image:
    image = scan(patient)
    noise = 0.01 * np.ptp(image.array) * np.random.default_rng(0).normal(size=image.array.shape)
    return Image((image.array + noise).astype(np.float32), image.affine)


def turned(patient: int) -> Image:
    """The same scan, its voxel axes in another order and direction, at the same place."""
    image = scan(patient)
    array = image.array.transpose(0, 3, 1, 2)[:, ::-1]
    affine = image.affine[:, [2, 0, 1, 3]].copy()
    affine[:3, 3] += affine[:3, 0] * (array.shape[1] - 1)
    affine[:3, 0] *= -1
    return Image(np.ascontiguousarray(array), affine)


COPIES: dict[str, Callable[[int], Image]] = {
    "finer": lambda patient: scan(patient, shape=(50, 45, 40)),
    "coarser": lambda patient: scan(patient, shape=(32, 29, 26)),
    "stretched": lambda patient: Image(3 * scan(patient).array - 700, scan(patient).affine),
    "8 bits": lambda patient: Image(np.round(np.clip(scan(patient).array / 4, 0, 255)), scan(patient).affine),
    "noisy": noisy,
    "turned": turned,
    **{f"mirrored {axes}": flipped(axes) for n in (1, 2, 3) for axes in itertools.combinations(range(3), n)},
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_a_copy_of_a_test_scan_in_the_pool(source, copy):
    source.scans["t01"], source.scans["p05"] = scan(500), copy(500)
    findings = source.check()
    assert found(findings) == [("near duplicate", "unlabeled", "p05")]
    assert "test case t01 (correlation " in findings.found[0].text and "leave one out" in findings.found[0].text


@pytest.mark.parametrize("axis, name", [*enumerate(("left-right", "back-front", "feet-head"))])
def test_a_mirrored_copy_says_along_what(source, axis, name):
    source.scans["t01"], source.scans["p05"] = scan(500), flipped([axis])(500)
    assert f", mirrored {name})" in source.check().found[0].text


@pytest.mark.parametrize(
    "case, other, told",
    [
        ("p05", "v01", ("near duplicate", "unlabeled", "p05")),
        ("p05", "imagesTs/u0", ("near duplicate", "unlabeled", "p05")),
        ("l05", "t01", ("near duplicate", "labeled", "l05")),
        ("v01", "t01", ("near duplicate", "validation", "v01")),
    ],
)
def test_copies_of_held_out_scans(source, case, other, told):
    source.scans[other], source.scans[case] = scan(500), COPIES["coarser"](500)
    findings = source.check()
    assert found(findings) == [told] and other in findings.found[0].text


def test_a_copy_of_a_labeled_scan_in_the_pool_is_worth_knowing_and_leaks_nothing(source):
    source.scans["l02"], source.scans["p05"] = scan(500), COPIES["finer"](500)
    findings = source.check()
    assert findings.found == []
    (note,) = findings.notes
    assert note.startswith("1 unlabeled scan ") and note.endswith(": p05 as l02.")


def test_a_copy_is_told_once_beside_the_test_scan(source):
    source.scans |= {"l02": scan(500), "v00": COPIES["noisy"](500), "t01": COPIES["finer"](500)}
    source.scans["p05"] = COPIES["coarser"](500)
    told = {case: finding.text for finding in source.check().found for case in [finding.case]}
    assert {*told} == {"l02", "p05", "v00"} and all("test case t01" in text for text in told.values())


def test_the_same_voxels_are_no_near_duplicate_as_well(source):
    source.scans["p05"] = source.scans["t01"]
    assert found(source.check()) == [("unlabeled duplicate", "unlabeled", "p05")]


def test_scans_without_content_are_alike_to_none(source):
    for case in ("p05", "t01", "t02"):
        source.scans[case] = Image(0 * source.scans[case].array + (case == "p05"), source.scans[case].affine)
    assert "near duplicate" not in {kind for kind, *_ in found(source.check())}


def test_more_cases_than_are_compared_at_once():
    """Whichever of them it is; 64 are compared with 64 others at a time."""
    source = Scans()
    pool = tuple(f"p{k:02d}" for k in range(70))
    tests = tuple(f"t{k:02d}" for k in range(66))
    source.split = Split(source.split.labeled, pool, (), tests)
    small = (12, 12, 12)
    source.scans |= {case: scan(100 + k, shape=small) for k, case in enumerate((*pool, *tests))}
    source.scans |= {case: scan(k, shape=small) for k, case in enumerate((*source.split.labeled, "imagesTs/u0"))}
    for case, other in (("p69", "t65"), ("p63", "t00")):
        source.scans[case] = Image(2 * source.scans[other].array, source.scans[other].affine)
    assert found(source.check()) == [("near duplicate", "unlabeled", case) for case in ("p63", "p69")]


def test_labels_of_the_pool_are_not_opened_and_every_image_is_read_once(source):
    check_dataset(source, source.split, pictures=True)
    assert sorted(case for kind, case in source.read if kind == "image") == sorted(source.scans)
    assert not {case for kind, case in source.read if kind == "label"} & {*source.split.unlabeled, "imagesTs/u0"}


@pytest.mark.parametrize("pictures, most", [(False, 45_000), (True, 100_000)])
def test_little_is_kept_of_a_scan(pictures, most):
    image = scan(0, shape=(180, 170, 160))
    look = look_at(image, pictures)
    arrays = [getattr(look, field.name) for field in fields(look) if field.name != "pictures"]
    arrays += [picture.grey for picture in look.pictures]
    assert sum((a if a.base is None else a.base).nbytes for a in arrays) < most


def test_a_look_is_that_of_the_body_whatever_the_order_of_the_axes():
    own, other = look_at(scan(3), pictures=True), look_at(turned(3), pictures=True)
    for name in ("spacing", "extent", "quantiles", "content"):
        np.testing.assert_allclose(getattr(own, name), getattr(other, name), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(own.extent, EXTENT)
    assert [picture.plane for picture in own.pictures] == ["axial", "coronal", "sagittal"]
    assert [picture.mm for picture in own.pictures] == [(72, 80), (64, 80), (64, 72)]


def test_pictures_have_left_on_the_right_and_the_head_on_top():
    array = np.zeros((1, 9, 9, 9), np.float32)
    array[0, 0, :, :] = 1  # the left
    array[0, :, 8, :] = 1  # the front
    array[0, :, :, 8] = 1  # the head
    axial, coronal, sagittal = (picture.grey for picture in look_at(Image(array, np.eye(4)), pictures=True).pictures)
    for grey in (axial, coronal):
        assert (grey[0] == 255).all() and (grey[:, -1] == 255).all() and (grey[1:, :-1] == 0).all()
    assert (sagittal[0] == 255).all() and (sagittal[:, 0] == 255).all() and (sagittal[1:, 1:] == 0).all()


PATIENTS = [
    (["p012_t1", "p012_t2", "p013_t1"], [["p012_t1", "p012_t2"]]),
    (["LA_0007", "LA_0007_a", "LA_0008_a"], [["LA_0007", "LA_0007_a"]]),
    (["patient12-1", "patient12-2", "patient1-2"], [["patient12-1", "patient12-2"]]),
    (["case_1", "case_1_2", "case_12", "case_2"], [["case_1", "case_1_2"]]),
    (["sub-01_ses-02", "sub-01_ses-01", "sub-02_ses-01"], [["sub-01_ses-02", "sub-01_ses-01"]]),
    (
        ["patient001_frame01", "patient001_frame12", "patient002_frame01"],
        [["patient001_frame01", "patient001_frame12"]],
    ),
    (["scan_12_left", "Scan_12_right", "scan_13"], [["scan_12_left", "Scan_12_right"]]),
    (["x3_pre", "imagesTs/x3_post", "x4_pre"], [["x3_pre", "imagesTs/x3_post"]]),
]


@pytest.mark.parametrize("cases, expected", PATIENTS)
def test_patients_by_their_names(cases, expected):
    assert patients(cases) == expected


@pytest.mark.parametrize(
    "cases",
    [
        [f"hippocampus_{k:03d}" for k in range(1, 120)],
        [f"kbp_{k:03d}" for k in range(120)],
        [f"phantom_{k:03d}" for k in range(24)],
        [f"case_{k}" for k in range(1, 120)],
        [f"volume-{k}" for k in range(1, 120)],
        [f"site{site}_{k}" for site in (1, 2) for k in range(1, 30)],
        ["BraTS19_2013_10_1", "BraTS19_2013_1_1", "BraTS19_2013_11_1", "BraTS19_CBICA_AAB_1"],
        [f"heart2_{k}" for k in range(1, 8)],
        ["45C45I6IXAFGNRO067W9", "45C45I6IXAFGNRO067W8", "A"],
    ],
    ids=lambda cases: cases[0],
)
def test_running_numbers_are_no_patients(cases):
    assert patients(cases) == []


def test_a_patient_on_both_sides_is_a_note(source):
    renamed = {"p05": "P7_t1", "t01": "P7_t2", "l02": "P8_t1", "l03": "P8_t2", "imagesTs/u0": "imagesTs/l00"}

    def new(cases):
        return tuple(renamed.get(case, case) for case in cases)

    source.scans = {renamed.get(case, case): image for case, image in source.scans.items()}
    source.unscored_cases = new(source.unscored_cases)
    source.split = Split(
        *map(new, (source.split.labeled, source.split.unlabeled, source.split.validation, source.split.test))
    )
    findings = source.check()
    assert findings.found == []
    (note,) = findings.notes  # neither of two visits in training, nor of a test image numbered anew
    assert "1 patient " in note and note.endswith(": P7_t1 (unlabeled) and P7_t2 (test).")
