"""How commands start: at once where no torch is needed, from any folder, and with an answer to every mistake."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException, HydraException, InstantiationException
from hydra.utils import instantiate
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from dualseg import audit, check, evaluate, export, predict, prepare, report, train
from dualseg.command import failures, misspelt
from dualseg.configuration import conf_dir
from dualseg.errors import DualsegError, Interrupted
from dualseg.runs.identity import run_name
from dualseg.training.settings import resolve

SECONDS = 3.0

# Runs one command in a fresh interpreter, then says on the last line of stderr what it took.
PROBE = """
import json, resource, sys
from importlib import import_module
module, *words = sys.argv[1:]
sys.argv = [module, *words]
code = 0
try:
    import_module(module).main()
except SystemExit as stop:
    code = stop.code
used = resource.getrusage(resource.RUSAGE_SELF)
heavy = sorted({"torch", "monai", "pytorch_lightning", "matplotlib", "torchmetrics"} & set(sys.modules))
readers = sorted({"nibabel", "scipy"} & set(sys.modules))
facts = {"code": code, "seconds": used.ru_utime + used.ru_stime, "heavy": heavy, "readers": readers}
print("\\n" + json.dumps(facts), file=sys.stderr)
"""


def probe(folder, module, *words):
    """Outcome of a command in `folder`: stdout, stderr and the probe's facts."""
    ended = subprocess.run(
        [sys.executable, "-c", PROBE, f"dualseg.{module}", *map(str, words)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HYDRA_FULL_ERROR": "0"},
    )
    *err, facts = ended.stderr.rstrip().splitlines()
    return ended.stdout, "\n".join(err), json.loads(facts)


def assert_quick(facts, code):
    """CPU seconds, not those of the clock: this machine may be busy with other things."""
    assert facts["code"] == code
    assert facts["heavy"] == [], "heavy imports come later"
    assert facts["seconds"] < SECONDS


@pytest.mark.parametrize(
    "module, said",
    [
        ("train", ["dualseg-train data=la", "== Groups", "max_iterations: 6000"]),
        ("evaluate", ["run=RUN_FOLDER", "split=test|validation"]),
        ("report", ["one self-contained HTML page of a run"]),
        ("audit", ["dualseg-audit", "gradient"]),
        ("check", ["dualseg-check", "exit code"]),
        ("plan", ["dualseg-plan", "one for each list of labels"]),
        ("export", ["run=RUN_FOLDER", "onnx", "bundle"]),
    ],
)
def test_help_answers_at_once(tmp_path, module, said):
    out, err, facts = probe(tmp_path, module, "--help")
    assert_quick(facts, 0)
    assert module != "train" or facts["readers"] == [], "reading files comes later"
    for words in said:
        assert words in out
    assert err.strip() == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "module, words, said",
    [
        ("train", ["data.labelled=4"], "data.labelled: no such configuration key. Did you mean data.labeled?"),
        ("train", ["lr_schedule=polynomial", "lr_schedule.powr=0.5"], "Did you mean lr_schedule.power?"),
        ("train", ["-m", "lr_schedule=polynomial,step", "lr_schedule.powr=1"], "Did you mean lr_schedule.power?"),
        (
            "train",
            ["network@networks.a=segresnet", "networks.a.init_filter=4"],
            "Did you mean networks.a.init_filters?",
        ),
        ("train", ["experimnt=demo"], "experimnt: no such configuration key. Did you mean experiment?"),
        ("train", ["netwrok@networks.a=vnet"], "Did you mean network@networks.a?"),
        ("train", ["method=duel"], "method=duel: no such option. Did you mean dual?"),
        ("train", ["data=la"], "data.root is required"),
        ("train", ["data=la", "data.root=/none"], "data.root=/none: no such folder"),
        ("train", ["data=la", "data.root=.", "data.labeled=81"], "data.labeled=81"),
        ("train", ["data=la", "data.root=.", "data.labeled=80"], "leaves no unlabeled volume"),
        ("train", ["data.patch_size=[48,48,33]"], "multiples of 16"),
        ("train", ["trainer.devices=0"], "trainer.devices=0: give a number of at least 1"),
        ("train", ["lr_schedule.milestones=[0,5000]"], "lr_schedule.milestones=[0, 5000]: give a list of iterations"),
        ("train", ["weights=none.ckpt"], "weights=none.ckpt: no such checkpoint; give a run folder"),
        ("audit", ["weights=none.ckpt"], "weights=none.ckpt: no such checkpoint"),
        ("train", ["+data.source.foo=1"], "data.source.foo: no such configuration key"),
        ("audit", ["data.labelled=4"], "Did you mean data.labeled?"),
        ("evaluate", ["run=none"], "none: no run folder"),
        ("evaluate", ["none"], "write key=value, for example run=none"),
    ],
)
def test_mistakes_in_the_configuration_answer_at_once(tmp_path, module, words, said):
    out, err, facts = probe(tmp_path, module, *words)
    assert_quick(facts, 2)
    assert err.splitlines()[-1].startswith("error: ") and said in err.splitlines()[-1]
    assert "Traceback" not in out + err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", [["--config-dir", "conf"], ["--config-dir=conf"], ["-cd", "conf"]])
