"""What a prediction consists of: ensemble, uncertainty, volumes, components, names, records; in memory or on disk."""

import csv
import hashlib
import json
import math
import os
import shutil
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import predict_toys
import pytest
import torch
import yaml
from predict_toys import BALLS, Rising, Threshold, save, scene, write_run

from dualseg.data import Folder
from dualseg.data.checking.doubts import scan_doubts
from dualseg.data.reading import VolumeReader
from dualseg.data.volumes import Grid, Image
from dualseg.errors import DualsegError
from dualseg.inference import SlidingWindow
from dualseg.inference.predictor import MAPS, Member, Predictor
from dualseg.prediction.inputs import find_scans
from dualseg.prediction.review import Row, reasons_to_look, unlike_labels

AFFINE = np.array([[0, -2.0, 0, 30], [1.5, 0, 0, -7], [0, 0, -2.5, 11], [0, 0, 0, 1]])
SHAPE = (42, 30, 25)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "scan.nii.gz"
    save(path, scene(AFFINE, SHAPE)[0], AFFINE)
    return path


def read(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def summary(out: Path) -> dict[str, dict[str, str]]:
    with (out / "summary.csv").open(newline="") as file:
        return {row["scan"]: row for row in csv.DictReader(file)}


def predictor(*thresholds: float) -> Predictor:
    networks = {f"n{t}": Threshold(1, 3, t) for t in thresholds}
    source = Rising.for_scans({})
    window = SlidingWindow((16, 16, 16), (8, 8, 8))
    member = Member(VolumeReader(source).prepare_scan, source.prepared_voxels, networks, window)
    return Predictor([member], 3, torch.device("cpu"))


def test_on_disk_the_result_is_bit_for_bit_that_in_memory(tmp_path) -> None:
    image = Image(scene(AFFINE, SHAPE)[0][None], AFFINE)
    ours = predictor(0.4, 0.5, 0.6)
    in_memory = ours(image, "scan", 2**34, tmp_path / "never", MAPS)  # a file there could not be made
    needed = ours.needs(Grid(SHAPE, AFFINE))
    on_disk = ours(image, "scan", needed, tmp_path, MAPS)
    for name in ("label", *MAPS):
        got, expected = getattr(on_disk, name), getattr(in_memory, name)
        np.testing.assert_array_equal(got, expected)
        assert not got.flags.owndata and expected.flags.owndata
    assert on_disk.measures == in_memory.measures
    assert not any(tmp_path.iterdir())
    with pytest.raises(DualsegError, match="42 x 30 x 25 voxels take at least"):
        ours(image, "scan", needed - 1, tmp_path)


def test_entropy_disagreement_and_measures_by_hand(tmp_path, monkeypatch) -> None:
    """From each network's own probabilities, voxel by voxel, in float64, whatever the slabs."""
    image = Image(scene(AFFINE, SHAPE)[0][None], AFFINE)
    each = [predictor(t)(image, "scan", 2**34, tmp_path, MAPS).probabilities.astype(np.float64) for t in (0.35, 0.6)]
    monkeypatch.setattr("dualseg.inference.predictor.SLAB_BYTES", 10**6)
    got = predictor(0.35, 0.6)(image, "scan", 2**34, tmp_path, MAPS)
    mean = (each[0] + each[1]) / 2
    np.testing.assert_allclose(got.probabilities, mean, atol=1e-6)
    np.testing.assert_allclose(mean.sum(axis=-1), 1, atol=1e-5)
    np.testing.assert_array_equal(got.label, got.probabilities.argmax(axis=-1))
    logs = np.log(mean, where=mean > 0, out=np.zeros_like(mean))
    entropy = -(mean * logs).sum(axis=-1) / math.log(3)
    np.testing.assert_allclose(got.entropy, entropy, atol=1e-5)
    own = [p.argmax(axis=-1) for p in each]
    differ = own[0] != own[1]
    np.testing.assert_array_equal(got.disagreement, differ)
    assert 0 < differ.sum() < differ.size / 10
    foreground = (own[0] > 0) | (own[1] > 0) | (got.label > 0)
    expected = {"mean_entropy": entropy.mean(), "mean_entropy_foreground": entropy[foreground].mean()}
    expected |= {"disagreement": differ.mean(), "disagreement_foreground": differ[foreground].mean()}
    assert got.measures == pytest.approx(expected, rel=1e-4)


def test_one_network_has_no_disagreement_and_an_empty_scan_no_foreground(tmp_path) -> None:
    image = Image(np.zeros((1, *SHAPE), np.float32), AFFINE)
    got = predictor(0.5)(image, "scan", 2**34, tmp_path, MAPS)
    assert got.disagreement is None and not got.label.any()
    assert [name for name, value in got.measures.items() if math.isnan(value)] == [
        "mean_entropy_foreground", "disagreement", "disagreement_foreground",
    ]  # fmt: skip


def test_runs_that_prepare_scans_differently_are_averaged_on_the_scans_grid(predict, tmp_path, scan) -> None:
    runs = [write_run(tmp_path / "runs" / str(d), downsample=d, patch_size=[16, 16, 32]) for d in (1, 2)]
    singles = []
    for number, run in enumerate(runs):
        out = tmp_path / f"single{number}"
        assert predict(f"run={run}", f"input={scan}", f"output={out}", "probabilities=true").code == 0
        singles.append(read(out / "probabilities" / "scan.nii.gz"))
    assert predict(*(f"run={run}" for run in runs), f"input={scan}", "probabilities=true").code == 0
    both = read(tmp_path / "out" / "probabilities" / "scan.nii.gz")
    np.testing.assert_allclose(both, (singles[0] + singles[1]) / 2, atol=1e-6)
    record = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert record["networks"] == ["1-1/a", "1-1/b", "2-2/a", "2-2/b"] and len(record["windows"]) == 2
    assert len(record["predicted_by"]) == 2


def test_seeds_of_one_setting_prepare_a_scan_once(predict, tmp_path, scan, monkeypatch) -> None:
    runs, calls = [write_run(tmp_path / f"seed{n}") for n in range(3)], []
    real = Rising.prepare_scan
    monkeypatch.setattr(Rising, "prepare_scan", lambda self, image: calls.append(1) or real(self, image))
    assert predict(*(f"run={run}" for run in runs), f"input={scan}").code == 0
    assert len(calls) == 1


def test_the_record_says_how_it_was_done(predict, tmp_path, run, scan) -> None:
    moved = tmp_path / "elsewhere" / "again"
    shutil.copytree(run, moved)
    shutil.rmtree(run)
    words = ["overlap=0.25", "mirror=true", "keep_largest=all", "memory=2GiB", "device=cpu"]
    assert predict(f"run={moved}", f"input={scan}", *words).code == 0
    record = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert record["settings"] == {
        "overlap": 0.25, "mirror": True, "probabilities": False, "uncertainty": False, "report": False,
        "keep_largest": ["all"],
        "memory": 2**31, "device": "cpu", "identifiers": False,
    }  # fmt: skip
    assert record["windows"] == [{"patch_size": [16, 16, 16], "stride": [12, 12, 12]}]
    (file,) = (moved / "checkpoints").iterdir()
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    toys = hashlib.sha256(Path(predict_toys.__file__).read_bytes()).hexdigest()
    own = {"checkpoint": file.name, "sha256": digest, "code": {"predict_toys": toys}}
    assert record["predicted_by"] == {str(moved): own}
    assert record["labels"] == {"background": 0, "bright": 1, "dark": 2}
    names = json.loads((tmp_path / "out" / "labels" / "scan.json").read_text())
    assert names == {"labels": record["labels"]}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"labels", "prediction.json", "summary.csv"}


