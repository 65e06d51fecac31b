"""A prediction that was stopped goes on: what is done is kept, names stay, and nothing of another one is mixed in."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
import yaml
from dicom_toys import SECRETS, write_series
from predict_toys import TRUST, Rising, save, scene, write_run

from dualseg.inference.predictor import Predictor
from dualseg.runs import lock

AFFINE = np.diag([2.0, 2, 2, 1])
SHAPE = (24, 22, 20)


def volume(path: Path, strength: float = 1.0) -> Path:
    save(path, strength * scene(AFFINE, SHAPE)[0], AFFINE)
    return path


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """a, b and c, of different foregrounds."""
    for index, name in enumerate("abc"):
        volume(tmp_path / "in" / f"{name}.nii.gz", 1 + 0.2 * index)
    return tmp_path / "in"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


class Watch:
    """Of the scans that are predicted: which, and before which of them the process is stopped."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.stop_before: str | None = None


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    found, real = Watch(), Predictor.__call__

    def call(self, scan, where, *arguments, **keywords):
        if found.stop_before and found.stop_before in where:
            raise KeyboardInterrupt
        found.seen.append(Path(where.partition(" (")[0]).name.partition(".")[0])
        return real(self, scan, where, *arguments, **keywords)

    monkeypatch.setattr(Predictor, "__call__", call)
    return found


def stopped(watch: Watch, predict: Callable, before: str, *words: str | Path):
    """The command is stopped before it predicts a scan; after that, `watch` counts anew."""
    watch.stop_before = before
    outcome = predict(*words)
    assert outcome.code == 130, outcome
    watch.stop_before, watch.seen[:] = None, []
    return outcome


def table(out: Path) -> dict[str, dict[str, str]]:
    with (out / "summary.csv").open(newline="") as file:
        return {row["scan"]: row for row in csv.DictReader(file)}


def content(out: Path) -> dict[str, bytes | list]:
    """All but prediction.json, which knows the starts, and the seconds."""
    found: dict[str, bytes | list] = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    del found["prediction.json"]
    found["summary.csv"] = [{k: v for k, v in row.items() if k != "seconds"} for row in table(out).values()]
    return found


def test_what_is_done_is_kept_and_the_rest_is_predicted(predict, watch, scans, out, tmp_path) -> None:
    volume(scans / "aa.nii.gz", 0.0)  # in which no network sees anything
    words = (f"input={scans}", "uncertainty=true", "probabilities=true", "report=true")
    stopped(watch, predict, "c.nii", *words)
    kept = table(out)
    assert list(kept) == ["a", "aa", "b"]
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")}
    outcome = predict(*words, "memory=6GiB")  # which changes no map
    assert outcome.code == 0 and watch.seen == ["c"]
    assert "3 of 4 scans" in outcome.out and "\na: " not in outcome.out and "\nc: " in outcome.out
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert {name: row for name, row in table(out).items() if name in kept} == kept, "seconds, too"
    assert predict(*words, f"output={tmp_path / 'whole'}").code == 0
    assert content(out) == content(tmp_path / "whole")
    record = json.loads((out / "prediction.json").read_text(), parse_constant=pytest.fail)  # NaN is no JSON
    assert [start["scans"] for start in record["resumed"]] == [3]
    assert list(record["scans"]) == ["a", "aa", "b", "c"]


def test_a_finished_prediction_is_not_touched(predict, watch, scans, out) -> None:
    words = (f"input={scans}", "report=true")
    assert predict(*words).code == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    watch.seen.clear()
    outcome = predict(*words)
    assert outcome.code == 0 and watch.seen == [] and "3 of 3 scans are predicted" in outcome.out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before


def test_a_finished_prediction_answers_without_torch(predict, scans, out, tmp_path) -> None:
    run = write_run(tmp_path / "phantom", source={"_target_": "dualseg.data.Phantom", "root": "/nowhere"})
    words = [f"run={run}", f"input={scans}", f"output={out}"]
    assert predict(*words).code == 0
    code = "import sys; from dualseg.predict import main; main(); sys.exit('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code, *words, *TRUST], capture_output=True, text=True, check=False)
    assert ended.returncode == 0 and "3 of 3 scans" in ended.stdout, ended.stderr


