"""DICOM series in, NIfTI on the same grid out, and not a word about the patient."""

import csv
import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from dicom_toys import SECRETS, compress, dicom_slice, save_slice, strip_header, write_series, write_volume
from predict_toys import BALLS, save, scene
from pydicom.uid import RTStructureSetStorage

from dualseg.data.dicom import find_series, read_series

SHAPE = (42, 36, 28)


def centre(affine_lps: np.ndarray) -> np.ndarray:
    return (affine_lps @ [*((np.array(SHAPE) - 1) / 2), 1])[:3]


def summary(out: Path) -> dict[str, dict[str, str]]:
    with (out / "summary.csv").open(newline="") as file:
        return {row["scan"]: row for row in csv.DictReader(file)}


def test_the_label_lies_on_the_series_grid(predict, tmp_path) -> None:
    affines = {f"series-00{1 + seed}": write_series(tmp_path / "in" / f"s{seed}", seed)[0] for seed in range(4)}
    assert predict(f"input={tmp_path / 'in'}").code == 0
    for index, (name, affine) in enumerate(affines.items()):
        out = tmp_path / "out" / "labels" / f"{name}.nii.gz"
        # ITK's own reader of DICOM finds and sorts the slices
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "in" / f"s{index}")))
        given, got = reader.Execute(), SimpleITK.ReadImage(str(out))
        for what in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_allclose(getattr(got, what)(), getattr(given, what)(), atol=1e-3, err_msg=what)
        label = SimpleITK.GetArrayFromImage(got).T
        for value, (ball, _) in enumerate(BALLS.values(), start=1):
            voxel = np.argwhere(label == value).mean(axis=0)
            place = np.array(got.TransformContinuousIndexToPhysicalPoint(voxel.tolist())) - centre(affine)
            np.testing.assert_allclose(place * [-1, -1, 1], ball, atol=0.6)
        header = nib.load(out).header
        assert header.get_xyzt_units()[0] == "mm" and header["qform_code"] == header["sform_code"] == 1


def content(out: Path) -> bytes:
    """All that lies in a folder: paths and contents, unpacked."""
    found = b""
    for path in sorted(out.rglob("*")):
        found += str(path.relative_to(out)).encode() + b"\n"
        if path.is_file():
            found += gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return found


def test_nothing_that_is_written_names_the_patient(predict, tmp_path) -> None:
    """Not the header's values, nor names of folders and files, of a scan that is predicted and of one that fails."""
    folder = tmp_path / "in" / "DOE_JANE_1961"
    _, uid = write_series(folder, 0)
    broken = tmp_path / "in" / "Doe Jane broken"
    write_series(broken, 1)
    for path in sorted(broken.iterdir())[5:8]:
        path.unlink()
    words = ["probabilities=true", "uncertainty=true"]
    outcome = predict(f"input={tmp_path / 'in'}", *words)
    assert outcome.code == 2 and str(broken) in outcome.err
    assert f"series-002 is {folder}" in outcome.out or f"series-001 is {folder}" in outcome.out
    written = content(tmp_path / "out").lower()
    secrets = [word for value in SECRETS.values() for word in value.split("^")]
    for secret in (*secrets, uid, folder.name, broken.name, str(tmp_path / "in")):
        assert secret.lower().encode() not in written, secret
    rows = summary(tmp_path / "out")
    assert sorted(row["status"] for row in rows.values()) == ["failed", "predicted"]
    assert {row["source"] for row in rows.values()} == {""}


def test_identifiers_when_asked_for(predict, tmp_path) -> None:
    folder = tmp_path / "in" / "first visit"
    write_series(folder, 0)
    outcome = predict(f"input={tmp_path / 'in'}", "identifiers=true")
    assert outcome.code == 0
    rows = summary(tmp_path / "out")
    assert list(rows) == ["MRN-4711_first-visit"] and rows["MRN-4711_first-visit"]["source"] == str(folder)
    assert (tmp_path / "out" / "labels" / "MRN-4711_first-visit.nii.gz").is_file()


def test_mixed_series_a_scout_and_nifti_in_one_folder(predict, tmp_path) -> None:
    folder = tmp_path / "in"
    for seed in (0, 1):
        write_series(folder, seed)
    scout = {"SeriesInstanceUID": "1.9", **SECRETS, "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    save_slice(folder / "scout", dicom_slice(np.zeros((30, 20)), np.diag([3.0, 3, 3, 1]), 0, **scout))
    plan = dicom_slice(np.zeros((3, 2)), np.eye(4), 0, SOPClassUID=RTStructureSetStorage, SeriesInstanceUID="1.8")
    save_slice(folder / "structures.dcm", plan)
    save(folder / "scan.nii.gz", scene(np.diag([2.0, 2, 2, 1]), (32, 30, 28))[0], np.diag([2.0, 2, 2, 1]))
    (folder / "readme.txt").write_text("no image")
    outcome = predict(f"input={folder}")
    assert outcome.code == 0
    assert list(summary(tmp_path / "out")) == ["scan", "series-001", "series-002"]
    left_out = {"RT Structure Set": 1, "localizer": 1}
    assert json.loads((tmp_path / "out" / "prediction.json").read_text())["left_out"] == left_out
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("Left out")]
    assert "2 DICOM files" in line and all(f"1 {kind}" in line for kind in left_out)


