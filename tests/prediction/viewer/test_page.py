"""The page as a file: that it needs nothing but itself, what it says, and what it leaves when something fails."""

import hashlib
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from scenes import ball, decoded, row, write_page

from dualseg.errors import DualsegError
from dualseg.prediction.viewer import ReviewPage, copies_of, is_finished
from dualseg.prediction.viewer.review_page import NIIVUE


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_page(tmp_path_factory.mktemp("page") / "report.html").read_text()


def test_niivue_is_what_was_published() -> None:
    source = json.loads((NIIVUE / "SOURCE.json").read_text())
    script = (NIIVUE / "niivue.umd.js").read_bytes()
    assert hashlib.sha256(script).hexdigest() == source["sha256"]
    assert len(script) < 3_000_000
    assert b"</script" not in script.lower() and b"<!--" not in script, "it can be carried inside a page"
    assert source["version"].encode() in script


def test_the_page_needs_nothing_but_itself(page: str) -> None:
    script = (NIIVUE / "niivue.umd.js").read_text()
    assert page.count(script) == 1
    own = page.replace(script, "")
    assert not re.search("https?://", own.replace("https://sindresorhus.com", ""))  # in a licence's text
    for name in ("src", "srcset", "href", "data", "action", "poster"):
        assert all(link.startswith(("#", "data:")) for link in re.findall(rf'\s{name}="([^"]*)"', own)), name
    assert "url(" not in own and "@import" not in own
    # no connect-src, so that nothing can be fetched, whatever NiiVue could
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', own)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    assert (NIIVUE / "LICENSES.txt").read_text().count("Redistributions in binary form") == own.count(
        "Redistributions in binary form"
    )


def test_the_uncertain_first_and_nobody_named(page: str) -> None:
    state = json.loads(re.findall(r'id="state">(.*?)</script>', page)[0])
    assert [scan["name"] for scan in state["scans"]] == ["doubtful", "middle", "sure <b>"]
    assert [scan["number"] for scan in state["scans"]] == [2, 1, 0]
    assert state["scans"][0]["reasons"] == ["networks disagree"]
    assert "mean of a, b" in page and state["scans"][0]["facts"][1].startswith("networks disagree on ")
    assert "sure <b>" not in page and "sure &lt;b&gt;" in page
    assert "see summary.csv: failed" in page and "Mrs Doe" not in page
    assert "8-bit display copies, of at most 10 MB" in page
    assert re.search(r"8-bit display copy of 0\.\d\d MB", state["scans"][0]["copy"])
    text = re.findall(r'id="label-2">(.*?)</script>', page)[0]
    np.testing.assert_array_equal(np.asarray(decoded(text).dataobj), ball()[1])


def test_a_scan_without_foreground_comes_first(tmp_path: Path) -> None:
    page = ReviewPage(tmp_path / "report.html", ("background", "ball"), 2)
    for name in ("some", "none"):
        page.add(name, *ball())
    page.write([row("some", 0.9), row("none", float("nan"), float("nan"))], ["a"])
    state = json.loads(re.findall(r'id="state">(.*?)</script>', page.path.read_text())[0])
    assert [scan["name"] for scan in state["scans"]] == ["none", "some"]
    assert state["scans"][0]["uncertainty"] == "none"
    assert [fact.split()[0] for fact in state["scans"][0]["facts"]] == ["uncertainty", "ball"]
    assert "network a</p>" in page.path.read_text()


def test_many_scans_share_the_page(tmp_path: Path) -> None:
    page = ReviewPage(tmp_path / "report.html", ("background", "ball"), 1000)
    assert page.limit == 400_000
    page.write([], ["a"])
    assert "of at most 0.4 MB a scan" in page.path.read_text() and "No scan was predicted" in page.path.read_text()


def names(text: str) -> list[str]:
    return [scan["name"] for scan in json.loads(re.findall(r'id="state">(.*?)</script>', text)[0])["scans"]]


def test_the_copies_wait_beside_the_page_until_it_is_written(tmp_path: Path) -> None:
    """As after a kill, when another process goes on."""
    path, classes = tmp_path / "report.html", ("background", "ball")
    ReviewPage(path, classes, 2).add("one", *ball())
    assert copies_of(path) == {"one"} and not is_finished(path)
    page = ReviewPage(path, classes, 2)
    page.add("two", *ball())
    page.write([row("one", 0.1), row("two", 0.2)], ["a"])
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"] and is_finished(path)
    assert names(path.read_text()) == ["two", "one"] and copies_of(path) == {"one", "two"}
    with pytest.raises(DualsegError, match=r"nowhere.report\.html: cannot be written"):
        ReviewPage(tmp_path / "nowhere" / "report.html", classes, 1)


def test_scans_are_added_to_a_page(tmp_path: Path) -> None:
    """It is the page that all scans at once would have made, though its first copies lie in it alone."""
    path, classes = tmp_path / "report.html", ("background", "ball")
    rows = [row("one <b>", 0.1), row("two", 0.2), row("three", 0.3)]
    pages = []
    for starts in ((rows[1:], rows), (rows,)):
        for known in starts:
            page = ReviewPage(path, classes, 3)
            for own in known:
                if own.scan not in page:
                    image, label, entropy = ball()
                    page.add(own.scan, image, label, entropy * own.measures["mean_entropy_foreground"])
            page.write(known, ["a"])
        pages.append(path.read_text())
        path.unlink()
    assert names(pages[0]) == ["three", "two", "one <b>"] and pages[0] == pages[1]


def test_a_page_that_is_damaged_or_none_of_ours_has_no_copies(tmp_path: Path) -> None:
    path = write_page(tmp_path / "report.html")
    text = path.read_text()
    path.write_text(re.sub(r'id="label-1">[^<]*', 'id="label-1">?', text))
    with pytest.raises(DualsegError, match=r"report\.html: damaged; remove it"):
        ReviewPage(path, ("background", "ball"), 3)
    deep = re.sub(r'id="state">.*', f'id="state">{"[" * 100_000}</script>', text)
    for other in ("", "<html>", text.replace('"scans"', '"scons"'), text.replace('id="state">{', 'id="state">'), deep):
        path.write_text(other)
        for left in (tmp_path / ".display").glob("*"):
            left.unlink()
        assert copies_of(path) == set() and "middle" not in ReviewPage(path, ("background", "ball"), 3)


def test_a_full_disk_costs_the_scan_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ReviewPage(tmp_path / "report.html", ("background", "ball"), 3)
    real = Path.write_text

    def full(self: Path, text: str) -> int:
        real(self, text[:100])
        raise OSError(28, os.strerror(28))

    page.add("one", *ball())
    with monkeypatch.context() as patch, pytest.raises(DualsegError, match="No space left"):
        patch.setattr(Path, "write_text", full)
        page.add("two", *ball())
    page.add("three", *ball())
    page.write([row("one", 0.1), row("two", 0.2), row("three", 0.3)], ["a"])
    text = page.path.read_text()
    assert names(text) == ["three", "one"]
    assert len(re.findall(r'<script type="text/plain" id="\w+-\d">[\w+/=]+</script>', text)) == 6
