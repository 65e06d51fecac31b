"""The user's own code behind a run: which modules count, that none is imported, and what a change of one means."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dualseg.errors import DualsegError
from dualseg.files import write_json
from dualseg.runs.claim import check_claim
from dualseg.runs.code import changed_code, code_hashes, user_code
from dualseg.runs.evaluation import checkpoints_of
from dualseg.runs.folder import RunFolder
from dualseg.studies.collecting import Member, read_run

RAISES = "raise RuntimeError('was imported')\n"


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write modules, of which every one fails when it is imported, into a folder that Python looks in."""

    def write(**texts: str) -> Path:
        for name, text in texts.items():
            path = tmp_path / f"{name.replace('__', '/')}.py".replace("/init/", "/__init__")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(RAISES + text)
        monkeypatch.syspath_prepend(tmp_path)
        return tmp_path

    return write


def config(*targets: str) -> dict[str, Any]:
    """The targets in places of every kind."""
    nested: Any = {"size": 3}
    for target in targets:
        nested = {"_target_": target, "_partial_": True, "inner": [[nested], "text"]}
    return {"method": nested, "seed": 0}


def test_every_target_is_found_and_so_is_what_its_module_imports(modules):
    root = modules(
        own_method="from own_losses import dice\nimport torch, yaml, own_tools.shapes as shapes\n",
        own_losses="def dice(): import own_late\n",
        own_late="",
        own_tools__shapes="from . import boxes\nfrom ..beyond import x\n",
        own_tools__boxes="this is no Python\n",
        own_tools__unused="",
        own_other="",
    )
    found = user_code(config("own_method.Method.of", "torch.optim.SGD", "dualseg.networks.VNet"))
    names = ["own_late", "own_losses", "own_method", "own_tools.boxes", "own_tools.shapes"]
    assert found == {name: root / f"{name.replace('.', '/')}.py" for name in names}
    assert [*user_code(config("own_other.A", "own_late.B"))] == ["own_late", "own_other"]


def test_a_package_that_passes_on_what_a_module_of_it_defines(modules):
    root = modules(own_package__losses="class Dice: ...\n", own_package__more="")
    (root / "own_package" / "__init__.py").write_text(f"{RAISES}from .losses import Dice\n")
    assert [*user_code(config("own_package.Dice"))] == ["own_package", "own_package.losses"]


def test_functions_that_hydra_looks_up_by_their_path_count(modules):
    modules(own_functions="")
    node = {"_target_": "hydra.utils.get_method", "path": "own_functions.ramp"}
    assert [*user_code({"method": {"ramp": node}})] == ["own_functions"]


@pytest.mark.parametrize(
    "target",
    [
        "torch.nn.Conv3d", "monai.networks.nets.UNet", "hydra.utils.instantiate", "omegaconf.OmegaConf", "sympy.Symbol",
        "os.path.join", "dualseg.data.Folder", "no_such_module.Thing", "", ".x", "a b.c",
    ],
)  # fmt: skip
def test_python_dualseg_and_what_dualseg_depends_on_are_no_code_of_the_users(target):
    assert user_code(config(target)) == {}


def test_a_file_of_the_users_may_have_the_name_of_a_module_of_python(modules, monkeypatch):
    monkeypatch.delitem(sys.modules, "profile", raising=False)
    root = modules(own_method="import profile, json.decoder, cProfile\n", profile="", json="")
    assert user_code(config("own_method.A")) == {
        "own_method": root / "own_method.py",
        "profile": root / "profile.py",  # json is imported already, from Python's own folder
    }


def test_of_another_installed_package_the_named_module_counts_alone():
    assert [*user_code(config("medpy.metric.binary.dc"))] == ["medpy", "medpy.metric", "medpy.metric.binary"]


def test_a_logger_decides_no_result(modules):
    modules(own_logger="")
    assert user_code({"logger": {"_target_": "own_logger.Logger"}}) == {}