def test_the_summary(predict, tmp_path, scan) -> None:
    assert predict(f"input={scan}", "uncertainty=true").code == 0
    (row,) = summary(tmp_path / "out").values()
    label = read(tmp_path / "out" / "labels" / "scan.nii.gz")
    for value, (name, (_, radius)) in enumerate(BALLS.items(), start=1):
        ml = (label == value).sum() * 1.5 * 2 * 2.5 / 1000
        assert float(row[f"{name}_ml"]) == pytest.approx(ml, abs=1e-4)
        assert ml == pytest.approx(4 / 3 * np.pi * radius**3 / 1000, rel=0.1)
    differ = read(tmp_path / "out" / "disagreement" / "scan.nii.gz")
    assert float(row["disagreement"]) == pytest.approx(differ.mean(), abs=1e-6)
    entropy = read(tmp_path / "out" / "entropy" / "scan.nii.gz")
    assert float(row["mean_entropy"]) == pytest.approx(entropy.mean(), abs=1e-5)
    assert entropy.min() >= 0 and entropy.max() <= 1
    assert (row["scan"], row["status"], row["source"], row["problem"]) == ("scan", "predicted", str(scan), "")


def test_only_the_classes_that_are_named_are_cleaned(predict, tmp_path) -> None:
    image = scene(AFFINE, SHAPE)[0]
    image[2:6, 2:6, 2:6], image[36:40, 2:6, 2:6] = 1, -1  # far from the balls
    path = tmp_path / "scan.nii"
    save(path, image, AFFINE)
    corners = {}
    for words in ((), ("keep_largest=bright",), ("keep_largest=[bright,dark]",)):
        out = tmp_path / f"out{len(corners)}"
        assert predict(f"input={path}", f"output={out}", *words).code == 0
        label = read(out / "labels" / "scan.nii.gz")
        corners[words] = (label[4, 4, 4], label[38, 4, 4])
    assert list(corners.values()) == [(1, 2), (0, 2), (0, 0)]


