"""Scans of every format, and what lies beside them: predicted, or told of, and an exit code that says so."""

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813
from predict_toys import save, scene

AFFINE = np.array([[-2.0, 0, 0, 30], [0, 2, 0, -20], [0, 0, 2, 5], [0, 0, 0, 1]])
SHAPE = (32, 30, 28)
FORMATS = ("one.nii.gz", "TWO.NII.GZ", "three.nrrd", "FOUR.MHA", "five.mhd", "six.img", "seven.hdr", "eight.nhdr")


def rows_of(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "summary.csv").open(newline="") as file:
        return {row["scan"]: row for row in csv.DictReader(file)}


def write(path: Path) -> Path:
    """The same scan, whatever the format."""
    image = scene(AFFINE, SHAPE)[0]
    if path.suffix == ".hdr":
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Pair(image, AFFINE), path.with_suffix(".img"))
        return path
    nifti = path.with_name(f"{path.stem}-as.nii.gz")
    save(nifti, image, AFFINE)
    lower = path.with_name(path.name.lower())
    sitk.WriteImage(sitk.ReadImage(nifti), lower, useCompression=True)
    nifti.unlink()
    return lower.rename(path)


def test_every_format_is_predicted_on_its_own_grid(predict, tmp_path) -> None:
    for name in FORMATS:
        write(tmp_path / "in" / name)
    outcome = predict(f"input={tmp_path / 'in'}")
    assert outcome.code == 0, outcome.err
    names = ("TWO", "one", "three", "FOUR", "five", "six", "seven", "eight")
    assert {*rows_of(tmp_path / "out")} == {*names} and "Passed over" not in outcome.err
    first = nib.load(tmp_path / "out" / "labels" / "one.nii.gz")
    assert {*np.unique(first.dataobj)} == {0, 1, 2}
    for name in names:
        label = nib.load(tmp_path / "out" / "labels" / f"{name}.nii.gz")
        np.testing.assert_array_equal(label.dataobj, first.dataobj)
        np.testing.assert_allclose(label.affine, AFFINE, atol=1e-5)


def test_files_that_a_shell_names_are_pairs_too(predict, tmp_path) -> None:
    for name in ("six.img", "five.mha"):
        write(tmp_path / "in" / name)
    outcome = predict(f"input={tmp_path / 'in/five.mha'}", tmp_path / "in/six.hdr", tmp_path / "in/six.img")
    assert outcome.code == 0 and {*rows_of(tmp_path / "out")} == {"five", "six"}


def test_what_may_be_a_scan_and_is_not_read_counts_as_one_that_failed(predict, tmp_path) -> None:
    folder = tmp_path / "in"
    write(folder / "one.nii.gz")
    for name in ("six.mgz", "seven.nii.bz2", ".eight.nii.gz", "sub/nine.vtk", "sub/DOE^JANE", "sub/DOE^JANE.dcm"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\0\1\2" * 100)
    outcome = predict(f"input={folder}")
    assert outcome.code == 2 and "6 of 7 scans failed" in outcome.err.splitlines()[-1]
    rows = rows_of(tmp_path / "out")
    assert rows["one"]["status"] == "predicted"
    unread = {name: row for name, row in rows.items() if name != "one"}
    assert {*unread} == {".eight", "seven.nii.bz2", "six.mgz", "sub_nine.vtk", "unread-001", "unread-002"}
    assert {row["status"] for row in unread.values()} == {"failed"}
    assert "not read" in rows["six.mgz"]["problem"] and "is hidden" in rows[".eight"]["problem"]
    # as of DICOM, names of files that may be those of patients are on the console alone
    assert f"unread-001 is {folder / 'sub' / 'DOE^JANE'}" in outcome.out
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file() and b"DOE" in path.read_bytes()]


def test_what_is_no_scan_is_counted_and_fails_nothing(predict, tmp_path) -> None:
    folder = tmp_path / "in"
    write(folder / "one.nii.gz")
    for name in ("one.json", "two.JSON", "a.png", "README", ".DS_Store", "._one.nii.gz", ".git/x.nii.gz"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"text")
    outcome = predict(f"input={folder}")
    assert outcome.code == 0
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("Passed over")]
    assert "4 files" in line and "one.json" in line
    record = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert record["passed_over"] == {"": 1, ".json": 2, ".png": 1}


def test_channels_of_one_scan_in_several_formats(predict, run, tmp_path) -> None:
    """On grids that differ as little as dualseg-check lets pass; the networks see the mean of the channels."""
    (run / "preprocessing.json").write_text('{"class_names": ["background", "bright", "dark"], "channels": 2}')
    write(tmp_path / "in" / "x_0000.nrrd")
    moved = AFFINE.copy()
    moved[0, 3] += 0.01
    save(tmp_path / "in" / "x_0001.nii.gz", scene(AFFINE, SHAPE)[0], moved)
    outcome = predict(f"input={tmp_path / 'in'}")
    assert outcome.code == 0 and {*rows_of(tmp_path / "out")} == {"x"}


def test_a_damaged_scan_is_told_of(predict, tmp_path) -> None:
    """One bit, which nibabel and ITK would not notice."""
    for number, name in enumerate(("one.nii.gz", "two.mha")):
        path = write(tmp_path / "in" / name)
        content = bytearray(path.read_bytes())
        content[-100] ^= 1 << number
        path.write_bytes(content)
    shutil.copy(write(tmp_path / "good.nrrd"), tmp_path / "in")
    outcome = predict(f"input={tmp_path / 'in'}")
    assert outcome.code == 2
    assert {name: row["status"] for name, row in rows_of(tmp_path / "out").items()} == {
        "good": "predicted", "one": "failed", "two": "failed"
    }  # fmt: skip
