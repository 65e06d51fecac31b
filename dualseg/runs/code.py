"""The user's own code behind a run: the modules that its configuration names by `_target_`, known by their SHA-256.

Nothing is imported: a module is found by its name, and what it imports by its text. No torch here.
"""

import ast
import re
import site
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.machinery import all_suffixes
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dualseg.files import sha256_of

NOT_RESULT = ("logger",)  # nodes of a configuration whose code decides no result
OURS = ("dualseg", "hydra_plugins")  # what git and the version number say of it is in the manifest


def user_code(config: Mapping[str, Any]) -> dict[str, Path]:
    """Name -> file of each module that a configuration names, and of those of the user's that these import.

    The standard library, dualseg and what dualseg depends on are left out; so is what other installed packages import.
    A module that cannot be found is left out as well: whoever builds the object will say so.

    Args:
        config: of a run, resolved, or a part of it.
    """
    found: dict[str, Path] = {}
    named = [target for key, node in config.items() if key not in NOT_RESULT for target in _targets(node)]
    waiting = [(target, True) for target in named]
    while waiting:
        name, is_target = waiting.pop()
        for module, file in _modules_of(name):
            installed = _is_installed(file)
            if module not in found and (is_target or not installed) and not _is_known(module, file, installed):
                found[module] = file
                waiting += [] if installed else [(imported, False) for imported in _imports(module, file)]
    return dict(sorted(found.items()))


def code_hashes(config: Mapping[str, Any]) -> dict[str, str]:
    """Name -> SHA-256 of each module of `user_code`."""
    return {module: sha256_of(file) for module, file in user_code(config).items()}


def changed_code(config: Mapping[str, Any], noted: Mapping[str, str]) -> list[str]:
    """The files of modules that differ from `noted`, or the names of those that are not found any more."""
    files = user_code(config)
    differing = [module for module, file in files.items() if noted.get(module) != sha256_of(file)]
    return [str(files[module]) for module in differing] + [module for module in noted if module not in files]


def _targets(node: Any) -> Iterator[str]:
    """The dotted names that Hydra would import for a node of a configuration."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Mapping):
            target = node.get("_target_")
            # hydra.utils.get_method and its like take the name of what they give
            for name in (target, node.get("path") if str(target).startswith("hydra.utils.get_") else None):
                if isinstance(name, str):
                    yield name
            waiting += node.values()
        elif isinstance(node, list | tuple):
            waiting += node


def _modules_of(name: str) -> Iterator[tuple[str, Path]]:
    """Each module on the way of a dotted name, with its file: my, my.losses of my.losses.Dice."""
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        return
    try:
        spec = find_spec(parts[0])
    except (ImportError, ValueError):  # a module that is being imported, or __main__
        return
    if spec is None:
        return
    file = Path(spec.origin) if spec.has_location and spec.origin else None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    for count, part in enumerate(parts, start=1):
        if count > 1:  # not by find_spec, which imports the package
            file, folders = _below(folders, part)
        if file is not None:
            yield ".".join(parts[:count]), file
        elif not folders:  # neither a module nor a package without __init__.py
            return


def _below(folders: list[Path], name: str) -> tuple[Path | None, list[Path]]:
    """File of the module `name` in one of the folders of a package, and the folders of what lies below it."""
    for folder in folders:
        if (init := folder / name / "__init__.py").is_file():
            return init, [init.parent]
        for suffix in all_suffixes():
            if (file := folder / f"{name}{suffix}").is_file():
                return file, []
    return None, [folder / name for folder in folders if (folder / name).is_dir()]


def _imports(module: str, file: Path) -> list[str]:
    """Dotted names that the text of a module imports; relative ones are made absolute."""
    try:
        tree = ast.parse(file.read_bytes()) if file.suffix == ".py" else ast.Module([], [])
    except (OSError, SyntaxError, ValueError):
        return []
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            names += [f"{start}.{alias.name}" if alias.name != "*" else start for alias in node.names]
    return names


def _is_known(module: str, file: Path, installed: bool) -> bool:
    """It belongs to Python, to dualseg, or to what dualseg depends on."""
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names:  # a file of the user's may have such a name, and come first
        return not installed and any(file.resolve().is_relative_to(place) for place in _python_places())
    return top in OURS or _is_dependency(top, installed)


@cache
def _is_dependency(top: str, installed: bool) -> bool:
    needed = _requirements("dualseg")
    if _normalised(top) in needed or not installed:  # torch and a module of one's own, without looking at 100 packages
        return _normalised(top) in needed
    if not needed:  # dualseg is not installed itself, so that nobody knows: what is installed may be a dependency
        return True
    waiting = list(needed)
    while waiting:
        new = _requirements(waiting.pop()) - needed
        needed |= new
        waiting += new
    return any(_normalised(name) in needed for name in packages_distributions().get(top, [top]))


def _requirements(distribution: str) -> set[str]:
    """Names of what a distribution requires, without its extras; empty where it is not installed."""
    try:
        lines = requires(distribution) or []
    except PackageNotFoundError:
        return set()
    names = [re.match(r"[\w.-]+", line) for line in lines if not re.search(r"\bextra\s*==", line)]
    return {_normalised(name[0]) for name in names if name}


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def _python_places() -> tuple[Path, ...]:
    return tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))


@cache
def _installed_places() -> tuple[Path, ...]:
    places = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    return tuple(Path(place).resolve() for place in [*places, site.getusersitepackages()])


def _is_installed(file: Path) -> bool:
    """It lies where packages are installed, and not in a folder of the user's."""
    resolved = file.resolve()
    return any(resolved.is_relative_to(place) for place in _installed_places())
