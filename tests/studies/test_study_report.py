"""`dualseg-report study`: what is written of a study's runs, and what is refused."""

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dualseg.report
from dualseg.errors import DualsegError
from dualseg.runs.folder import RunFolder
from dualseg.runs.lock import writing
from dualseg.studies.collecting import Member
from dualseg.studies.index import Job, Sweep
from dualseg.studies.study import Study, read_study
from dualseg.studies.study_figures import FIGURES
from dualseg.studies.study_tables import ABSENT
from dualseg.studies.writing import write_study

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
CASES = np.array([0.9, 0.8, 0.7, 0.85, 0.75, 0.6])
STUDY = Study(
    name="la_x",
    experiments={"cpu": "la_cpu", "full": "la_paper"},
    seeds=(0, 1),
    variants={"full": {}, "less": {"method.keep_fraction": 0.2}, "never": {"seed": 9}},
    against={"less": "full", "never": "full"},
)


def dual(shift: float) -> dict[str, np.ndarray]:
    """Networks of a run: b is 0.01 and the ensemble 0.02 above a."""
    return {"a": CASES + shift, "b": CASES + shift + 0.01, "ensemble": CASES + shift + 0.02}


@pytest.fixture
def members(tmp_path: Path, study_run: Callable[..., Path]) -> list[Member]:
    """Two seeds of `full`, two of `less`, 0.04 and 0.02 below; one that is not finished."""
    found = []
    for variant, shifts in (("full", (0.0, 0.02)), ("less", (-0.04, 0.0))):
        for seed, shift in enumerate(shifts):
            folder = tmp_path / "runs" / f"{variant}{seed}"
            changes = {"method.keep_fraction": 0.2 if variant == "less" else 0.8}
            study_run(folder, dual(shift), variant=variant, seed=seed, changes=changes)
            found.append(Member(variant, "cpu", seed, RunFolder(folder)))
    return [*found, Member("never", "cpu", 0, RunFolder(tmp_path / "runs" / "never0"))]