def test_hashes_tell_changed_and_lost_files(modules):
    root = modules(own_method="import own_losses\n", own_losses="")
    settings = config("own_method.Method")
    noted = code_hashes(settings)
    assert noted["own_method"] == hashlib.sha256((root / "own_method.py").read_bytes()).hexdigest()
    assert changed_code(settings, noted) == []
    modules(own_losses="weight = 2\n")
    assert changed_code(settings, noted) == [str(root / "own_losses.py")]
    (root / "own_losses.py").unlink()
    assert changed_code(settings, noted) == ["own_losses"]
    modules(own_method="")
    assert changed_code(settings, noted) == [str(root / "own_method.py"), "own_losses"]


def test_torch_is_not_needed(tmp_path):
    (tmp_path / "own.py").write_text("import torch\n")
    code = "import sys, dualseg.runs.code as c; "
    code += "print([*c.user_code({'a': {'_target_': 'own.X'}})], 'torch' in sys.modules)"
    environment = {"PYTHONPATH": f"{Path(__file__).parents[2]}:{tmp_path}"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    assert ended.stdout == "['own'] False\n"


@pytest.fixture
def run(modules, tmp_path) -> RunFolder:
    """A finished run of one's own network, with a checkpoint."""
    modules(own_network="width = 1\n")
    settings = {
        **{"name": None, "output": str(tmp_path), "overwrite": False, "logger": None, "seed": 0},
        "networks": {"a": {"_target_": "own_network.Net", "architecture": "net"}},
        "data": {"name": "d", "root": "/d", "source": {"_target_": "dualseg.data.Phantom", "root": "/d"}},
    }
    folder = RunFolder(tmp_path / "run")
    folder.open(settings)
    write_json(folder.manifest_file, {"dualseg": "0", "code": code_hashes(settings)})
    (folder.checkpoints / "iteration-000002.ckpt").touch()
    folder.finish({"status": "finished"})
    return folder


def test_other_code_is_neither_shown_nor_resumed(run, modules):
    settings = run.config()
    check_claim(run, settings)
    file = modules(own_network="width = 2\n") / "own_network.py"
    for state in ("finished", "stopped"):
        with pytest.raises(DualsegError, match=f"{file} changed .*overwrite=true"):
            check_claim(run, settings)
        check_claim(run, {**settings, "overwrite": True})
        if state == "finished":
            run.metrics_file.unlink()
    (run.checkpoints / "iteration-000002.ckpt").unlink()
    check_claim(run, settings)  # nothing of the former code is left


def test_a_run_that_noted_no_code_is_taken_as_it_is(run, modules):
    write_json(run.manifest_file, {"dualseg": "0"})
    modules(own_network="width = 2\n")
    check_claim(run, run.config())


def test_what_is_made_of_a_run_says_that_its_code_has_changed(run, modules, capsys):
    taken = checkpoints_of([run])[str(run.path)]
    assert taken["code"] == code_hashes(run.config()) and capsys.readouterr().err == ""
    file = modules(own_network="width = 2\n") / "own_network.py"
    again = checkpoints_of([run])[str(run.path)]
    assert again["code"]["own_network"] == hashlib.sha256(file.read_bytes()).hexdigest() != taken["code"]["own_network"]
    assert f"warning: {run.path}: {file} has changed" in capsys.readouterr().err


def test_runs_of_other_code_are_told_apart_in_tables(tmp_path, study_run):
    """Where the mean of several seeds would be one of unlike runs."""
    rows = []
    for name, code in (("one", {"own": "1"}), ("two", {"own": "2"}), ("three", {})):
        folder = RunFolder(study_run(tmp_path / name, {"a": [0.5]}, manifest={"code": code}))
        rows.append(read_run("la_x", Member("full", "cpu", 0, folder)))
    assert [row.settings.get("code.own") for row in rows] == ["1", "2", None]
    assert len({row.run["configuration"] for row in rows}) == 3
    together = Path(study_run(tmp_path / "pair", {"ensemble": [0.5]}))
    evaluated = {**yaml.safe_load((together / "config.yaml").read_text()), "evaluated": {str(tmp_path / "one"): "x"}}
    (together / "config.yaml").write_text(yaml.safe_dump(evaluated))
    assert read_run("la_x", Member("pair", "cpu", 0, RunFolder(together))).settings["code.own"] == "1"
