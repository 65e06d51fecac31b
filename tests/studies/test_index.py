"""The index of a sweep: several that write it, and one whose overwriting run was killed or cannot be settled."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from dualseg.errors import DualsegError
from dualseg.files import write_json
from dualseg.runs.lock import writing
from dualseg.runs.replaced import place_of
from dualseg.studies import index, monitor, timing
from dualseg.studies.index import Job, Sweep
from dualseg.studies.monitor import Monitor
from dualseg.studies.timing import LEAST, measured_rates

JOB = Job(run="x", arguments=(), label="x", kind="toy", iterations=12, seed=0, variant=None)


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    """Of one run, which was being overwritten on a machine whose locks do not reach."""
    former = place_of(tmp_path / "x")
    for folder in (tmp_path / "x", former):
        folder.mkdir()
        (folder / "config.yaml").write_text("seed: 0\n")
        (folder / "manifest.json").write_text('{"dualseg": "0"}')
    (former / "cases.csv").touch()
    (former / "metrics.json").write_text('{"status": "finished"}')
    return Sweep(tmp_path / "sweeps" / "toy")


def test_the_former_run_is_read_and_the_lock_is_asked_at_its_own_place(sweep):
    assert sweep.run_folder(JOB).path == place_of(sweep.output / "x")
    assert sweep.state(JOB) == "done"
    with writing(sweep.output / "x"):
        assert sweep.state(JOB) == "running"


def test_a_run_that_cannot_be_looked_at_now_does_not_end_the_watching(sweep, monkeypatch):
    looks = []

    def look(self: Monitor) -> None:
        looks.append(1)
        if len(looks) == 1:
            raise DualsegError("x: cannot be put back")

    monkeypatch.setattr(monitor, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(Monitor, "_look", look)
    with Monitor(sweep, [JOB], None):
        deadline = time.monotonic() + 5
        while len(looks) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(looks) > 3


def test_sweeps_of_one_study_that_start_at_the_same_moment_lose_no_run(tmp_path, monkeypatch):
    real = index.write_json
    monkeypatch.setattr(index, "write_json", lambda *args: time.sleep(0.2) or real(*args))
    jobs = [replace(JOB, run=name, variant=name) for name in ("x", "y", "z")]
    with ThreadPoolExecutor() as pool:
        for future in [pool.submit(Sweep(tmp_path / "sweeps" / "toy").write, [job], "toy", "cpu") for job in jobs]:
            assert future.result() == []
    assert {job.run for job in Sweep(tmp_path / "sweeps" / "toy").jobs()} == {"x", "y", "z"}


def test_a_sweep_that_another_one_keeps_writing_is_refused(tmp_path, monkeypatch):
    target = Sweep(tmp_path / "sweeps" / "toy")
    monkeypatch.setattr(index, "WRITING", 0.1)
    with writing(target.path), pytest.raises(DualsegError, match=r"written by .* same command"):
        target.write([JOB], "toy", "cpu")


def test_an_iteration_takes_its_time_however_small_the_patch(tmp_path):
    jobs = [replace(JOB, run=str(work), kind=f"{work}-solo_mix-plain_unet", work=work) for work in (1e-3, 1.0, 2.0)]
    small, one, two = (rate.seconds for rate in measured_rates(Sweep(tmp_path / "s"), jobs, None).values())
    assert small == LEAST < one and two == pytest.approx(2 * one)


def test_finished_runs_of_the_output_folder_say_how_long_an_iteration_takes_here(tmp_path, monkeypatch):
    """Of the same kind, whatever their patch; unfinished, damaged, brief and other machines' runs say nothing."""
    monkeypatch.setattr(timing, "NVIDIA", tmp_path / "no GPU")
    cpu, gpu = '{"gpu": null}', '{"gpu": "H200"}'
    kinds = (("x", "finished", cpu), ("y", "failed", cpu), ("z", "finished", gpu), ("brief", "finished", cpu))
    for name, status, hardware in kinds:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(f"name: {name}\n")
        (tmp_path / name / "manifest.json").write_text(f'{{"dualseg": "0", "seconds": 100, "hardware": {hardware}}}')
        (tmp_path / name / "metrics.json").write_text(f'{{"status": "{status}"}}')
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "metrics.json").write_text("{")
    theirs = replace(JOB, kind="scans-bcp-plain_unet", iterations=50, work=4.0)
    brief = replace(theirs, iterations=49)
    monkeypatch.setattr(Job, "of", lambda settings, *_: brief if settings["name"] == "brief" else theirs)
    asked = [
        replace(theirs, run="new", work=1.0),
        replace(theirs, run="other", kind="scans-mean_teacher-vnet", work=1.0),
    ]
    rates = measured_rates(Sweep(tmp_path / "sweeps" / "s"), asked, None)
    assert rates["scans-bcp-plain_unet"].seconds == pytest.approx(100 / 50 / 4)
    assert rates["scans-bcp-plain_unet"].source == f"1 finished run in {tmp_path}"
    assert rates["scans-mean_teacher-vnet"].source.startswith(
        "never measured: a guess, 1 x solo_mix-plain_unet; by the"
    )


@pytest.mark.parametrize("key", ["arguments", "words", "phrases"])
def test_the_arguments_of_an_older_sweep_are_read(sweep, key):
    """An older version called them words."""
    facts = {**vars(JOB), key: ["seed=3"]}
    if key != "arguments":
        del facts["arguments"]
    write_json(sweep.file, {"jobs": [facts]})
    if key == "phrases":
        with pytest.raises(DualsegError, match="damaged"):
            sweep.jobs()
    else:
        assert sweep.jobs() == [replace(JOB, arguments=("seed=3",))]