def test_a_scan_that_failed_is_tried_again(predict, watch, scans, out) -> None:
    good = (scans / "b.nii.gz").read_bytes()
    (scans / "b.nii.gz").write_bytes(good[:200])
    for _ in range(2):
        predict(f"input={scans}").complains("1 of 3 scans failed", "b")
        assert [row["status"] for row in table(out).values()] == ["predicted", "failed", "predicted"]
    watch.seen.clear()
    (scans / "b.nii.gz").write_bytes(good)
    assert predict(f"input={scans}").code == 0 and watch.seen == ["b"]
    assert [row["status"] for row in table(out).values()] == ["predicted"] * 3


def test_a_scan_whose_file_or_map_has_changed_is_predicted_again(predict, watch, scans, out) -> None:
    words = (f"input={scans}", "uncertainty=true")
    assert predict(*words).code == 0
    before = table(out)
    volume(scans / "a.nii.gz", 3.0)
    (out / "entropy" / "b.nii.gz").unlink()
    watch.seen.clear()
    assert predict(*words).code == 0 and watch.seen == ["a", "b"]
    after = table(out)
    assert float(after["a"]["bright_ml"]) > float(before["a"]["bright_ml"]) and after["c"] == before["c"]
    (scans / "a.nii.gz").write_bytes(b"no volume")
    predict(*words).complains("1 of 3 scans failed")
    assert not list(out.rglob("a.*")), "a map of the former file would count for this one"


@pytest.mark.parametrize(("header", "voxels"), [("x.mhd", "x.raw"), ("x.img", "x.hdr")])
def test_a_scan_of_several_files_has_changed_where_one_of_them_has(
    predict, watch, tmp_path, out, header, voxels
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    image = SimpleITK.GetImageFromArray(scene(AFFINE, SHAPE)[0].T)
    image.SetSpacing([2.0, 2, 2])
    SimpleITK.WriteImage(image, str(folder / header))
    assert predict(f"input={folder}").code == 0 and watch.seen == ["x"]
    assert predict(f"input={folder}").code == 0 and watch.seen == ["x"]
    os.utime(folder / voxels, (0, 0))
    assert predict(f"input={folder}").code == 0 and watch.seen == ["x", "x"]


def test_more_scans_may_be_added_and_names_stay(predict, watch, scans, out) -> None:
    """Of files with one name, the second one is called NAME-2: whatever comes before it later."""
    for folder in ("n", "z"):
        shutil.copytree(scans, scans.parent / folder)
    assert predict(f"input={scans.parent / 'n' / 'a.nii.gz'}", scans.parent / "z" / "a.nii.gz").code == 0
    before = {name: (row["source"], row["bright_ml"]) for name, row in table(out).items()}
    assert list(before) == ["a", "a-2"]
    volume(scans / "a.nii.gz", 3.0)
    watch.seen.clear()
    words = [f"input={scans.parent / folder / 'a.nii.gz'}" for folder in ("in", "z", "n")]
    assert predict(*words).code == 0 and watch.seen == ["a"]
    after = {name: (row["source"], row["bright_ml"]) for name, row in table(out).items()}
    assert list(after) == ["a-3", "a-2", "a"] and {name: after[name] for name in before} == before
    assert after["a-3"][0] == str(scans / "a.nii.gz")


def test_numbers_of_series_stay_and_nothing_names_the_patient(predict, watch, tmp_path, out) -> None:
    """Only what is printed says which is which: a number that moved would give a patient the map of another one."""
    for name in ("m", "p", "x"):
        write_series(tmp_path / "in" / f"Doe-{name}", seed=ord(name), shape=(24, 22, 20))
    outcome = stopped(watch, predict, "Doe-x", f"input={tmp_path / 'in'}", "report=true")
    told = dict(line.split(" is ") for line in outcome.out.splitlines() if " is " in line)
    assert [(name, Path(where.partition(" (")[0]).name) for name, where in told.items()] == [
        ("series-001", "Doe-m"), ("series-002", "Doe-p"), ("series-003", "Doe-x"),
    ]  # fmt: skip
    secrets = [*SECRETS.values(), "Doe-", str(tmp_path / "in")]
    written = b"".join(
        path.read_bytes() + str(path.relative_to(out)).encode() for path in out.rglob("*") if path.is_file()
    )
    assert not [secret for secret in secrets if secret.encode() in written]
    labels = {name: (out / "labels" / f"{name}.nii.gz").read_bytes() for name in ("series-001", "series-002")}

    write_series(tmp_path / "in" / "Doe-a", seed=5, shape=(24, 22, 20))  # before all others
    shutil.rmtree(tmp_path / "in" / "Doe-x")  # told to be series-003, and gone
    outcome = predict(f"input={tmp_path / 'in'}", "report=true")
    assert outcome.code == 0, outcome.err
    told = dict(line.split(" is ") for line in outcome.out.splitlines() if " is " in line)
    assert {name: Path(where.partition(" (")[0]).name for name, where in told.items()} == {
        "series-004": "Doe-a", "series-001": "Doe-m", "series-002": "Doe-p",
    }  # fmt: skip
    assert watch.seen == ["Doe-a"] and list(table(out)) == ["series-004", "series-001", "series-002"]
    assert labels == {name: (out / "labels" / f"{name}.nii.gz").read_bytes() for name in labels}


def test_predictions_of_scans_that_are_not_given_any_more_are_not_mixed_in(predict, watch, scans, out) -> None:
    assert predict(f"input={scans}").code == 0
    before = content(out)
    predict(f"input={scans / 'a.nii.gz'}").complains("not empty", "predictions of 2 scans", "b for one", "output=")
    assert content(out) == before
    (scans / "d.nii.gz").write_bytes(b"no volume")
    predict(f"input={scans}").complains("1 of 4 scans failed")
    (scans / "d.nii.gz").unlink()  # there is nothing of it
    assert predict(f"input={scans}").code == 0
    assert content(out) == before


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("overlap=0.25", "overlap: 0.5 there, 0.25 now"), ("mirror=true", "mirror: False there, True now"),
        ("uncertainty=true", "uncertainty: False there"), ("probabilities=true", "probabilities: False there"),
        ("keep_largest=all", "keep_largest: [] there"),
        ("identifiers=true", "identifiers: False there"),
    ],
)  # fmt: skip
def test_other_settings_are_refused_by_name(predict, watch, scans, out, word, said) -> None:
    stopped(watch, predict, "b.nii", f"input={scans}")
    before = content(out)
    predict(f"input={scans}", word).complains("not empty", said, "output=")
    assert content(out) == before and watch.seen == []


