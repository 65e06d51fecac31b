"""Write docs/reference.md: every configuration key, from conf/, the classes it builds and dualseg/training/settings.py;
and the options of the other commands.

A key is described by the comment on its line in conf/, else by one on the same key of another option of its group,
else by the docstring of the class that takes it. One that has none of these is an error: the page has no gaps.
"""

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from hydra.utils import get_object

from dualseg.check import CheckOptions
from dualseg.command.grammar import default_text, is_required
from dualseg.command.help import described
from dualseg.data import SemiSupervisedDataModule
from dualseg.evaluate import EvaluationOptions
from dualseg.export import ExportOptions
from dualseg.methods import SegmentationMethod
from dualseg.prediction.options import PredictionOptions
from dualseg.prepare import PreparationOptions
from dualseg.report import RunReportOptions, StatusOptions, StudyOptions
from dualseg.training import settings

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
PAGE = ROOT / "docs" / "reference.md"
GROUPS = (
    "data", "recipe", "augmentation", "method", "networks", "network", "optimizer", "lr_schedule", "trainer", "logger",
    "launcher", "experiment", "sweep", "term",
)  # fmt: skip
ADDED = ("term",)  # no default chooses from them, so that their options come with a +
WHOLE_SETTINGS = (
    "recipe",
    "experiment",
    "sweep",
)  # their files override keys of other groups, and have none of their own
PLUMBING = ("defaults", "_target_", "_partial_", "override /hydra/launcher")
PACKAGE = re.compile(r"^# @package (\S+)$", re.MULTILINE)
HEAD = """# Configuration keys

Written by `docs/reference.py` from `conf/` and the code; change those, not this page.
[configuration.md](configuration.md) says how options are chosen and keys changed. At the end stand the options of
the other commands. dualseg-check, dualseg-plan and dualseg-audit take the keys of dualseg-train.
"""
COMMANDS = {
    "dualseg-predict": PredictionOptions,
    "dualseg-prepare": PreparationOptions,
    "dualseg-export": ExportOptions,
    "dualseg-evaluate": EvaluationOptions,
    "dualseg-check": CheckOptions,
    "dualseg-report run": RunReportOptions,
    "dualseg-report study": StudyOptions,
    "dualseg-report status": StatusOptions,
}


@dataclass(frozen=True)
class Key:
    """One key of one file: dotted path, default as written, comment on its line, class that takes it."""

    path: str
    default: str
    comment: str
    taken_by: Any = None


def keys_of(file: Path, prefix: str) -> list[Key]:
    """The keys of a configuration file, in their order."""
    text = file.read_text()
    root = yaml.compose(text)

    def comment_after(node: yaml.Node) -> str:
        return text[node.end_mark.index :].partition("\n")[0].partition("#")[2].strip()

    def walk(node: yaml.MappingNode, path: str, taken_by: Any, comment: str = "") -> Iterator[Key]:
        pairs = [(str(key.value), value) for key, value in node.value]
        target = next((value.value for key, value in pairs if key == "_target_"), None)
        taken_by = get_object(target) if target else taken_by
        for key, value in pairs:
            of_hydra = path.startswith("hydra.") and not f"{path}{key}.".startswith("hydra.launcher.")
            if key in PLUMBING or of_hydra:
                continue
            if isinstance(value, yaml.MappingNode):  # {a: 1, b: 2} has one comment for all of it
                own = comment_after(value) if value.flow_style else ""
                yield from walk(value, f"{path}{key}.", taken_by, own)
            else:
                default = text[value.start_mark.index : value.end_mark.index]
                yield Key(path + key, default, comment or comment_after(value), taken_by)

    return [*walk(root, prefix, None)] if isinstance(root, yaml.MappingNode) else []


def prefix_of(group: str, text: str) -> str:
    """Where the keys of a group's file end up in the configuration."""
    package = PACKAGE.search(text)
    if package:
        return "" if package[1] == "_global_" else f"{package[1]}."
    return "networks.a." if group == "network" else f"{group}."


def summary_of(file: Path) -> str:
    """The comment at the head of a file, in one line."""
    lines = []
    for line in file.read_text().splitlines():
        if not line.startswith("#"):
            break
        if not PACKAGE.match(line) and not line.startswith("#   dualseg-"):
            lines.append(line.removeprefix("#").strip())
    return " ".join(lines)


def arguments_of(taken_by: Any) -> dict[str, str]:
    """Argument -> its text in the Args section of a docstring in Google's style; of classes, the bases' too."""
    owners = reversed(inspect.getmro(taken_by)) if inspect.isclass(taken_by) else [taken_by]
    return {name: text for owner in owners for name, text in described(inspect.getdoc(owner) or "", "Args").items()}


def unlisted(taken_by: Any, listed: set[str]) -> list[Key]:
    """Arguments of a data source that its file leaves at their defaults: the command line adds them with a +."""
    parameters = inspect.signature(taken_by).parameters.values()
    return [
        Key(f"+data.source.{p.name}", str(list(p.default) if isinstance(p.default, tuple) else p.default), "", taken_by)
        for p in parameters
        if p.name not in listed and p.default is not p.empty
    ]


