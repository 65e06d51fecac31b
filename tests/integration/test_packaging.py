"""The wheel carries what the commands read, and works from any folder without the checkout."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built without a network from a copy of what goes into it."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed; it is one of the development dependencies")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("dualseg", "hydra_plugins", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    python(["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source], folder)
    (built,) = folder.glob("dualseg-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the wheel alone was installed into; its dependencies are this environment's."""
    target = tmp_path_factory.mktemp("installed")
    python(["-m", "pip", "install", "--no-deps", "--no-index", "--target", target, wheel], target)
    return target


def python(words: Iterable[str | Path], cwd: Path, path: Path | None = None) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    result = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    return result.stdout


def test_the_wheel_holds_configuration_lists_and_template(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    configuration = {f"dualseg/conf/{p.relative_to(ROOT / 'conf')}" for p in (ROOT / "conf").rglob("*.yaml")}
    package = {
        str(p.relative_to(ROOT))
        for pattern in ("*.py", "*.txt", "*.j2", "*.js", "*.json")
        for p in (ROOT / "dualseg").rglob(pattern)
        if "conf" not in p.relative_to(ROOT / "dualseg").parts
    }
    assert {"dualseg/reporting/run.html.j2", "dualseg/data/lists/left_atrium_train.txt"} <= package
    assert "dualseg/prediction/viewer/niivue/niivue.umd.js" in package
    plugins = {str(p.relative_to(ROOT)) for p in (ROOT / "hydra_plugins").glob("dualseg_*/*.py")}
    assert "hydra_plugins/dualseg_slurm/__init__.py" in plugins
    assert configuration | package | plugins <= names
    assert "hydra_plugins/__init__.py" not in names, "it is a namespace that others write into as well"
    for carried in ("LICENSE", "NOTICE", "dualseg/prediction/viewer/niivue/LICENSES.txt"):
        assert any(name.endswith(f"licenses/{carried}") for name in names), carried
    assert not [name for name in names if name.startswith(("tests/", "conf/"))]


def test_the_wheel_names_every_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (entry_points,) = (n for n in archive.namelist() if n.endswith("entry_points.txt"))
        listed = dict(re.findall(r"^(\S+) = (\S+)$", archive.read(entry_points).decode(), re.MULTILINE))
    assert listed == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


def test_the_installed_wheel_works_from_another_folder(installed: Path, tmp_path: Path) -> None:
    print_places = "import dualseg.configuration as c; print(c.__file__, c.conf_dir())"
    where = python(["-c", print_places], tmp_path, installed).split()
    assert where == [str(installed / "dualseg" / "configuration.py"), str(installed / "dualseg" / "conf")]
    help_text = python(["-m", "dualseg.train", "--help"], tmp_path, installed)
    assert re.search(r"^ *experiment: .*\bla_paper\b", help_text, re.MULTILINE)
    composed = python(
        ["-m", "dualseg.train", "--cfg", "job", "experiment=la_paper", "data.root=DIR"], tmp_path, installed
    )
    assert "max_iterations: 6000" in composed and "labeled: 8" in composed
    code = "from hydra.core.plugins import Plugins; print(sorted(Plugins.instance().class_name_to_class))"
    assert "hydra_plugins.dualseg_slurm.DualsegSlurmLauncher" in python(["-c", code], tmp_path, installed)
    assert "run=RUN_FOLDER" in python(["-m", "dualseg.evaluate", "--help"], tmp_path, installed)
    assert "RUN_FOLDER" in python(["-m", "dualseg.report", "run", "--help"], tmp_path, installed)
    assert not list(tmp_path.iterdir())


def test_the_installed_wheel_finds_the_case_lists(installed: Path, tmp_path: Path) -> None:
    code = "from dualseg.data.left_atrium import case_list; print(len(case_list('train')), len(case_list('test')))"
    assert python(["-c", code], tmp_path, installed).split() == ["80", "20"]


def test_constraints_pin_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    pinned = re.findall(r"^([\w.-]+)==[\w.]+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    names = {re.split(r"[<>=!~\[ ]", name)[0].lower().replace("_", "-") for name in wanted}
    assert names <= {name.lower().replace("_", "-") for name in pinned}
