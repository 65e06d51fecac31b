"""`dualseg-prepare`: the whole command, in parallel, stopped and started again, with cases that fail."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture
from raw_files import lps_affine, write_brats, write_la
from test_pancreas import write_raw

from dualseg import prepare, train
from dualseg.command.grammar import default_text, read_arguments
from dualseg.data import BraTS2019, PancreasCT, brats2019
from dualseg.data.brats2019 import MODALITIES
from dualseg.data.left_atrium import case_list
from dualseg.preparation import case_loop
from dualseg.preparation.brats2019 import BraTS2019Preparation
from dualseg.preparation.datasets import DATASETS
from dualseg.preparation.left_atrium import LeftAtriumPreparation
from dualseg.preparation.pancreas_ct import PancreasPreparation

CASES = case_list("train")[:12]
AFFINE = lps_affine((0.625,) * 3, (-60.0, -75.5, 31.0))


def write_cases(raw: Path, cases: Sequence[str]) -> Path:
    rng = np.random.default_rng(0)
    image, label = np.zeros((40, 36, 8)), np.zeros((40, 36, 8))
    image[4:36, 4:32] = rng.integers(80, 120, (32, 28, 8))
    label[12:25, 10:22, 2:6] = 255
    write_la(raw / cases[0], image + label / 5, label, AFFINE)
    for case in cases[1:]:
        shutil.copytree(raw / cases[0], raw / case)
    return raw


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_cases(tmp_path / "raw", CASES)


@pytest.fixture(autouse=True)
def short_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first twelve cases are listed."""
    monkeypatch.setattr(LeftAtriumPreparation, "listed", lambda self: CASES)


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "summary.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_header_of_another_scale_is_refused_before_it_is_resampled(raw, tmp_path, command):
    rng = np.random.default_rng(1)
    label = np.zeros((40, 36, 8))
    label[12:25, 10:22, 2:6] = 255
    shutil.rmtree(raw / CASES[1])
    write_la(raw / CASES[1], rng.integers(80, 120, label.shape), label, lps_affine((62.5,) * 3, (0, 0, 0)))
    ended = command(prepare.main, "data=la", f"raw={raw}", f"out={tmp_path / 'out'}", "workers=1")
    ended.complains(CASES[1])
    (said,) = [line for line in ended.out.splitlines() if line.startswith(f"{CASES[1]}: ")]
    for word in ("40 x 36 x 8 voxels of 62.5 x 62.5 x 62.5 mm", "11,520,000,000 voxels", "GiB", "header"):
        assert word in said
    assert not (tmp_path / "out" / CASES[1]).exists() and (tmp_path / "out" / CASES[2] / "mri_norm2.h5").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_all_cases_a_summary_and_a_picture_of_every_tenth(raw, tmp_path, command, contents, workers):
    before, out = contents(raw), tmp_path / "out"
    ended = command(prepare.main, "data=la", f"raw={raw}", f"out={out}", f"workers={workers}")
    assert ended.code == 0, ended.err
    assert contents(raw) == before
    assert {p.name for p in out.iterdir()} == {*CASES, "pictures", "summary.csv", "prepared.json"}
    for case in CASES:
        assert {p.name for p in (out / case).iterdir()} == {"mri_norm2.h5", "mri_norm2.json"}
    assert [p.stem for p in sorted((out / "pictures").iterdir())] == sorted([CASES[0], CASES[10]])
    with Picture.open(out / "pictures" / f"{CASES[0]}.png") as picture:
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(int)
    assert ((colours[:, 0] > 150) & (colours[:, 1] < 80)).sum() > 50  # the red contour
    rows = rows_of(out)
    assert [row["case"] for row in rows] == list(CASES)
    assert float(rows[0]["atrium ml"]) == pytest.approx(13 * 12 * 4 * 0.625**3 / 1000, abs=1e-3)
    assert [rows[0][f"raw shape {axis}"] for axis in ("left", "posterior", "superior")] == ["40", "36", "8"]
    assert rows[0]["raw spacing left"] == "0.625" and float(rows[0]["raw max"]) > 100
    assert "atrium ml" in ended.out and "lowest" in ended.out and "crop=ground_truth" in ended.out
    record = json.loads((out / "prepared.json").read_text())
    assert (record["data"], record["crop"], record["missing"]) == ("la", "ground_truth", [])


