"""Which slices are one volume: by identity, geometry and traits; what is torn, mixed or off its grid is refused."""

import gzip
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_toys import dicom_slice, edit, save_slice, strip_header, write_volume
from pydicom import dcmread

from dualseg.data.dicom import damage_of, find_series, read_series
from dualseg.data.dicom.headers import read_header
from dualseg.errors import DualsegError

SHAPE = (6, 5, 8)
V, W = np.random.default_rng(0).integers(-1000, 1500, (2, *SHAPE)).astype(float)
REFUSED = "refused"


def grid(step: float = 2.0, z: float = 0.0) -> np.ndarray:
    affine = np.diag([1.0, 1.0, step, 1.0])
    affine[:3, 3] = -31.5, 12.25, z
    return affine


def write(folder: Path, volume: np.ndarray = V, step: float = 2.0, z: float = 0.0, name: str = "IM", **elements):
    """Elements that are functions are called with the number of the slice."""

    def own(k: int) -> dict:
        return {
            "intercept": -1024.0,
            **{key: value(k) if callable(value) else value for key, value in elements.items()},
        }

    return write_volume(folder, volume, grid(step, z), own, lambda k: f"{name}{k}.dcm")


def read(folder: Path) -> list[np.ndarray | str]:
    """The volumes of a folder, or why they are refused."""
    outcome: list[np.ndarray | str] = []
    for series in find_series(folder).series:
        try:
            image = read_series(series)
        except DualsegError as error:
            assert str(folder) in str(error) and "\n" not in str(error)
            outcome.append(str(error))
        else:
            axes = image.affine[:3, :3]
            np.testing.assert_allclose(axes.T @ axes, np.diag(np.diag(axes.T @ axes)), atol=1e-9)  # for ITK
            outcome.append(image.array[0])
    return outcome


def volumes(folder: Path, *expected: np.ndarray) -> None:
    outcome = read(folder)
    assert len(outcome) == len(expected), outcome
    for array, right in zip(outcome, expected, strict=True):
        assert not isinstance(array, str), array
        np.testing.assert_array_equal(array, right)


def refused(folder: Path, *words: str) -> str:
    """Every volume of the folder is refused; the message of the first."""
    outcome = read(folder)
    assert outcome and all(isinstance(message, str) for message in outcome), outcome
    for word in words:
        assert re.search(word, str(outcome[0])), outcome
    return str(outcome[0])


def turned(x: float) -> list[float]:
    """An orientation in the plane of columns and rows whose first cosine is x."""
    y = np.sqrt(1 - x * x)
    return [round(x, 7), round(y, 7), 0, -round(y, 7), round(x, 7), 0]


def test_a_value_of_wrong_length_is_refused(tmp_path):
    """Two numbers where one belongs, as a damaged length makes them."""
    write(tmp_path)
    edit(tmp_path / "IM3.dcm", PixelRepresentation=[1, 1])
    refused(tmp_path, r"IM3\.dcm: cannot be read as DICOM, its header is damaged")


# --- tolerances


def test_differences_of_the_last_digits_tear_no_volume(tmp_path):
    """Just on the two sides of a rounded value, for whatever number of decimals."""
    boundary = 0.98765
    write(
        tmp_path,
        ImageOrientationPatient=lambda k: turned(boundary + (-1) ** k * 1e-6),
        PixelSpacing=lambda k: [["0.9765625", "0.97656"], ["0.976562", "0.9765625"]][k % 2],
    )
    volumes(tmp_path, V)
    assert len(find_series(tmp_path).series[0].files) == SHAPE[2]