def fails_beside_a_good_one(predict, tmp_path, *words: str) -> None:
    write_series(tmp_path / "in" / "b-good", 1)
    outcome = predict(f"input={tmp_path / 'in'}")
    assert outcome.code == 2 and "Traceback" not in outcome.err
    message = next(line for line in outcome.err.splitlines() if line.startswith("series-001: failed."))
    for word in (str(tmp_path / "in" / "a-bad"), *words):
        assert word in message
    rows = summary(tmp_path / "out")
    assert [row["status"] for row in rows.values()] == ["failed", "predicted"]


def test_missing_slices(predict, tmp_path) -> None:
    folder = tmp_path / "in" / "a-bad"
    write_series(folder, 0)
    for path in folder.iterdir():
        if pydicom.dcmread(path).InstanceNumber in (11, 12):
            path.unlink()
    fails_beside_a_good_one(predict, tmp_path, "2 missing")


def test_a_compressed_transfer_syntax(predict, tmp_path) -> None:
    folder = tmp_path / "in" / "a-bad"
    write_series(folder, 0)
    for path in folder.iterdir():
        compress(path)
    fails_beside_a_good_one(predict, tmp_path, "JPEG 2000", "decompress the series")


@pytest.mark.parametrize(
    ("length", "share"),
    [(n, "one of them") for n in (0, 100, 140, 500, 900)] + [(n, "all") for n in (140, 500, 900)],
)
def test_headers_that_break_off(predict, tmp_path, length, share) -> None:
    """Also of the last slice, which no gap would tell of."""
    folder = tmp_path / "in" / "a-bad"
    write_series(folder, 0)
    for path in folder.iterdir():
        if share == "all" or pydicom.dcmread(path).InstanceNumber == SHAPE[2]:
            path.write_bytes(path.read_bytes()[:length])
    write_series(tmp_path / "in" / "b-good", 1)
    outcome = predict(f"input={tmp_path / 'in'}")
    assert outcome.code == 2 and "Traceback" not in outcome.err
    (message,) = [line for line in outcome.err.splitlines() if ": failed." in line]
    assert f"{folder}/0-" in message
    assert sorted(row["status"] for row in summary(tmp_path / "out").values()) == ["failed", "predicted"]


def test_a_short_file_of_another_kind_is_no_slice(predict, tmp_path) -> None:
    write_series(tmp_path / "in", 0)
    (tmp_path / "in" / "notes.txt").write_text("ask Jane")
    assert predict(f"input={tmp_path / 'in'}").code == 0


def test_a_rescale_that_is_left_empty_changes_nothing(tmp_path) -> None:
    write_series(tmp_path, 0)
    stored = []
    for path in tmp_path.iterdir():
        header = pydicom.dcmread(path)
        stored.append(header.pixel_array.ravel())
        header.RescaleSlope = header.RescaleIntercept = None
        header.save_as(path)
    (series,) = find_series(tmp_path).series
    assert (np.sort(read_series(series).array.ravel()) == np.sort(np.concatenate(stored))).all()


def test_a_run_of_several_channels(predict, run, tmp_path) -> None:
    write_series(tmp_path / "in", 0)
    (run / "preprocessing.json").write_text('{"class_names": ["background", "bright", "dark"], "channels": 4}')
    outcome = predict(f"input={tmp_path / 'in'}")
    outcome.complains("the only scan failed")
    assert "one channel, " in outcome.err and "networks take 4" in outcome.err


def test_single_slices_alone_are_counted_in_the_message(predict, tmp_path) -> None:
    for k in range(3):
        own = dicom_slice(np.zeros((4, 3)), np.eye(4), k, SeriesInstanceUID=f"1.2.{k}")
        save_slice(tmp_path / f"{k}", own)
    predict(f"input={tmp_path}", f"output={tmp_path}-out").complains(str(tmp_path), "3 single slice")


def test_slices_without_a_preamble_among_others(predict, tmp_path) -> None:
    """As some exports leave a part of a series: it must not be taken for the whole."""
    write_volume(tmp_path / "in", *still())
    for k, kind in ((25, (True, True)), (26, (False, True)), (27, (False, False))):
        strip_header(tmp_path / "in" / f"IM{k:04d}.dcm", *kind)
    assert predict(f"input={tmp_path / 'in'}").code == 0
    assert nib.load(tmp_path / "out" / "labels" / "series-001.nii.gz").shape == SHAPE
    (tmp_path / "in" / "IM0027.dcm").write_bytes((tmp_path / "in" / "IM0027.dcm").read_bytes()[:100])
    outcome = predict(f"input={tmp_path / 'in'}", f"output={tmp_path / 'again'}")
    assert outcome.code == 2 and "IM0027.dcm" in outcome.err


def still() -> tuple[np.ndarray, np.ndarray]:
    affine = np.diag([1.6, 1.9, 2.5, 1])
    return np.round(1000 * scene(affine, SHAPE)[0]), affine