def test_other_networks_are_refused_by_name(predict, watch, scans, out, run, tmp_path) -> None:
    stopped(watch, predict, "b.nii", f"input={scans}")
    predict(f"input={scans}", f"run={run}", f"run={write_run(tmp_path / 'other')}").complains("checkpoint: ", "output=")
    checkpoint = run / "checkpoints" / "iteration-000100.ckpt"
    state = torch.load(checkpoint)
    torch.save({**state, "global_step": 1}, checkpoint)
    predict(f"input={scans}").complains("checkpoint: iteration-000100.ckpt", "there")
    torch.save(state, checkpoint)
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "seed": 5}))  # changes nothing
    moved = shutil.move(run, tmp_path / "moved")
    assert predict(f"input={scans}", f"run={moved}").code == 0 and watch.seen == ["b", "c"]
    config["data"]["patch_size"] = [16, 16, 32]
    (moved / "config.yaml").write_text(yaml.safe_dump(config))
    predict(f"input={scans}", f"run={moved}").complains("config.yaml and preprocessing.json: ")


def test_other_code_of_the_users_is_refused_by_name(predict, watch, scans, out, run) -> None:
    stopped(watch, predict, "b.nii", f"input={scans}")
    record = json.loads((out / "prediction.json").read_text())
    record["predicted_by"][str(run)]["code"]["predict_toys"] = "0" * 64
    (out / "prediction.json").write_text(json.dumps(record))
    predict(f"input={scans}").complains("code of predict_toys: 0000", "there", "output=")
    assert watch.seen == []


def test_another_kind_of_device_is_refused(predict, watch, scans, out) -> None:
    stopped(watch, predict, "b.nii", f"input={scans}")
    record = json.loads((out / "prediction.json").read_text())
    record["settings"]["device"] = "cuda:1"
    (out / "prediction.json").write_text(json.dumps(record))
    predict(f"input={scans}").complains("device=cuda:1", "this is cpu")
    assert watch.seen == []