@pytest.mark.parametrize(
    "elements",
    [
        {"ImageOrientationPatient": lambda k: turned(0.98 + 0.01 * (k % 2))},
        {"ImageOrientationPatient": lambda k: turned(0.96 + 0.01 * (k % 3))},
        {"ImageOrientationPatient": lambda k: turned(0.9 + 0.01 * k)},
        {"ImageOrientationPatient": lambda k: ["1", "0", "0", "0", "0.8", "0.6"] if k == 7 else turned(1)},
        {"PixelSpacing": lambda k: [1 + 0.01 * (k % 2)] * 2},
        {"PixelSpacing": lambda k: [1, 1 + (k == 7)]},
        {"PixelRepresentation": lambda k: int(k != 7)},
        {"Modality": lambda k: "MR" if k == 3 else "CT"},
        {"FrameOfReferenceUID": lambda k: f"1.{k % 2}"},
        {"FrameOfReferenceUID": lambda k: f"1.{k % 3}"},
        {"FrameOfReferenceUID": lambda k: f"1.{k}"},
        {"FrameOfReferenceUID": lambda k: None if k < 4 else "1.2"},
        {"StudyInstanceUID": lambda k: f"1.{int(k == 7)}"},
        {"StudyInstanceUID": lambda k: None if k % 2 else "1.2"},
        {"PatientID": lambda k: f"P{k % 2}"},
        {"PatientID": lambda k: "" if k > 4 else "P"},
        {"EchoTime": lambda k: 10 + 80 * (k % 2)},
        {"EchoTime": lambda k: 10 + 80 * (k > 3)},
        {"DiffusionBValue": lambda k: 1000.0 * (k == 5)},
        {"TemporalPositionIdentifier": lambda k: 1 + k % 2},
        {"ImageType": lambda k: ["ORIGINAL", "PRIMARY", "PM"[k % 2]]},
        {"AcquisitionNumber": lambda k: 1 + k % 2},
    ],
    ids=lambda elements: next(iter(elements)),
)
def test_pieces_of_one_volume_are_no_volumes_and_slices_of_two_scans_are_none(tmp_path, elements):
    write(tmp_path, **elements)
    refused(tmp_path, next(iter(elements)))


def test_two_sizes_of_slices_in_turn_or_one_after_the_other(tmp_path):
    write(tmp_path / "turns", step=4)
    write(tmp_path / "turns", V[:4], step=4, z=2, name="small")
    refused(tmp_path / "turns", "Rows and Columns")
    write(tmp_path / "tail", V[:, :, :6])
    write(tmp_path / "tail", V[:4, :, 6:7], z=12, name="small")
    refused(tmp_path / "tail", "Rows and Columns")