def takes(path: str, taken_by: Any = None) -> str:
    """What dualseg/training/settings.py checks of a key; of a method's, what its constructor is written to take."""
    said = ""
    if path in settings.WHOLE:
        said = f"whole number, at least {settings.WHOLE[path]}"
    elif path in settings.SWITCHES:
        said = "true, false"
    elif path in settings.SWITCHES_OR:
        said = f"true, false, {settings.SWITCHES_OR[path]}"
    elif path in settings.CHOICES:
        said = ", ".join(settings.CHOICES[path])
    elif path in settings.FRACTIONS:
        said = "number from 0 to 1"
    elif path in settings.NUMBERS:
        said = f"number, at least {settings.NUMBERS[path]:g}"
    elif path in settings.SIZES:
        said = "size such as 8GiB"
    elif path.startswith("method.terms."):
        said = {"weight": "number, at least 0", "enabled": "true, false"}.get(path.rpartition(".")[2], "")
    elif inspect.isclass(taken_by) and issubclass(taken_by, SegmentationMethod):
        return typed(taken_by, path.rpartition(".")[2])
    return f"{said}, null" if said and path in settings.NULLABLE else said


def typed(taken_by: type, argument: str) -> str:
    """The values of an argument, by its annotation."""
    for owner in inspect.getmro(taken_by):
        hint = get_type_hints(owner.__init__).get(argument) if "__init__" in vars(owner) else None
        if hint is not None:
            kinds = get_args(hint) if get_origin(hint) is not Literal and get_args(hint) else (hint,)
            words = {float: "number", int: "whole number", bool: "true, false", NoneType: "null"}
            return ", ".join(
                ", ".join(get_args(kind)) if get_origin(kind) is Literal else words.get(kind, "") for kind in kinds
            )
    return ""


def description_of(keys: list[Key]) -> str:
    """See the head of this file."""
    follows = re.fullmatch(r"\$\{([\w.]+)\}", keys[0].default)
    if follows and not follows[1].startswith("plan."):  # what is planned may be given in its own place
        return f"follows `{follows[1]}`; change that"
    comments = [key.comment for key in keys if key.comment]
    if comments:
        return comments[0]
    name = keys[0].path.rpartition(".")[2]
    for key in keys:
        taken_by = key.taken_by or (SemiSupervisedDataModule if key.path.startswith("data.") else None)
        if taken_by and (text := arguments_of(taken_by).get(name)):
            return text
    raise ValueError(f"{keys[0].path}: describe it, in a comment on its line in conf/")


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def default_of(value: str, options: list[str]) -> str:
    """A default, and the options that have it; those of no name are the rest."""
    whose = ", ".join(option for option in options if option != "default")
    return ("required" if value == "???" else f"`{value}`") + (f" ({whose})" if whose else "")


def rows_of(found: dict[str, list[tuple[str, Key]]], options: int) -> list[str]:
    """One row a key; defaults that differ between options say whose they are."""
    rows = ["| key | default | takes | meaning |", "| --- | --- | --- | --- |"]
    for path, entries in found.items():
        defaults: dict[str, list[str]] = {}
        for option, key in entries:
            defaults.setdefault(key.default, []).append(option)
        everywhere = len(defaults) == 1 and (len(entries) == options or entries[0][0] == "default")
        shown = "; ".join(default_of(value, [] if everywhere else who) for value, who in defaults.items())
        meaning = description_of([key for _, key in entries])
        rows.append(f"| `{path}` | {cell(shown)} | {cell(takes(path, entries[0][1].taken_by))} | {cell(meaning)} |")
    return rows


def group_of(group: str) -> list[str]:
    """The section of a group: its options, then its keys."""
    files = sorted((CONF / group).glob("*.yaml"), key=lambda file: (file.stem != "default", file.stem))
    bare = [file.name for file in files if not summary_of(file)]
    if bare:
        raise ValueError(f"conf/{group}/{bare[0]}: begin with a comment that says what it is")
    choices = [file for file in files if (group, file.stem) != ("data", "default")]  # that one is a part of the others
    lines = [f"## {group}", "", "| option | is |", "| --- | --- |"]
    plus = "+" if group in ADDED else ""
    lines += [f"| `{plus}{group}={file.stem}` | {cell(summary_of(file))} |" for file in choices]
    if group in WHOLE_SETTINGS:
        return lines
    found: dict[str, list[tuple[str, Key]]] = {}
    for file in files:
        keys = keys_of(file, prefix_of(group, file.read_text()))
        source = next((key.taken_by for key in keys if key.path == "data.source.root"), None)
        if source:
            keys += unlisted(source, {key.path.rpartition(".")[2] for key in keys if "source" in key.path})
        for key in keys:
            found.setdefault(key.path, []).append((file.stem, key))
    return [*lines, "", *rows_of(found, len(files))] if found else lines


def options_of(command: str, options: Any) -> list[str]:
    """The section of a command that has options of its own."""
    lines = [f"## {command}", "", "| key | default | meaning |", "| --- | --- | --- |"]
    meanings = described(inspect.getdoc(options) or "", "Attributes")
    for option in fields(options):
        told = default_text(option)
        default = "required" if is_required(option) else f"`{told}`" if told else ""
        name = "data.KEY, inference.KEY, ..." if option.metadata.get("others") else option.name
        lines.append(f"| `{name}` | {default} | {cell(meanings[option.name])} |")
    return lines


def reference() -> str:
    """The page.

    Raises:
        ValueError: a key or an option that nothing describes.
    """
    train = {key.path: [("", key)] for key in keys_of(CONF / "train.yaml", "")}
    sections = [["## In no group", "", *rows_of(train, 1)], *(group_of(group) for group in GROUPS)]
    sections += [options_of(command, options) for command, options in COMMANDS.items()]
    return "\n".join([HEAD, "\n\n".join("\n".join(section) for section in sections), ""])


if __name__ == "__main__":
    PAGE.write_text(reference())