def row(ml: float, entropy: float, disagreement: float = 0.05) -> Row:
    measures = {"mean_entropy_foreground": entropy, "disagreement_foreground": disagreement}
    return Row("x", "", volumes={"liver": ml}, measures=measures)


def test_scans_to_look_at() -> None:
    usual = [row(50 + index, 0.3 + 0.01 * index) for index in range(9)]
    odd = [row(0, 0.3), row(500, 0.3), row(52, 0.9), row(52, 0.1), row(52, math.nan, math.nan), row(52, 0.3, 0.21)]
    failed = Row("x", "", problem="no")
    reasons = reasons_to_look([*usual, *odd, failed])
    assert reasons[:9] == [()] * 9 and reasons[-1] == ()
    assert reasons[9:-1] == [
        ("no liver", "unusual volume of liver"), ("unusual volume of liver",), ("unusually uncertain",), (), (),
        ("networks disagree",),
    ]  # fmt: skip
    assert reasons_to_look(odd[:2]) == [("no liver",), ()]  # too few to say what is usual
    assert reasons_to_look([row(5, 0.3)] * 9 + [row(6, 0.4)]) == [()] * 10  # no spread, no measure


def test_volumes_unlike_those_of_the_labels() -> None:
    runs = [{"liver": (1000.0, 2000.0), "tumour": (0.0, 30.0)}, {"liver": (900.0, 1500.0)}, {}]

    def found(liver: float, tumour: float = 1.0) -> list[str]:
        return unlike_labels({"liver": liver, "tumour": tumour, "vessel": 1e9}, runs)

    assert found(449) == ["little liver"] and found(4001) == ["much liver"]
    assert found(451) == found(4000) == found(0) == []  # a class that is not found is said to be so elsewhere
    assert found(1000, 0.01) == [] and found(1000, 61) == ["much tumour"]


