"""The page as a file: that it needs nothing but itself, what it says, and what it leaves when something fails."""

import hashlib
import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from scenes import ball, decoded, row, write_page

from dualseg.errors import DualsegError
from dualseg.reporting.viewer import ReviewPage
from dualseg.reporting.viewer.page import NIIVUE


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
    assert "sure <b>" not in page and "sure &lt;b&gt;" in page
    assert "see summary.csv: failed" in page and "Mrs Doe" not in page
    assert "8-bit display copies, of at most 10 MB a scan" in page
    assert re.search(r"8-bit display copy of 0\.\d\d MB", state["scans"][0]["copy"])
    text = re.findall(r'id="label-2">(.*?)</script>', page)[0]
    np.testing.assert_array_equal(np.asarray(decoded(text).dataobj), ball()[1])


def test_a_scan_without_foreground_comes_first(tmp_path: Path) -> None:
    with ReviewPage(tmp_path / "report.html", ("background", "ball"), 2) as page:
        for name in ("some", "none"):
            page.add(name, *ball())
        page.write([row("some", 0.9), row("none", float("nan"), float("nan"))], ["a"])
    state = json.loads(re.findall(r'id="state">(.*?)</script>', page.path.read_text())[0])
    assert [scan["name"] for scan in state["scans"]] == ["none", "some"]
    assert state["scans"][0]["uncertainty"] == "none"


def test_many_scans_share_the_page(tmp_path: Path) -> None:
    with ReviewPage(tmp_path / "report.html", ("background", "ball"), 1000) as page:
        assert page.limit == 400_000
        page.write([], ["a"])
    assert "of at most 0.4 MB a scan" in page.path.read_text() and "No scan was predicted" in page.path.read_text()


def test_nothing_stays_of_a_page_that_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ReviewPage(tmp_path / "report.html", ("background", "ball"), 1) as page:
        page.add("one", *ball())
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DualsegError, match=r"nowhere.report\.html: cannot be written"):
        ReviewPage(tmp_path / "nowhere" / "report.html", ("background", "ball"), 1)


def test_a_full_disk_costs_the_scan_alone(tmp_path: Path) -> None:
    class Full(io.BytesIO):
        full = False

        def write(self, data: bytes) -> int:  # type: ignore[override]
            if self.full:
                super().write(data[:100])
                raise OSError(28, os.strerror(28))
            return super().write(data)

    with ReviewPage(tmp_path / "report.html", ("background", "ball"), 3) as page:
        page._data = data = Full()  # type: ignore[assignment]
        page.add("one", *ball())
        data.full = True
        with pytest.raises(OSError, match="No space left"):
            page.add("two", *ball())
        data.full = False
        page.add("three", *ball())
        page.write([row("one", 0.1), row("two", 0.2), row("three", 0.3)], ["a"])
    text = page.path.read_text()
    assert [scan["name"] for scan in json.loads(re.findall(r'id="state">(.*?)</script>', text)[0])["scans"]] == [
        "three",
        "one",
    ]
    assert len(re.findall(r'<script type="text/plain" id="\w+-\d">[\w+/=]+</script>', text)) == 6
