"""The grammar of key=value arguments, of every command that has options of its own. No torch here.

The options are a dataclass; a field is a key, and required where it has no default. Its type says how the value is
read: a str or Path is the text as it stands, whatever it looks like; `tuple[str, ...]` is names, such as [a,b];
OmegaConf converts all others. The docstring says in its section Attributes what it means; its `metadata` may have

    value: what stands for the value of a required key in messages, such as DIR.
    again: True: each argument of this key is one more value of a tuple, its text as it stands.
    positional: True: an argument that is no key=value is a value of this key.
    others: True: takes every key with a dot in it, such as data.root; values are read as YAML.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from itertools import islice
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from dualseg.command.overrides import PATH_KEYS
from dualseg.errors import DualsegError, nearest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")

_SAID = {bool: "true or false", int: "a whole number", float: "a number"}


def read_arguments(kind: type[Options], arguments: Sequence[str], command: str) -> Options:
    """The options that the arguments of a command line give. `--key value` and `--key=value` are key=value.

    Args:
        kind: the dataclass.
        arguments: of the command line.
        command: its name, for messages.

    Raises:
        DualsegError: an unknown or repeated key, a value of another type, a required key is missing; and whatever the
            dataclass itself refuses.
    """
    from omegaconf import OmegaConf

    schema = OmegaConf.structured(kind)
    OmegaConf.set_readonly(schema, False)  # which that of a frozen dataclass is
    known = {field.name: field for field in fields(kind)}
    hints = get_type_hints(kind)
    others = _key_with("others", known)
    given: dict[str, Any] = {}
    for argument, key, text in _pairs(arguments, known):
        if others and "." in key and ("=" in argument or text):
            given.setdefault(others, {})[key] = _yaml(key, text)
            continue
        if key not in known or key == others:
            names = [name for name in known if name != others]
            if key == argument:
                raise DualsegError(f"{argument}: write key=value, for example {names[0]}={argument}.")
            raise DualsegError(f"{key}: no such key of {command}.{nearest(key, names)}")
        if not text:
            raise DualsegError(f"{argument}: has no value; write {key}=...")
        kind_of_value = _without_none(hints[key])
        if known[key].metadata.get("again"):
            value = _value(schema, key, text, get_args(kind_of_value)[0])
            given[key] = (*given.get(key, ()), value)
        elif key in given:
            raise DualsegError(f"{key}: is given twice.")
        else:
            given[key] = _value(schema, key, text, kind_of_value)
    for key, field in known.items():
        if is_required(field) and key not in given:
            raise DualsegError(f"{key}={field.metadata['value']} is required.")
    return kind(**given)


def split_arguments(kind: "type[DataclassInstance]", arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments whose key is a field of `kind`, as key=value, --key=value or --key value; and all others."""
    keys = {field.name for field in fields(kind)}
    own: list[str] = []
    others: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        key, equals, _ = argument.removeprefix("--").partition("=")
        if key not in keys or not (equals or argument.startswith("--")):
            others.append(argument)
        else:
            own += [argument] if equals else [argument, *islice(rest, 1)]
    return own, others


def is_required(field: "Field[Any]") -> bool:
    """It has no default."""
    return field.default is MISSING and field.default_factory is MISSING


def default_text(field: "Field[Any]") -> str:
    """As it is written on a command line; empty where there is no such value."""
    default = field.default
    if default is MISSING or default is None or default == ():
        return ""
    if isinstance(default, tuple):
        return f"[{','.join(default)}]"
    return str(default).lower() if isinstance(default, bool) else str(default)


def _pairs(arguments: Sequence[str], known: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(the argument, its key, the text of its value, empty where it has none)"""
    positional = _key_with("positional", known)
    rest = iter(arguments)
    for argument in rest:
        key, equals, text = argument.partition("=")
        if key.startswith("--"):
            key = key.removeprefix("--")
            yield argument, key, text if equals else next(rest, "")
        elif positional and (not equals or (key not in known and _is_path(argument))):
            yield argument, positional, argument
        else:
            yield argument, key, text


def _is_path(argument: str) -> bool:
    """One with an = in it, as files and folders may have."""
    return "/" in argument.partition("=")[0] or Path(argument).exists()


def _key_with(mark: str, known: Mapping[str, "Field[Any]"]) -> str | None:
    return next((key for key, field in known.items() if field.metadata.get(mark)), None)


def _without_none(hint: Any) -> Any:
    """The type of `X | None` is X."""
    return next(one for one in get_args(hint) if one is not NoneType) if isinstance(hint, UnionType) else hint


def _value(schema: Any, key: str, text: str, kind: Any) -> Any:
    from omegaconf.errors import OmegaConfBaseException, ValidationError

    if kind is str:
        return text
    if kind is Path:
        return Path(text).expanduser()
    if get_origin(kind) is tuple:
        names = tuple(name.strip() for name in text.strip("[]").split(","))
        if not all(names):
            raise DualsegError(f"{key}={text}: give names, with a comma between two, such as [a,b].")
        return names
    try:
        if kind is bool and text.lower() not in ("true", "false"):  # OmegaConf also takes yes, on and 1
            raise ValidationError
        schema[key] = text
        return schema[key]
    except OmegaConfBaseException as error:
        raise DualsegError(f"{key}={text}: give {_SAID[kind]}.") from error


def _yaml(key: str, text: str) -> Any:
    """Of a key of the configuration; a path is the text as it stands."""
    import yaml

    if key in PATH_KEYS and text != "null":
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DualsegError(f"{key}={text}: cannot be read; write a list as {key}=[1,2,3].") from error
