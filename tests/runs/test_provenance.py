"""What a run's manifest says of its code."""

import subprocess
from pathlib import Path

import pytest

from dualseg.runs import provenance


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one commit, from which the module seems to be imported."""
    module = tmp_path / "dualseg" / "runs" / "provenance.py"
    module.parent.mkdir(parents=True)
    module.touch()
    (tmp_path / ".gitignore").write_text("__pycache__/\n")
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "results.csv").touch()
    author = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    for words in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    monkeypatch.setattr(provenance, "__file__", str(module))
    return tmp_path


def dirty() -> bool | None:
    return provenance.describe(0, {})["git"]["dirty"]


def test_a_clean_checkout_is_committed(checkout: Path) -> None:
    assert dirty() is False


@pytest.mark.parametrize("name", ["dualseg/losses/mine.py", "conf/method/mine.yaml", "hydra_plugins/mine/launcher.py"])
def test_a_new_file_of_the_code_is_uncommitted(checkout: Path, name: str) -> None:
    (checkout / name).parent.mkdir(parents=True)
    (checkout / name).touch()
    assert dirty() is True


@pytest.mark.parametrize("name", ["notes.txt", "runs/a/config.yaml", "dualseg/runs/__pycache__/provenance.pyc"])
def test_other_new_files_are_no_code(checkout: Path, name: str) -> None:
    (checkout / name).parent.mkdir(parents=True, exist_ok=True)
    (checkout / name).touch()
    assert dirty() is False


def test_a_changed_file_is_uncommitted(checkout: Path) -> None:
    (checkout / "experiments/results.csv").write_text("study\n")
    assert dirty() is False, "results are no code"
    (checkout / "dualseg/runs/provenance.py").write_text("changed = True\n")
    assert dirty() is True


def test_outside_of_a_checkout_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "dualseg/runs/provenance.py"))
    assert dirty() is None
