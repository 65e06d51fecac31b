"""Every command of docs/ is run, in its page's order, on toys; doc_toys.py says what is not run, and why."""

import re
import shutil
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from doc_toys import commands_of_make, toy_words, train_in_this_process, why_not, write_data
from documentation import DOCS, commands_of, write_own_files

import dualseg.audit
import dualseg.views
from dualseg.data.batch import Batch
from dualseg.methods import LossTerm, Time

pytestmark = pytest.mark.timeout(1500)  # seconds for a command, but many commands on a busy machine
LABELS = {"demo": 8, "other": 7, "one": 2, "two": 4, "three": 6, "fold0": 8, "fold1": 5}  # of the runs that pages name


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the user's files and data; `runs` comes with the first page."""
    folder = tmp_path_factory.mktemp("home")
    write_own_files(folder)
    write_data(folder)
    return folder


@pytest.fixture
def work(home: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any]) -> Iterator[Path]:
    """The working folder, in which there are the runs that pages speak of and no others."""
    monkeypatch.chdir(home)
    monkeypatch.syspath_prepend(home)
    monkeypatch.setattr(dualseg.audit, "WARM_UP", (2,))
    monkeypatch.setattr(dualseg.audit, "BATCHES", 1)
    monkeypatch.setattr("dualseg.studies.job.run_group", train_in_this_process)
    spare = home / "runs-of-the-pages"
    if not spare.exists():
        for name, labeled in LABELS.items():
            run(["dualseg-train", "experiment=demo", f"name={name}", f"data.labeled={labeled}"], home, command)
        (home / "runs").rename(spare)
    shutil.copytree(spare, home / "runs")
    yield home
    shutil.rmtree(home / "runs")


def run(words: list[str], folder: Path, command: Callable[..., Any]) -> None:
    main = import_module(words[0].replace("-", ".")).main
    outcome = command(main, *toy_words(words, folder))
    if words[0] == "dualseg-prepare":  # the toy is one case; that the others are missing is all that it may say
        said = outcome.err.splitlines()[-1]
        assert re.fullmatch(r"error: \d+ cases \([^)]*\) of the lists are not below raw=.*", said), outcome
        assert "Prepared: 1 cases" in outcome.out
        return
    assert outcome.code == 0, f"{' '.join(words)}\n{outcome.err[-3000:]}{outcome.out[-1000:]}"


@pytest.mark.parametrize("page", [page for page in DOCS if commands_of(page)], ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(page: Path, work: Path, command: Callable[..., Any]) -> None:
    for words in commands_of(page):
        if why_not(words) is None:
            for one in commands_of_make(words[1:], work) if words[0] == "make" else [words]:
                run(one, work, command)


def test_ones_own_loss_and_method_have_their_curves(work: Path, command: Callable[..., Any]) -> None:
    for method, networks, terms in (
        ("low_entropy", "ab", ["low_entropy", "cosine"]),
        ("pi_model", "a", ["consistency", "supervised_ce"]),
    ):
        weight = f"+method.terms.{terms[0]}.weight=0.2"  # the + as the page says
        run(["dualseg-train", "--config-dir", "my_conf", f"method={method}", f"name={method}", weight], work, command)
        curves = (work / "runs" / method / "logs" / "curves.csv").read_text()
        assert all(f"loss/{network}/{term}," in curves for network in networks for term in terms)


def test_ones_own_term_is_the_entropy_of_the_unlabeled_half_of_a_mixing_method(work: Path) -> None:
    """Against -sum p log p written out, from the network's own prediction of the batch as it came."""
    import torch

    from dualseg.inference import SlidingWindow
    from dualseg.methods import SoloMix
    from dualseg.networks import VNet

    network, window = VNet(base_channels=2, dropout=0.0), SlidingWindow((16, 16, 16), (16, 16, 16))
    certain = import_module("my_methods").Certain(weight=0.1, ramp="start")
    method = SoloMix({"a": network}, ("background", "organ"), window, terms={"certain": certain})
    image = torch.randn(4, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    label = torch.zeros(2, 16, 16, 16, dtype=torch.int64)
    terms: list[LossTerm] = method.loss_terms(Batch(image, label, []), Time(8, 10))
    (added,) = [term for term in terms if term.name == "certain"]
    alone = method.loss_terms(Batch(image[:2], label, []), Time(8, 10))
    assert all(term.name != "certain" and term.value.isfinite() for term in alone), "the labels-only twin"
    p = network(image).logits.detach().double().softmax(dim=1)[2:]
    assert added.value.item() == pytest.approx(-(p * p.log()).sum(dim=1).mean().item(), rel=1e-4)
    assert added.weight == pytest.approx(0.1)


def test_the_views_that_are_named_are_there() -> None:
    page = (DOCS[0].parent / "change-one-thing.md").read_text()
    listed = re.search(r"`dualseg\.views` has what is done to patches: ([^.]*)\.", page)
    assert listed and {*re.findall(r"`(\w+)`", listed[1]), "uniform"} == set(dualseg.views.__all__)


def test_the_added_term_is_the_entropy_of_the_unlabeled_half(work: Path) -> None:
    """Against -sum p log p written out, from the networks' own predictions."""
    import torch

    from dualseg.inference import SlidingWindow
    from dualseg.networks import VNet

    networks = {name: VNet(base_channels=2, dropout=0.0) for name in "ab"}
    window = SlidingWindow((16, 16, 16), (16, 16, 16))
    method = import_module("my_methods").WithLowEntropy(networks, ("background", "organ"), window)
    image = torch.randn(4, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    label = torch.zeros(2, 16, 16, 16, dtype=torch.int64)
    terms: list[LossTerm] = method.loss_terms(Batch(image, label, []), Time(5, 10))
    added = [term for term in terms if term.name == "low_entropy"]
    assert [term.network for term in added] == ["a", "b"] and all(term.weight == pytest.approx(0.1) for term in added)
    for term in added:
        p = networks[term.network](image).logits.detach().double().softmax(dim=1)[2:]
        assert term.value.item() == pytest.approx(-(p * p.log()).sum(dim=1).mean().item(), rel=1e-4)
