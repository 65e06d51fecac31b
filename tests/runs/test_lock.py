"""One writer a run folder, known to others, and let go of however the writer ends."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import dualseg.runs.lock as lock
from dualseg.errors import DualsegError
from dualseg.runs.claim import check_claim
from dualseg.runs.folder import RunFolder
from dualseg.runs.lock import LOCK, is_locked, writing

HOLD = """
import os, sys, time
from pathlib import Path
from dualseg.runs.lock import writing
with writing(Path(sys.argv[1])):
    if len(sys.argv) > 2 and os.fork() == 0:
        time.sleep(60)
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 0.1)


def holder(folder: Path, *words: str) -> subprocess.Popen[str]:
    """A process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), *words], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_writer_is_refused_with_the_first_ones_name(tmp_path) -> None:
    run = tmp_path / "runs" / "one"
    assert not is_locked(run)
    with writing(run):
        assert is_locked(run)
        refused = pytest.raises(DualsegError, match=f"{run}: .*written by process {os.getpid()} on .*name=")
        with refused, writing(run):
            pytest.fail("two writers")
        assert is_locked(run)
        with writing(tmp_path / "another"):
            pass
    assert not is_locked(run)
    assert list(tmp_path.iterdir()) == [], "nothing was written"
    with writing(run):
        (run / "file").touch()
    assert list(run.iterdir()) == [run / "file"]


def test_asking_does_not_disturb(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 30.0)
    path = tmp_path / LOCK
    path.touch()
    asking = os.open(path, os.O_RDONLY)
    fcntl.flock(asking, fcntl.LOCK_SH)
    pauses = []
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: (pauses.append(seconds), os.close(asking)))
    with writing(tmp_path):
        assert len(pauses) == 1


@pytest.mark.parametrize("words", [(), ("fork",)])
def test_a_killed_writer_holds_nothing(tmp_path, words) -> None:
    process = holder(tmp_path, *words)
    try:
        assert is_locked(tmp_path)
        with pytest.raises(DualsegError, match=f"process {process.pid} on"), writing(tmp_path):
            pass
        process.kill()  # it alone: a process that it has forked lives on
        process.wait()
        assert (tmp_path / LOCK).exists()
        assert not is_locked(tmp_path)
        with writing(tmp_path):
            assert is_locked(tmp_path)
    finally:
        os.killpg(process.pid, signal.SIGKILL) if words else process.kill()
        process.communicate()


def test_the_lock_is_let_go_of_where_the_work_fails(tmp_path) -> None:
    with pytest.raises(KeyError), writing(tmp_path):
        raise KeyError
    assert not is_locked(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_on_a_file_that_is_gone_counts_for_nothing(tmp_path, monkeypatch) -> None:
    """Between opening and locking, the holder may have ended and removed the file."""
    real, calls = fcntl.flock, []

    def flock(descriptor: int, operation: int) -> None:
        if not calls:
            (tmp_path / LOCK).unlink()
        calls.append(operation)
        real(descriptor, operation)

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with writing(tmp_path):
        assert len(calls) == 2
        assert is_locked(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_it_goes_on(tmp_path, monkeypatch, number) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with writing(tmp_path), writing(tmp_path):
        assert not is_locked(tmp_path)


def test_a_folder_that_cannot_be_made_is_no_matter_of_the_lock(tmp_path) -> None:
    (tmp_path / "file").touch()
    with writing(tmp_path / "file" / "run"):
        pass


def tree(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link", "pipe", "folder", "socket"])
def test_what_is_no_file_of_its_own_is_neither_locked_nor_emptied(tmp_path, monkeypatch, kind) -> None:
    """A folder from somebody else may hold such a thing in the lock's place."""
    precious, run = tmp_path / "precious", tmp_path / "run"
    run.mkdir()
    if kind != "dangling link":
        precious.write_text("years of work")
    if kind == "pipe":
        os.mkfifo(run / LOCK)
    elif kind == "folder":
        (run / LOCK).mkdir()
    elif kind == "socket":
        monkeypatch.chdir(run)  # a socket's path is short
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(LOCK)
    elif kind == "hard link":
        (run / LOCK).hardlink_to(precious)
    else:
        (run / LOCK).symlink_to(precious)
    before = tree(tmp_path)
    assert not is_locked(run), "and it does not wait for ever"
    with pytest.raises(DualsegError, match=rf"{run / LOCK}: .* remove it"), writing(run):
        pytest.fail("held")
    assert tree(tmp_path) == before
    (run / LOCK).rmdir() if kind == "folder" else (run / LOCK).unlink()
    with writing(run):
        assert is_locked(run)


def test_a_link_that_leads_nowhere_is_no_run_folder(tmp_path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for folder in (tmp_path / "link", tmp_path / "link" / "run"):
        with pytest.raises(DualsegError, match=rf"{tmp_path / 'link'}: .*{tmp_path / 'gone'}"), writing(folder):
            pytest.fail("unlocked")
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_a_lock_says_nothing_that_a_terminal_obeys(tmp_path) -> None:
    process = holder(tmp_path)
    try:
        (tmp_path / LOCK).write_text("\x1b[2Jnobody")
        with pytest.raises(DualsegError, match="written by another process"), writing(tmp_path):
            pass
    finally:
        process.kill()
        process.communicate()


# with the run folder's own doings

CONFIG = {"output": "runs", "overwrite": False, "seed": 0, "data": {"root": "x"}}


def test_claiming_a_locked_folder_is_refused(tmp_path) -> None:
    for overwrite in (False, True):
        with writing(tmp_path / "run"), pytest.raises(DualsegError, match="written by process"):
            check_claim(RunFolder(tmp_path / "run"), {**CONFIG, "overwrite": overwrite})


def test_overwriting_leaves_the_lock(tmp_path) -> None:
    run = RunFolder(tmp_path / "run")
    with writing(run.path):
        run.open(CONFIG)
        run.manifest_file.write_text('{"dualseg": "1"}')
        (run.checkpoints / "iteration-000001.ckpt").touch()
        run.open({**CONFIG, "overwrite": True})
        assert is_locked(run.path)
        assert run.latest_checkpoint() is None
        assert not run.manifest_file.exists()
    assert not is_locked(run.path)


def test_a_lock_that_a_killed_run_left_behind_is_no_content(tmp_path) -> None:
    (tmp_path / LOCK).touch()
    check_claim(RunFolder(tmp_path), {**CONFIG, "overwrite": True})


def test_a_bare_folder_goes_with_its_lock(tmp_path) -> None:
    run = RunFolder(tmp_path / "run")
    with writing(run.path):
        run.open(CONFIG)
        run.remove_if_bare()
    assert not run.path.exists()
    with writing(run.path):
        run.remove_if_bare()
        run.path.mkdir()
        (run.path / LOCK).touch()  # the next launch's
    assert (run.path / LOCK).exists()
