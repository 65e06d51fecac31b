"""The report of one run: what the page says, that it says it alone, and what it does with what is missing."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from dualseg.errors import DualsegError
from dualseg.reporting import figures, write_run_report
from dualseg.reporting.contents import example_cases, read_contents
from dualseg.runs.folder import RunFolder
from dualseg.runs.reading import PlaneSlice
from dualseg.runs.tables import results_of


class Page(HTMLParser):
    """Tags with their attributes, table rows as lists of cell texts, and all text outside of <style>."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.style = ""
        self._style = self._cell = False
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self._style = tag == "style"
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._style:
            self.style += data
            return
        self.text += data
        if self._cell:
            self.rows[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def row(self, first: str) -> list[str]:
        found = [[" ".join(cell.split()) for cell in row] for row in self.rows]
        return next(row for row in found if row and row[0] == first)


def svg(uri: str) -> str:
    return base64.b64decode(uri.removeprefix("data:image/svg+xml;base64,")).decode()


@pytest.fixture(scope="module")
def page(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write_run_report(finished_run, tmp_path_factory.mktemp("out") / "page.html"))


def edit_cases(run: Path, change: Callable[[list[str]], list[str]]) -> None:
    lines = (run / "cases.csv").read_text().splitlines()
    (run / "cases.csv").write_text("\n".join([lines[0], *change(lines[1:])]) + "\n")


def test_every_section_is_there(page: Page) -> None:
    sections = [attributes["id"] for attributes in page.all("section")]
    assert sections == ["results", "cases", "curves", "examples", "reading", "provenance", "configuration"]
    assert {f"#{name}" for name in sections} <= {link.get("href") for link in page.all("a")}
    assert "DualNetwork (described) · ResNet34VNet + VNet · on la · 8 labeled + 52 unlabeled volumes" in page.text
    assert "120 of 120 iterations · 12 min 14 s" in page.text
    assert "has not finished" not in page.text and "could not be used" not in page.text
    assert "one split" in page.text and "selected nothing" in page.text
    assert "_target_: dualseg.methods.DualNetwork" in page.text
    assert page.row("hardware.cpu")[1] == "A & B <9000>"
    assert page.row("git.dirty")[1] == "no"


def test_page_needs_nothing_but_itself(page: Page) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object", "embed", "base")
        for name in ("src", "srcset", "href", "data", "action", "poster", "background"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, name)
        assert "url(" not in attributes.get("style", "")
    assert "url(" not in page.style and "@import" not in page.style
    images = page.all("img")
    for image in images:
        drawing = svg(image["src"])
        assert all(link.startswith(("#", "data:")) for link in re.findall(r'href="([^"]*)"', drawing))
        assert all(link.startswith("#") for link in re.findall(r"url\(([^)]*)\)", drawing))
    assert not re.search("https?://", page.source)
    assert len(page.source) < 3e6


def test_accessible(page: Page) -> None:
    images = page.all("img")
    # 1 distribution, 9 loss terms with the total, share of foreground and 3 schedules, 3 cases x 3 planes x 2.
    assert len(images) == 1 + 9 + 4 + 18
    assert all(len(image["alt"]) > 20 for image in images)
    assert all("scope" in cell for cell in page.all("th"))
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == 1


def test_numbers(page: Page) -> None:
    # Five cases, Dice 0.90 0.85 0.80 0.75 0.70 in a and one point more in each further network.
    dice = np.array([0.9, 0.85, 0.8, 0.75, 0.7])
    for network, name, bonus in (("a", "aResNet34VNet", 0), ("b", "bVNet", 0.01), ("ensemble", "ensemble", 0.02)):
        own = dice + bonus
        expected = [f"{100 * own.mean():.2f}", f"{100 * (own / (2 - own)).mean():.2f}", "7.00", "1.50", "0", "0"]
        assert page.row(name)[1:] == expected, network
    assert "None of the 15 rows" in page.text
    table = [row for row in page.rows if row and row[0].startswith("case_0")]
    assert [row[0] for row in table] == ["case_05", "case_04", "case_03", "case_02", "case_01"]
    assert [" ".join(cell.split()) for cell in table[0]][1:5] == ["70.00", "53.85", "9.00", "2.00"]
    for role, case in (("Best", "case_01"), ("Median", "case_03"), ("Worst", "case_05")):
        assert f"{role}: {case}" in page.text
    assert "Dice %: a 70.00, b 71.00, ensemble 72.00" in page.text


@pytest.mark.parametrize(("unit", "word", "other"), [("voxel", "voxels", "mm"), ("mm", "mm", "voxels")])
def test_distances_bear_the_unit_of_the_config(
    unit: str, word: str, other: str, tmp_path: Path, make_run: Callable[..., Path]
) -> None:
    run = make_run(tmp_path / "run", unit=unit, slices=False)
    page = Page(write_run_report(run))
    heads = [" ".join(cell.split()) for row in page.rows for cell in row]
    assert f"95HD {word}" in heads and f"ASD {word}" in heads
    sentences = (f"95HD and ASD in {word}.", f"95HD and ASD ({word}, lower is better)")
    assert all(words in page.text for words in (f"7.00 {word}", f"1.50 {word}", *sentences))
    report = page.text.partition("config.yaml, resolved")[0] + " ".join(image["alt"] for image in page.all("img"))
    assert "How to read these numbers" in report
    assert not re.search(rf"\b{other}\b", report)


def test_empty_masks_are_counted_and_said(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    run = make_run(tmp_path / "run", slices=False)

    def change(rows: list[str]) -> list[str]:
        for index, kind in ((0, "prediction"), (3, "prediction"), (12, "reference"), (6, "both")):
            rows[index] += kind
        return rows

    edit_cases(run, change)
    page = Page(write_run_report(run))
    assert "3 of 15 rows" in page.text and "have exactly one empty" in page.text
    assert "2 with an empty prediction" in page.text and "1 with an empty reference" in page.text
    assert "In 1 both masks are empty" in page.text
    counts = [page.row(name)[5:] for name in ("aResNet34VNet", "bVNet", "ensemble")]
    assert counts == [["2", "0"], ["0", "0"], ["0", "1"]]


def test_hostile_names_are_text(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    evil = "<img src=x onerror=alert(1)>"
    run = make_run(
        tmp_path / "run", cases=(evil, "</td><script>"), networks=("a", r"$\frac{<b>"), classes=("<i>", '"&')
    )
    (run / "config.yaml").write_text(f"name: '</title>{evil}'\n")
    with (run / "logs" / "curves.csv").open("a") as file:
        file.write(f"1,loss/{evil},1\n1,ramp/$x_{{$,1\n1,ramp/{evil},2\n")
    page = Page(write_run_report(run))
    assert not page.all("script") and not page.all("i") and not page.all("b")
    assert all(image["src"].startswith("data:") and "onerror" not in image for image in page.all("img"))
    assert f"Best: {evil}" in page.text
    assert evil in page.text.split("Configuration")[-1]


def test_case_name_does_not_walk_out_of_the_folder(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    run = make_run(tmp_path / "run", cases=("inside",))
    (run / "slices" / "inside.npz").rename(run / "outside.npz")
    edit_cases(run, lambda rows: [row.replace("inside", "../outside") for row in rows])
    assert (run / "slices" / "../outside.npz").is_file()
    page = Page(write_run_report(run))
    assert "name is a path" in page.text
    assert not any("contours" in image["alt"] for image in page.all("img"))


def test_unfinished_run(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    run = make_run(tmp_path / "run")
    for name in ("metrics.json", "manifest.json", "cases.csv"):
        (run / name).unlink()
    shutil.rmtree(run / "slices")
    curves = run / "logs" / "curves.csv"
    curves.write_text(
        "iteration,name,value\n1,loss/total,3.5\n2,loss/total,2.5\nnonsense\n3,loss/total,nan\n4,loss/total,1.2"
    )
    assert read_contents(run).curves["loss/total"].iterations.tolist() == [1, 2, 3]  # the cut line is not believed
    page = Page(write_run_report(run))
    assert "This run has not finished." in page.text and "3 of 12 iterations" in page.text
    assert "No evaluation is stored: metrics.json: missing" in page.text
    assert "cases.csv: missing" in page.text and "manifest.json: missing" in page.text
    assert "1 damaged rows left out" in page.text
    assert "end: 2.5 (1 of 3 values " in page.text

    curves.unlink()
    (run / "metrics.json").write_text('{"status": "interr')
    (run / "manifest.json").write_text("[]")
    page = Page(write_run_report(run))
    assert "logs/curves.csv: missing" in page.text
    assert "metrics.json: cannot be read" in page.text and "manifest.json: not a JSON object" in page.text


def test_what_is_to_be_doubted_stands_on_top(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    """A class that is hardly found, pseudo-labels that the guard held back; a row that a kill cut off harms nothing."""
    run = make_run(tmp_path / "run")
    edit_cases(run, lambda rows: [",".join([*row.split(",")[:4], "0.02", "0.01", "9", "9", ""]) for row in rows])
    with (run / "logs" / "curves.csv").open("a") as file:
        for iteration in (1, 2):
            file.write(f"{iteration},guard/open,0.0\n{iteration},pseudo_share/atrium,9.0\n")
        file.write("3,pseudo_share/atrium,1e-")
    text = Page(write_run_report(run)).text
    assert "Hardly found in the test cases: atrium (Dice 2.0 %)" in text
    assert "9 times as much of class atrium as the labels" in text
    assert "0 where the guard was closed, since a class was outside 0.25 to 4 times its share" in text
    assert "A class's share of the pseudo-labels divided by its share of the labels" in text


def test_summary_and_cases_do_not_need_each_other(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    run = make_run(tmp_path / "run", split="validation", slices=False)
    metrics = run / "metrics.json"
    (run / "cases.csv").rename(run / "away.csv")
    page = Page(write_run_report(run))
    assert "Validation split" in page.text and page.row("ensemble")[1] == "82.00"
    assert "not counted: cases.csv: missing" in page.text

    (run / "away.csv").rename(run / "cases.csv")
    metrics.write_text(json.dumps({"status": "stopped", "iterations": 4}))
    page = Page(write_run_report(run))
    assert "stopped" in page.text and "4 of 12 iterations" in page.text
    assert "No summary" in page.text and "metrics.json: does not name" in page.text
    assert "Best: case_01" in page.text


def test_a_run_that_scored_nothing_says_what_would(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    run = make_run(tmp_path / "run", slices=False)
    (run / "metrics.json").write_text(json.dumps({"status": "finished", "iterations": 12}))
    (run / "cases.csv").write_text((run / "cases.csv").read_text().splitlines()[0] + "\n")
    config = yaml.safe_load((run / "config.yaml").read_text())
    for stages, said in (
        (["validation", "test"], "no validation or test cases; data.fold=0"),
        (["test"], "no test cases; data.held_out_test=N"),
        ([], "evaluate_on=[]"),
    ):
        (run / "config.yaml").write_text(yaml.safe_dump(config | {"evaluate_on": stages}))
        told = results_of(RunFolder(run))
        assert said in told and told in Page(write_run_report(run)).text


def test_a_start_from_another_run_is_said_on_top(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    run = make_run(tmp_path / "run", slices=False)
    said = "starts from the weights of another run"
    assert said not in Page(write_run_report(run)).text
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"weights": {"checkpoint": "c", "sha256": "0"}}))
    assert said in Page(write_run_report(run)).text


def test_three_classes(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    run = make_run(tmp_path / "run", classes=("ventricle", "myocardium"))
    page = Page(write_run_report(run))
    # The ensemble's classes: 0.82 and 0.77; the mean over classes is the network's row.
    assert [row[1] for row in page.rows if row and row[0] == "ventricle"] == ["80.00", "81.00", "82.00"]
    assert [row[1] for row in page.rows if row and row[0] == "myocardium"] == ["75.00", "76.00", "77.00"]
    assert page.row("ensemble")[1] == "79.50"
    assert "Dice %: a 87.50, b 88.50, ensemble 89.50" in page.text  # the best case, mean over its classes
    assert "dashed line: myocardium" in page.text
    titles = ["mean over classes", "ventricle", "myocardium"]
    alts = [image["alt"] for image in page.all("img") if image["alt"].startswith("Dice of each test case")]
    assert len(alts) == 3 and all(title in alt for title, alt in zip(titles, alts, strict=True))


def test_single_network(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    run = make_run(tmp_path / "run", networks=("a",))
    page = Page(write_run_report(run))
    assert "by the Dice of a on the test" in page.text
    assert "ensemble" not in page.text
    assert "where the networks disagree" not in page.text
    assert not any("disagree" in image["alt"] for image in page.all("img"))


def test_damaged_slices_are_named(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    run = make_run(tmp_path / "run")
    best, median, worst = (run / "slices" / f"case_0{i}.npz" for i in (1, 3, 5))
    best.write_bytes(best.read_bytes()[:2000])
    median.unlink()
    with np.load(worst) as archive:
        arrays = dict(archive)
    arrays["coronal_entropy"] = arrays["coronal_entropy"][1:]
    del arrays["sagittal_disagreement"]
    np.savez(worst, **arrays)
    page = Page(write_run_report(run))
    assert "slices/case_01.npz: cannot be read (BadZipFile)" in page.text
    assert "slices/case_03.npz: missing" in page.text
    assert "slices/case_05.npz: 2 of 3 planes are whole" in page.text
    assert len([image for image in page.all("img") if "entropy map" in image["alt"]]) == 2


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(DualsegError, match="absent: no run folder"):
        write_run_report(tmp_path / "absent")
    with pytest.raises(DualsegError, match=r"no run folder .*config\.yaml"):
        write_run_report(tmp_path)
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(DualsegError, match=r"config\.yaml: cannot be read"):
        write_run_report(tmp_path)
    (tmp_path / "config.yaml").write_text("- a\n")
    with pytest.raises(DualsegError, match="not a mapping"):
        write_run_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_page_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.yaml").write_text("name: tiny\n")
    report = write_run_report(tmp_path)
    assert report == tmp_path / "report.html"
    before = report.read_bytes()
    (tmp_path / "config.yaml").write_text("name: other\n")

    def disk_full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(DualsegError, match="No space left"):
        write_run_report(tmp_path)
    assert report.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "report.html"]
    with pytest.raises(DualsegError, match="cannot be written"):
        write_run_report(tmp_path, tmp_path / "absent" / "page.html")


def test_slices_are_drawn_as_they_lie() -> None:
    """Row 10, column 20 of the arrays is that far down and that far right in the picture, image and contour alike."""
    image = np.random.default_rng(0).integers(0, 256, (40, 60), dtype=np.uint8)
    mask = np.zeros((40, 60), np.uint8)
    mask[10, 20] = 1
    found = PlaneSlice("axial", image, np.zeros_like(mask), mask, image, None, aspect=1.0)
    drawing = svg(figures.contour_slice(found, ratio=40 / 60))
    path = re.search(r'<path d="([^"]*)"[^>]*stroke: #56b4e9', drawing)
    assert path, "no contour in the prediction's colour"
    numbers = np.array([float(x) for x in re.findall(r"-?\d+(?:\.\d+)?", path[1])]).reshape(-1, 2)
    scale = 288 / 60  # points a pixel: the figure is 4 inches wide
    centre = (numbers.min(axis=0) + numbers.max(axis=0)) / 2
    np.testing.assert_allclose(centre, [(20 + 0.5) * scale, (10 + 0.5) * scale], atol=0.01)
    assert "stroke: #e69f00" not in drawing  # an empty reference has no contour

    embedded = re.search(r'href="data:image/png;base64,([^"]*)"', drawing)
    transform = re.search(r'<image [^>]*transform="matrix\(([^)]*)\)"', drawing)
    assert embedded and transform
    np.testing.assert_allclose([float(x) for x in transform[1].split()], [scale, 0, 0, scale, 0, 0])  # not flipped
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(embedded[1]))).convert("L"))
    np.testing.assert_array_equal(pixels, image)


def test_running_mean_is_the_mean_of_the_window() -> None:
    values = np.random.default_rng(0).standard_normal(57)
    expected = [values[max(i - 4, 0) : i + 5].mean() for i in range(57)]
    np.testing.assert_allclose(figures.running_mean(values, 9), expected, rtol=1e-10)


def test_example_cases() -> None:
    assert example_cases({"p": 0.7, "q": 0.9, "r": 0.8, "s": 0.75}) == {"q": ["best"], "s": ["median"], "p": ["worst"]}
    assert example_cases({"p": 0.7, "q": 0.9}) == {"q": ["best"], "p": ["median", "worst"]}
    assert example_cases({"p": 0.7, "q": float("nan")}) == {"p": ["best", "median", "worst"]}
    assert example_cases({}) == {}


def test_import_is_light() -> None:
    code = "import sys, dualseg.reporting; print(sorted({'matplotlib', 'torch', 'monai'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