def test_another_version_goes_on_and_says_so(predict, watch, scans, out, monkeypatch) -> None:
    stopped(watch, predict, "b.nii", f"input={scans}")
    record = json.loads((out / "prediction.json").read_text())
    record["versions"]["torch"] = "1.0"
    (out / "prediction.json").write_text(json.dumps(record))
    known = Rising.scan_record  # a newer version knows more of a run than the run has recorded
    monkeypatch.setattr(Rising, "scan_record", lambda self: {**known(self), "new": None})
    outcome = predict(f"input={scans}")
    assert outcome.code == 0 and "1 scans " in outcome.err and "with torch 1.0" in outcome.err
    (again,) = json.loads((out / "prediction.json").read_text())["resumed"]
    assert again["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("change", ["no scans", "no settings", "../name"])
def test_a_record_that_is_no_such_one(predict, watch, scans, out, tmp_path, change) -> None:
    stopped(watch, predict, "b.nii", f"input={scans}")
    record = json.loads((out / "prediction.json").read_text())
    if change == "no scans":
        del record["scans"]
    elif change == "no settings":
        del record["settings"]
    else:
        record["scans"]["../../in/a"] = record["scans"]["b"]  # whose maps would be removed
    (out / "prediction.json").write_text(json.dumps(record))
    words = ["earlier version"] if change == "no scans" else ["prediction.json: damaged"]
    predict(f"input={scans}").complains(*words, "output=")
    assert (scans / "a.nii.gz").exists() and watch.seen == []


def test_of_two_predictions_at_once_the_second_is_refused(predict, scans, out, monkeypatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 0.1)
    with lock.writing(out):
        predict(f"input={scans}").complains(f"written by process {os.getpid()} ", "output=")
    assert not out.exists()


def test_what_a_killed_process_left_goes_and_files_of_the_user_stay(predict, watch, scans, out) -> None:
    out.mkdir()
    (out / ".0a1b2c3d.tmp.prediction.json").write_text("{")  # killed at its first write
    (out / lock.LOCK).touch()
    stopped(watch, predict, "b.nii", f"input={scans}")
    (out / "labels" / ".0a1b2c3d.tmp.b.nii.gz").touch()
    (out / "labels" / "b.nii.gz").touch()  # written, but not recorded
    (out / "labels" / "my.tmp.notes").touch()
    assert predict(f"input={scans}").code == 0
    assert not list(out.rglob(".*")) and (out / "labels" / "my.tmp.notes").exists()
    assert (out / "labels" / "b.nii.gz").stat().st_size > 0


def test_the_page_gets_the_scans_that_are_added(predict, watch, scans, out, tmp_path) -> None:
    """Those of the first page, whose display copies lie nowhere else, and those that are new."""
    words = (f"input={scans}", "report=true")
    late = shutil.move(scans / "b.nii.gz", tmp_path / "b.nii.gz")
    assert predict(*words).code == 0
    shutil.move(late, scans / "b.nii.gz")
    watch.seen.clear()
    assert predict(*words).code == 0 and watch.seen == ["b"]
    assert predict(*words, f"output={tmp_path / 'whole'}").code == 0
    assert content(out) == content(tmp_path / "whole")
    again = predict(*words).out
    assert all(f": {out / name}\n" in again.replace(":   ", ":") for name in ("report.html", "labels", "summary.csv"))
    (out / "report.html").unlink()  # and with it the copies
    watch.seen.clear()
    assert predict(*words).code == 0 and watch.seen == ["a", "b", "c"]
    assert content(out) == content(tmp_path / "whole")


def test_a_page_may_be_added_and_is_kept_up_to_date_then(predict, watch, scans, out, tmp_path) -> None:
    words = (f"input={scans}", "report=true")
    assert predict(words[0]).code == 0 and not (out / "report.html").exists()
    assert predict(*words).code == 0
    assert predict(*words, f"output={tmp_path / 'whole'}").code == 0
    assert content(out) == content(tmp_path / "whole")
    predict(words[0]).complains("report: True there, False now")


def test_maps_stay_until_those_with_a_page_take_their_place(predict, watch, scans, out) -> None:
    assert predict(f"input={scans}").code == 0
    maps = {path.name: path.read_bytes() for path in (out / "labels").glob("*.nii.gz")}
    outcome = stopped(watch, predict, "b.nii", f"input={scans}", "report=true")
    assert "3 of 3 scans are predicted again" in outcome.out
    assert {path.name: path.read_bytes() for path in (out / "labels").glob("*.nii.gz")} == maps


def test_a_page_that_was_not_written_is(predict, watch, scans, out, tmp_path, monkeypatch) -> None:
    words = (f"input={scans}", "report=true")
    with monkeypatch.context() as patch:
        patch.setattr("dualseg.prediction.viewer.review_page.ReviewPage.write", lambda *_: sys.exit(9))
        assert predict(*words).code == 9
    watch.seen.clear()
    assert predict(*words).code == 0 and watch.seen == []
    assert predict(*words, f"output={tmp_path / 'whole'}").code == 0
    assert content(out) == content(tmp_path / "whole")