@pytest.mark.parametrize(
    "words, said",
    [
        (["lr_schedule=warm", "lr_schedule.warmt=1"], "Did you mean lr_schedule.warmth?"),
        (["lr_schedule=wram"], "Did you mean warm?"),
    ],
)
def test_suggestions_know_options_of_ones_own(command, tmp_path, monkeypatch, flag, words, said):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "conf" / "lr_schedule"
    own.mkdir(parents=True)
    (own / "warm.yaml").write_text("_target_: mine.warm\nwarmth: 3\n")
    command(train.main, *flag, *words).complains(said)


@pytest.mark.parametrize("word", ["method.threshold=0.9", "method.terms.low.weight=0.2", "method.terms.cosine.to=1"])
def test_a_key_that_the_file_of_a_method_of_ones_own_does_not_name(command, tmp_path, monkeypatch, word):
    """The nearest key is rarely the one that is meant; with a + the method itself says whether it takes it."""
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "conf" / "method"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("# @package _global_\ndefaults: [dual]\nmethod: {_target_: mine.Method}\n")
    command(train.main, "--config-dir=conf", "method=mine", word).complains(f" If mine.Method takes it: +{word}")
    assert "takes it" not in command(train.main, "method=dual", word).err


@pytest.mark.parametrize(
    ("module", "text", "said"),
    [
        ("absent", None, "absent.Method: no module absent is found; is its folder in PYTHONPATH?"),
        ("misspelt", "class Methods: pass", "misspelt.Method: misspelt has no Method. Did you mean Methods?"),
        ("uses", "import re\nfrom re import fund", "ImportError: cannot import name 'fund' from 're'"),
        ("uses_too", "import re\nfrom re import fund", "(uses_too.py, line 2)"),
        ("needs", "import needed_by_it", "needs.Method: cannot be imported: ModuleNotFoundError: No module named"),
        ("spoilt", "\n\nclass Method", "SyntaxError: expected ':' (spoilt.py, line 3)"),
    ],
)
def test_code_of_ones_own_that_cannot_be_imported(tmp_path, monkeypatch, module, text, said):
    monkeypatch.syspath_prepend(tmp_path)
    if text is not None:
        (tmp_path / f"{module}.py").write_text(text)
    with pytest.raises(HydraException) as raised:
        instantiate({"_target_": f"{module}.Method"})
    assert said in misspelt.explain(raised.value)


@pytest.mark.parametrize("method", [path.stem for path in (conf_dir() / "method").glob("*.yaml")])
def test_run_names_say_which_method_it_is(method):
    """By its own name: `method=dual` and `method=dual_gentle` would else differ in the hash alone."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        settings = resolve(compose("train", [f"method={method}"]))
    assert run_name(settings).split("-")[:2] == ["phantom", method]


def test_help_is_help_wherever_it_stands(tmp_path):
    out, err, facts = probe(tmp_path, "evaluate", "run=none", "--help")
    assert_quick(facts, 0)
    assert "run=RUN_FOLDER" in out and err.strip() == ""


def test_a_reader_that_has_gone_gets_no_traceback(tmp_path):
    """As `dualseg-train --help | head -1` does."""
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [sys.executable, "-m", "dualseg.train", "--help"],
        cwd=tmp_path,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (failures.READER_GONE, "")


def test_importing_the_package_is_light(tmp_path):
    code = "import sys, dualseg; print(sorted({'torch', 'numpy', 'hydra', 'omegaconf'} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ended.stdout.strip() == "[]"


def test_a_run_from_another_folder_with_relative_paths(command, tiny, phantom, tmp_path, monkeypatch):
    """Train, evaluate, report: output, run folder and data are where the user stands."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "volumes").symlink_to(phantom.root)
    ended = command(train.main, *tiny("volumes", "out"), "name=one", "evaluate_on=[test]")
    assert ended.code == 0, ended.err
    assert "Finished: out/one" in ended.out and "ensemble" in ended.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "volumes"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["one"]
    again = command(train.main, *tiny("volumes", "out"), "name=one", "evaluate_on=[test]")
    assert again.code == 0 and "Training" not in again.out and "Finished: out/one" in again.out
    evaluated = command(evaluate.main, "run=out/one", "trainer.progress_bar=false")
    assert evaluated.code == 0, evaluated.err
    assert "Evaluation: out/one/evaluations/001-test" in evaluated.out
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    written = command(report.main, "run", "../out/one", "--output", "page.html")
    assert written.code == 0, written.err
    assert (elsewhere / "page.html").read_text().lstrip().lower().startswith("<!doctype html>")
    # data.root was given as seen from the other folder
    moved = command(evaluate.main, "run=../out/one", "data.root=../volumes", "trainer.progress_bar=false")
    assert moved.code == 0, moved.err
    assert "002-test" in moved.out


