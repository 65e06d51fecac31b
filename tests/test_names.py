"""Names that would leave a folder, break a table or show as something else."""

import pytest
from markdown_it import MarkdownIt

from dualseg.errors import DualsegError
from dualseg.names import (
    as_markdown,
    check_folder_name,
    check_network_names,
    check_printable,
    shortened,
    without_controls,
)


@pytest.mark.parametrize("name", ["n" * 300, "ü" * 150, "x"])
def test_a_name_too_long_for_a_file_is_shortened(name: str) -> None:
    short = shortened(name, 200)
    assert len(short.encode()) <= 200 and (short == name or short != shortened(name + "n", 200))
    assert short[:150].rstrip("-0123456789abcdef") in name


@pytest.mark.parametrize("name", ["left atrium", "Lunge, links", 'the "organ"', "心房", "می\u200cشود", "a=b.c|<d>"])
def test_names_that_people_give(name: str) -> None:
    check_printable("class", ["background", name])


@pytest.mark.parametrize(
    "name",
    ["a\nb", "a\rb", "a\tb", "a\0b", "a\x1b[2Jb", "a\x7fb", "a\x85b", "a\u2028b", "a\u202eb", "a\u2066b", "a\u200fb",
     "\ufeffa", "a\udcffb", "", "  "],
    ids=ascii,
)  # fmt: skip
def test_names_that_nobody_can_read(name: str) -> None:
    with pytest.raises(DualsegError, match="class") as raised:
        check_printable("class", ["background", name])
    assert ascii(name)[1:-1] in ascii(str(raised.value)).replace("\\\\", "\\")
    str(raised.value).encode()  # it can be printed, and breaks no line
    assert len(str(raised.value).splitlines()) == 1


def test_a_terminal_is_told_nothing() -> None:
    assert without_controls("a\x1b[2Jb \u202ec\nd é") == "a\\x1b[2Jb \\u202ec\nd é"


@pytest.mark.parametrize("name", ["demo", "v1.5", "la-dual-8labels-seed0", "a b", "x=1,y=2", "w_o", "5", "x" * 200])
def test_names_of_folders(name: str) -> None:
    check_folder_name("name", name)


@pytest.mark.parametrize(
    "name", ["..", ".", "../x", "../../x", "/tmp/x", "a/b", "a\\b", "a/../b", ".x", "a\nb", "", "x" * 201, "é" * 101]
)
def test_names_that_leave_the_folder(name: str) -> None:
    with pytest.raises(DualsegError, match="name"):
        check_folder_name("name", name)


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "a.b", "$x", "a b", "1a", "_a", "", "a\n", "é", 1, None])
def test_names_of_networks(name: object) -> None:
    check_network_names("networks", {"a": {}, "teacher_b": {}, "C-2": {}})
    with pytest.raises(DualsegError, match=r"networks: .*no name"):
        check_network_names("networks", {"a": {}, name: {}})


@pytest.mark.parametrize("networks", [[], {}, None, "a", ["a"]])
def test_networks_that_are_no_mapping(networks: object) -> None:
    with pytest.raises(DualsegError, match="networks: is no mapping"):
        check_network_names("networks", networks)


@pytest.mark.parametrize(
    "name",
    ["<b>x</b>", "<script>alert(1)</script>", "a|b", "a\\|b", "`x`", "**x**", "*x*", "[x](http://x)", "![x](http://x)",
     "&lt;b&gt;", "<!-- x", "a\\", "x_y", "mean ± sd [1]", "a < b & c > d", "$x$",
     "[1](http://x)", "![1](http://x)", "_x_", "~~x~~", "[1]: http"],
)  # fmt: skip
def test_markdown_shows_a_name_as_it_is(name: str) -> None:
    page = MarkdownIt().enable("table").parse(f"| h | i |\n|---|---|\n| {as_markdown(name)} | 2 |\n")
    cells = [token.children for token in page if token.type == "inline"]
    assert [[(part.type, part.content) for part in cell or ()] for cell in cells[2:]] == [
        [("text", name)],
        [("text", "2")],
    ]


def test_markdown_has_a_name_on_one_line() -> None:
    assert as_markdown("a\n\n# b\r\n\u2028c") == "a # b c"