def test_pictures_are_of_every_tenth_case_that_is_there(raw, tmp_path, command):
    """A partial download may lack just those that would be the tenth of the list."""
    (lost,) = {path.parent for path in raw.rglob("lgemri.nrrd") if CASES[0] in str(path)}
    lost.rename(tmp_path / "not downloaded")
    out = tmp_path / "out"
    command(prepare.main, "data=la", f"raw={raw}", f"out={out}", "workers=1")
    assert {p.stem for p in (out / "pictures").iterdir()} == {CASES[1], CASES[11]}


def test_the_same_bytes_whatever_the_number_of_workers(raw, tmp_path, command):
    for workers in (1, 3):
        assert (
            command(prepare.main, "data=la", f"raw={raw}", f"out={tmp_path / str(workers)}", f"workers={workers}").code
            == 0
        )
    for path in (tmp_path / "1").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "3" / path.relative_to(tmp_path / "1")).read_bytes(), path


def test_a_second_run_does_what_is_left(raw, tmp_path, command, contents):
    out = tmp_path / "out"
    words = ("data=la", f"raw={raw}", f"out={out}", "workers=1")
    assert command(prepare.main, *words).code == 0
    (out / CASES[2] / "mri_norm2.json").unlink()
    (out / CASES[3] / "mri_norm2.h5").unlink()
    (out / CASES[4] / ".0123abcd.tmp.mri_norm2.h5").write_text("left by kill -9")
    before = contents(out)
    ended = command(prepare.main, *words)
    assert ended.code == 0 and "12 cases" in ended.out and "10 of them before" in ended.out
    after = contents(out)
    kept = {name for name in after if name.startswith((*CASES[:2], *CASES[4:]))}
    assert all(after[name] == before[name] for name in kept) and f"{CASES[3]}/mri_norm2.h5" in after
    assert not list(out.rglob(".*"))


def test_a_preparation_that_was_killed_at_its_first_write_goes_on(raw, tmp_path, command):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".0a1b2c3d.tmp.prepared.json").write_text("{")
    assert command(prepare.main, "data=la", f"raw={raw}", f"out={out}", "workers=1").code == 0
    assert not list(out.rglob(".*"))


@pytest.mark.parametrize("workers", [1, 2])
def test_cases_that_fail_do_not_stop_the_others(raw, tmp_path, command, workers):
    out = tmp_path / "out"
    (raw / CASES[1] / "lgemri.nrrd").write_text("no volume")
    (raw / CASES[5] / "laendo.nrrd").unlink()
    write_cases(raw, ["UNLISTED"])
    words = ("data=la", f"raw={raw}", f"out={out}", f"workers={workers}")
    ended = command(prepare.main, *words)
    ended.complains("2 cases", CASES[1], CASES[5], "failed, see above")
    assert f"{CASES[1]}: {raw / CASES[1] / 'lgemri.nrrd'}: cannot be read" in ended.out
    assert f"{CASES[5]}: {raw / CASES[5] / 'laendo.nrrd'}: missing" in ended.out
    assert "Left out: 1 cases " in ended.out
    assert [row["case"] for row in rows_of(out)] == [case for case in CASES if case not in (CASES[1], CASES[5])]
    for case in (CASES[1], CASES[5]):
        for path in (raw / case).iterdir():
            path.unlink()
        (raw / case).rmdir()
    write_cases(raw, [CASES[1]])
    ended = command(prepare.main, *words)
    ended.complains("1 case (", CASES[5], "not below raw")
    assert len(rows_of(out)) == 11


