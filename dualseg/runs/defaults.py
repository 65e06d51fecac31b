"""What an older run folder's configuration lacks counts as the default that conf/ gives it. No torch, no Hydra here."""

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import yaml

from dualseg.configuration import conf_dir
from dualseg.runs.identity import ADDED

NOT_OF_A_RUN = ("defaults", "hydra", "sweep", "dry", "plan")  # keys of conf/train.yaml that no config.yaml has
REFERENCE = re.compile(r"\$\{([\w.]+)\}")


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration with the keys that it lacks, as far as conf/ has an option of its name for the group.

    Args:
        config: content of config.yaml, perhaps of an older version.
    """
    defaults = {key: value for key, value in _file("train").items() if key not in NOT_OF_A_RUN}
    defaults |= {"logger": None, "trainer": _file("trainer/default")}
    defaults["augmentation"] = _file("augmentation/none")["augmentation"]
    method = _option("method", config.get("method"), ("name", "_target_"), inside="method")
    terms = _value(config, "method.terms")
    added = {name: _added_term(own) for name, own in terms.items()} if isinstance(terms, Mapping) else {}
    defaults |= _over({"method": {"terms": added}}, method)
    for group in ("optimizer", "lr_schedule"):
        defaults[group] = _option(group, config.get(group), ("_target_",))
    data, networks = config.get("data"), config.get("networks")
    if isinstance(data, Mapping):
        option = _option("data", data.get("source"), ("_target_",), inside="source")
        defaults["data"] = {**_file("data/default"), "augmentation": None, **option}
    named = networks if isinstance(networks, Mapping) else {}
    defaults["networks"] = {n: _option("network", own, ("architecture", "_target_")) for n, own in named.items()}
    return _filled(config, _as_before(defaults), dict(config))


def _as_before(defaults: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The defaults, but of a key that came later the value that runs without it had: an option may give another now."""
    older = {}
    for key, default in defaults.items():
        name = f"{prefix}{key}"
        added = [value for pattern, value in ADDED.items() if fnmatchcase(name, pattern)]
        own = _as_before(default, f"{name}.") if isinstance(default, Mapping) else default
        older[key] = added[0] if added else own
    return older


def _filled(own: Mapping[str, Any], defaults: Mapping[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    filled = dict(own)
    for key, default in defaults.items():
        value = own.get(key)
        if isinstance(default, Mapping) and isinstance(value, Mapping):
            filled[key] = _filled(value, default, config)
        elif isinstance(default, Mapping) and key not in own:
            if inner := _filled({}, default, config):
                filled[key] = inner
        elif key not in own:
            reference = REFERENCE.fullmatch(default) if isinstance(default, str) else None
            found = _value(config | _file("recipe/none"), reference[1]) if reference else default  # older than plans
            if found is not None or default is None:
                filled[key] = found
    return {key: value for key, value in filled.items() if value != "???"}


def _value(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key; None where there is none."""
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _option(group: str, own: Any, keys: tuple[str, ...], inside: str | None = None) -> Mapping[str, Any]:
    """The option of a group that `own`, a node of a configuration, was made of: it agrees in `keys`; empty: none does.

    Args:
        inside: key of the option under which the node stands.
    """
    if not isinstance(own, Mapping):
        return {}
    for option in _options(group):
        node = option.get(inside, {}) if inside else option
        if all(node.get(key) == own.get(key) for key in keys):
            return option
    return {}


def _added_term(own: Any) -> Mapping[str, Any]:
    """What conf/term has for a term that was added to a method's own; empty for one of these."""
    if not isinstance(own, Mapping) or "_target_" not in own:
        return {}
    added = (term for option in _options("term") for term in option.values())
    return next((term for term in added if term["_target_"] == own["_target_"]), {})


@cache
def _options(group: str) -> list[dict[str, Any]]:
    return [_with_bases(group, path.stem) for path in sorted((conf_dir() / group).glob("*.yaml"))]


def _with_bases(group: str, name: str) -> dict[str, Any]:
    """An option over those of its group that it extends."""
    option = _file(f"{group}/{name}")
    merged: dict[str, Any] = {}
    for base in option.get("defaults", ()):
        if isinstance(base, str) and base != "_self_":
            merged = _over(_with_bases(group, base), merged)
    return _over({key: value for key, value in option.items() if key != "defaults"}, merged)


def _over(own: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    both = own.keys() & base.keys()
    nested = {key for key in both if isinstance(own[key], Mapping) and isinstance(base[key], Mapping)}
    return {**base, **own, **{key: _over(own[key], base[key]) for key in nested}}


@cache
def _file(name: str) -> dict[str, Any]:
    content = yaml.safe_load((conf_dir() / f"{name}.yaml").read_text())
    return content if isinstance(content, dict) else {}
