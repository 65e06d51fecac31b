"""`dualseg COMMAND ...`: the commands under one name, called as their own scripts are."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dualseg.train
from dualseg.__main__ import SUMMARIES, main
from dualseg.training.provenance import command_line

ROOT = Path(__file__).resolve().parents[1]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str, program: str = "/usr/bin/dualseg") -> int:
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    try:
        main()
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code
    return 0


def test_every_command_is_listed_in_a_line(monkeypatch, capsys):
    scripts = re.findall(r"^dualseg-(\w+) = ", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert {*SUMMARIES} == {*scripts}
    assert [call(monkeypatch, *arguments) for arguments in (["--help"], ["-h"], [])] == [0, 0, 2]
    lines = capsys.readouterr().out.splitlines()
    for name, summary in SUMMARIES.items():
        assert [line.split() for line in lines].count([name, *summary.split()]) == 3


def test_the_version(monkeypatch, capsys):
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"dualseg {dualseg.__version__}\n"


@pytest.mark.parametrize(
    ("name", "fix"), [("trian", "Did you mean train?"), ("xyz", "There are train, evaluate,"), ("-m", "There are")]
)
def test_an_unknown_command_gets_the_nearest(monkeypatch, capsys, name, fix):
    assert call(monkeypatch, name, "data=la") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {name}: no such command of dualseg. {fix}") and said.count("\n") == 1


@pytest.mark.parametrize(
    ("program", "named"),
    [("/usr/bin/dualseg", "dualseg train"), ("/a b/dualseg/__main__.py", "python -m dualseg train")],
)
def test_a_command_has_its_arguments_and_knows_how_it_was_called(monkeypatch, program, named):
    seen = []
    monkeypatch.setattr(dualseg.train, "main", lambda: seen.extend([command_line(), sys.argv[1:]]))
    call(monkeypatch, "train", "-m", "name=a b", program=program)
    assert seen == [f"{named} -m 'name=a b'", ["-m", "name=a b"]]


def test_help_and_mistakes_of_a_command_are_its_own(monkeypatch, capsys):
    assert call(monkeypatch, "predict", "--help") == 0
    assert capsys.readouterr().out.startswith("dualseg-predict run=")
    assert call(monkeypatch, "predict", "outptu=x") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: outptu: ") and err.endswith(" dualseg predict. Did you mean output?\n")
    assert call(monkeypatch, "report", "statsu") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: statsu: ") and err.endswith(" dualseg report. Did you mean status?\n")


def test_the_module_is_the_command_and_answers_without_torch(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "dualseg", "--help"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    imported = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    assert "dualseg.command.start" in imported and not {"torch", "numpy", "hydra"} & imported
    assert "python -m dualseg COMMAND --help" in ended.stdout


@pytest.mark.parametrize(("name", "typed"), [("dualseg-train", "dualseg-train "), ("dualseg", "dualseg train ")])
def test_the_shell_completes_what_is_trained(tmp_path, name, typed):
    """With the words of the manual: eval "$(dualseg train -sc install=bash)"."""
    module = "dualseg" if name == "dualseg" else "dualseg.train"
    stub = tmp_path / name
    stub.write_text(f'#!/bin/sh\nexec {sys.executable} -c "$CALL" "$@"\n')
    stub.chmod(0o755)
    code = (
        f"import sys, runpy; sys.argv[0] = '{stub}'; runpy.run_module('{module}', run_name='__main__', alter_sys=False)"
    )
    script = f"""
eval "$({typed}-sc install=bash)"
complete -p {name}
complete() {{ COMP_LINE=$1; COMP_POINT=${{#1}}; COMP_CWORD=$2; hydra_bash_completion; echo ${{COMPREPLY[@]}}; }}
complete "{typed}method=dual_m" {len(typed.split())}
complete "dualseg pre" 1
"""
    ended = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "CALL": code, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    registered, trained, *commands = ended.stdout.splitlines()
    assert registered.endswith(f"hydra_bash_completion {name}"), ended
    assert trained == "method=dual_mix"
    assert name != "dualseg" or commands == ["predict prepare"]