def test_the_audit_prints_its_table_and_leaves_nothing(command, tiny, phantom, tmp_path, monkeypatch):
    monkeypatch.setattr(audit, "WARM_UP", (1,))
    monkeypatch.setattr(audit, "BATCHES", 1)
    monkeypatch.chdir(tmp_path)
    ended = command(audit.main, *tiny(phantom.root, tmp_path / "runs"), "objective=released")
    assert ended.code == 0, ended.err
    assert "supervised_ce" in ended.out and "absent" in ended.out
    assert list(tmp_path.iterdir()) == []


# --- what `guarded` makes of what goes wrong


def ends(capsys, error):
    def fail():
        raise error

    with pytest.raises(SystemExit) as stop:
        failures.guarded(fail)
    return stop.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    "error, code, message",
    [
        (DualsegError("x.h5: cannot be read"), 2, "error: x.h5: cannot be read\n"),
        (Interrupted(signal.SIGINT, "to go on: again"), 130, "to go on: again\n"),
        (Interrupted(signal.SIGTERM), 143, "stopped.\n"),
        (KeyboardInterrupt(), 130, "stopped.\n"),
        (OSError(28, "No space left on device", "x.csv"), 2, None),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), 2, None),
    ],
)
def test_expected_ends(capsys, error, code, message):
    got, err = ends(capsys, error)
    assert got == code and err.count("\n") == 1
    assert message is None or err == message


def test_a_home_folder_that_nobody_has(capsys):
    with pytest.raises(SystemExit) as stop:
        failures.guarded(lambda: Path("~no-such-user/data").expanduser())
    assert stop.value.code == 2 and "give the whole path" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [RuntimeError("a bug"), KeyError("a bug"), FileNotFoundError(2, "a bug"), MisconfigurationException("a bug")],
)
def test_bugs_keep_their_traceback(error):
    def fail():
        raise error

    with pytest.raises(type(error), match="a bug"):
        failures.guarded(fail)


@pytest.mark.parametrize(
    ("module", "task", "words", "advice"),
    [
        (train, "train", ["name=x"], ["data.patch_size", "batch.labeled", "base_channels"]),
        (audit, "audit_config", ["name=x"], ["data.patch_size", "batch.labeled", "base_channels"]),
        (check, "check_config", ["name=x"], ["data.memory"]),
        (evaluate, "evaluate", ["run=x"], ["inference.batch_size", " memory=", "trainer.accelerator=cpu"]),
        (predict, "predict", ["run=x", "input=y", "output=z"], [" memory=", "device="]),
        (export, "export", ["run=x", "format=onnx", "output=z"], ["data.patch_size"]),
        (prepare, "prepare", ["data=la", "raw=x", "out=z"], ["workers="]),
    ],
)
def test_out_of_memory_has_an_answer_that_fits_the_command(command, monkeypatch, module, task, words, advice):
    def hungry(*arguments):
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr(module, task, hungry)
    said = command(module.main, *words).complains("out of memory", "9 GiB", *advice)
    others = {"data.patch_size", "batch.labeled", "base_channels", " memory=", "workers="} - {*advice}
    assert not any(word in said for word in others), said


def test_an_operation_that_repeats_in_no_form_is_answered(capsys):
    why = "upsample_trilinear3d_backward_out_cuda does not have a deterministic implementation, but you set ..."
    code, err = ends(capsys, RuntimeError(why))
    assert code == 2 and "upsample_trilinear3d" in err and "trainer.deterministic=warn" in err


def test_a_command_that_ends_well_ends_well():
    assert failures.guarded(lambda: None) is None


def test_what_hydra_wraps_is_unwrapped():
    try:
        raise InstantiationException("Error in call to target 'x':\nfull stack trace") from DualsegError(
            "root: missing"
        )
    except InstantiationException as error:
        assert misspelt.explain(error) == "root: missing"


def test_other_hydra_errors_fit_on_one_line():
    error = ConfigCompositionException("first line\n  second line\nSet HYDRA_FULL_ERROR=1 for the full stack trace\n")
    assert misspelt.explain(error) == "first line second line"


def test_the_configuration_is_found_in_the_checkout():
    assert (conf_dir() / "train.yaml").is_file()


@pytest.mark.parametrize(
    "installed, said", [("2.9.1", True), ("2.8.0+cu126", True), ("2.10.0", False), ("2.13.0+cpu", False)]
)
def test_one_line_tells_of_a_torch_that_is_too_old(installed, said, monkeypatch, capsys):
    monkeypatch.setattr(failures, "requires", lambda name: ["numpy>=1.26", "torch>=2.10"])
    monkeypatch.setattr(failures, "version", lambda name: installed)
    failures._warn_of_other_torch.cache_clear()
    for _ in range(2):
        failures.guarded(lambda: None)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == said
    assert all(installed in line and "torch>=2.10" in line for line in lines)


def test_the_package_asks_for_the_torch_that_computes_right():
    from importlib.metadata import requires

    assert any(requirement.startswith("torch>=2.10") for requirement in requires("dualseg") or ())
