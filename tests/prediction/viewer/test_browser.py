"""The page in headless Chromium: sliders, keys and mouse are moved, and pixels compared with what they must be."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from headless import CHROMIUM, Browser
from scenes import RADIUS, SHAPE, SPACING, ball, decoded, write_page
from scipy import ndimage

from dualseg.prediction.viewer.display import display_copy
from dualseg.reporting import figures

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on PATH (apt-get install chromium)")
SHOWN = "document.body.dataset.state == 'shown'"
SKY = np.array([int(figures.SKY[at : at + 2], 16) for at in (1, 3, 5)])
NO_IDEA = np.array([int(figures.entropy_gradient()[-1][at : at + 2], 16) for at in (1, 3, 5)])


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(chromium: Browser, page: Path) -> Browser:
    """The page, freshly opened."""
    chromium.events.clear()
    chromium.open(page)
    chromium.wait(SHOWN)
    return chromium


def value(browser: Browser, slider: str) -> int:
    return int(browser.js(f"document.getElementById('{slider}').value"))


def slide(browser: Browser, slider: str, share: float) -> None:
    """Click where the slider has `share` of its range."""
    x, y, width, height = browser.box(f"#{slider}")
    browser.click(x + 8 + share * (width - 16), y + height / 2)


def colourfulness(picture: np.ndarray) -> float:
    return float(np.ptp(picture.astype(int), axis=-1).mean())


def test_nothing_is_fetched_and_nothing_goes_wrong(browser: Browser) -> None:
    requests = [what["request"]["url"] for method, what in browser.events if method == "Network.requestWillBeSent"]
    assert requests and all(url.startswith(("file:", "data:")) for url in requests)
    assert sum(url.startswith("file:") for url in requests) == 1
    logged = [what["entry"] for method, what in browser.events if method == "Log.entryAdded"]
    assert not [entry for entry in logged if entry["level"] == "error"]
    assert not [what for method, what in browser.events if method == "Runtime.exceptionThrown"]


def test_the_slider_of_the_uncertainty(browser: Browser) -> None:
    slide(browser, "contour", 0)
    assert value(browser, "contour") == 0 and value(browser, "uncertainty") == 50
    half = browser.picture("#canvas")
    slide(browser, "uncertainty", 1)
    full = browser.picture("#canvas")
    slide(browser, "uncertainty", 0)
    none = browser.picture("#canvas")
    assert value(browser, "uncertainty") == 0
    assert colourfulness(none) == 0, "the image alone is grey"
    assert 1 < colourfulness(half) < 0.7 * colourfulness(full)
    # where the networks have no idea, the full overlay is all that is seen, and half of it half of what is seen
    places = np.abs(full.astype(int) - NO_IDEA).max(axis=-1) < 6
    assert places.sum() > 500
    expected = (none[places].astype(float) + NO_IDEA) / 2
    assert np.abs(half[places] - expected).max() < 12


def test_the_slider_of_the_contour_and_true_proportions(browser: Browser) -> None:
    slide(browser, "uncertainty", 0)
    contours = np.abs(browser.picture("#canvas").astype(int) - SKY).max(axis=-1) < 12
    slide(browser, "contour", 0)
    without = np.abs(browser.picture("#canvas").astype(int) - SKY).max(axis=-1) < 12
    assert contours.sum() > 300 and without.sum() == 0
    # a ball through its middle: three circles, whatever the spacing
    for axis, n in enumerate(SHAPE):
        slide(browser, "xyz"[axis], 0.5)
        assert abs(value(browser, "xyz"[axis]) - n / 2) <= 1
    slide(browser, "contour", 1)
    contours = np.abs(browser.picture("#canvas").astype(int) - SKY).max(axis=-1) < 12
    found, count = ndimage.label(ndimage.binary_dilation(contours, iterations=3))
    assert count == 3
    width = browser.box("#canvas")[2]
    extent = [n * mm for n, mm in zip(SHAPE, SPACING, strict=True)]
    pixels = (width - 8) / (2 * extent[0] + extent[1])  # a mm, with the three planes in a row
    for rows, columns in ndimage.find_objects(found):
        sides = np.array([rows.stop - rows.start, columns.stop - columns.start]) - 6
        assert np.abs(sides / pixels - 2 * RADIUS).max() <= max(SPACING), sides / pixels


def test_slices_by_slider_key_wheel_and_click(browser: Browser) -> None:
    slide(browser, "uncertainty", 0)
    slide(browser, "contour", 0)
    start = [value(browser, name) for name in "xyz"]
    before = browser.picture("#canvas")
    slide(browser, "z", 0.9)
    assert value(browser, "z") > start[2] + 3
    after = browser.picture("#canvas")
    # the image rises along z: the axial slice, leftmost, becomes brighter as a whole
    third = before.shape[1] // 3
    change = after[:, : third - 20].astype(int) - before[:, : third - 20]
    assert change.max() > 20 and change.min() >= -2

    x, y, width, height = browser.box("#canvas")
    browser.click(x + width / 6, y + height / 2)
    place = [value(browser, name) for name in "xyz"]
    assert place[2] == value(browser, "z") and place[:2] != start[:2]
    for key, shift, axis, by in (
        ("ArrowUp", False, 2, 1), ("ArrowDown", False, 2, -1), ("ArrowLeft", False, 0, 1), ("ArrowRight", False, 0, -1),
        ("ArrowUp", True, 1, 1), ("ArrowDown", True, 1, -1),
    ):  # fmt: skip
        old = [value(browser, name) for name in "xyz"]
        browser.press(key, shift)
        new = [value(browser, name) for name in "xyz"]
        assert [b - a for a, b in zip(old, new, strict=True)] == [by if k == axis else 0 for k in range(3)], key
    old = value(browser, "z")
    browser.wheel(x + width / 6, y + height / 2, 100)
    browser.wait(f"Number(document.getElementById('z').value) != {old}")


def test_what_is_clicked_is_the_voxel_it_says(browser: Browser) -> None:
    """Left is right, up is front, and the pixel has the grey of the voxel that the sliders name."""
    slide(browser, "uncertainty", 0)
    slide(browser, "contour", 0)
    image = np.asarray(decoded(display_copy(*ball(), 10**7).image).dataobj).astype(int)
    x, y, width, height = browser.box("#canvas")
    extent = [n * mm for n, mm in zip(SHAPE, SPACING, strict=True)]
    pixels = (width - 8) / (2 * extent[0] + extent[1])
    for right, down in ((0.3, 0.2), (0.5, 0.7), (0.8, 0.4)):
        across, along = right * extent[0] * pixels, down * extent[1] * pixels
        top = (height - max(extent[1:]) * pixels) / 2
        browser.click(x + across, y + top + along)
        voxel = [value(browser, name) - 1 for name in "xyz"]
        assert abs(voxel[0] - (1 - right) * SHAPE[0]) <= 1.5
        assert abs(voxel[1] - (1 - down) * SHAPE[1]) <= 1.5
        shown = browser.picture("#canvas")[round(top + along), round(across)].astype(int)
        assert np.abs(shown - image[tuple(voxel)]).max() < 8, (voxel, shown)


def test_the_window_sliders_say_and_change_what_is_black_and_white(browser: Browser) -> None:
    low, high = display_copy(*ball(), 10**7).window
    told = [float(browser.js(f"document.getElementById('{name}-value').textContent")) for name in ("black", "white")]
    assert told == pytest.approx([low, high], abs=0.01 * (high - low))
    slide(browser, "uncertainty", 0)
    slide(browser, "contour", 0)
    before = browser.picture("#canvas").astype(int)
    slide(browser, "white", 0.5)
    assert abs(value(browser, "white") - 128) < 5
    after = browser.picture("#canvas").astype(int)
    grey = (before > 20) & (before < 100)  # of the image, neither background nor white before or after
    assert np.median(after[grey] / before[grey]) == pytest.approx(255 / value(browser, "white"), rel=0.1)
    slide(browser, "black", 0.9)  # which pushes white along
    assert value(browser, "black") < value(browser, "white")


def test_keys_and_buttons_go_from_scan_to_scan(browser: Browser) -> None:
    def name() -> str:
        browser.wait(SHOWN)
        return browser.js("document.getElementById('scan-title').textContent")

    assert name() == "doubtful"
    browser.press("n")
    assert name() == "middle"
    browser.press("p")
    assert name() == "doubtful"
    browser.press("p")
    assert name() == "doubtful", "there is none before"
    x, y, width, height = browser.box("[data-index='2']")
    browser.click(x + width / 2, y + height / 2)
    assert name() == "sure <b>"
    assert browser.js("document.activeElement.id") == "canvas"
    assert browser.js("document.querySelector('[aria-current]').dataset.index") == "2"
    browser.press("u")
    assert value(browser, "uncertainty") == 0
    browser.press("u")
    browser.press("+")
    assert value(browser, "uncertainty") == 60
    browser.press("c")
    assert value(browser, "contour") == 0
    # with the keyboard alone: a slider has the focus, and arrows are its own
    browser.js("document.getElementById('z').focus()")
    old = value(browser, "z")
    browser.press("ArrowLeft")
    assert value(browser, "z") == old - 1 and browser.js("document.activeElement.id") == "z"


def test_on_a_telephone(browser: Browser) -> None:
    browser.resize(390, 844)
    browser.wait("document.querySelector('canvas').clientWidth < 390")
    assert browser.js("document.documentElement.scrollWidth") <= 390, "nothing sticks out"
    browser.js("document.getElementById('canvas').scrollIntoView()")
    assert colourfulness(browser.picture("#canvas")) > 1


def test_without_webgl2_the_page_says_so(page: Path, tmp_path: Path) -> None:
    with Browser(tmp_path, "--disable-3d-apis") as browser:
        browser.open(page)
        text = browser.js("document.getElementById('problem').innerText")
        assert "no WebGL2" in text and "labels/" in text
