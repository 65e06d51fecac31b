"""key=value arguments -> a dataclass of options, and what --help says of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dualseg.command.grammar import read_arguments, split_arguments
from dualseg.command.help import help_of
from dualseg.errors import DualsegError


@dataclass(frozen=True)
class Toy:
    """A command.

    Attributes:
        scan: files
        output: a folder,
            new or empty
        count: how many
        share: from 0
            to 1
        fast: true: at once
        names: of classes
        title: of the page

    Raises:
        ValueError: never.
    """

    scan: tuple[str, ...] = field(metadata={"value": "SCAN", "again": True, "positional": True})
    output: Path = field(metadata={"value": "DIR"})
    count: int | None = None
    share: float = 0.5
    fast: bool = False
    names: tuple[str, ...] = ("a", "b")
    title: str | None = None


@dataclass(frozen=True)
class WithOthers:
    run: str = field(metadata={"value": "RUN"})
    changes: dict[str, Any] = field(default_factory=dict, metadata={"others": True})


def read(*arguments: str) -> Toy:
    return read_arguments(Toy, ["scan=s", "output=o", *arguments], "toy")


def test_every_type_is_read() -> None:
    given = read("count=3", "share=1e-1", "fast=True", "names=[x, y z]", "title=t", "more.nii", "scan=t")
    assert given == Toy(("s", "more.nii", "t"), Path("o"), 3, 0.1, True, ("x", "y z"), "t")
    assert read() == Toy(("s",), Path("o"))


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "true",
        "1e3",
        "007",
        "a=b",
        "a b, c",
        "[a,b]",
        "{a: b}",
        "@file",
        "???",
        "${x}",
        "\\${x}",
        "'q'",
        "#",
        "-",
    ],
)
def test_text_arrives_as_it_stands(text: str) -> None:
    given = read(f"title={text}", f"scan={text}")
    assert (given.title, given.scan) == (text, ("s", text))
    assert read_arguments(Toy, ["scan=s", f"output={text}"], "toy").output == Path(text)


def test_home_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert read_arguments(Toy, ["scan=s", "output=~/o"], "toy").output == Path("/home/me/o")


def test_keys_may_be_written_as_long_options() -> None:
    assert read("--title", "t", "--count=2", "x") == read("title=t", "count=2", "x")


def test_an_argument_with_an_equals_sign_may_be_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lr=1.nii").touch()
    assert read("lr=1.nii", "runs/lr=2").scan == ("s", "lr=1.nii", "runs/lr=2")
    with pytest.raises(DualsegError, match="lr: no such key"):
        read("lr=3.nii")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("cuont=1", "cuont: no such key of toy. Did you mean count?"),
        ("zzz=1", "zzz: no such key of toy."),
        ("title=", "title=: has no value; write title=..."),
        ("--title", "--title: has no value; write title=..."),
        ("output=p", "output: is given twice."),
        ("count=1.5", "count=1.5: give a whole number."),
        ("count=???", "count=???: give a whole number."),
        ("share=half", "share=half: give a number."),
        ("share=${count}", "share=${count}: give a number."),
        ("fast=yes", "fast=yes: give true or false."),
        ("names=[a,,b]", "names=[a,,b]: give names, with a comma between two, such as [a,b]."),
    ],
)
def test_mistakes(argument: str, message: str) -> None:
    with pytest.raises(DualsegError) as raised:
        read(argument)
    assert str(raised.value) == message


def test_a_required_key_is_missing() -> None:
    with pytest.raises(DualsegError, match=r"^scan=SCAN is required"):
        read_arguments(Toy, ["output=o"], "toy")
    with pytest.raises(DualsegError, match=r"^output=DIR is required"):
        read_arguments(Toy, ["a.nii"], "toy")


def test_keys_with_a_dot_are_others_where_the_command_takes_them() -> None:
    given = read_arguments(WithOthers, ["run=r", "data.stride=[9,9,4]", "trainer.x=1", "trainer.x=null"], "toy")
    assert given.changes == {"data.stride": [9, 9, 4], "trainer.x": None}
    for argument, message in (
        ("data.stride=[9,9", r"data.stride=\[9,9: cannot be read; write a list as data.stride="),
        ("changes=1", "changes: no such key"),
        ("none", "write key=value, for example run=none"),
        ("data.stride", "write key=value, for example run=data.stride"),
    ):
        with pytest.raises(DualsegError, match=message):
            read_arguments(WithOthers, ["run=r", argument], "toy")
    with pytest.raises(DualsegError, match=r"data\.stride: no such key"):
        read("data.stride=1")


def test_arguments_of_the_command_are_told_from_overrides() -> None:
    own, others = split_arguments(Toy, ["title=a=b", "data.title=1", "+count=2", "title", "-m"])
    assert (own, others) == (["title=a=b"], ["data.title=1", "+count=2", "title", "-m"])


def test_help_tells_every_key_its_default_and_its_meaning() -> None:
    assert help_of("toy scan=SCAN output=DIR", Toy, "About.", "A note.").splitlines() == [
        "toy scan=SCAN output=DIR",
        "",
        "  About.",
        "",
        "  scan         files",
        "  output       a folder, new or empty",
        "  count        how many",
        "  share=0.5    from 0 to 1",
        "  fast=false   true: at once",
        "  names=[a,b]  of classes",
        "  title        of the page",
        "",
        "  A note.",
    ]
