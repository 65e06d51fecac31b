"""What a run's manifest says of its code, and what a resumed run compares with it."""

import subprocess
from pathlib import Path

import pytest

from dualseg.errors import DualsegError
from dualseg.files import write_json
from dualseg.training import provenance


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one commit, from which the module seems to be imported."""
    module = tmp_path / "dualseg" / "training" / "provenance.py"
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


@pytest.mark.parametrize("name", ["notes.txt", "runs/a/config.yaml", "dualseg/training/__pycache__/provenance.pyc"])
def test_other_new_files_are_no_code(checkout: Path, name: str) -> None:
    (checkout / name).parent.mkdir(parents=True, exist_ok=True)
    (checkout / name).touch()
    assert dirty() is False


def test_a_changed_file_is_uncommitted(checkout: Path) -> None:
    (checkout / "experiments/results.csv").write_text("study\n")
    assert dirty() is False, "results are no code"
    (checkout / "dualseg/training/provenance.py").write_text("changed = True\n")
    assert dirty() is True


def test_outside_of_a_checkout_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "dualseg/training/provenance.py"))
    assert dirty() is None


NOW = {
    "fingerprint": "f",
    "evaluation_fingerprint": {"test": "e"},
    "cases": {"labeled": ["c0"], "unlabeled": ["c1"], "validation": [], "test": ["t0", "t1"]},
}


@pytest.mark.parametrize(
    ("older", "refused"),
    [
        ({"fingerprint": "f", "test": 2}, None),
        ({"fingerprint": "f"}, None),
        ({"fingerprint": "other", "test": 2}, "training volumes have changed"),
        ({"fingerprint": "f", "test": 3}, "test cases have changed .*3 then, 2 now"),
        ({"fingerprint": "f", "test": 2, "evaluation_fingerprint": {"test": "x"}}, "test volumes have changed"),
        ({}, "no fingerprint"),
    ],
)
def test_of_a_run_that_noted_no_cases_what_is_noted_is_compared(older, refused, tmp_path, capsys) -> None:
    manifest = tmp_path / "manifest.json"
    write_json(manifest, {"data": older})
    if refused:
        with pytest.raises(DualsegError, match=refused):
            provenance.check_same_data(manifest, NOW)
        return
    provenance.check_same_data(manifest, NOW)
    told = capsys.readouterr().err
    assert told.startswith(f"warning: {tmp_path}: ") and "test cases" in told and told.count("\n") == 1


@pytest.mark.parametrize("noted", [{"cases": NOW["cases"]}, {"evaluation_fingerprint": {"test": "e"}}])
def test_nothing_is_said_of_cases_that_are_known_to_be_the_former_ones(noted, tmp_path, capsys) -> None:
    write_json(tmp_path / "manifest.json", {"data": {"fingerprint": "f", **noted}})
    provenance.check_same_data(tmp_path / "manifest.json", NOW)
    assert capsys.readouterr().err == ""