@pytest.mark.parametrize(
    "elements",
    [
        {"AcquisitionNumber": lambda k: 1 + k // 3},
        {"AcquisitionNumber": lambda k: k},
        {"EchoTime": lambda k: 2.104 + 0.002 * (k % 3)},
        {"EchoTime": lambda k: ["1", "2"]},
        {"InstanceNumber": lambda k: 99 - k},
        {"SOPInstanceUID": "1.2.3"},
        {"SliceThickness": lambda k: ["1", "1.0", "1.01"][k % 3]},
        {"SliceThickness": lambda k: 1 + k // 4},
        {"SliceThickness": lambda k: 1 + (k == 4)},
        {"SeriesDescription": lambda k: f"slice {k}"},
        {"InstanceNumber": lambda k: 1 + k % 4},
        {"InstanceNumber": 1},
        {"InstanceNumber": None},
        {"AcquisitionTime": lambda k: f"10000{k % 2}"},
        {"TriggerTime": lambda k: 10 + k % 2},
        {"ImageType": lambda k: [["ORIGINAL", "DERIVED"][k % 2], "PRIMARY", "AXIAL"]},
        {"RescaleType": "US"},
        {"SpacingBetweenSlices": "-2"},
        {"SpacingBetweenSlices": "0"},
    ],
    ids=lambda elements: next(iter(elements)),
)
def test_what_differs_within_a_volume_as_it_may(tmp_path, elements):
    write(tmp_path, **elements)
    volumes(tmp_path, V)


def test_a_value_that_says_nothing_of_the_volume_may_be_garbage(tmp_path):
    for path in write(tmp_path, KVP="120"):
        path.write_bytes(path.read_bytes().replace(b"DS\x04\x00120 ", b"DS\x04\x00high"))
    volumes(tmp_path, V)


# --- whose it is


@pytest.mark.parametrize("z", [0, 16, 3])
@pytest.mark.parametrize("element", ["StudyInstanceUID", "FrameOfReferenceUID", "PatientID"])
def test_two_scans_with_one_series_uid(tmp_path, element, z):
    """At the same place, one after the other, and overlapping."""
    for number, volume in enumerate((V, W)):
        write(tmp_path / f"{number}", volume, z=number * z, **{"PatientID": "", element: f"1.2.{number}"})
    volumes(tmp_path, V, W)


def test_two_scans_that_nothing_but_their_folders_tells_apart(tmp_path):
    write(tmp_path / "a", V)
    write(tmp_path / "b", W)
    volumes(tmp_path, V, W)


def test_two_scans_that_nothing_tells_apart(tmp_path):
    write(tmp_path, V)
    write(tmp_path, W, name="other")
    refused(tmp_path, r"other\d\.dcm: lies where .* does but differs")


# --- phases


@pytest.mark.parametrize(
    "element", ["AcquisitionNumber", "TemporalPositionIdentifier", "EchoTime", "DiffusionBValue", "TriggerTime"]
)
@pytest.mark.parametrize("z", [0, 2.7])
def test_phases_of_one_series(tmp_path, element, z):
    for number, volume in enumerate((V, W)):
        kind = float if element == "DiffusionBValue" else int
        write(tmp_path, volume, z=number * z, name=f"p{number}", **{element: kind(1 + number)})
    volumes(tmp_path, V, W)


def test_phases_of_several_echoes_each(tmp_path):
    expected = []
    for echo in (10, 30):
        for phase in (1, 2):
            expected.append(V + echo + phase)
            write(tmp_path, expected[-1], name=f"{echo}-{phase}-", EchoTime=echo, TemporalPositionIdentifier=phase)
    found = [image for image in read(tmp_path) if not isinstance(image, str)]
    assert len(found) == 4
    assert all(any(np.array_equal(one, other) for one in found) for other in expected)


def test_a_phase_that_lacks_slices_is_refused_and_the_others_are_read(tmp_path):
    for phase in range(3):
        write(tmp_path, V + phase, name=f"{phase}-", TemporalPositionIdentifier=phase)
    (tmp_path / "1-4.dcm").unlink()  # leaves a gap
    (tmp_path / "2-7.dcm").unlink()  # the last
    whole, short = read(tmp_path)
    np.testing.assert_array_equal(whole, V)
    assert isinstance(short, str)


def test_acquisitions_around_a_missing_slice_are_no_two_volumes(tmp_path):
    write(tmp_path, AcquisitionNumber=lambda k: 1 + k // 4)
    (tmp_path / "IM4.dcm").unlink()
    refused(tmp_path, "IM5.dcm: .*1 missing")


def test_half_a_step_between_two_acquisitions(tmp_path):
    """One volume of two scans, or two volumes of one: nobody knows."""
    write(tmp_path, V, AcquisitionNumber=1)
    write(tmp_path, W, z=1, name="other", AcquisitionNumber=2)
    refused(tmp_path, "AcquisitionNumber")


HALF_A_STEP: dict[str, tuple[object, object]] = {
    "KVP": (80, 140),
    "FlipAngle": (5, 30),
    "InversionTime": (100, 2000),
    "SequenceName": ("one", "other"),
    "SliceThickness": (2, 3),
    "SeriesNumber": (1, 2),
    "SeriesDescription": ("T1", "T2"),
    "ContrastBolusAgent": (None, "Gd"),
}


@pytest.mark.parametrize("element", HALF_A_STEP)
def test_half_a_step_between_two_scans_of_one_uid(tmp_path, element):
    for number, (volume, value) in enumerate(zip((V, W), HALF_A_STEP[element], strict=True)):
        numbers = {"InstanceNumber": lambda k, number=number: 1 + 2 * k + number}
        write(tmp_path, volume, z=number, name=f"{number}-", **{**numbers, element: value})
    refused(tmp_path, f"1-0.dcm: .*{element}")


def test_half_a_step_between_two_scans_of_other_private_b_values(tmp_path):
    for number, volume in enumerate((V, W)):
        for path in write(tmp_path, volume, z=number, name=f"{number}-", InstanceNumber=None):
            dataset = dcmread(path)
            dataset.add_new((0x0019, 0x0010), "LO", "SIEMENS MR HEADER")
            dataset.add_new((0x0019, 0x100C), "IS", 1000 * number)
            save_slice(path, dataset)
    refused(tmp_path, "0019,100C")


@pytest.mark.parametrize("second", [lambda k: 1 + k, lambda k: 8 - k])
def test_half_a_step_between_two_scans_that_number_their_slices_alike(tmp_path, second):
    write(tmp_path, V, InstanceNumber=lambda k: 1 + k)
    write(tmp_path, W, z=1, name="other", InstanceNumber=second)
    refused(tmp_path, "InstanceNumbers of the 16 slices .* 2 scans .*16 have")


@pytest.mark.parametrize(
    ("lengths", "number", "shared"),
    [
        ((8, 7), lambda k: 1 + k, 14),
        ((7, 8), lambda k: 1 + k, 14),
        ((8, 7), lambda k: 7 - k, 14),
        ((8, 7), lambda k: 5 + k, 8),
        ((8, 7), lambda k: 8 + k, 2),
        ((8, 7), lambda k: 9 + k, 0),
        ((8, 7), None, 0),
    ],
    ids=["alike", "the second longer", "falling", "half alike", "one alike", "continued", "none"],
)
def test_half_a_step_between_two_scans_of_other_lengths(tmp_path, lengths, number, shared):
    first, second = lengths
    write(tmp_path, V[:, :, :first], z=float(first < second))
    write(tmp_path, W[:, :, :second], z=float(first > second), name="other", InstanceNumber=number)
    same = f", {shared} have" if shared else ";"
    refused(tmp_path, rf"IM0\.dcm: .*InstanceNumbers of the 15 slices .* 2 scans do{same}")


def test_parts_of_a_step_between_scans(tmp_path):
    """Three at a third of it; two of which one lacks its last slices, so that they are on no grid together."""
    for number, (volume, slices) in enumerate([(V, 8), (W, 7), (V + 1, 7)]):
        write(tmp_path / "three", volume[:, :, :slices], z=2 * number / 3, name=f"{number}-")
    refused(tmp_path / "three", "0-0.dcm: .*InstanceNumbers of the 22 slices .* 3 scans .*21 have")
    write(tmp_path / "short", V)
    write(tmp_path / "short", W[:, :, :6], z=1, name="other")
    refused(tmp_path / "short", "IM0.dcm: .*InstanceNumbers of the 14 slices .* 2 scans .*12 have")


def test_numbers_of_one_scan_may_take_turns(tmp_path):
    """Odd slices after even ones, no thicker than their distance; stations of other lengths one after the other."""
    write(tmp_path / "turns", V, InstanceNumber=lambda k: 1 + k // 2 + 4 * (k % 2))
    write(tmp_path / "stations", V, InstanceNumber=lambda k: 1 + k % 5)
    for folder in ("turns", "stations"):
        volumes(tmp_path / folder, V)


@pytest.mark.parametrize("slices", [8, 6, 1])
def test_scans_at_the_same_places_that_differ_in_their_numbers(tmp_path, slices):
    write(tmp_path, V)
    write(tmp_path, W[:, :, :slices], name="other", InstanceNumber=lambda k: 20 + k)
    refused(tmp_path, "other0.dcm: lies where .*IM0.dcm does")
    assert len(find_series(tmp_path).left_out["repeated slice"]) == slices


@pytest.mark.parametrize("places", [(2, 3, 4), (0, 2, 4, 6), (7,)])
def test_a_few_places_once_more_by_another_type(tmp_path, places):
    write(tmp_path, V, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"])
    for k in places:
        kind = {"ImageType": ["DERIVED", "SECONDARY", "MPR"]}
        write(tmp_path, W[:, :, k : k + 1], z=2 * k, name=f"other{k}-", **kind)
    whole, rest = read(tmp_path)
    np.testing.assert_array_equal(whole, V)
    assert re.search(rf"other{places[0]}-0\.dcm: is of {len(places)} slices .* has 8", str(rest))


def test_a_localizer_in_the_series_is_no_slice_of_it(tmp_path):
    """Of another plane it is told apart; of the same it is noticed, unless it lies where the next slice would."""
    across = [0, 1, 0, 0, 0, -1]
    write(tmp_path / "planes", V)
    write(tmp_path / "planes", W[:, :, :1], name="scout", ImageOrientationPatient=across)
    volumes(tmp_path / "planes", V)
    assert [path.name for path in find_series(tmp_path / "planes").left_out["single slice"]] == ["scout0.dcm"]
    for number, (z, slices, step) in enumerate([(1, 1, 2), (-30, 1, 2), (-60, 3, 10)]):
        write(tmp_path / str(number), V)
        write(tmp_path / str(number), W[:, :, :slices], z=z, step=step, name="scout")
        refused(tmp_path / str(number), "scout|IM0.dcm: ")


# --- positions


@pytest.mark.parametrize(
    ("step", "decimals", "slices"), [(0.625, 1, 30), (1.25, 1, 8), (0.3125, 1, 30), (2.5, 0, 30), (0.0625, 2, 30)]
)
def test_positions_with_few_digits(tmp_path, step, decimals, slices):
    volume = np.repeat(V, 4, axis=2)[:, :, :slices]
    write(tmp_path, volume, ImagePositionPatient=lambda k: ["-31.5", "12.25", f"{k * step + 0.01:.{decimals}f}"])
    volumes(tmp_path, volume)
    affine = find_series(tmp_path).series[0].affine
    assert affine[2, 2] == pytest.approx(step, rel=0.005)
    assert affine[2, 3] == pytest.approx(0, abs=0.2 * step)
    for lost in (1, slices // 2, slices - 2):
        path = tmp_path / f"IM{lost}.dcm"
        content = path.read_bytes()
        path.unlink()
        refused(tmp_path, f"IM{lost + 1}.dcm: .*missing")
        path.write_bytes(content)


@pytest.mark.parametrize("slices", [3, 4, 5])
def test_of_few_slices_with_few_digits_one_that_is_missing_is_missed(tmp_path, slices):
    write(tmp_path, V[:, :, :slices], ImagePositionPatient=lambda k: ["0", "0", str(k + (k > 0))])
    refused(tmp_path, "missing|uneven")


def test_oblique_positions_with_one_decimal(tmp_path):
    normal = np.array([0.3, 0.4, np.sqrt(0.75)])
    across = np.cross(normal, [0, 0, 1.0]) / np.linalg.norm(np.cross(normal, [0, 0, 1.0]))
    affine = np.eye(4)
    affine[:3, :3] = np.stack([across, np.cross(normal, across), normal * 0.7], axis=1)
    write_volume(
        tmp_path, V, affine, lambda k: {"ImagePositionPatient": [f"{x:.1f}" for x in (affine @ [0, 0, k, 1])[:3]]}
    )
    volumes(tmp_path, V)
    np.testing.assert_allclose(find_series(tmp_path).series[0].affine, np.diag([-1, -1, 1, 1]) @ affine, atol=0.06)


@pytest.mark.parametrize(
    ("place", "word"),
    [
        (lambda k: (0, 0, 2 * k + 0.4 * (k == 7)), "uneven"),
        (lambda k: (0, 0, [0, 1.08, 8.08, 10, 13, 15.5, 20, 21.1][k]), "uneven, 1.08 to 7 mm"),
        (lambda k: (0, [0, 0.3, 2, 2.5, 3.2, 3.8, 5, 5.2][k], [0, 1.08, 8.08, 10, 13, 15.5, 20, 21.1][k]), "uneven"),
        (lambda k: (0, 0.5 * k, 2 * k), "tilted"),
        (lambda k: (k, 0, 0), "lies where .* does but differs"),
        (lambda k: (3 * (k == 4), 0, 2 * k), r"IM4\.dcm: lies .* mm beside"),
        (lambda k: (0, 0, "nan" if k == 4 else 2 * k), "IM4.dcm: ImagePositionPatient"),
        (lambda k: (0, 0, "1e400" if k == 4 else 2 * k), "IM4.dcm: ImagePositionPatient"),
        (lambda k: None if k == 7 else (0, 0, 2 * k), "IM7.dcm: lacks ImagePositionPatient"),
        (lambda k: None, "lacks ImagePositionPatient"),
    ],
)
def test_positions_that_are_on_no_grid(tmp_path, place, word):
    write(tmp_path, ImagePositionPatient=lambda k: place(k) and [str(x) for x in place(k)])
    refused(tmp_path, word)


def test_images_of_one_place_are_no_volume(tmp_path):
    write(tmp_path, ImagePositionPatient=["0", "0", "0"])
    assert not find_series(tmp_path).series
    assert {kind: len(paths) for kind, paths in find_series(tmp_path).left_out.items()} == {"single slice": SHAPE[2]}


def test_slices_that_were_lost_evenly(tmp_path):
    write(tmp_path, SpacingBetweenSlices="2")
    for k in range(1, SHAPE[2], 2):
        (tmp_path / f"IM{k}.dcm").unlink()
    refused(tmp_path, "SpacingBetweenSlices is 2 mm.* 4 mm apart")


# --- headers


@pytest.mark.parametrize(
    ("elements", "word"),
    [
        ({"ImageOrientationPatient": ["1.1", "0", "0", "0", "1", "0"]}, "not of length 1"),
        ({"ImageOrientationPatient": ["1", "0", "0", "0.1", "0.995", "0"]}, "not perpendicular"),
        ({"ImageOrientationPatient": ["0"] * 6}, "ImageOrientationPatient"),
        ({"ImageOrientationPatient": ["1", "0", "0"]}, "ImageOrientationPatient"),
        ({"PixelSpacing": ["0", "1"]}, "PixelSpacing"),
        ({"PixelSpacing": ["-1", "1"]}, "PixelSpacing"),
        ({"PixelSpacing": None}, "PixelSpacing"),
        ({"RescaleSlope": "0"}, "RescaleSlope"),
        ({"RescaleIntercept": lambda k: None if k == 3 else -1024}, "rescaling"),
        ({"NumberOfFrames": 2}, "several frames"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "MONOCHROME1"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "RGB"),
        ({"Rows": 3}, "24 bytes more than Rows x Columns"),
        ({"Rows": 6}, "pixels cannot be read"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_headers_of_no_volume(tmp_path, elements, word):
    write(tmp_path, **elements)
    refused(tmp_path, word)


def test_enhanced_dicom_is_refused_by_name_beside_a_series(tmp_path):
    write(tmp_path / "a")
    enhanced = dicom_slice(V[:, :, 0], grid(), 0, SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1", SeriesInstanceUID="1.7")
    for element in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        del enhanced[element]
    (tmp_path / "b").mkdir()
    save_slice(tmp_path / "b" / "volume", enhanced)
    volume, message = read(tmp_path)
    np.testing.assert_array_equal(volume, V)
    assert f"{tmp_path / 'b' / 'volume'}: holds several frames" in str(message)


def test_bits_that_are_not_stored_do_not_count(tmp_path):
    """They may hold an overlay, or no sign."""
    files = write(tmp_path)
    for path, values in zip(files, np.moveaxis(V, 2, 0), strict=True):
        stored = (values.T + 1024).astype(np.uint16) & 0x0FFF | 0x3000
        edit(path, BitsStored=12, HighBit=11, PixelRepresentation=0, PixelData=stored.astype("<u2").tobytes())
    volumes(tmp_path, V)


# --- files


@pytest.mark.parametrize(("implicit", "little"), [(True, True), (False, True), (False, False)])
def test_files_of_data_elements_alone(tmp_path, implicit, little):
    for path in write(tmp_path)[4:]:
        strip_header(path, implicit, little)
    volumes(tmp_path, V)


@pytest.mark.parametrize(
    "content",
    [
        np.random.default_rng(1).bytes(4000),
        np.arange(8, 3000, dtype="<u2").tobytes(),
        b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100" + bytes(3000),
        b"\x08\x00\x05\x00\x0a\x00\x00\x00ISO_IR 100" + b"\xff" * 3000,
        b"\x02\x00\x00\x00UL\x04\x00" + b"\x08" * 500,
        b"some text",
    ],
)
def test_what_is_not_dicom_is_not_taken_for_it(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    assert read_header(path) is None


def test_what_has_the_suffix_of_slices_and_is_not_dicom_counts_as_damaged(tmp_path):
    write(tmp_path)
    (tmp_path / "IM8.dcm").write_text("<html>try again later</html>")
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "link.dcm").symlink_to(tmp_path / "nothing")
    assert find_series(tmp_path).damaged == [tmp_path / "IM8.dcm", tmp_path / "link.dcm"]


@pytest.mark.parametrize("name", [".IM7.dcm", ".IM7", ".#IM7.dcm"])
def test_a_hidden_slice_refuses_its_series_unless_it_repeats_one(tmp_path, name):
    write(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / "IM7.dcm").read_bytes())
    assert find_series(tmp_path).left_out == {"hidden slice": [tmp_path / name]}
    volumes(tmp_path, V)
    (tmp_path / "IM7.dcm").unlink()
    refused(tmp_path, f"{re.escape(name)}: .*hidden")


def test_hidden_files_that_are_no_slices_do_not_count(tmp_path):
    for path in write(tmp_path):
        path.rename(path.with_suffix(""))
    for name in ("._IM7", ".DS_Store"):
        (tmp_path / name).write_bytes((tmp_path / "IM7").read_bytes()[:200])
    (tmp_path / ".gitkeep").touch()
    assert not find_series(tmp_path).damaged
    volumes(tmp_path, V)


def test_a_hidden_file_with_the_suffix_of_slices_counts_as_damaged(tmp_path):
    write(tmp_path)
    (tmp_path / ".IM8.dcm").write_bytes(b"")
    assert find_series(tmp_path).damaged == [tmp_path / ".IM8.dcm"]


@pytest.mark.parametrize("suffix", [".dcm", ""])
def test_a_compressed_slice_beside_others_counts_as_damaged(tmp_path, suffix):
    for path in write(tmp_path):
        path.rename(path.with_suffix(suffix))
    last = tmp_path / f"IM7{suffix}"
    packed = tmp_path / f"IM7{suffix}.gz"
    packed.write_bytes(gzip.compress(last.read_bytes()))
    last.unlink()
    (tmp_path / "notes.txt.gz").write_bytes(gzip.compress(b"nothing"))
    (tmp_path / "notes.gz").write_bytes(gzip.compress(b"nothing"))
    assert find_series(tmp_path).damaged == [packed]
    assert "unpack" in damage_of(packed)


LEFT_OUT: list[tuple[str, Callable[[Path], object]]] = [
    ("repeated slice", lambda folder: (folder / "again.dcm").write_bytes((folder / "IM3.dcm").read_bytes())),
    ("Segmentation", lambda folder: one(folder, SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4", NumberOfFrames=3)),
    ("RT Dose", lambda folder: one(folder, SOPClassUID="1.2.840.10008.5.1.4.1.1.481.2")),
    ("Secondary Capture Image", lambda folder: one(folder, SOPClassUID="1.2.840.10008.5.1.4.1.1.7", PixelSpacing=None)),
    ("DICOMDIR", lambda folder: one(folder, SOPClassUID="1.2.840.10008.1.3.10")),
    ("file of a private kind", lambda folder: one(folder, SOPClassUID="1.3.12.2.1107.5.9.1")),
    ("localizer", lambda folder: one(folder, SeriesInstanceUID=None, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])),
    ("single slice", lambda folder: one(folder)),
    ("colour or inverted image", lambda folder: one(folder, PhotometricInterpretation="RGB", SamplesPerPixel=3)),
    ("image without a place", lambda folder: one(folder, ImagePositionPatient=None)),
]


def one(folder: Path, **elements: object) -> None:
    own = dicom_slice(V[:, :, 0], grid(z=7.3), 0, **{"SeriesInstanceUID": "1.8", **elements})
    save_slice(folder / "x.dcm", own)


@pytest.mark.parametrize(("kind", "add"), LEFT_OUT, ids=[kind for kind, _ in LEFT_OUT])
def test_what_belongs_to_no_volume_is_counted_by_kind(tmp_path, kind, add):
    write(tmp_path)
    before = {*tmp_path.iterdir()}
    add(tmp_path)
    (path,) = {*tmp_path.iterdir()} - before
    found = find_series(tmp_path)
    assert found.left_out == {kind: [path]} and not found.damaged
    volumes(tmp_path, V)


@pytest.mark.parametrize("orientation", [["1", "0", "0", "0", "0", "-1"], ["1", "0", "0", "0", "1", "0"]])
def test_a_scout_with_the_series_own_uid(tmp_path, orientation):
    write(tmp_path)
    scout = dicom_slice(V[:4, :, 0], grid(z=7.3), 0, ImageOrientationPatient=orientation)
    save_slice(tmp_path / "scout.dcm", scout)
    volumes(tmp_path, V)
    assert find_series(tmp_path).left_out == {"single slice": [tmp_path / "scout.dcm"]}