def lines(path: Path) -> list[list[str]]:
    """The cells of every row of the Markdown tables."""
    rows = [line for line in path.read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def test_every_file_is_written(members: list[Member], tmp_path: Path) -> None:
    contents = write_study(STUDY, members, tmp_path / "out")
    written = {"results.csv", "cases.csv", "runs.csv", "table.md", "table.tex", "report.html"}
    figures = {"figure.png", "differences.png", "cases.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == written | figures
    assert contents.unfinished == ["never, scale=cpu, seed 0: not started (never0)"] and contents.problems == []
    for name in figures:
        with Image.open(tmp_path / "out" / name) as image:
            assert image.width > 400 and len(set(image.convert("L").tobytes())) > 20
    with (tmp_path / "out" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    first = [(row["variant"], row["seed"], row["network"]) for row in rows[:3]]
    assert first == [("full", "0", network) for network in ("a", "b", "ensemble")]
    assert len(rows) == 12


def test_numbers_of_the_table(members: list[Member], tmp_path: Path) -> None:
    write_study(STUDY, members, tmp_path)
    table = lines(tmp_path / "table.md")
    assert table[0][:6] == ["variant", "network", "labeled", "iterations", "runs", "Dice %"]
    full = 100 * np.array([CASES.mean() + 0.02, CASES.mean() + 0.04])
    expected = f"**{full.mean():.2f} ± {abs(full[0] - full[1]) / np.sqrt(2):.2f}**"  # n - 1: half the gap times root 2
    assert table[3][:6] == ["full", "ensemble", "8", "2,000", "2", expected]
    medians = 100 * np.array([np.median(CASES) + 0.02, np.median(CASES) + 0.04])
    assert table[0][6] == "median Dice %" and table[3][6] == f"**{medians.mean():.2f} ± {np.std(medians, ddof=1):.2f}**"
    assert [row[0] for row in table[1:8]] == ["full"] * 3 + ["less"] * 3 + ["never"]
    assert table[7][4:] == ["0", *["not run"] * 5]
    less = table[6]
    assert less[1] == "ensemble" and "**" not in "".join(less)
    assert "scale=full: not run (full, less, never)." in (tmp_path / "table.md").read_text()


def test_comparison_on_the_page_and_in_the_table(members: list[Member], tmp_path: Path) -> None:
    write_study(STUDY, members, tmp_path)
    row = next(row for row in lines(tmp_path / "table.md") if row[:2] == ["less", "full"])
    # every case is 0.04 and 0.02 below in the two seeds; 6 cases, all worse: the 2 extreme assignments of 2^6 signs,
    # were they not all equal in size: the normal approximation then
    assert row[2:7] == ["2 (0, 1)", "6", "-3.00", "-3.00 to -3.00", "-1.00"]
    assert row[7] == row[8]  # Holm over one comparison changes nothing
    assert "corrected over the study's 1 comparison." in (tmp_path / "table.md").read_text()


def test_a_study_may_give_each_variant_a_reference_of_its_own(members: list[Member], tmp_path: Path) -> None:
    study = replace(STUDY, against={"less": "full", "full": "less"})
    contents = write_study(study, members, tmp_path)
    assert [(c.variant, c.against, round(c.mean, 4)) for c in contents.comparisons] == [
        ("full", "less", 0.03),
        ("less", "full", -0.03),
    ]
    assert {("full", "less"), ("less", "full")} <= {tuple(row[:2]) for row in lines(tmp_path / "table.md")}
    assert "full - less +3.00" in Page(tmp_path / "report.html").source


def test_runs_whose_pseudo_labels_collapsed_are_named(members: list[Member], tmp_path: Path) -> None:
    shares = {"a": 0.01, "labels": 0.2}
    rows = [f"{i},foreground/{n},{v if i > 450 else 0.2}" for i in range(10, 501, 10) for n, v in shares.items()]
    member = members[0]
    member.folder.curves_file.parent.mkdir(exist_ok=True)
    member.folder.curves_file.write_text("\n".join(["iteration,name,value", *rows, ""]))
    contents = write_study(STUDY, members, tmp_path)
    (told,) = [remark for remark in contents.remarks if "collapse: " in remark]
    row = f"{member.variant}, scale=cpu, seed {member.seed}"
    assert told.startswith(f"{row}: ")
    assert "network a 1.0 % of the unlabeled" in told and told.endswith("labeled ones 20.0 %")
    assert f"- {told}." in (tmp_path / "table.md").read_text()


def test_what_a_study_notes_of_its_rows_is_said(members: list[Member], tmp_path: Path) -> None:
    contents = write_study(replace(STUDY, notes=("less is odd",)), members, tmp_path)
    assert contents.remarks[0] == "less is odd"
    assert "- less is odd.\n" in (tmp_path / "table.md").read_text()
    assert "less is odd" in Page(tmp_path / "report.html").source


def test_latex_is_a_booktabs_table(members: list[Member], tmp_path: Path) -> None:
    write_study(STUDY, members, tmp_path)
    text = (tmp_path / "table.tex").read_text()
    body = text[text.index(r"\begin{tabular}") : text.index(r"\end{tabular}")]
    columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", body)
    assert columns
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 8 and all(len(re.split(r"(?<!\\)&", row)) == len(columns[1]) for row in rows)
    assert [body.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    assert r"\textbf{" in body and r"$\pm$" in body and r"Dice \%" in body
    assert not re.search(r"(?<!\\)[%#_]", body) and "±" not in text.replace("% ", "")
    opened = [name for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text)]
    assert opened == ["table", "tabular", "tabular", "table"]


def test_reported_figures_stand_in_a_column_of_their_own(members: list[Member], tmp_path: Path) -> None:
    head = "variant,dataset,method,labeled,dice,jaccard,hd95,asd,source\n"
    rows = 'full,la,ours,8,89.95,,,,"paper, official list"\n,la,MC_Net+,8,99.99,80.25,7.93,1.86,its log\n'
    (tmp_path / "reported.csv").write_text(head + rows)
    write_study(STUDY, members, tmp_path)
    table = lines(tmp_path / "table.md")
    assert table[0][-1] == "reported: Dice / Jaccard / 95HD / ASD"
    by_line = {(row[0], row[1]): row for row in table}
    assert (
        by_line["full", "ensemble"][-1] == f"89.95 / {ABSENT} / {ABSENT} / {ABSENT} [1]"
        and by_line["full", "a"][-1] == ""
    )
    assert by_line["MC_Net+", ""][2:] == ["8", *[""] * 7, "99.99 / 80.25 / 7.93 / 1.86 [2]"]
    text = (tmp_path / "table.md").read_text()
    assert "- [1] paper, official list." in text and "- [2] its log." in text
    assert "**99.99" not in text  # never the best
    assert r"MC\_Net+" in (tmp_path / "table.tex").read_text()
    assert "not run" in " ".join(by_line["never", ""])

    (tmp_path / "reported.csv").write_text(head + "full,la,ours,8,89.95,,,,\n")
    with pytest.raises(DualsegError, match=r"reported\.csv: .*no source"):
        write_study(STUDY, members, tmp_path)
    (tmp_path / "reported.csv").write_text("method,dice\nours,89\n")
    with pytest.raises(DualsegError, match=r"reported\.csv: cannot be read"):
        write_study(STUDY, members, tmp_path)


def bold(path: Path) -> set[tuple[str, str]]:
    """(variant, network) of the lines whose Dice is in bold."""
    return {(row[0], row[1]) for row in lines(path) if len(row) > 5 and row[5].startswith("**")}


def test_bold_is_for_lines_that_can_be_compared(tmp_path: Path, study_run: Callable[..., Path]) -> None:
    runs: dict[str, tuple[float, dict[str, Any]]] = {
        "weak": (0.0, {}),
        "good": (0.02, {}),
        "upper": (0.09, {"data.labeled": 60}),
        "longer": (0.05, {"trainer.max_iterations": 4000}),
    }
    found = []
    for variant, (shift, changes) in runs.items():
        for seed in (0, 1):
            folder = study_run(tmp_path / f"{variant}{seed}", {"a": CASES + shift}, seed=seed, changes=changes)
            found.append(Member(variant, "cpu", seed, RunFolder(folder)))
    once = study_run(tmp_path / "once", {"a": CASES + 0.06})
    study = Study("x", {"cpu": ""}, (0, 1), {variant: {} for variant in [*runs, "once"]})
    contents = write_study(study, [*found, Member("once", "cpu", 0, RunFolder(once))], tmp_path / "out")
    assert bold(tmp_path / "out" / "table.md") == {("good", "a")}
    assert contents.remarks == ["1 of 2 seeds (0): once"]
    assert ["once", "a", "8", "2,000", "1 of 2"] in [row[:5] for row in lines(tmp_path / "out" / "table.md")]


def test_unlike_runs_of_a_variant_are_said(tmp_path: Path, study_run: Callable[..., Path]) -> None:
    found = []
    for seed, changes in enumerate(({}, {"trainer.max_iterations": 10, "method.keep_fraction": 0.5})):
        folder = study_run(tmp_path / f"r{seed}", {"a": CASES}, seed=seed, changes=changes)
        found.append(Member("full", "cpu", seed, RunFolder(folder)))
    other = study_run(tmp_path / "r2", {"a": CASES}, first_case=3, variant="less")
    contents = write_study(STUDY, [*found, Member("less", "cpu", 0, RunFolder(other))], tmp_path / "out")
    said = " | ".join(contents.remarks)
    assert "full differ in iterations (10, 2000), method.keep_fraction" in said
    assert "less was tested on other cases" in said and "(6, 3 of them" in said
    row = next(row for row in lines(tmp_path / "out" / "table.md") if row[0] == "full")
    assert row[3] == "10, 2,000"


@pytest.mark.parametrize(("file", "said"), [("final.json", False), ("design.json", True)])
def test_a_split_file_in_another_checkout_is_no_difference(
    file: str, said: bool, tmp_path: Path, study_run: Callable[..., Path]
) -> None:
    found = []
    for seed, splits in enumerate(("/here/final.json", f"/there/{file}")):
        folder = study_run(tmp_path / f"r{seed}", {"a": CASES}, seed=seed, changes={"data.source": {"splits": splits}})
        found.append(Member("full", "cpu", seed, RunFolder(folder)))
    remarks = " | ".join(write_study(STUDY, found, tmp_path / "out").remarks)
    assert ("full differ in data.source.splits" in remarks) == said


@pytest.mark.parametrize(("draws", "said"), [((0, 1), False), ((0, 2), True), ((1, 0), True)])
def test_a_draw_of_labels_that_is_the_seed_is_no_difference(
    draws: tuple[int, int], said: bool, tmp_path: Path, study_run: Callable[..., Path]
) -> None:
    found = []
    for seed, draw in enumerate(draws):
        folder = study_run(tmp_path / f"r{seed}", {"a": CASES}, seed=seed, changes={"data.draw": draw})
        found.append(Member("full", "cpu", seed, RunFolder(folder)))
    remarks = " | ".join(write_study(STUDY, found, tmp_path / "out").remarks)
    assert ("full differ in data.draw" in remarks) == said


def test_runs_of_uncommitted_code_are_marked(members: list[Member], tmp_path: Path) -> None:
    path = members[2].folder.manifest_file
    path.write_text(json.dumps({**json.loads(path.read_text()), "git": {"revision": "0123abc", "dirty": True}}))
    write_study(STUDY, members, tmp_path)
    names = [row[0] for row in lines(tmp_path / "table.md")]
    assert names[1:8] == ["full"] * 3 + ["less †"] * 3 + ["never"]
    assert re.search("† a run .*uncommitted", (tmp_path / "table.md").read_text())
    assert r"less \textsuperscript{\dag}" in (tmp_path / "table.tex").read_text()
    assert Page(tmp_path / "report.html").text.count("uncommitted code") >= 2


class Page(HTMLParser):
    """Tags with their attributes, the ids, and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.source = path.read_text()
        self.feed(self.source)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data + " "

    def values(self, attribute: str) -> Iterable[str]:
        return [attributes[attribute] for _, attributes in self.tags if attribute in attributes]


def test_the_page_needs_nothing_but_itself_and_leads_to_every_run(members: list[Member], tmp_path: Path) -> None:
    write_study(STUDY, members, tmp_path)
    page = Page(tmp_path / "report.html")
    assert all(link.startswith(("#", "data:")) for link in [*page.values("href"), *page.values("src")])
    assert not re.search("https?://", page.source) and "<script" not in page.source
    ids = list(page.values("id"))
    assert {link[1:] for link in page.values("href") if link.startswith("#")} <= set(ids) and len(ids) == len(set(ids))
    assert len([link for link in page.values("href") if link.startswith("#runs-0-")]) == 2  # every variant with runs
    for member in members[:-1]:
        assert member.name in page.text
    for fact in (
        "0123abc",
        "f00d",
        "dualseg-train seed=1",
        "torch 2.13.0",
        "0.2 s an iteration",
        "method.keep_fraction=0.2",
    ):
        assert fact in page.text, fact
    assert "never, scale=cpu, seed 0: not started" in page.text
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 3 and all(len(image["alt"]) > 40 for image in images)
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")


def test_one_run_may_be_that_of_several_variants(tmp_path: Path, study_run: Callable[..., Path]) -> None:
    folder = RunFolder(study_run(tmp_path / "r", {"a": CASES}))
    study = Study("x", {"cpu": ""}, (0,), {"one": {}, "same": {}}, against={"same": "one"})
    contents = write_study(study, [Member(name, "cpu", 0, folder) for name in study.variants], tmp_path / "out")
    assert [row[0] for row in lines(tmp_path / "out" / "table.md")][1:3] == ["one", "same"]
    (comparison,) = contents.comparisons
    assert (comparison.mean, comparison.effect, comparison.p_holm) == (0, 0, 1)


def test_hostile_names_are_text(tmp_path: Path, study_run: Callable[..., Path]) -> None:
    name = "[<b>&_%$|{x}\n\n[y](z)"
    folder = study_run(tmp_path / "r", {"a": CASES}, variant=name)
    study = Study("x", {"cpu": ""}, (0,), {name: {}})
    write_study(study, [Member(name, "cpu", 0, RunFolder(folder))], tmp_path / "out")
    assert "<b>" not in (tmp_path / "out" / "report.html").read_text()
    assert r"| \[&lt;b&gt;&amp;\_%$\|{x} \[y](z) | a |" in (tmp_path / "out" / "table.md").read_text()
    assert r"{}[<b>\&\_\%\$|\{x\} [y](z) & a &" in (tmp_path / "out" / "table.tex").read_text()


def test_hostile_sentences_are_text(tmp_path: Path, study_run: Callable[..., Path]) -> None:
    """Notes, comparisons, what is not run."""
    names = ["<i>one", "<i>two", "<i>three"]
    folders = [RunFolder(study_run(tmp_path / str(k), {"a": CASES}, variant=names[k])) for k in range(2)]
    against, notes = {names[1]: names[0]}, ("see <i>here\n\nthere",)
    study = Study("x", {"cpu": "", "<i>": ""}, (0, 1), {name: {} for name in names}, against=against, notes=notes)
    write_study(study, [Member(names[k], "cpu", 0, folder) for k, folder in enumerate(folders)], tmp_path / "out")
    for file in ("table.md", "report.html"):
        text = (tmp_path / "out" / file).read_text()
        assert "<i>" not in text and "see &lt;i&gt;here" in text
    assert "\nthere" not in (tmp_path / "out" / "table.md").read_text() + (tmp_path / "out" / "table.tex").read_text()


def test_labels_make_the_figure_over_labels(tmp_path: Path, study_run: Callable[..., Path]) -> None:
    found = []
    for method in ("supervised", "dual"):
        for labeled in (4, 8, 16):
            changes = {"method.name": method, "data.labeled": labeled}
            folder = study_run(tmp_path / f"{method}{labeled}", {"a": CASES}, changes=changes)
            found.append(Member(f"{method}_{labeled}", "cpu", 0, RunFolder(folder)))
    study = Study("x", {"cpu": ""}, (0,), {member.variant: {} for member in found})
    write_study(study, found, tmp_path / "out")
    page = Page(tmp_path / "out" / "report.html")
    assert "labeled volumes for supervised; dual." in page.source
    assert "names no variant" in page.text
    assert {p.name for p in (tmp_path / "out").glob("*.png")} == {"figure.png", "variants.png"}


def test_nothing_is_written_when_something_is_refused(
    members: list[Member], tmp_path: Path, study_run: Callable[..., Path]
) -> None:
    write_study(STUDY, members, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def refused(words: str, changes: Mapping[str, Any], **other: Any) -> None:
        folder = tmp_path / "runs" / f"bad{len(list((tmp_path / 'runs').iterdir()))}"
        study_run(folder, dual(0), changes=changes)
        member = Member(**{"variant": "never", "scale": "cpu", "seed": 0, "folder": RunFolder(folder), **other})
        with pytest.raises(DualsegError, match=words):
            write_study(STUDY, [*members[:-1], member], tmp_path / "out")
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before

    refused(r"la_x: several datasets in one table: la \(full0\), brats \(bad4\)", {"data.name": "brats"})
    refused(
        r"several units in one table: voxels .*, mm .*evaluate the runs in one unit", {"inference.distance_unit": "mm"}
    )
    refused(r"less, seed 1, has several runs: less1 .*, bad6 ", {}, variant="less", seed=1)


def test_scales_are_separate_tables(members: list[Member], tmp_path: Path, study_run: Callable[..., Path]) -> None:
    folder = study_run(tmp_path / "runs" / "paper", dual(0.05), changes={"trainer.max_iterations": 6000})
    write_study(STUDY, [*members, Member("full", "full", 0, RunFolder(folder))], tmp_path)
    titles = [line for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("Test cases")]
    assert [re.findall(r"scale=(\w+)", title) for title in titles] == [["cpu"], ["full"]]
    rows = [row for row in lines(tmp_path / "table.md") if row[:2] == ["full", "ensemble"]]
    assert [(row[3], row[4]) for row in rows] == [("2,000", "2"), ("6,000", "1 of 2")]


def test_rows_without_run_folders_stay_and_say_what_is_not_recorded(members: list[Member], tmp_path: Path) -> None:
    write_study(STUDY, members, tmp_path)
    for name in ("cases.csv", "runs.csv"):
        (tmp_path / name).unlink()
    (tmp_path / "collapse.png").write_bytes(b"drawn by hand")
    text = (tmp_path / "results.csv").read_text()
    contents = write_study(STUDY, [], tmp_path)
    assert (tmp_path / "results.csv").read_text() == text
    said = " | ".join(contents.remarks)
    assert "4 runs (full0, full1, less0 and 1 more): no per-case values" in said and "provenance not recorded" in said
    assert "no comparison" not in said and contents.comparisons == []
    assert not (tmp_path / "cases.csv").exists() and not (tmp_path / "runs.csv").exists()
    assert [row[6] for row in lines(tmp_path / "table.md")[1:8]] == [*[ABSENT] * 6, "not run"]
    assert f"- {ABSENT} the values " in (tmp_path / "table.md").read_text()
    assert "not recorded" in Page(tmp_path / "report.html").text
    # figures of the comparisons that there are no more; what dualseg-report did not draw stays
    assert {path.name for path in tmp_path.glob("*.png")} == {"figure.png", "collapse.png"}


def test_runs_that_were_only_validated_are_compared_on_validation_cases(members: list[Member], tmp_path: Path) -> None:
    tested = write_study(STUDY, members, tmp_path)
    table = (tmp_path / "table.md").read_text()
    for name in ("results.csv", "cases.csv"):
        path = tmp_path / name
        path.write_text(path.read_text().replace(",test,", ",validation,"))
    contents = write_study(STUDY, [], tmp_path)
    replaced = table.replace("Test cases", "Validation cases").replace("Test Dice", "Validation Dice")
    replaced = replaced.replace("seeds and test cases", "seeds and validation cases")
    assert "Validation cases" in replaced and (tmp_path / "table.md").read_text() == replaced
    assert [c.differences for c in contents.comparisons] == [c.differences for c in tested.comparisons] != []
    assert {c.split for c in contents.comparisons} == {"validation"}
    assert (tmp_path / "figure.png").is_file()
    text = Page(tmp_path / "report.html").text
    assert "Validation Dice" in text and "Test Dice" not in text


def test_one_tested_run_makes_it_a_study_of_test_cases(members: list[Member], tmp_path: Path) -> None:
    write_study(STUDY, members, tmp_path)
    results = tmp_path / "results.csv"
    rows = results.read_text().splitlines(keepends=True)
    results.write_text("".join(row.replace(",test,", ",validation,") if ",full," in row else row for row in rows))
    contents = write_study(STUDY, [], tmp_path)
    assert contents.tables.split == "test"
    assert any(told.startswith("2 runs (full0, full1): ") and "results.csv" in told for told in contents.remarks)


# --- the command ---


def sweep(folder: Path, study_run: Callable[..., Path], variants: Iterable[str], seeds: int = 1) -> Path:
    """Runs of la_networks at CPU scale with their sweep.json."""
    jobs = []
    for index, variant in enumerate(variants):
        for seed in range(seeds):
            run = study_run(folder / f"{variant}{seed}", dual(-0.01 * index * CASES), variant=variant, seed=seed)
            jobs.append(Job(run.name, (), run.name, "kind", 100, seed, variant))
    Sweep.named(folder, "la_networks", "cpu", ()).write(jobs, "la_networks", "cpu")
    return folder


def test_the_command_collects_a_study(
    tmp_path: Path, study_run: Callable[..., Path], command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = sweep(tmp_path / "runs", study_run, ("resnet34_vnet", "vnet_vnet"))
    monkeypatch.chdir(tmp_path)
    outcome = command(dualseg.report.main, "study", "la_networks")
    assert outcome.code == 0, outcome.err
    assert "la_networks: 2 finished runs of 2 variants" in outcome.out
    assert "Report: experiments/la_networks/report.html" in outcome.out
    assert (tmp_path / "experiments/la_networks/report.html").is_file()

    (runs / "vnet_vnet0" / "manifest.json").unlink()
    before = (tmp_path / "experiments/la_networks/results.csv").read_bytes()
    outcome = command(dualseg.report.main, "study", "la_networks")
    outcome.complains("left out", "vnet_vnet0", "manifest.json: missing")
    assert "Report: " in outcome.out
    assert (tmp_path / "experiments/la_networks/results.csv").read_bytes() == before  # its rows stay
    assert "manifest.json: missing" in (tmp_path / "experiments/la_networks/table.md").read_text()


def test_the_command_collects_loose_runs(
    tmp_path: Path, study_run: Callable[..., Path], command: Callable[..., Any]
) -> None:
    one = study_run(tmp_path / "one", dual(0), variant=None, changes={"scale": None})
    two = study_run(tmp_path / "two", dual(0.01), variant=None, changes={"scale": None, "data.labeled": 4})
    outcome = command(dualseg.report.main, "study", one, two, "--output", tmp_path / "mine")
    assert outcome.code == 0, outcome.err
    table = lines(tmp_path / "mine" / "table.md")
    assert {row[0] for row in table[1:]} == {"data.labeled=8", "data.labeled=4"}
    command(dualseg.report.main, "study", one, two).complains("output=DIR is required")
    command(dualseg.report.main, "study", one).complains("output=DIR is required")


def test_bad_input(tmp_path: Path, study_run: Callable[..., Path], command: Callable[..., Any]) -> None:
    out = ("--output", tmp_path / "out")
    nothing = ("study", "la_networks", "--runs", tmp_path, *out)
    command(dualseg.report.main, "study", "la_netwroks", *out).complains("no such study", "Did you mean la_networks?")
    command(dualseg.report.main, *nothing).complains("la_networks: no finished run, ", "no sweep of it")
    runs = sweep(tmp_path, study_run, ("vnet_vnet",))
    (runs / "vnet_vnet0" / "metrics.json").rename(tmp_path / "metrics.json")
    command(dualseg.report.main, *nothing).complains("no finished run", "vnet_vnet, scale=cpu, seed 0: not finished")
    (runs / "vnet_vnet0" / "metrics.json").write_text("{")
    command(dualseg.report.main, *nothing).complains("no finished run ", "metrics.json: cannot be read")
    (runs / "sweeps/la_networks-cpu/sweep.json").write_text("{")
    command(dualseg.report.main, *nothing).complains("sweep.json: cannot be read")
    command(dualseg.report.main, "study", runs / "vnet_vnet0", runs, *out).complains("no run folder")
    assert not (tmp_path / "out").exists()


def test_help_and_mistakes_answer_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom dualseg.report import main\ntry:\n main()\nexcept SystemExit: pass\n"
        "print({'torch', 'matplotlib'} & set(sys.modules), file=sys.stderr)"
    )
    places = [str(Path.cwd()), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(place for place in places if place)}
    for words in (["study", "--help"], ["study", "absent"], ["study", "la_networks"]):
        answer = subprocess.run(
            [sys.executable, "-c", code, *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert answer.stderr.splitlines()[-1] == "set()", answer.stderr


@pytest.mark.parametrize("name", [path.parent.name for path in sorted(EXPERIMENTS.glob("*/results.csv"))])
def test_what_is_committed_is_what_the_committed_rows_give(name: str, tmp_path: Path) -> None:
    committed = EXPERIMENTS / name
    for path in committed.glob("*.csv"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    write_study(read_study(name), [], tmp_path)
    texts = ("results.csv", "cases.csv", "runs.csv", "table.md", "table.tex")
    for file in texts:
        ours, theirs = tmp_path / file, committed / file
        assert (ours.read_text() if ours.exists() else None) == (theirs.read_text() if theirs.exists() else None), file
    # their pixels differ with the version of matplotlib
    assert {path.name for path in tmp_path.glob("*.png")} == {p.name for p in committed.glob("*.png")} & set(FIGURES)


def test_the_committed_means_are_those_of_the_study() -> None:
    text = (EXPERIMENTS / "la_main" / "table.md").read_text()
    assert "| dual_described_8 | ensemble | 8 | 2,000 | 3 | 81.90 ± 3.71 | " in text


def test_a_study_is_written_by_one_process_at_a_time(members: list[Member], tmp_path: Path, monkeypatch) -> None:
    """A second one would lose the rows that the first one adds."""
    monkeypatch.setattr("dualseg.runs.lock.PATIENCE", 0.1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".0a1b2c3d.tmp.table.md").touch()  # of one that was killed
    match = rf"out: is being written by process {os.getpid()} on .*output=DIR"
    with writing(tmp_path / "out"), pytest.raises(DualsegError, match=match):
        write_study(STUDY, members, tmp_path / "out")
    write_study(STUDY, members, tmp_path / "out")
    assert not list((tmp_path / "out").glob(".*"))
