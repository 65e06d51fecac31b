"""What is wrong with arguments that Hydra cannot compose, and the nearest key or option. No torch here."""

import re
import sys
import traceback
from itertools import pairwise
from pathlib import Path
from typing import Any

from dualseg.command.habits import advice_on
from dualseg.configuration import conf_dir
from dualseg.errors import DualsegError, nearest


def explain(error: BaseException) -> str:
    """One message for a configuration error, with the nearest key or option where a name is misspelt."""
    from hydra.errors import OverrideParseException

    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    text = str(error).strip()
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read; write key=value, a list as key=[1,2,3]."
    for cause in causes:
        if isinstance(cause, DualsegError):  # raised in the constructor of something that Hydra instantiated
            return str(cause)
        full_key = getattr(cause, "full_key", None)
        if full_key and "Missing mandatory value" in str(cause):
            return f"{full_key} is required and has no default; give {full_key}=..."
        if full_key and "is not in struct" in str(cause):
            close = _near_term() or advice_on(str(full_key)) or _near_key(str(full_key))
            return f"{full_key}: no such configuration key.{close}"
    if target := re.match(r"Error locating target '([^']+)'", text):
        return f"{target[1]}: {_why_not_imported(target[1], causes[-1])}"
    option = re.search(r"(?:Could not find|In '[^']+': Could not find) '([^']+)'", text)
    if option:
        group, _, name = option.group(1).rpartition("/")
        return f"{group}={name}: no such option.{_near_option(group, name)}"
    group_key = re.search(r"Could not override '([^']+)'|Override ([^=\s]+)=.* looks like a config group", text)
    if group_key:
        key = group_key.group(1) or group_key.group(2)
        return f"{key}: no such configuration key.{advice_on(key) or _near_key(key)}"
    if twice := re.match(r"Multiple values for (\S+)\. To override", text):
        argument = next((one for one in sys.argv[1:] if one.startswith(f"+{twice[1]}=")), f"+{twice[1]}=...")
        return f"{argument}: {twice[1]} has an option already; write {argument[1:]} without the +."
    return " ".join(line.strip() for line in text.splitlines() if line.strip() and "full stack trace" not in line)


def empty_group() -> str:
    """What to do about group=null, of which Hydra says neither the group nor its options; empty where it is none."""
    choice = next((choice for choice in _group_choices() if choice.endswith("=null")), None)
    if choice is None:
        return ""
    folder = choice.partition("=")[0].lstrip("+").partition("@")[0]
    options = sorted({path.stem for conf in _conf_dirs() for path in (conf / folder).glob("*.yaml")})
    return f"{choice}: is a group; choose from {', '.join(options)}."


def _why_not_imported(target: str, error: BaseException) -> str:
    """What is wrong with code of the user's own that Hydra could not import: it says itself only that it could not."""
    module, _, name = target.rpartition(".")
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing == target and module in sys.modules:
        return f"{module} has no {name}.{nearest(name, dir(sys.modules[module]))}"
    if missing and target.startswith(f"{missing}."):
        return f"no module {missing} is found; is its folder in PYTHONPATH?"
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = "" if isinstance(error, SyntaxError) else f" ({Path(place.filename).name}, line {place.lineno})"
    return f"cannot be imported: {type(error).__name__}: {error}{where}"


def _own_conf_dirs() -> list[Path]:
    """The folder of --config-dir, where the command line gives one."""
    arguments = sys.argv[1:]
    own = [after for argument, after in pairwise(arguments) if argument in ("--config-dir", "-cd")]
    own += [argument.partition("=")[2] for argument in arguments if argument.startswith("--config-dir=")]
    return [Path(folder).absolute() for folder in own]


def _conf_dirs() -> list[Path]:
    """Where options lie: the configuration tree, and the command line's own."""
    return [conf_dir(), *_own_conf_dirs()]


def _group_choices() -> list[str]:
    """The arguments of the command line that choose an option of a group; of several to sweep over, the first."""
    choices = []
    for argument in sys.argv[1:]:
        group, _, options = argument.partition("=")
        folder = group.lstrip("+").partition("@")[0]
        if options and folder and any((conf / folder).is_dir() for conf in _conf_dirs()):
            choices.append(f"{group}={options if options.startswith('[') else options.partition(',')[0]}")
    return choices


def _near_key(key: str) -> str:
    """Nearest key or group of the configuration that the command line's choices of options make."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    from dualseg.runs.identity import flatten

    search = ",".join(f"'file://{folder}'" for folder in _own_conf_dirs())
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        try:
            choices = [choice for choice in _group_choices() if not choice.startswith(f"{key}=")]
            overrides = [*choices, f"hydra.searchpath=[{search}]"]
            config = compose("train", overrides=overrides, return_hydra_config=True)
        except HydraException:
            return ""
    known: Any = OmegaConf.to_container(config, resolve=False)
    groups = known.pop("hydra")["runtime"]["choices"]
    is_group = any((conf / key).is_dir() for conf in _conf_dirs())
    if is_group and not any(group.partition("@")[0] == key for group in groups):  # no default chooses from it
        return f" Write +{key}=..."
    flat = list(flatten(known))
    prefixes = {k.rsplit(".", n)[0] for k in flat for n in range(1, k.count(".") + 1)}
    return nearest(key, [*flat, *prefixes, *groups]) + _with_plus(key, known)


def _with_plus(key: str, known: dict[str, Any]) -> str:
    """How to set an argument of code other than dualseg's, for which a file need not name all that it takes."""
    argument = next((argument for argument in sys.argv[1:] if argument.startswith((f"{key}=", f"{key}."))), None)
    node: Any = known
    target = None
    for part in key.split(".")[:-1]:
        node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict):
            target = node.get("_target_", target)
    return f" If {target} takes it: +{argument}" if argument and target and not target.startswith("dualseg.") else ""


def _near_term() -> str:
    """How to add the term whose keys the command line sets, where it does not."""
    added = [argument for argument in sys.argv[1:] if argument.startswith("+term=")]
    for argument in sys.argv[1:]:
        name = re.match(r"method\.terms\.([\w-]+)\.\w+=", argument)
        known = name and any((conf / "term" / f"{name[1]}.yaml").is_file() for conf in _conf_dirs())
        if name and known and not any(name[1] in choice for choice in added):
            return f" Add +term={name[1]}."
    return ""


def _near_option(group: str, name: str) -> str:
    options = sorted({p.stem for conf in _conf_dirs() for p in (conf / group).glob("*.yaml")})
    return nearest(name, options) or (f" There are {', '.join(options)}." if options else "")
