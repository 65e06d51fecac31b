"""overwrite=true: whenever it is killed there is a whole run, the former one until the new one has a checkpoint."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dualseg.errors import DualsegError
from dualseg.files import write_json
from dualseg.runs import replaced
from dualseg.runs.claim import check_claim
from dualseg.runs.folder import RunFolder
from dualseg.runs.lock import LOCK, is_locked, writing
from dualseg.runs.replaced import drop, place_of, recover, set_aside, settle

FORMER = {
    "config.yaml": "seed: 0\n",
    "manifest.json": '{"dualseg": "0"}',
    "metrics.json": '{"status": "finished"}',
    "checkpoints/iteration-000012.ckpt": "former weights",
    "evaluations/001-test/metrics.json": "{}",
}
NEW = {"config.yaml": "seed: 1\n", "manifest.json": '{"dualseg": "1"}', "logs/curves.csv": "iteration,name,value\n"}
CHECKPOINT = "checkpoints/iteration-000003.ckpt"
STEPS = ("rename", "replace", "mkdir", "unlink", "rmdir")  # what changes folders


def fill(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def content(folder: Path) -> dict[str, str]:
    files = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    return {name: text for name, text in files.items() if name != LOCK}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A finished run."""
    fill(tmp_path / "runs" / "x", FORMER)
    return tmp_path / "runs" / "x"


