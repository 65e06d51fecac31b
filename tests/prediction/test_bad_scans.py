"""One message that names the file, the rest of the batch goes on, the exit code says so; nothing half-written stays."""

import csv
import signal
import warnings
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from predict_toys import save, scene

from dualseg.inference.predictor import Predictor
from dualseg.prediction import scan_loop

AFFINE = np.diag([2.0, 2, 2, 1])
SHAPE = (32, 30, 28)


def good(path: Path) -> None:
    save(path, scene(AFFINE, SHAPE)[0], AFFINE)


def header_bytes(path: Path, start: int, values: np.ndarray) -> None:
    raw = bytearray(path.read_bytes())
    raw[start : start + values.nbytes] = values.tobytes()
    path.write_bytes(raw)


def zero_affine(path: Path) -> None:
    header_bytes(path, 280, np.zeros(12, "<f4"))  # srow_x, srow_y, srow_z


def nan_affine(path: Path) -> None:
    header_bytes(path, 280 + 12, np.full(1, np.nan, "<f4"))


def nan_voxel(path: Path) -> None:
    header_bytes(path, 352 + 400, np.full(1, np.nan, "<f4"))


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5000])


def truncated_gzip(path: Path) -> None:
    zipped = path.with_name("bad.nii.gz")
    good(zipped)
    zipped.write_bytes(zipped.read_bytes()[:-500])
    path.unlink()


def flat(path: Path) -> None:
    save(path, np.zeros((32, 30), np.float32), AFFINE)


def one_slice(path: Path) -> None:
    save(path, np.zeros((32, 30, 1), np.float32), AFFINE)


def two_channels(path: Path) -> None:
    save(path, np.zeros((*SHAPE, 2), np.float32), AFFINE)


def no_nifti(path: Path) -> None:
    path.write_text("no image at all" * 100)


BAD = {
    zero_affine: "affine is not invertible",
    nan_affine: "affine is not invertible",
    nan_voxel: "NaN or infinite",
    truncated: "cannot be read as NIfTI",
    truncated_gzip: "cannot be read as NIfTI",
    flat: "32 x 30",
    one_slice: "32 x 30 x 1",
    two_channels: "has 2 channels, the networks take 1",
    no_nifti: "cannot be read as NIfTI",
}


def summary(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "summary.csv").open(newline="") as file:
        return {row["scan"]: row for row in csv.DictReader(file)}


def others_are_there(out: Path, outcome, *words: str) -> None:
    """`bad` failed with `words`, `a` and `z` around it are whole."""
    assert outcome.code == 2
    assert outcome.err.rstrip().splitlines()[-1].startswith("error: 1 of 3 scans failed, see above: bad.")
    (message,) = [line for line in outcome.err.splitlines() if line.startswith("bad: failed.")]
    rows = summary(out)
    assert list(rows) == ["a", "bad", "z"]
    assert [row["status"] for row in rows.values()] == ["predicted", "failed", "predicted"]
    for word in words:
        assert word in message and word in rows["bad"]["problem"]
    assert {path.name for path in (out / "labels").iterdir()} == {"a.nii.gz", "a.json", "z.nii.gz", "z.json"}
    assert not rows["bad"]["bright_ml"] and float(rows["a"]["bright_ml"]) > 1


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_a_bad_file_among_good_ones(predict, tmp_path, spoil: Callable[[Path], None]) -> None:
    folder = tmp_path / "in"
    for name in ("a", "bad", "z"):
        good(folder / f"{name}.nii")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spoil(folder / "bad.nii")
        outcome = predict(f"input={folder}")
    assert "Traceback" not in outcome.err
    others_are_there(tmp_path / "out", outcome, str(folder / "bad.nii"), BAD[spoil])


def test_something_unforeseen_in_one_scan(predict, tmp_path, monkeypatch) -> None:
    for name in ("a", "bad", "z"):
        good(tmp_path / "in" / f"{name}.nii")
    real = Predictor.__call__

    def surprised(self, scan, where, *args, **kwargs):
        if "bad" in where:
            raise KeyError("surprise")
        return real(self, scan, where, *args, **kwargs)

    monkeypatch.setattr(Predictor, "__call__", surprised)
    outcome = predict(f"input={tmp_path / 'in'}")
    assert "Traceback" in outcome.err  # a fault of ours: its place is worth showing
    others_are_there(tmp_path / "out", outcome, str(tmp_path / "in" / "bad.nii"), "KeyError", "surprise")


