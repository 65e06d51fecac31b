"""What a killed writer leaves is removed, and nothing else."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from dualseg.errors import DualsegError
from dualseg.exporting.folder import new_folder
from dualseg.files import is_temporary, read_json, replacing, sweep, sweep_below, temporary_beside, write_text


def killed(block: Callable[[], None]) -> None:
    """Run `block` in a process that kills itself at its end, or before."""
    child = os.fork()
    if child == 0:
        try:
            block()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def half_written(path: Path) -> Callable[[], None]:
    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    return write


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_of_any_unicode_encoding_is_read(tmp_path, encoding) -> None:
    path = tmp_path / "dataset.json"
    path.write_bytes('{"name": "Müller",\r\n "labels": {}}'.encode(encoding))
    assert read_json(path) == {"name": "Müller", "labels": {}}


def test_json_of_another_encoding_is_answered_with_the_one_to_use(tmp_path) -> None:
    path = tmp_path / "dataset.json"
    path.write_bytes('{"name": "Müller"}'.encode("cp1252"))
    with pytest.raises(DualsegError, match=r"dataset\.json: .* UTF-8 .*save it"):
        read_json(path)


@pytest.mark.parametrize("name", [f"{'n' * 248}.nii.gz", f"{'ü' * 120}.json"])
def test_the_longest_names_are_written_and_swept(tmp_path, name) -> None:
    write_text(tmp_path / name, "whole")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    killed(half_written(tmp_path / name))
    sweep(tmp_path, name)
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "whole"


def test_leftovers_of_files_and_folders_go(tmp_path) -> None:
    write_text(tmp_path / "deep" / "a.json", "former")

    def folder() -> None:
        with temporary_beside(tmp_path / "deep" / "bundle", folder=True) as temporary:
            (temporary / "model.pt2").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    killed(half_written(tmp_path / "deep" / "a.json"))
    killed(folder)
    left = [path.name for path in (tmp_path / "deep").iterdir() if is_temporary(path)]
    assert sorted(name.partition(".tmp.")[2] for name in left) == ["a.json", "bundle"]
    sweep(tmp_path)
    assert len(list((tmp_path / "deep").iterdir())) == 3, "not below"
    sweep_below(tmp_path)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.json"]
    assert (tmp_path / "deep" / "a.json").read_text() == "former"


def test_what_is_being_written_stays(tmp_path) -> None:
    with replacing(tmp_path / "a.json") as file, temporary_beside(tmp_path / "bundle", folder=True) as folder:
        (folder / "model.pt2").touch()
        file.write_text("half")
        sweep_below(tmp_path)
        killed(lambda: sweep_below(tmp_path))  # by another process as well
        assert file.read_text() == "half" and (folder / "model.pt2").exists()
        file.write_text("whole")
    assert (tmp_path / "a.json").read_text() == "whole"


@pytest.mark.parametrize(
    "name",
    [
        "notes.tmp.txt", ".tmp.notes.txt", ".0a1b2c3.tmp.short.txt", ".0A1B2C3D.tmp.large.txt", "0a1b2c3d.tmp.seen.txt",
        ".0a1b2c3d.tmp.", ".0a1b2c3d.temp.other.txt", "tmp.0a1b2c3d.txt",
    ],
)  # fmt: skip
def test_files_of_the_user_stay(tmp_path, name) -> None:
    (tmp_path / name).write_text("mine")
    sweep_below(tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_a_link_is_not_followed(tmp_path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / ".0a1b2c3d.tmp.x").symlink_to(tmp_path / "mine.txt")
    (tmp_path / "there" / ".0a1b2c3e.tmp.x").symlink_to(tmp_path)
    sweep_below(tmp_path / "there")
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_in_a_folder_of_others_one_name_alone(tmp_path) -> None:
    for name in ("mine", "other"):
        killed(half_written(tmp_path / name))
    sweep(tmp_path, "mine")
    assert [path.name.partition(".tmp.")[2] for path in tmp_path.iterdir()] == ["other"]
    sweep(tmp_path / "nowhere", "mine")


def test_the_next_export_removes_what_a_killed_one_left_beside_it(tmp_path) -> None:
    def export() -> None:
        with new_folder(tmp_path / "bundle") as folder:
            (folder / "model.pt2").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    killed(export)
    assert [is_temporary(path) for path in tmp_path.iterdir()] == [True]
    with new_folder(tmp_path / "bundle") as folder:
        (folder / "model.pt2").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_name_that_is_no_text_is_written(tmp_path) -> None:
    path = tmp_path / os.fsdecode(b"a\xffb.txt")
    try:
        path.touch()
    except OSError:
        pytest.skip("this file system has no such names")
    write_text(path, "new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_temporary_file_that_is_swept_before_its_lock_is_made_anew(tmp_path, monkeypatch) -> None:
    real, calls = os.open, []

    def swept(path, *arguments):
        descriptor = real(path, *arguments)
        if ".tmp." in str(path) and not calls:
            calls.append(path)
            Path(path).unlink()
        return descriptor

    monkeypatch.setattr("os.open", swept)
    write_text(tmp_path / "a.txt", "whole")
    assert calls and [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "whole"