def killed_at(step: int, action: Callable[[], Any]) -> bool:
    """Call `action` in another process, which dies before its change number `step`; whether it came that far."""
    child = os.fork()
    if child == 0:
        done = 0

        def counted(change: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal done
                if done == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                done += 1
                return change(*arguments, **options)

            return call

        for name in STEPS:
            setattr(os, name, counted(getattr(os, name)))
        action()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def overwritten(path: Path, fails: bool) -> None:
    with writing(path):
        set_aside(path)
        fill(path, NEW)
        if fails:
            settle(path)
            return
        drop(path)
        fill(path, {CHECKPOINT: "new weights"})
        drop(path)


@pytest.mark.parametrize("fails", [True, False])
def test_killed_at_any_step_there_is_one_whole_run(tmp_path, capfd, fails):
    outcomes = []
    for step in range(1000):
        path = tmp_path / str(step) / "x"
        fill(path, FORMER)
        killed = killed_at(step, lambda path=path: overwritten(path, fails))
        had_checkpoint = (path / CHECKPOINT).exists()
        folder = RunFolder.existing(path)
        assert folder.path == path
        assert content(path) == ({**NEW, CHECKPOINT: "new weights"} if had_checkpoint else FORMER), step
        assert not place_of(path).exists() and not is_locked(path)
        outcomes.append(had_checkpoint)
        if not killed:
            break
        with writing(path):  # whoever goes on removes the rest
            drop(path)
        assert [left.name for left in path.parent.iterdir()] == ["x"], step
    assert step > 12
    assert {*outcomes} == ({False} if fails else {False, True})


@pytest.mark.parametrize("there_was_one", [True, False])
def test_killed_before_its_first_checkpoint_the_same_command_goes_on(tmp_path, there_was_one):
    """Also where there was no former run, and no manifest.json yet that tells a run folder from another one."""

    def begin(folder: RunFolder, settings: dict[str, Any]) -> None:
        with writing(folder.path):
            folder.open(settings)
            write_json(folder.preprocessing_file, {})
            write_json(folder.manifest_file, {"dualseg": "1"})

    for step in range(1000):
        settings = {"output": str(tmp_path / str(step)), "name": "x", "overwrite": True, "logger": None, "seed": 1}
        folder = RunFolder.of(settings)
        if there_was_one:
            fill(folder.path, FORMER)
        killed = killed_at(step, lambda folder=folder, settings=settings: begin(folder, settings))
        recover(folder.path, reading=False)
        if there_was_one:
            assert content(folder.path) == FORMER, step
        check_claim(folder, settings)
        begin(folder, settings)
        assert yaml.safe_load(folder.config_file.read_text()) == settings
        if there_was_one:
            assert content(place_of(folder.path)) == FORMER, step
        if not killed:
            break
    assert step > 6


def test_a_failure_that_left_no_checkpoint_puts_the_former_run_back(path, capsys):
    with writing(path):
        set_aside(path)
        assert content(path) == {} and (path / LOCK).is_file() and is_locked(path)
        fill(path, NEW)
        settle(path)
        assert is_locked(path)
    assert content(path) == FORMER and list(path.parent.iterdir()) == [path]
    assert str(path) in capsys.readouterr().err


def test_while_it_is_overwritten_nobody_else_touches_it(path):
    with writing(path):
        set_aside(path)
        fill(path, NEW)
        assert killed_at(-1, lambda: recover(path, reading=False)) is False
        assert recover(path) == path
        assert content(path) == NEW and content(place_of(path)) == FORMER
        settle(path)


def test_where_nobody_knows_whether_a_run_goes_on_the_former_one_is_read_where_it_is(path, monkeypatch):
    killed_at(6, lambda: overwritten(path, fails=False))
    former = place_of(path)
    assert content(former) == FORMER
    left = (path / LOCK).read_text()
    for text in (left.replace(" on ", " on another-"), ""):
        (path / LOCK).write_text(text)
        assert RunFolder.existing(path).path == former and content(former) == FORMER
    recover(path, reading=False)  # as dualseg-train starts
    assert content(path) == FORMER and not former.exists()


def test_what_cannot_be_moved_stays_where_it_was(path, monkeypatch):
    def refused(*arguments: Any) -> None:
        raise OSError("no space left")

    with writing(path):
        monkeypatch.setattr(Path, "mkdir", refused)
        with pytest.raises(OSError, match="no space"):
            set_aside(path)
        assert content(path) == FORMER and not place_of(path).exists() and is_locked(path)
    monkeypatch.undo()
    killed_at(6, lambda: overwritten(path, fails=False))
    monkeypatch.setattr(replaced, "_put_back", refused)
    with pytest.raises(DualsegError, match=rf"x: overwriting was cut off.*{place_of(path)}.*no space"):
        RunFolder.existing(path)


def test_a_link_to_a_run_is_overwritten_where_it_leads(path, tmp_path):
    (tmp_path / "link").symlink_to(path)
    with writing(tmp_path / "link"):
        set_aside(tmp_path / "link")
        fill(tmp_path / "link", {**NEW, CHECKPOINT: "new"})
        drop(tmp_path / "link")
    assert content(path) == {**NEW, CHECKPOINT: "new"} and (tmp_path / "link").is_symlink()
    assert list(path.parent.iterdir()) == [path]


def test_the_longest_name_can_be_overwritten(tmp_path):
    path = tmp_path / ("x" * 255)
    fill(path, FORMER)
    with writing(path):
        set_aside(path)
        fill(path, NEW)
        settle(path)
    assert content(path) == FORMER
    recover(Path("/"))


def test_a_second_command_amid_the_putting_back_loses_nothing(path, monkeypatch):
    rename, children = Path.rename, []

    def renamed(self: Path, target: Path) -> Path:
        """Before each move of a folder, start another command and give it time."""
        if self.name != LOCK:
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    monkeypatch.undo()
                    recover(path, reading=False)
                    code = 0 if content(path) == FORMER else 2
                finally:
                    os._exit(code)
            children.append(child)
            time.sleep(0.2)
        return rename(self, target)

    with writing(path):
        set_aside(path)
        fill(path, NEW)
        monkeypatch.setattr(Path, "rename", renamed)
        settle(path)
    monkeypatch.undo()
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0, 0]
    assert content(path) == FORMER and list(path.parent.iterdir()) == [path]


def test_the_rest_of_a_removal_goes_where_the_run_is_read(path):
    fill(path.parent / ".x.removed", FORMER)
    with writing(path):
        assert recover(path) == path
        assert (path.parent / ".x.removed").exists(), "another process may be at it"
    assert recover(path) == path
    assert content(path) == FORMER and list(path.parent.iterdir()) == [path]


def test_results_are_not_replaced_by_a_folder_that_has_the_name_of_a_former_run(path, capsys):
    evaluation = {"config.yaml": "", "metrics.json": "{}"}
    ensemble = path.parent / "ens"
    fill(ensemble, evaluation)
    fill(place_of(ensemble), FORMER)
    for reading in (True, False):
        assert recover(ensemble, reading=reading) == ensemble
        assert content(ensemble) == evaluation and content(place_of(ensemble)) == FORMER
    assert str(place_of(ensemble)) in capsys.readouterr().err