def test_an_unforeseen_failure_stops_no_other_case(raw, tmp_path, command, monkeypatch):
    real = case_loop.prepare_case

    def fail(preparation, case, *rest):
        if case == CASES[1]:
            raise ZeroDivisionError("no")
        real(preparation, case, *rest)

    monkeypatch.setattr(case_loop, "prepare_case", fail)
    ended = command(prepare.main, "data=la", f"raw={raw}", f"out={tmp_path / 'out'}", "workers=1")
    ended.complains("1 case", CASES[1])
    assert "ZeroDivisionError: no" in ended.out and len(rows_of(tmp_path / "out")) == 11


def test_a_full_disk_fails_cases_and_leaves_nothing_of_them(raw, tmp_path):
    """A limit on the size of files stands for the full disk."""
    out = tmp_path / "out"
    limited = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
    limited += "from dualseg.prepare import main; main()"
    words = [sys.executable, "-c", limited, "data=la", f"raw={raw}", f"out={out}", "workers=1"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 2 and "cannot be written" in ended.stdout and "Traceback" not in ended.stderr
    assert not list(out.rglob("*.h5")) and not list(out.rglob(".*.tmp.*"))


@pytest.fixture
def preparing(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """dualseg-prepare with two processes, in a process group of its own, that has prepared a few of 80 cases."""
    raw, out = write_cases(tmp_path / "raw", case_list("train")), tmp_path / "out"
    words = [sys.executable, "-m", "dualseg.prepare", "data=la", f"raw={raw}", f"out={out}", "workers=2"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    for _ in range(1200):
        if len(list(out.glob("*/*.json"))) >= 5:  # with the two that may be half-written
            break
        time.sleep(0.05)
    yield process
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def group_of(process: subprocess.Popen[str]) -> set[int]:
    """What runs in its process group."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
            found |= {int(stat.parent.name)} if int(group) == process.pid and state != "Z" else set()
    return found


def wait_for_the_end(process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 10
    while left := group_of(process):
        assert time.monotonic() < deadline, f"{left} go on"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "send", "code"),
    [(signal.SIGINT, os.killpg, 130), (signal.SIGTERM, os.kill, 143), (signal.SIGTERM, os.killpg, 143)],
    ids=["Ctrl-C", "SIGTERM", "SIGTERM to all"],
)
def test_a_signal_leaves_nothing_half_written_and_the_next_run_goes_on(
    preparing, tmp_path, command, monkeypatch, number, send, code
):
    out = tmp_path / "out"
    send(preparing.pid, number)  # to the group as a terminal does
    _, error = preparing.communicate(timeout=60)
    assert preparing.returncode == code and "Traceback" not in error, error
    assert "stopped" in error.splitlines()[-1] and "same command" in error.splitlines()[-1]
    wait_for_the_end(preparing)
    assert not list(out.rglob(".*.tmp.*"))
    done = len(list(out.glob("*/*.json")))
    assert 3 <= done < 80
    if send is os.kill:
        monkeypatch.undo()  # all cases are listed, as there
        ended = command(prepare.main, *preparing.args[3:])
        assert ended.code == 2 and "20 cases" in ended.err  # the test list is not there
        assert f"Prepared: 80 cases in {out}, {done} of them before" in ended.out


def test_the_processes_of_a_killed_preparation_end_with_it(preparing):
    assert len(group_of(preparing)) >= 3
    preparing.kill()
    preparing.wait()
    wait_for_the_end(preparing)


def test_a_case_that_kills_its_process_is_named_and_stops_no_other(tmp_path):
    """Two are at work when it does, and another waits."""
    tasks = {f"case{n}": partial(Path.touch, tmp_path / f"case{n}") for n in range(3)}
    tasks["case1"] = partial(os._exit, 9)
    ended = dict(case_loop._run(tasks, 2))
    assert ended.keys() == tasks.keys()
    assert [case for case, reason in ended.items() if reason] == ["case1"]
    assert "killed" in ended["case1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["case0", "case2"]


def test_pancreas_without_the_two_cases_that_the_download_lacks(tmp_path, command, monkeypatch):
    """Said, no error; training leaves them out by itself. Their labels are in the download."""
    listed = ("image0001", "image0002", "image0025", "image0070")
    monkeypatch.setattr(PancreasPreparation, "listed", lambda self: listed)
    raw, out = tmp_path / "raw", tmp_path / "out"
    for number in (1, 2, 25):
        write_raw(raw, number=number, prefix=str(number))
    first, *others = (raw / "dicom").glob("25*")
    for path in others:
        path.unlink()  # what is left is a single slice
    ended = command(prepare.main, "data=pancreas", f"raw={raw}", f"out={out}", "workers=1")
    assert ended.code == 0, ended.err
    assert "1 DICOM files (1 single slice)" in ended.out and first.exists()
    assert "Not there: image0025, image0070, " in ended.out
    source = PancreasCT(out)
    assert len(source.train_cases) == 61 and len(source.test_cases) == 19
    assert not {"image0025", "image0070"} & {*source.train_cases, *source.test_cases}
    assert len(PancreasCT(out, exclude=[]).train_cases) == 62
    assert source.scan_record()["crop"] == source.crop == "ground_truth"
    left_out = [case for case in (*source.train_cases, *source.test_cases) if case not in listed]
    tiny = ("data.patch_size=[16,16,16]", "data.stride=[16,16,16]", "base_channels=2", "data.downsample=4",
            "trainer.max_iterations=1", "trainer.accelerator=cpu", "trainer.threads=1", "trainer.progress_bar=false",
            "evaluate_on=[]", "data.labeled=1")  # fmt: skip
    ended = command(
        train.main,
        "data=pancreas",
        f"data.root={out}",
        f"data.source.exclude=[{','.join(left_out)},image0025,image0070]",
        *tiny,
        f"output={tmp_path / 'runs'}",
    )
    assert ended.code == 0, ended.err
    # another case that is not there is no expected one
    monkeypatch.setattr(PancreasPreparation, "listed", lambda self: (*listed, "image0003"))
    ended = command(prepare.main, "data=pancreas", f"raw={raw}", f"out={out}", "workers=1")
    ended.complains("1 case (image0003) ", "not below raw")
    assert len(PancreasCT(out).train_cases) == 61


def test_brats_regions_are_scored_and_exclusive_classes_trained(tmp_path, command, monkeypatch):
    from test_brats import volumes

    lists = BraTS2019(tmp_path)
    cases = (*lists.train_cases[:3], *lists.test_cases[:1])
    monkeypatch.setattr(BraTS2019Preparation, "listed", lambda self: cases)
    for k, case in enumerate(cases):
        modalities, label = volumes()
        noise = np.random.default_rng(k).integers(0, 9, label.shape)  # no two cases have the same voxels
        own = {name: array + (array > 0) * noise for name, array in modalities.items()}
        write_brats(tmp_path / "raw" / ("HGG", "LGG")[k % 2], case, own, label)
    out = tmp_path / "out"
    words = ("data=brats", f"raw={tmp_path / 'raw'}", f"out={out}", "workers=1")
    ended = command(prepare.main, *words, f"modalities=[{','.join(MODALITIES)}]", "regions=true")
    assert ended.code == 0, ended.err
    assert "necrotic_core ml" in rows_of(out)[0]
    command(prepare.main, *words).complains("was prepared with", "regions=True", "choose another out")
    parts = {"brats2019_train": cases[:2], "brats2019_validation": cases[2:3], "brats2019_test": cases[3:]}
    monkeypatch.setattr(brats2019, "shipped_list", parts.get)
    ended = command(
        train.main, "data=brats", f"data.root={out}", "data.patch_size=[16,16,16]", "data.stride=[16,16,16]",
        "data.downsample=3", "base_channels=2", "trainer.max_iterations=1", "trainer.accelerator=cpu",
        "trainer.threads=1", "trainer.progress_bar=false", "evaluate_on=[test]", "data.labeled=1",
        f"output={tmp_path / 'runs'}",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    (run,) = (tmp_path / "runs").iterdir()
    metrics = json.loads((run / "metrics.json").read_text())["test"]["ensemble"]
    assert [*metrics["classes"]] == ["whole_tumour", "tumour_core", "enhancing_tumour"]
    record = json.loads((run / "preprocessing.json").read_text())
    assert record["channels"] == 4 and record["class_names"][1:] == ["necrotic_core", "edema", "enhancing_tumour"]


# --- words and folders


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["raw=R", "out=O"], "data=la|pancreas|brats is required"),
        (["data=la", "out=O"], "raw=DIR is required"),
        (["data=la", "raw=R"], "out=DIR is required"),
        (["data=atrium", "raw=R", "out=O"], "data=atrium: choose from la, pancreas, brats"),
        (["data=la", "raw=R", "out=O", "croop=x"], "croop: no such key of dualseg-prepare. Did you mean crop?"),
        (["data=la", "raw=R", "out=O", "crop=brain"], "crop=brain: choose from ground_truth, foreground"),
        (["data=brats", "raw=R", "out=O", "crop=ground_truth"], "crop=ground_truth: choose from foreground; BraTS"),
        (["data=la", "raw=R", "out=O", "workers=0"], "workers=0: give a number of processes"),
        (["data=la", "raw=R", "raw=S", "out=O"], "raw: is given twice"),
        (["data=la", "raw", "out=O"], "raw: has no value; write raw="),
        (["data=la", "raw=R", "out=O", "regions=true"], "regions: belongs to data=brats"),
        (["data=brats", "raw=R", "out=O", "regions=yes"], "regions=yes: give true or false"),
        (["data=brats", "raw=R", "out=O", "modalities=[flair,pd]"], "modalities=[flair,pd]: give some of [flair,"),
        (["data=brats", "raw=R", "out=O", "modalities=[t1,t1]"], "each once"),
        (["data=la", "raw=R", "out=O"], "raw=R: no such folder"),
    ],
)
def test_mistakes_are_answered(words, complaint, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command(prepare.main, *words).complains(complaint)
    assert not list(tmp_path.iterdir())


def test_the_defaults_that_help_and_docs_tell_are_true():
    options = {option.name: option for option in fields(prepare.PreparationOptions)}
    assert options["data"].metadata["value"] == "|".join(DATASETS)
    told = [f"{key}={default_text(option)}" for key, option in options.items() if default_text(option)]
    words = ["data=brats", "raw=R", "out=O"]
    with_and_without = [read_arguments(prepare.PreparationOptions, given, "") for given in ([*words, *told], words)]
    assert len(told) == 2 and with_and_without[0] == with_and_without[1]


def test_folders_that_cannot_be_used(raw, tmp_path, command, contents):
    before = contents(raw)
    for out in (raw, raw / "out", tmp_path):
        command(prepare.main, "data=la", f"raw={raw}", f"out={out}").complains("lies in the other", "never touched")
    (tmp_path / "file").write_text("x")
    command(prepare.main, "data=la", f"raw={raw}", f"out={tmp_path / 'file'}").complains("is a file; give a folder")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "own.txt").write_text("x")
    command(prepare.main, "data=la", f"raw={raw}", f"out={tmp_path / 'full'}").complains("not empty", "another folder")
    (tmp_path / "nothing").mkdir()
    ended = command(prepare.main, "data=la", f"raw={tmp_path / 'nothing'}", f"out={tmp_path / 'out'}")
    ended.complains("no case of la", "docs/data.md")
    assert contents(raw) == before and not (tmp_path / "out").exists()


def test_two_settings_do_not_mix_in_one_folder(raw, tmp_path, command):
    words = ("data=la", f"raw={raw}", f"out={tmp_path / 'out'}", "workers=1")
    assert command(prepare.main, *words, "crop=foreground").code == 0
    command(prepare.main, *words).complains("prepared.json: was prepared with crop=foreground")
    command(train.main, "data=brats", f"data.root={tmp_path / 'out'}").complains("prepared.json: says la, not brats")
    (tmp_path / "out" / "prepared.json").write_text("{")
    command(train.main, "data=la", f"data.root={tmp_path / 'out'}").complains("prepared.json: cannot be read")


def test_help_answers_at_once():
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "dualseg.prepare", "--help"], capture_output=True, text=True, check=True
    )
    assert time.monotonic() - began < 3 and "crop" in ended.stdout and "regions" in ended.stdout
