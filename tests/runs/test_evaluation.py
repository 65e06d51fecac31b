"""Where an evaluation is written."""

import os

import pytest

from dualseg.errors import DualsegError
from dualseg.files import write_json
from dualseg.runs import lock
from dualseg.runs.evaluation import writing_evaluation
from dualseg.runs.folder import RunFolder


@pytest.fixture
def run(tmp_path, monkeypatch) -> RunFolder:
    monkeypatch.setattr(lock, "PATIENCE", 0.1)
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


def names(run: RunFolder) -> list[str]:
    return sorted(path.name for path in run.evaluations.iterdir())


def slices_of(evaluation: RunFolder, case: str) -> None:
    evaluation.slices.mkdir(parents=True, exist_ok=True)
    (evaluation.slices / f"{case}.npz").touch()


def test_evaluations_that_run_at_once_have_folders_of_their_own(run):
    with writing_evaluation(run, "test", None) as first, writing_evaluation(run, "test", None) as second:
        assert names(run) == ["001-test", "002-test"] == [first.path.name, second.path.name]
        with writing_evaluation(run, "validation", None) as third:
            assert third.path.name == "003-validation"
            slices_of(third, "kept")
    assert names(run) == ["003-validation"], "of the others nothing was written"


@pytest.mark.parametrize("written", [True, False])
def test_nothing_stays_of_an_evaluation_that_fails(run, written):
    with pytest.raises(KeyError), writing_evaluation(run, "test", None) as evaluation:
        if written:
            write_json(evaluation.manifest_file, {"dualseg": "0", "evaluated": {}})
            slices_of(evaluation, "x")
        raise KeyError
    assert not run.evaluations.exists()


def test_a_given_folder_has_one_writer(run, tmp_path):
    output = str(tmp_path / "both")
    refused = pytest.raises(DualsegError, match=rf"both: .*process {os.getpid()} on .*output=")
    with writing_evaluation(run, "test", output), refused, writing_evaluation(run, "test", output):
        pytest.fail("two writers")


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("left", [["manifest"], ["manifest", "config"], ["manifest", "config", "cases"]])
def test_the_folder_of_a_stopped_evaluation_is_taken_again(run, given, left):
    stopped = RunFolder(run.evaluations / "001-test")
    slices_of(stopped, "of other data")
    (stopped.path / lock.LOCK).touch()  # of a process that was killed
    (stopped.path / ".0a1b2c3d.tmp.metrics.json").touch()
    for what in left:
        write_json(getattr(stopped, f"{what}_file"), {"dualseg": "0", "evaluated": {}})
    output = str(stopped.path) if given else None
    with writing_evaluation(run, "test", output) as again:
        assert again.path == stopped.path
        assert [path.name for path in again.path.iterdir()] == [lock.LOCK]


def test_the_folder_of_one_that_runs_or_of_another_split_is_not(run):
    with writing_evaluation(run, "validation", None) as other:
        slices_of(other, "x")
    with writing_evaluation(run, "test", None) as running:
        slices_of(running, "x")
        with writing_evaluation(run, "test", None) as new:
            assert new.path.name == "003-test"
    assert (other.slices / "x.npz").exists()


@pytest.mark.parametrize("name", ["evaluations", "evaluations/001-test", "evaluations/001-test/slices"])
def test_an_evaluation_is_not_written_through_a_link_in_the_run_folder(run, tmp_path, name):
    """As one from elsewhere may hold; that all runs, or this one, lie elsewhere is the user's own will."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    link = run.path / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(elsewhere)
    if link.name == "slices":
        write_json(link.parent / "manifest.json", {"dualseg": "0", "evaluated": {}})
    refused = pytest.raises(DualsegError, match=rf"{name}: is a link to {elsewhere}, .*remove")
    with refused, writing_evaluation(run, "test", None) as evaluation:
        slices_of(evaluation, "x")
    assert [*elsewhere.iterdir()] == []
    link.unlink()
    run.path.rename(elsewhere / "run")
    run.path.symlink_to(elsewhere / "run")
    with writing_evaluation(run, "test", None) as evaluation:
        slices_of(evaluation, "x")
    assert (elsewhere / "run/evaluations/001-test/slices/x.npz").is_file()


@pytest.mark.parametrize(
    "content",
    ["metrics.json", "notes.txt", "checkpoints/x.ckpt", "config.yaml", "manifest.json", "slices/c0.npz"],
)
@pytest.mark.parametrize("given", [True, False])
def test_what_is_no_stopped_evaluation_stays(run, given, content):
    """Also the folder of a run, and an evaluation that is finished."""
    path = run.evaluations / "001-test" / content
    write_json(path, {"dualseg": "0"})
    if given:
        with pytest.raises(DualsegError, match="is not empty"), writing_evaluation(run, "x", str(path.parent)):
            pass
    else:
        with writing_evaluation(run, "test", None) as evaluation:
            assert evaluation.path.name == "002-test"
    assert path.exists()


def test_where_there_are_no_locks_a_stopped_evaluation_is_left_alone(run, monkeypatch):
    def flock(*arguments):
        raise OSError(37, "no locks available")

    slices_of(RunFolder(run.evaluations / "001-test"), "perhaps of one that runs")
    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with writing_evaluation(run, "test", None) as evaluation:
        assert evaluation.path.name == "002-test"