def test_a_prediction_is_compared_with_the_labels_of_the_plan(predict, run, tmp_path) -> None:
    save(tmp_path / "in" / "scan.nii.gz", scene(AFFINE, SHAPE)[0], AFFINE)
    assert predict(f"input={tmp_path / 'in'}").code == 0
    volumes = {name: float(summary(tmp_path / "out")["scan"][f"{name}_ml"]) for name in ("bright", "dark")}
    measured = {"volumes_ml": {"bright": [3 * volumes["bright"], 9e9], "dark": [0.0, volumes["dark"]]}}
    (run / "plan.yaml").write_text(yaml.safe_dump({"measured": measured}))
    outcome = predict(f"input={tmp_path / 'in'}", f"output={tmp_path / 'again'}")
    assert summary(tmp_path / "again")["scan"]["look_at"].split("; ")[0] == "little bright"
    assert "Look at scan: little bright" in outcome.out and "dark" not in outcome.out.partition("Look at")[2]
    (run / "plan.yaml").write_text("measured: {volumes_ml: [1]}")  # after an edit
    assert predict(f"input={tmp_path / 'in'}", f"output={tmp_path / 'edited'}").code == 0


@pytest.mark.parametrize("name", [b"a\nb", b"a\x1b[2Jb", "a\u202eb".encode(), b"a\xffb"], ids=str)
def test_a_name_that_no_table_can_hold(predict, tmp_path, name) -> None:
    affine = np.diag([2.0, 2, 2, 1])
    save(tmp_path / "in" / "good.nii", scene(affine, (20, 20, 20))[0], affine)
    try:
        (tmp_path / "in" / "good.nii").rename(tmp_path / "in" / f"{os.fsdecode(name)}.nii")
    except OSError:
        pytest.skip("this file system has no such names")
    predict(f"input={tmp_path / 'in'}").complains("scan", "U+")
    assert not (tmp_path / "out").exists()


def test_names_of_outputs(tmp_path) -> None:
    folder = tmp_path / "in"
    for path in ("b.nii.gz", "a.nii", "sub-01/anat/T1w.nii.gz", "._a.nii", ".hidden/c.nii", "notes.txt"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"")
    found = find_scans([folder, folder / "b.nii.gz", folder / "sub-01" / "anat" / "T1w.nii.gz"], 1)
    assert [scan.name for scan in found.scans] == ["a", "b", "sub-01_anat_T1w", "b-2", "T1w"]


def test_names_too_long_for_a_file(predict, tmp_path) -> None:
    """Of folders by identifiers, the joined name has more bytes than a file's may have."""
    deep = tmp_path.joinpath("in", *("1.3.6.1." + str(number) * 60 for number in range(4)))
    image = scene(AFFINE, SHAPE)[0]
    save(deep / "scan.nii.gz", image, AFFINE)
    save(tmp_path / "in" / f"{'n' * 248}.nii.gz", image, AFFINE)
    assert predict(f"input={tmp_path / 'in'}").code == 0
    names = {path.name.removesuffix(".nii.gz") for path in (tmp_path / "out" / "labels").glob("*.nii.gz")}
    assert len(names) == 2 and names == set(summary(tmp_path / "out"))


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["x_0000.nii.gz", "y_0000.nii.gz"], ["x", "y"]),  # nnU-Net's imagesTs
        (["x_0000.nii.gz", "x_0001.nii.gz"], ["x_0000", "x_0001"]),  # cases with a number
    ],
)
def test_numbers_at_the_end_of_a_name_with_one_channel(tmp_path, files, names) -> None:
    for file in files:
        (tmp_path / file).write_bytes(b"")
    assert [scan.name for scan in find_scans([tmp_path], 1).scans] == names


def test_a_number_at_the_end_of_a_file_of_all_channels_is_the_cases_own(tmp_path) -> None:
    """As in the Decathlon's layout."""
    image = np.zeros((*SHAPE, 2), np.int16)
    for name in ("prostate_0000", "prostate_0007", "prostate_0012"):
        save(tmp_path / f"{name}.nii.gz", image, AFFINE)
    for name in ("x_0000", "x_0001"):
        save(tmp_path / f"{name}.nii.gz", image[..., 0], AFFINE)
    found = find_scans([tmp_path], 2).scans
    assert [scan.name for scan in found] == ["prostate_0000", "prostate_0007", "prostate_0012", "x"]
    assert [len(scan.files) for scan in found] == [1, 1, 1, 2]


