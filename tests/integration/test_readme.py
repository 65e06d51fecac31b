"""Whatever README, CONTRIBUTING and docs/ tell a user to type is right: every command is checked, some are run."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from documentation import DOCS, PAGES, ROOT, block_after, commands_of, write_own_files
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

import dualseg.report
from dualseg.check import CheckOptions
from dualseg.command.grammar import read_arguments, split_arguments
from dualseg.configuration import conf_dir
from dualseg.evaluate import EvaluationOptions
from dualseg.export import ExportOptions
from dualseg.prediction.options import PredictionOptions
from dualseg.prepare import PreparationOptions
from dualseg.studies.study import read_study
from dualseg.training.checkpoints import network_states, read_checkpoint
from dualseg.training.evaluation_settings import settings_of_evaluation
from dualseg.training.settings import resolve

TINY_PHANTOM = ["+data.source.train=6", "+data.source.test=2", "+data.source.shape=[32,32,16]"]
TINY_RUN = [
    "data.downsample=1",
    "data.patch_size=[32,32,16]",
    "data.stride=[16,16,16]",
    "base_channels=2",
    "trainer.accelerator=cpu",
    "trainer.progress_bar=false",
]


def commands() -> list[Any]:
    return [pytest.param(words, id=f"{page.name}: {' '.join(words)}") for page in PAGES for words in commands_of(page)]


@pytest.fixture(scope="module")
def own_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the documentation has the user write."""
    folder = tmp_path_factory.mktemp("own")
    write_own_files(folder)
    return folder


