"""`+term=NAME`: from the command line and a study to the audit, a run folder and its page."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from method_toys import Bare, Tiny, tiny_parts

import dualseg.audit
from dualseg import report, train
from dualseg.configuration import conf_dir
from dualseg.data import Phantom
from dualseg.data.batch import Batch
from dualseg.errors import DualsegError
from dualseg.methods import ERDA, Supervised
from dualseg.methods.audit import audit
from dualseg.runs.folder import RunFolder, run_name
from dualseg.studies.study import study_of
from dualseg.training.curves import read_curves
from dualseg.training.settings import resolve

BOTH = "+term=[erda,guided_contrast]"
NAMES = ("erda", "guided_contrast")


@pytest.fixture
def words(tiny: Callable[..., list[str]], phantom: Phantom, tmp_path: Path) -> list[str]:
    return [*tiny(phantom.root, tmp_path / "runs"), "data.patch_size=[16,16,16]", "data.stride=[16,16,16]"]


def composed(*words: str) -> dict:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return resolve(compose("train", overrides=["data.root=/data", *words]))


def test_terms_are_added_to_those_of_any_method():
    plain = composed("method=dual")["method"]["terms"]
    assert composed("method=dual", BOTH, "method.terms.erda.weight=0.01")["method"]["terms"] == plain | {
        "erda": {
            "_target_": "dualseg.methods.ERDA", "enabled": True, "weight": 0.01, "ramp": "none", "temperature": 1.0,
            "entropy_weight": 1.0, "momentum": 0.999, "coadapt": True,
        },
        "guided_contrast": {
            "_target_": "dualseg.methods.GuidedContrast", "enabled": True, "weight": 0.1, "ramp": "start",
            "temperature": 0.1, "confidence": 0.75,
        },
    }  # fmt: skip
    assert list(composed("method=supervised", "+term=erda")["method"]["terms"]) == ["erda"]
    assert run_name(composed("+term=erda")) != run_name(composed())


@pytest.mark.parametrize("value", ["erda", ["erda", "guided_contrast"]])
def test_a_variant_of_a_study_adds_them(value):
    variants = {"plain": {}, "more": {"method": "mean_teacher", "+term": value, "method.terms.erda.weight": 0.01}}
    study = study_of("mine", {"experiments": {"cpu": "la_cpu"}, "seeds": [0], "variants": variants})
    terms = composed(*study.arguments("more", "cpu"))["method"]["terms"]
    assert list(terms)[3:] == ([value] if isinstance(value, str) else value)
    assert terms["erda"]["weight"] == 0.01


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["term=erda"], ["term: no such configuration key", "Write +term="]),
        (["+term=erad"], ["term=erad: no such option", "Did you mean erda?"]),
        (["method.terms.erda.weight=1"], ["method.terms.erda: ", "Add +term=erda."]),
        (["method=cps", "method.terms.erda.weight=1"], ["Add +term=erda."]),
        (["+term=erda", "method.terms.erda.wieght=1"], ["Did you mean method.terms.erda.weight?"]),
        (["+term=erda", "+method.terms.erda.foo=1"], ["method.terms.erda.foo: no such configuration key"]),
        (["+term=erda", "method.terms.erda.ramp=up"], ["method.terms.erda.ramp=up: choose from none, start, run"]),
        (["+term=erda", "method.terms.erda.weight=-1"], ["method.terms.erda.weight=-1: give a number"]),
        ([BOTH, "method.terms.guided_contrast.temperature=0"], ["method.terms.guided_contrast.temperature=0: give"]),
        (
            ["method=cps", "+term=erda", "+method.terms.cosine.weight=1"],
            ["no such loss term"],
        ),
    ],
)
def test_mistakes_are_named_with_their_whole_key(given, said, words, command, tmp_path):
    command(train.main, *words, *given).complains(*said)
    assert not (tmp_path / "runs").exists()


def test_a_term_of_the_methods_own_name_is_refused():
    with pytest.raises(DualsegError, match=r"method\.terms\.supervised_ce: .* another"):
        Supervised(**tiny_parts(a=Tiny()), terms={"supervised_ce": ERDA()})


def test_one_that_is_off_is_absent_from_the_audit_and_no_reason_to_refuse_the_methods_terms():
    method = Supervised(**tiny_parts(a=Tiny()), terms={"erda": ERDA(enabled=False)})
    settings = composed("method=cps", "+term=erda", "method.terms.erda.enabled=false")
    assert settings["method"]["terms"]["erda"]["enabled"] is False
    label = torch.randint(2, (2, 8, 8, 8), generator=torch.Generator().manual_seed(0))
    rows = audit(method, [Batch(torch.randn(4, 1, 8, 8, 8), label, ["case"] * 4)], 10)
    assert {(row.term, row.verdict) for row in rows} == {
        ("supervised_ce", "live"), ("supervised_dice", "live"), ("erda", "absent"),
    }  # fmt: skip
    with pytest.raises(DualsegError, match="every term is off"):
        Bare(**tiny_parts(a=Tiny()), terms={"erda": ERDA(enabled=False)})


def test_the_audit_has_them_live_in_each_network_and_in_no_other(words, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setattr(dualseg.audit, "WARM_UP", (2,))
    sure = "method.terms.guided_contrast.confidence=0.5"
    outcome = command(dualseg.audit.main, *words, "method=cps", "dropout=0", BOTH, sure)
    assert outcome.code == 0, outcome.out + outcome.err
    for name in NAMES:
        lines = [line for line in outcome.out.splitlines() if name in line]
        assert len(lines) == 2 and all(" live " in line for line in lines)


def test_a_run_and_its_page_have_their_curves(words, command, tmp_path):
    words = [*words, "method=mean_teacher", BOTH, "name=one", "trainer.log_every=1"]
    ended = command(train.main, *words)
    assert ended.code == 0, ended.err
    run = RunFolder(tmp_path / "runs" / "one")
    curves = {name for _, name, _ in read_curves(run.curves_file)}
    assert {f"loss/a/{name}" for name in NAMES} | {f"gradient_norm/{name}" for name in NAMES} < curves
    assert list(yaml.safe_load(run.config_file.read_text())["method"]["terms"])[3:] == [*NAMES]
    command(report.main, "run", str(run.path), "--output", str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert all(name in page for name in NAMES)