@pytest.mark.parametrize(
    "files",
    [
        ["x_0000.nii.gz", "x_0002.nii.gz"],
        ["x_0001.nii.gz", "x_0002.nii.gz"],
        ["x_0000.nii", "x_0000.nii.gz"],
        ["x_0000.nii.gz", "x_0001.nii", "x_0001.nii.gz"],
    ],
)
def test_channels_must_be_there_each_once(predict, run, tmp_path, files) -> None:
    """As many files as channels are not yet the right ones."""
    record = {"class_names": ["background", "bright", "dark"], "channels": len(files)}
    (run / "preprocessing.json").write_text(json.dumps(record))
    for file in files:
        save(tmp_path / "in" / file, scene(AFFINE, SHAPE)[0], AFFINE)
    outcome = predict(f"input={tmp_path / 'in'}")
    assert outcome.code == 2 and f"here are {', '.join(files)}" in outcome.err
    assert not list((tmp_path / "out").glob("labels/*"))


def test_several_channels_in_one_file_or_in_one_file_each(predict, run, tmp_path) -> None:
    """The networks see the mean of the channels."""
    (run / "preprocessing.json").write_text('{"class_names": ["background", "bright", "dark"], "channels": 2}')
    image = scene(AFFINE, SHAPE)[0]
    save(tmp_path / "in" / "one.nii.gz", np.stack([1.5 * image, 0.5 * image], axis=-1), AFFINE)
    save(tmp_path / "in" / "two_0000.nii.gz", 1.5 * image, AFFINE)
    save(tmp_path / "in" / "two_0001.nii.gz", 0.5 * image, AFFINE)
    save(tmp_path / "in" / "lone_0000.nii.gz", image, AFFINE)
    save(tmp_path / "in" / "moved_0000.nii.gz", image, AFFINE)
    save(tmp_path / "in" / "moved_0001.nii.gz", image, AFFINE + np.array([[0, 0, 0, 5.0]] + [[0, 0, 0, 0]] * 3))
    outcome = predict(f"input={tmp_path / 'in'}")
    rows = summary(tmp_path / "out")
    assert {name: row["status"] for name, row in rows.items()} == {
        "lone": "failed", "moved": "failed", "one": "predicted", "two": "predicted",
    }  # fmt: skip
    assert "1 channels, " in rows["lone"]["problem"] and "networks take 2" in rows["lone"]["problem"]
    assert outcome.code == 2
    assert "moved_0001.nii.gz: is on another grid" in rows["moved"]["problem"]
    labels = [read(tmp_path / "out" / "labels" / f"{name}.nii.gz") for name in ("one", "two")]
    np.testing.assert_array_equal(*labels)
    assert set(np.unique(labels[0])) == {0, 1, 2}


def test_a_doubtful_scan_is_predicted_and_said_to_be_doubtful(predict, tmp_path) -> None:
    """ITK will refuse the label map too, and what the header says twice is left as it is."""
    affine = AFFINE.copy()
    affine[:3, 1] += 0.2 * affine[:3, 0]
    save(tmp_path / "in" / "leaning.nii.gz", scene(affine, SHAPE)[0], affine)
    image = save(tmp_path / "in" / "moved.nii.gz", scene(AFFINE, SHAPE)[0], AFFINE)
    other = AFFINE.copy()
    other[0, 3] += 10
    image.set_qform(other, 1)
    nib.save(image, tmp_path / "in" / "moved.nii.gz")
    save(tmp_path / "in" / "sound.nii.gz", scene(AFFINE, SHAPE)[0], AFFINE)
    outcome = predict(f"input={tmp_path / 'in'}")
    assert outcome.code == 0, outcome.err
    lines = [line for line in outcome.err.splitlines() if line.startswith("warning: ")]
    files = {str(tmp_path / "in" / f"{name}.nii.gz") for name in ("leaning", "moved")}
    assert {line.split(": ")[1] for line in lines} == files
    assert any("ITK" in line and "leaning" in line for line in lines)
    look_at = {name: row["look_at"].split("; ") for name, row in summary(tmp_path / "out").items()}
    assert "shear" in look_at["leaning"] and "qform/sform" in look_at["moved"]
    assert not {"shear", "qform/sform"} & {*look_at["sound"]}


