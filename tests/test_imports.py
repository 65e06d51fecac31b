"""Imports point one way: no circle of files, and no room knows one of its own floor or of a higher one.

Every import counts, within a function and under TYPE_CHECKING as well.
"""

import ast
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = (  # from the top; what is not named here, files such as dualseg/errors.py, is the ground
    ("__main__", "audit", "check", "evaluate", "export", "plan", "predict", "prepare", "report", "train"),
    ("studies",),
    ("exporting", "prediction", "preparation"),
    ("reporting",),
    ("training",),
    ("command",),
    ("runs",),
    ("methods",),
    ("inference", "planning"),
    ("data",),
    ("losses", "metrics", "networks", "views"),
)


def module_of(file: Path, root: Path) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(root: Path, *packages: str) -> dict[str, set[str]]:
    """Module -> the modules that it imports by name; `from package import name` is of the module where it is one."""
    files = {module_of(file, root): file for package in packages for file in (root / package).rglob("*.py")}
    return {module: {*named(file, files)} - {module} for module, file in files.items()}


def named(file: Path, known):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            prefixes = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
            yield from [prefix for prefix in prefixes if prefix in known][:1]


def test_no_circle_of_files():
    TopologicalSorter(imports(ROOT, "dualseg", "hydra_plugins")).prepare()  # raises CycleError with the circle


def test_scripts_beside_the_package_import_what_is_there():
    """Nothing else runs them all."""
    files = [file for folder in ("benchmarks", "docs", "experiments") for file in (ROOT / folder).rglob("*.py")]
    assert len(files) > 10
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "dualseg":
                module = import_module(str(node.module))
                for alias in node.names:
                    there = hasattr(module, alias.name) or find_spec(f"{node.module}.{alias.name}")
                    assert there, f"{file}:{node.lineno}: {node.module}.{alias.name}"


def test_no_room_knows_a_higher_one():
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    rooms = {path.name for path in (ROOT / "dualseg").iterdir() if (path / "__init__.py").is_file()}
    assert rooms <= floor.keys(), "a room without a floor"
    for module, imported in imports(ROOT, "dualseg").items():
        room = "".join(module.split(".")[1:2])
        for other in ("".join(name.split(".")[1:2]) for name in imported):
            lower = floor.get(room, len(FLOORS)) < floor.get(other, len(FLOORS))
            on_the_ground = room not in floor and other not in floor
            assert lower or room == other or on_the_ground or (room, other) == ("audit", "train"), f"{module}: {other}"


@pytest.mark.parametrize(
    "back",
    [
        "import toy.a",
        "from toy import a",
        "from toy.a import thing",
        "def late():\n    from toy.a import thing",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from toy.a import thing",
    ],
)
def test_a_circle_is_found_wherever_the_import_stands(tmp_path, back):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "__init__.py").write_text("")
    (tmp_path / "toy" / "a.py").write_text("from toy.b import other\nthing = 1")
    (tmp_path / "toy" / "b.py").write_text(back)
    with pytest.raises(CycleError, match=r"toy\.a"):
        TopologicalSorter(imports(tmp_path, "toy")).prepare()