def run(command: Sequence[str | Path], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result


def check_composes(words: Sequence[str], own_files: Path) -> None:
    """The configuration composes and passes the checks that a run begins with, for every value of a sweep.

    Of a study, for the rows that the command names, at its scale; tests/studies/test_study.py has every row at both.
    """
    overrides, rest, study, variants, scale = [], list(words), None, None, None
    while rest:
        word = rest.pop(0)
        if word == "--config-dir":
            overrides.append(f"hydra.searchpath=[file://{own_files / rest.pop(0)}]")
        elif word == "--cfg":
            assert rest.pop(0) in ("job", "hydra", "all")
        elif word.startswith("sweep="):
            assert "-m" in words
            study = read_study(word.removeprefix("sweep="))
        elif word.startswith("variant="):
            variants = word.removeprefix("variant=").split(",")
        elif word.startswith("scale="):
            scale = word.removeprefix("scale=")
        elif word not in ("--help", "-m"):
            overrides.append(word)
    choices: list[list[str]] = []
    for override in OverridesParser.create().parse_overrides(overrides):
        assert override.input_line is not None
        key = override.input_line.partition("=")[0]
        assert "-m" in words or not override.is_sweep_override()
        swept = override.is_sweep_override()
        choices.append([f"{key}={v}" for v in override.sweep_string_iterator()] if swept else [override.input_line])
    assert study or variants is None
    if study and study.experiments:
        scale = scale or "cpu"
    rows = [study.arguments(variant, scale) for variant in variants or study.variants] if study else [[]]
    for row in rows:
        for index in range(max((len(choice) for choice in choices), default=1)):
            with initialize_config_dir(str(conf_dir()), version_base="1.3"):
                own = [choice[index % len(choice)] for choice in choices]
                resolve(compose("train", overrides=[*row, *own]), planning=False)  # DIR is not there


@pytest.mark.parametrize("words", commands())
def test_every_command_of_the_documentation_is_right(
    words: list[str], own_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, arguments = words[0].removeprefix(".venv/bin/"), words[1:]
    if name in ("dualseg-train", "dualseg-audit", "dualseg-check", "dualseg-plan"):
        check_composes(split_arguments(CheckOptions, arguments)[1] if name == "dualseg-check" else arguments, own_files)
    elif name == "dualseg-evaluate":
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            trained = resolve(compose("train"))
        options = read_arguments(EvaluationOptions, arguments, name)
        settings_of_evaluation([trained] * len(options.run), options.changes)
    elif name == "dualseg-predict":
        read_arguments(PredictionOptions, arguments, name)
    elif name == "dualseg-export":
        read_arguments(ExportOptions, arguments, name)
    elif name == "dualseg-report":
        monkeypatch.setattr(sys, "argv", words)
        for report in ("report_run", "report_study", "report_status"):
            monkeypatch.setattr(dualseg.report, report, lambda *arguments: None)
        dualseg.report.main()
    elif name == "dualseg-prepare":
        read_arguments(PreparationOptions, arguments, name)
    elif name == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in arguments if "=" not in word} <= set(targets)
    elif name == "source":
        assert arguments == [".venv/bin/activate"]
    else:  # a tool that the development dependencies bring, or that the user has
        assert name in ("python", "python3", "pre-commit", "ruff", "wandb")


def test_the_documentation_shows_every_command() -> None:
    shown = {words.values[0][0] for words in commands()}
    scripts = re.findall(r"^(dualseg-\w+) = ", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert scripts and set(scripts) <= shown


def test_links_and_pictures_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_tables_of_groups_and_terms_are_complete() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    unlisted = {"data/default.yaml", "network"}  # what datasets share; what `networks` is made of
    for option in (ROOT / "conf").glob("*/*.yaml"):
        shown = option.relative_to(ROOT / "conf")
        assert f"`{option.stem}`" in page or unlisted & {str(shown), str(shown.parent)}, shown
    terms = yaml.safe_load((ROOT / "conf" / "method" / "dual.yaml").read_text())["method"]["terms"]
    page = (ROOT / "docs" / "method.md").read_text()
    assert all(f"`{term}`" in page for term in terms)


def test_the_first_page_is_short_and_leads_to_every_other() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 7000
    index = (ROOT / "docs" / "index.md").read_text()
    others = {page.name for page in DOCS} - {"index.md"}
    assert others == {name for name in others if f"]({name}" in index}


def test_the_method_of_the_first_page_is_the_one_of_the_documentation() -> None:
    shown, told = block_after("README.md", "twelve-lines"), block_after("docs/change-one-thing.md", "my-method")
    assert shown.splitlines()[1:] == told.splitlines()[1:]


@dataclass(frozen=True)
class Trained:
    """A folder in which `command` has left runs/demo, tiny and with the notebook's method, and what it printed."""

    folder: Path
    command: list[str]
    output: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    demo = ["experiment=demo", "method=dual", *TINY_PHANTOM, *TINY_RUN, "data.labeled=2", "data.held_out_validation=0"]
    settings = ["trainer.max_iterations=3", "trainer.validate_every=null", "lr_schedule=step", "optimizer.lr=0.01"]
    command = [sys.executable, "-m", "dualseg.train", *demo, *settings]
    return Trained(folder, command, run(command, folder))


def test_the_notebook_example_trains_what_the_command_trains(trained: Trained) -> None:
    code = block_after("docs/notebook.md", "notebook")
    for old, new in {
        "LeftAtrium(": "Phantom(",
        "import LeftAtrium": "import Phantom",
        '"DIR"': '"data/phantom", train=6, test=2, shape=(32, 32, 16)',
        "(112, 112, 80), labeled=8": "(32, 32, 16), labeled=2",
        "(18, 18, 4)": "(16, 16, 16)",
        "ResNet34VNet()": "ResNet34VNet(base_channels=2)",
        "VNet()": "VNet(base_channels=2)",
        "max_steps=6000": 'max_steps=3, accelerator="cpu"',
    }.items():
        assert old in code, f"{old}: the example of docs/notebook.md has changed"
        code = code.replace(old, new)
    code += 'import torch\ntorch.save(method.networks.state_dict(), "notebook.pt")\n'
    printed = run([sys.executable, "-c", code], trained.folder).stdout.strip().splitlines()[-1]
    metrics = json.loads((trained.folder / "runs/demo/metrics.json").read_text())
    assert yaml.safe_load(printed) == pytest.approx(metrics["test"]["ensemble"], abs=1e-9)
    ours = torch.load(trained.folder / "notebook.pt", weights_only=True)
    theirs = network_states(read_checkpoint(trained.folder / "runs/demo/checkpoints/iteration-000003.ckpt"))
    assert len(ours) == sum(map(len, theirs.values()))
    for name, state in theirs.items():
        for key, value in state.items():
            assert torch.equal(ours[f"{name}.{key}"], value), f"{name}.{key}"


def test_a_run_is_not_cluttered(trained: Trained) -> None:
    lines = [line for line in trained.output.stdout.splitlines() if line.strip()]
    assert lines[0] == "Training runs/demo" and lines[1] == "Finished: runs/demo"
    noise = re.compile(r"tip:|gpu available|tpu|treespec|weights_only|warn|many workers", re.IGNORECASE)
    assert "hardly found" in trained.output.stderr, "with what three iterations teach"
    said = [line for line in trained.output.stderr.splitlines() if "hardly found" not in line]  # after 3 iterations
    assert not [line for line in said if noise.search(line)]


def test_a_second_demo_an_evaluation_and_a_report_run(trained: Trained) -> None:
    def folder_has(path: str) -> bool:
        return (trained.folder / "runs/demo" / path).is_file()

    before = (trained.folder / "runs/demo/metrics.json").stat().st_mtime_ns
    assert "test ensemble" in run(trained.command, trained.folder).stdout
    assert (trained.folder / "runs/demo/metrics.json").stat().st_mtime_ns == before
    run([sys.executable, "-m", "dualseg.evaluate", "run=runs/demo"], trained.folder)
    assert folder_has("evaluations/001-test/metrics.json") and folder_has("evaluations/001-test/cases.csv")
    shown = run([sys.executable, "-m", "dualseg.report", "run", "runs/demo"], trained.folder).stdout
    assert shown.strip() == "Report: runs/demo/report.html" and folder_has("report.html")


def test_ones_own_dataset_trains(own_files: Path, trained: Trained) -> None:
    own = ["--config-dir", "my_conf", "data=mine", f"data.root={trained.folder / 'data/phantom'}", "name=mine"]
    words = [*own, *TINY_RUN, "method=supervised", "trainer.max_iterations=1"]
    paths = os.pathsep.join(["."] + [p for p in [os.environ.get("PYTHONPATH")] if p])
    result = run([sys.executable, "-m", "dualseg.train", *words], own_files, PYTHONPATH=paths)
    assert "test a" in result.stdout
    assert json.loads((own_files / "runs/mine/manifest.json").read_text())["data"]["dataset"] == "mine"
