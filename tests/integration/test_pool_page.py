"""dualseg-check page=FILE: the most unlike unlabeled scans, each beside a labeled one, in one file."""

import base64
import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

import dualseg.check
import dualseg.train
from dualseg.data import Phantom


class Page(HTMLParser):
    """What a reader of the page meets: headings, pictures, cells of tables, and all addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if data.strip() and self.tags:
            self.texts.append((self.tags[-1][0], data.strip()))

    def pictures(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == "img"]


@pytest.fixture
def words(phantom: Phantom, tmp_path: Path) -> list[str]:
    """A copy of the phantom: 2 labeled, 4 unlabeled, 2 test volumes, of which phantom_004 is half a scan."""
    root = Path(shutil.copytree(phantom.root, tmp_path / "phantom"))
    path = root / "images" / "phantom_004.nii.gz"
    image = nib.load(path)
    half = np.asarray(image.dataobj)[:, :, : image.shape[2] // 2]
    nib.save(nib.Nifti1Image(half, image.affine, image.header), path)
    sizes = [f"+data.source.{key}={value}" for key, value in (("train", 6), ("test", 2), ("shape", "[40,36,32]"))]
    patch = ["data.patch_size=[16,16,16]", "data.stride=[16,16,16]"]
    return [f"data.root={root}", *sizes, *patch, "data.labeled=2"]


def test_the_page_shows_the_most_unlike_scan_first(words, tmp_path, command):
    file = tmp_path / "pages" / "pool.html"
    outcome = command(dualseg.check.main, *words, f"page={file}")
    assert outcome.code == 0, outcome
    note = "1 of 4 unlabeled scans is unlike every labeled one in field of view: phantom_004."
    assert note in outcome.out.splitlines() and outcome.out.splitlines()[-1] == f"Page: {file}"
    text = file.read_text()
    page = Page(text)
    headings = [text for tag, text in page.texts if tag == "h2" and text[0].isdigit()]
    assert headings[0] == "1. phantom_004" and len(headings) == 4
    assert [text for tag, text in page.texts if tag == "h4"].count("this scan") == 4
    assert any(said == note for _, said in page.texts)
    pictures = page.pictures()
    assert len(pictures) == 4 * 2 * 3
    assert [p["alt"] for p in pictures[:3]] == [
        f"phantom_004, middle {plane} slice" for plane in ("axial", "coronal", "sagittal")
    ]
    for attributes in pictures:
        encoded = attributes["src"].removeprefix("data:image/png;base64,")
        size = Image.open(io.BytesIO(base64.b64decode(encoded))).size
        assert size == (int(attributes["width"]), int(attributes["height"])) and max(size) == 150
    # the field of view is 77 x 77 x 61 mm in the mean, of which this scan has half from feet to head
    coronal, other = (int(p["height"]) / int(p["width"]) for p in (pictures[1], pictures[4]))
    assert coronal == pytest.approx(0.5 * other, rel=0.3)


def test_the_page_needs_nothing_else(words, tmp_path, command):
    file = tmp_path / "pool.html"
    command(dualseg.check.main, *words, f"page={file}")
    text = file.read_text()
    addresses = re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?([^\"')\s>]+)", text)
    assert addresses and all(address.startswith("data:") for address in addresses)
    assert "<script" not in text and str(tmp_path) not in text
    assert len(text) < 500_000


def test_at_most_twenty_are_shown(tmp_path, command):
    root, file = tmp_path / "many", tmp_path / "pool.html"
    sizes = ["+data.source.train=26", "+data.source.test=0", "+data.source.shape=[16,16,16]"]
    patch = ["data.patch_size=[16,16,16]", "data.stride=[16,16,16]"]
    outcome = command(dualseg.check.main, f"data.root={root}", *sizes, *patch, "data.labeled=4", f"page={file}")
    assert outcome.code == 0, outcome
    page = Page(file.read_text())
    distances = [float(text.split()[-1]) for _, text in page.texts if re.fullmatch(r"distance \d+\.\d\d", text)]
    assert len(page.pictures()) == 20 * 6 and len(distances) == 20
    assert distances == sorted(distances, reverse=True)
    assert any("20 of 22 unlabeled scans" in text for _, text in page.texts)


def test_pictures_are_read_with_the_rest(words, tmp_path, command, monkeypatch):
    read: list[str] = []
    real = Phantom.read_image
    monkeypatch.setattr(Phantom, "read_image", lambda s, case: (read.append(case), real(s, case))[1])
    for case in ("phantom_002", "phantom_003", "phantom_004", "phantom_005"):
        (tmp_path / "phantom" / "labels" / f"{case}.nii.gz").write_text("no NIfTI")
    assert command(dualseg.check.main, *words, f"page={tmp_path / 'pool.html'}").code == 0
    assert sorted(read) == [f"phantom_{k:03d}" for k in range(8)]


def test_a_page_is_written_where_something_is_wrong_as_well(words, tmp_path, command):
    file = tmp_path / "pool.html"
    (tmp_path / "phantom" / "images" / "phantom_003.nii.gz").write_text("no NIfTI")
    outcome = command(dualseg.check.main, *words, f"page={file}")
    assert outcome.code == 1 and len(Page(file.read_text()).pictures()) == 3 * 6


def test_words_of_which_no_page_can_be_made(words, tmp_path, command):
    file = tmp_path / "pool.html"
    command(dualseg.check.main, *words, f"page={file}", f"page={file}").complains("page", "twice")
    command(dualseg.check.main, *words, "page=").complains("page=: has no value")
    command(dualseg.check.main, *words, f"page={tmp_path}").complains("page", tmp_path, "give a file")
    command(dualseg.check.main, *words, "data.labeled=null", f"page={file}").complains("page", "data.labeled")
    assert not file.exists()
    command(dualseg.train.main, *words, f"+page={file}").complains("page", "no such configuration key")