def test_the_disk_is_full_while_maps_are_written(predict, tmp_path, files_of_at_most) -> None:
    for name in ("a", "bad", "z"):
        good(tmp_path / "in" / f"{name}.nii")
    rng = np.random.default_rng(0)  # noise, whose label map does not compress
    save(tmp_path / "in" / "bad.nii", rng.normal(size=(60, 60, 60)).astype(np.float32), AFFINE)
    with files_of_at_most(20_000):
        outcome = predict(f"input={tmp_path / 'in'}")
    others_are_there(tmp_path / "out", outcome, "bad.nii.gz", "File too large", "free space")
    assert not [path for path in (tmp_path / "out").rglob("*") if ".tmp." in path.name]


def test_the_disk_is_full_while_probabilities_lie_there(predict, tmp_path, monkeypatch, files_of_at_most) -> None:
    for name in ("a", "bad", "z"):
        good(tmp_path / "in" / f"{name}.nii")
    save(tmp_path / "in" / "bad.nii", scene(AFFINE, (60, 60, 60))[0], AFFINE)
    monkeypatch.setattr(Predictor, "needs", lambda self, scan: 0)
    with files_of_at_most(2_000_000):
        outcome = predict(f"input={tmp_path / 'in'}", "memory=1B")
    others_are_there(tmp_path / "out", outcome, "disk of the output is full", str(tmp_path / "in" / "bad.nii"))


def test_a_scan_above_the_budget(predict, tmp_path) -> None:
    good(tmp_path / "scan.nii")
    outcome = predict(f"input={tmp_path / 'scan.nii'}", "memory=700MiB")
    outcome.complains("the only scan failed")
    assert "32 x 30 x 28 voxels " in outcome.err and "at least 0.9 GiB; give memory=..." in outcome.err


def test_out_of_memory(predict, tmp_path, monkeypatch) -> None:
    good(tmp_path / "scan.nii")

    def hungry(*args, **kwargs):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(Predictor, "__call__", hungry)
    outcome = predict(f"input={tmp_path / 'scan.nii'}")
    outcome.complains("the only scan failed")
    assert "scan: failed." in outcome.err and "out of memory" in outcome.err and "Traceback" not in outcome.err


def test_the_summary_cannot_be_written(predict, tmp_path, monkeypatch) -> None:
    """One message, after all scans had their turn."""
    for name in ("a", "z"):
        good(tmp_path / "in" / f"{name}.nii")
    real = scan_loop._predict_scan

    def and_block(row, *args):
        real(row, *args)
        (tmp_path / "out" / "summary.csv").mkdir(exist_ok=True)

    monkeypatch.setattr(scan_loop, "_predict_scan", and_block)
    predict(f"input={tmp_path / 'in'}").complains("summary.csv", "cannot be written")
    assert len(list((tmp_path / "out" / "labels").iterdir())) == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_whole_scans_alone(predict, tmp_path, monkeypatch, number) -> None:
    for name in ("a", "z"):
        good(tmp_path / "in" / f"{name}.nii")
    real = nib.save

    def interrupted(image, path):
        real(image, path)
        if "z.nii" in path.name and "labels" in str(path):
            signal.raise_signal(number)

    monkeypatch.setattr(nib, "save", interrupted)
    outcome = predict(f"input={tmp_path / 'in'}", "uncertainty=true")
    assert outcome.code == 128 + number
    assert str(tmp_path / "out") in outcome.err.splitlines()[-1]
    assert "same command" in outcome.err.splitlines()[-1]
    left = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    maps = {f"{kind}/a.nii.gz" for kind in ("labels", "entropy", "disagreement")}
    assert left == {"prediction.json", "summary.csv", "labels/a.json", *maps}
    assert list(summary(tmp_path / "out")) == ["a"]