def test_values_that_the_runs_dataset_doubts_are_said(tmp_path) -> None:
    """A window in HU, as the run has recorded it, and a scan to which 1024 was added."""
    record = {"class_names": ["background", "a", "b"], "channels": 1, "spacing": None, "intensity": [[-160, 240]]}
    source = Folder.for_scans(record)
    member = Member(VolumeReader(source).prepare_scan, source.prepared_voxels, {}, None, partial(scan_doubts, source))
    ours = Predictor([member, member], 3, torch.device("cpu"))
    array = np.full((1, 20, 20, 20), -1000, np.float32)
    array[:, 5:15] = np.random.default_rng(0).normal(40, 15, (1, 10, 20, 20))
    assert ours.doubts(Image(array, AFFINE)) == []
    (problem,) = ours.doubts(Image(array + 1024, AFFINE))
    assert problem.kind == "CT values"
    assert [problem.kind for problem in ours.doubts(Image(0 * array, AFFINE))] == ["constant", "CT values"]
    moved = Folder.for_scans({**record, "intensity": [[864, 1264]]})
    assert scan_doubts(moved, Image(array + 1024, AFFINE)) == []


def test_the_folder_of_a_verdict_stands_for_the_runs_that_it_recommends(predict, tmp_path) -> None:
    image, _ = scene(AFFINE, SHAPE)
    image[2:6, 2:6, 2:6] = 1  # a second bright piece
    path = tmp_path / "scan.nii"
    save(path, image, AFFINE)
    runs = [write_run(tmp_path / "runs" / name) for name in ("one", "two")]
    study = tmp_path / "runs" / "sweeps" / "verdict-x"
    study.mkdir(parents=True)
    content = {"runs": ["one", "two"], "keep_largest": ["bright"]}
    (study / "verdict.json").write_text(json.dumps(content))
    outcome = predict(f"run={study}", f"input={path}")
    assert outcome.code == 0 and "Largest component alone: bright" in outcome.out
    record = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert [*record["predicted_by"]] == [str(run) for run in runs]
    assert read(tmp_path / "out" / "labels" / "scan.nii.gz")[4, 4, 4] == 0
    assert predict(f"run={study}", f"input={path}", f"output={tmp_path / 'all'}", "keep_largest=none").code == 0
    assert read(tmp_path / "all" / "labels" / "scan.nii.gz")[4, 4, 4] == 1


@pytest.mark.parametrize("text", ["verified +2.1 [0.4, 3.9]", None])
def test_what_a_run_carries_of_a_verdict_is_said(text, predict, run, tmp_path, scan) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text()) | {"batch": {"unlabeled": 2}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    if text:
        (run / "verdict.json").write_text(json.dumps({"short": text}))
    outcome = predict(f"input={scan}")
    assert outcome.code == 0 and f"unlabeled scans in training: {text or 'not verified'}" in outcome.out


def test_a_class_that_the_run_hardly_finds_is_warned_of(predict, run, tmp_path, scan) -> None:
    head = "case,split,network,class,dice,jaccard,hd95,asd,empty"
    rows = [f"c,test,ensemble,{name},{dice},0.1,1,1," for name, dice in (("liver", 0.05), ("tumour", 0.5))]
    (run / "cases.csv").write_text("\n".join([head, *rows, ""]))
    metrics = {"status": "finished", "test": {name: {"dice": 0.3} for name in ("a", "b", "ensemble")}}
    (run / "metrics.json").write_text(json.dumps(metrics))
    outcome = predict(f"input={scan}", f"output={tmp_path / 'said'}")
    assert outcome.code == 0 and "liver (Dice 5.0 %)" in outcome.err and "tumour" not in outcome.err
    for damaged in ("{", '{"status": "finished", "test": 5}'):
        (run / "metrics.json").write_text(damaged)
        outcome = predict(f"input={scan}", f"output={tmp_path / str(len(damaged))}")
        assert outcome.code == 0 and "Dice" not in outcome.err
