"""`dualseg-train -m`: which runs there are, which are launched, and what becomes of the rest when one fails."""

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl

import dualseg.audit
import dualseg.report
import dualseg.train
from dualseg.configuration import conf_dir
from dualseg.processes import python_of
from dualseg.runs.folder import RunFolder
from dualseg.runs.identity import run_name
from dualseg.runs.lock import writing
from dualseg.signals import Stop
from dualseg.studies.index import Sweep
from dualseg.studies.members import find_study
from dualseg.studies.study import Study, read_study
from dualseg.training.group import Ending
from dualseg.training.settings import resolve

TOY_STUDY = """# @package _global_
study: toy
scale: cpu
sweep:
  experiments: {cpu: small}
  seeds: [0, 1]
  against: full
  variants:
    full: {}
    without_contrast: {method.terms.contrast.enabled: false}
    supervised: {method: supervised}
"""
SMALL = "# @package _global_\nbase_channels: 4\ntrainer: {max_iterations: 3, accelerator: cpu}\n"


def write_finished(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    metrics = {"status": "finished", "iterations": 3, "test": {"a": {"dice": 0.5}}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "manifest.json").write_text(json.dumps({"seconds": 30.0}))
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "cases.csv").write_text("case\n")


class Launches:
    """In place of `run_group`: notes the words of each launch, and finishes the run, or does what `becomes` says."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.words: list[list[str]] = []
        self.becomes: Callable[[list[str]], Ending] = lambda words: Ending(0)

    def __call__(self, words: Sequence[str], processes: int, log: Path, stop: Stop | None) -> Ending:
        if stop is not None and stop.signals:
            return Ending(128 + stop.signals[0], signal=stop.signals[0])
        self.words.append(list(words))
        assert processes == 1
        ending = self.becomes(words)
        if ending.code == 0:
            self.finish(words)
        return ending

    def finish(self, words: list[str]) -> None:
        for index in (self.output / "sweeps").glob("*/sweep.json"):
            for job in json.loads(index.read_text())["jobs"]:
                if set(job["arguments"]) <= set(words):
                    write_finished(self.output / job["run"])

    def labels(self) -> list[tuple[str, str]]:
        """(variant, seed) of each launch."""
        found = []
        for words in self.words:
            given = dict(word.split("=", 1) for word in words if "=" in word)
            found.append((given.get("variant", ""), given["seed"]))
        return found


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Launches:
    found = Launches(tmp_path / "runs")
    monkeypatch.setattr("dualseg.studies.job.run_group", found)
    return found


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of all sweeps, made by the first one."""
    return tmp_path_factory.mktemp("data") / "phantom"


@pytest.fixture
def train(command: Callable[..., Any], tmp_path: Path, volumes: Path, launches: Launches) -> Callable[..., Any]:
    """dualseg-train -m on the toy study's configuration folder."""
    for group, name, text in (("sweep", "toy", TOY_STUDY), ("experiment", "small", SMALL)):
        (tmp_path / "conf" / group).mkdir(parents=True)
        (tmp_path / "conf" / group / f"{name}.yaml").write_text(text)
    words = ["--config-dir", tmp_path / "conf", f"data.root={volumes}", f"output={tmp_path / 'runs'}"]
    # flags between the words, where one writes them and argparse alone would refuse what follows
    return lambda *more: command(dualseg.train.main, *words[2:], "-m", *words[:2], *more)


def test_a_study_is_every_variant_with_every_seed_one_seed_after_the_other(train, launches, tmp_path):
    outcome = train("sweep=toy")
    assert outcome.code == 0, outcome.err
    rows = ["full", "without_contrast", "supervised"]
    assert launches.labels() == [(row, seed) for seed in "01" for row in rows]
    config_dir = ["--config-dir", str(tmp_path / "conf")]
    assert all(words[:2] == config_dir and "experiment=small" in words for words in launches.words)
    assert not any(word.startswith(("sweep=", "launcher=", "hydra.")) for words in launches.words for word in words)
    index = json.loads((tmp_path / "runs/sweeps/toy-cpu/sweep.json").read_text())
    assert (index["study"], index["scale"], len({job["run"] for job in index["jobs"]})) == ("toy", "cpu", 6)
    assert "[6/6] done   supervised seed 1  Dice 50.00 %  30 s" in outcome.out


def test_runs_of_other_seeds_and_folds_are_those_that_hydra_composes_one_by_one(
    train, launches, reported, tmp_path, volumes, monkeypatch
) -> None:
    """Each with the name of the folder that says which configuration it is."""
    composed = []
    original = ConfigLoaderImpl.load_sweep_config
    monkeypatch.setattr(
        ConfigLoaderImpl, "load_sweep_config", lambda *given: composed.append(given) or original(*given)
    )
    assert train("sweep=toy", "data.draw=${seed}").code == 0
    assert train("seed=3,1", "optimizer.lr=0.02,0.03", "data.fold=1", "data.folds=4").code == 0
    assert train("sweep=verdict", "data.labeled=3", "seed=1", "experiment=small").code == 0
    assert len(composed) - len(launches.words) == 3 + 2 + 3, "Hydra's launcher composes each once more"
    monkeypatch.undo()
    indices = [json.loads(path.read_text()) for path in (tmp_path / "runs" / "sweeps").glob("*/sweep.json")]
    jobs = [job for index in indices for job in index["jobs"]]
    assert len(jobs) == 6 + 4 + 9 == len({job["run"] for job in jobs})
    here = f"hydra.searchpath=[file://{tmp_path / 'conf'}]"
    for job in jobs:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            alone = resolve(compose("train", overrides=[here, *job["arguments"]]))
        assert run_name(alone) == job["run"], job["arguments"]


def test_finished_runs_are_known_by_their_configuration(train, launches):
    assert train("sweep=toy", "seed=1").code == 0
    launches.words.clear()
    assert train("sweep=toy", "variant=full,supervised").code == 0
    assert launches.labels() == [("full", "0"), ("supervised", "0")], "seed 1 is finished, whatever its number"
    launches.words.clear()
    # the same configurations, belonging to no study
    assert train("experiment=small", "seed=0,1,2").code == 0
    assert launches.labels() == [("", "2")]


def test_a_finished_run_of_other_code_is_not_taken_for_done(train, launches, tmp_path):
    assert train("seed=0,1").code == 0
    (run, _) = sorted((tmp_path / "runs").glob("*/manifest.json"))
    run.write_text(json.dumps({"seconds": 30.0, "code": {"own_losses": "f00d"}}))
    train("seed=0,1").complains(run.parent, "own_losses", "changed since", "overwrite=true")
    assert len(launches.words) == 2
    assert train("seed=0,1", "overwrite=true").code == 0
    assert len(launches.words) == 4


def test_a_failure_is_listed_and_stops_no_other_run(train, launches, tmp_path):
    launches.becomes = lambda words: Ending(2, "no such volume.") if "method=supervised" in words else Ending(0)
    outcome = train("sweep=toy")
    assert outcome.code == 1
    assert len(launches.words) == 6
    assert "error: 2 of 6 runs failed:" in outcome.err
    assert outcome.err.count("supervised seed 0: no such volume.") == 1
    assert "failed supervised seed 1: no such volume. Output: " in outcome.out
    launches.words.clear()
    launches.becomes = lambda words: Ending(0)
    outcome = train("sweep=toy")
    assert (outcome.code, launches.labels()) == (0, [("supervised", "0"), ("supervised", "1")])
    launches.words.clear()
    assert train("sweep=toy", "seed=0", "overwrite=true").code == 0
    assert len(launches.words) == 3, "anew, though finished"


def test_a_job_that_falls_over_is_a_failure_of_that_run_alone(train, launches):
    def fall(words):
        if "seed=0" in words:
            raise TypeError("a bug")
        return Ending(0)

    launches.becomes = fall
    outcome = train("experiment=small", "seed=0,1")
    assert outcome.code == 1
    assert "seed=0: a bug" in outcome.err and "[2/2] done   seed=1" in outcome.out


def test_a_launchers_own_keys_fit_it(train, launches):
    outcome = train("experiment=small", "seed=0", "launcher=joblib", "hydra.launcher.n_jobs=1", "dry=true")
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_sweep_and_is_no_failure(train, launches, tmp_path, launcher, number, code):
    def stopped(words: list[str]) -> Ending:
        if launcher == "joblib":  # its handler is the sweep's; of a group alone it is `run_group`'s
            os.kill(os.getpid(), number)
        return Ending(code, "stopped after iteration 2.", number)

    launches.becomes = stopped
    outcome = train("sweep=toy", f"launcher={launcher}", *["hydra.launcher.n_jobs=1"] * (launcher == "joblib"))
    assert outcome.code == code, outcome.err
    assert outcome.err.splitlines()[-1] == "stopped."
    assert len(launches.words) == 1
    assert not (tmp_path / "runs/sweeps/toy-cpu/failed").exists()


def test_a_run_that_somebody_ended_alone_is_a_failure_of_that_run(train, launches):
    launches.becomes = lambda words: Ending(143, "the process was killed by SIGTERM.")
    outcome = train("experiment=small", "seed=0,1")
    assert (outcome.code, len(launches.words)) == (1, 2)
    assert "seed=1: the process was killed by SIGTERM." in outcome.err


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_run_that_another_sweep_trains_is_left_to_it(train, launches, tmp_path, when):
    with ExitStack() as other:

        def lock(words: list[str]) -> Ending:
            if "seed=1" not in words:
                return Ending(0)
            (run,) = [job.run for job in Sweep(next((tmp_path / "runs/sweeps").iterdir())).jobs() if job.seed == 1]
            other.enter_context(writing(tmp_path / "runs" / run))
            return Ending(2, "is being written by process 1.")

        launches.becomes = lock
        outcome = train("experiment=small", "seed=1,0")
        if when == "before":
            launches.words.clear()
            outcome = train("experiment=small", "seed=1,0")
            assert launches.words == []
        assert outcome.code == 0, outcome.err
        assert "Running elsewhere, " in outcome.out and ": seed=1. " in outcome.out
        assert "dualseg-report status " in outcome.out
        assert not list((tmp_path / "runs/sweeps").glob("*/failed/*"))


def test_dry_says_what_there_would_be_and_writes_nothing(train, launches, tmp_path):
    outcome = train("sweep=toy", "dry=true")
    assert outcome.code == 0, outcome.err
    assert "6 runs: 6 to do" in outcome.out
    assert "3 variants: full, without_contrast, supervised" in outcome.out
    assert "seeds 0, 1; 3 iterations a run" in outcome.out
    assert "s an iteration (never measured: a guess, 2 x solo_mix-plain_unet; by the size" in outcome.out
    assert not launches.words and not (tmp_path / "runs").exists()
    assert train("sweep=toy", "seed=0", "variant=full").code == 0
    # 30 s for 3 iterations: 10 s each, for 3 more runs of that kind
    outcome = train("sweep=toy", "dry=true")
    assert "1 done, 5 to do" in outcome.out and "about 1 min 31 s one after the other\n" in outcome.out
    outcome = train("sweep=toy", "dry=true", "variant=full", "seed=0,1")
    assert "1 variant: full\n" in outcome.out and "about 30 s one after the other\n" in outcome.out
    assert "seed 1; 3 iterations a run" in train("sweep=toy", "dry=true", "variant=full", "seed=1").out


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["sweep=toy", "variant=ful"], ["variant=ful: no such row of toy", "Did you mean full?"]),
        (["sweep=toy", "method=dual"], ["method: the study toy sets it for each of its rows"]),
        (["sweep=toy", "experiment=small"], ["experiment: the study toy sets it"]),
        (["sweep=toy", "data.labeled=2,3"], ["data.labeled: give one value", "only seed and variant"]),
        (["sweep=toy", "scale=cpu,full"], ["scale: give one value"]),
        (["sweep=toy", "scale=full"], ["scale=full: the study toy has cpu"]),
        (["sweep=ty"], ["sweep=ty: no such option", "Did you mean toy?"]),
        (["sead=0,1"], ["sead", "Did you mean seed?"]),
        (["data.labelled=2,4"], ["data.labelled", "Did you mean data.labeled?"]),
        (["+sead=0,1"], ["sead: no such configuration key", "Did you mean seed?"]),
        (["+trainer.foo=0,1"], ["trainer.foo: no such configuration key, nothing reads it; leave it out"]),
        (["+data.source.foo=0,1"], ["data.source.foo: no such configuration key"]),
        (
            ["+augmentation.probability=0.2,0.8"],
            ["augmentation.probability: no such configuration key, nothing reads it"],
        ),
        (["seed=0,1", "trainer.num_nodes=2"], ["trainer.num_nodes=2", "started by Slurm"]),
        (["seed=0,1", "trainer.devices=2"], ["trainer.devices=2: this machine has no GPU", "trainer.accelerator=cpu"]),
        (["seed=0,1", "name=same"], ["seed=0 and seed=1: both runs would be written to", "leave name=... out"]),
        (["seed=0,-1"], ["seed=-1: give a whole number"]),
        (["sweep=toy", "++seed=5"], ["seed 0 and ", "both runs would be written to"]),
    ],
)
def test_mistakes_are_said_once_and_before_anything_is_launched(train, launches, tmp_path, words, parts):
    train(*words).complains(*parts)
    assert not launches.words and not (tmp_path / "runs").exists()


def test_a_study_without_m_and_an_audit_with_it_are_refused(command, tmp_path):
    command(dualseg.train.main, "sweep=la_main", f"data.root={tmp_path}").complains("sweep=la_main: ", "add -m")
    command(dualseg.audit.main, "-m", "seed=0,1").complains("-m: this command", "one configuration")


def test_status_tells_the_states_apart(train, launches, tmp_path, command):
    launches.becomes = lambda words: Ending(2, "no such volume.") if "variant=supervised" in words else Ending(0)
    train("sweep=toy", "seed=0")
    launches.becomes = lambda words: Ending(130, signal=signal.SIGINT)
    train("sweep=toy", "seed=1", "variant=full")
    sweep = Sweep.existing("toy", tmp_path / "runs")
    job = next(job for job in sweep.jobs() if (job.variant, job.seed) == ("full", 1))
    folder = sweep.run_folder(job)
    folder.checkpoints.mkdir(parents=True)
    (folder.checkpoints / "iteration-000002.ckpt").touch()
    folder.curves_file.parent.mkdir()
    folder.curves_file.write_text("iteration,name,value\n1,loss/total,0.5\n2,loss/total,0.5\n3,loss/to")
    outcome = command(dualseg.report.main, "status", "toy", "--runs", tmp_path / "runs")
    lines = outcome.out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["done", "done", "failed", "interrupted"]
    assert "no such volume. Output: " in lines[2] and lines[3].endswith("iteration 2 of 3")
    assert "4 runs: 2 done, 1 failed, 1 interrupted" in lines[4]
    assert "about 10 s one after the other" in outcome.out  # one iteration of the interrupted run


DAMAGES = [
    ("metrics.json", '{"status": "fini', "cannot be read"),
    ("metrics.json", "[]", "not a JSON object"),
    ("manifest.json", None, "missing, though the run is finished"),
    ("manifest.json", '{"sec', "cannot be read"),
    ("cases.csv", None, "missing, though the run is finished"),
    ("config.yaml", "", "not a mapping of keys"),
]


@pytest.mark.parametrize(("name", "text", "why"), DAMAGES)
def test_a_damaged_run_is_listed_left_alone_and_stops_no_other(train, launches, tmp_path, command, name, text, why):
    assert train("sweep=toy", "seed=0", "variant=full").code == 0
    (job,) = Sweep.existing("toy", tmp_path / "runs").jobs()
    path = tmp_path / "runs" / job.run / name
    path.unlink() if text is None else path.write_text(text)
    launches.words.clear()
    outcome = train("sweep=toy", "seed=0")
    assert (outcome.code, len(launches.words)) == (1, 2), "the others"
    assert "error: 1 of 3 runs failed:\n" in outcome.err
    assert f"full seed 0: {path}: {why}" in outcome.err and f"or remove {path.parent}: " in outcome.err
    assert text is None or path.read_text() == text
    outcome = command(dualseg.report.main, "status", "toy", "--runs", tmp_path / "runs")
    assert outcome.code == 0, outcome.err
    assert [line.split()[0] for line in outcome.out.splitlines()[:3]] == ["damaged", "done", "done"]
    assert f"{path}: {why}" in outcome.out and "3 runs: 2 done, 1 damaged" in outcome.out


def test_a_damaged_record_of_a_failure_is_a_failure(train, launches, tmp_path, command):
    launches.becomes = lambda words: Ending(2, "no such volume.")
    train("sweep=toy", "seed=0", "variant=full")
    (record,) = (tmp_path / "runs/sweeps/toy-cpu/failed").iterdir()
    record.write_text('{"rea')
    outcome = command(dualseg.report.main, "status", "toy", "--runs", tmp_path / "runs")
    assert outcome.out.startswith("failed ") and f"the reason in {record} cannot be read; start" in outcome.out
    launches.becomes = lambda words: Ending(0)
    assert train("sweep=toy", "seed=0", "variant=full").code == 0


def test_status_of_no_sweep_names_those_there_are(train, tmp_path, command):
    train("sweep=toy", "seed=0", "variant=full")
    outcome = command(dualseg.report.main, "status", "toi-cpu", "--runs", tmp_path / "runs")
    outcome.complains("toi-cpu: no such", "Did you mean toy-cpu?")
    (tmp_path / "runs/sweeps/toy-cpu/sweep.json").write_text('{"jobs": [{"run": "x"}]}')
    outcome = command(dualseg.report.main, "status", "toy", "--runs", tmp_path / "runs")
    outcome.complains("sweep.json: damaged", "delete it")


def test_an_ensemble_is_evaluated_when_its_runs_are_finished(train, launches, tmp_path, monkeypatch, command):
    path = tmp_path / "conf/sweep/toy.yaml"
    own = TOY_STUDY.replace("full: {}", "full: {networks.a._target_: my_networks.Net}")
    path.write_text(own + "  ensembles: {pair: [full, supervised]}\n")
    asked: list[list[str]] = []

    def evaluate(words: list[str], **_: Any) -> Any:
        asked.append(words)
        folder = RunFolder(next(word for word in words if word.startswith("output=")).removeprefix("output="))
        write_finished(folder.path)
        runs = [word.removeprefix("run=") for word in words if word.startswith("run=")]
        folder.config_file.write_text(json.dumps({"evaluated": dict.fromkeys(runs)}))
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr("dualseg.studies.sweeper.subprocess.run", evaluate)
    outcome = train("sweep=toy", "seed=0")
    assert outcome.code == 0, outcome.err
    status = command(dualseg.report.main, "status", "toy", "--runs", tmp_path / "runs").out.splitlines()
    assert "done         pair seed 0  full + supervised" in status
    start = python_of("dualseg.evaluate")
    assert asked[0][: len(start)] == start
    shutil.rmtree(tmp_path / "runs/toy-cpu-pair-seed0")
    status = command(dualseg.report.main, "status", "toy", "--runs", tmp_path / "runs").out.splitlines()
    assert "to do        pair seed 0  full + supervised" in status
    train("sweep=toy", "seed=0")
    words, again = asked
    assert words == again
    assert sum(word.startswith("run=") for word in words) == 2
    assert "trust=my_networks.Net" in words, "it is this command's own"
    assert f"output={tmp_path / 'runs/toy-cpu-pair-seed0'}" in words
    train("sweep=toy", "seed=0")
    assert len(asked) == 2, "finished"
    outcome = train("sweep=toy", "seed=0", "trainer.max_iterations=2")
    assert outcome.code == 1
    assert "toy-cpu-pair-seed0 is of earlier runs" in outcome.err
    status = command(dualseg.report.main, "status", "toy", "--runs", tmp_path / "runs").out
    assert "failed       pair seed 0  " in status and "is of earlier runs" in status
    assert len(asked) == 2, "what is there is left alone"


def test_a_run_with_another_setting_takes_the_place_of_the_earlier_one(train, launches, tmp_path):
    assert train("sweep=toy", "seed=0", "variant=full,supervised").code == 0
    sweep = Sweep.existing("toy", tmp_path / "runs")
    first, kept = sweep.jobs()
    outcome = train("sweep=toy", "seed=0", "variant=full", "trainer.max_iterations=2")
    assert outcome.code == 0, outcome.err
    assert (sweep.jobs()[0], sweep.jobs()[1].variant) == (kept, "full")
    second = sweep.jobs()[1].run
    assert f"full seed 0: {second} takes the place of {first.run}, whose folder stays" in outcome.out
    assert (tmp_path / "runs" / first.run).is_dir()
    outcome = train("sweep=toy", "seed=0", "variant=full")
    assert f"{first.run} takes the place of {second}" in outcome.out
    assert train("experiment=small", "seed=0", "trainer.max_iterations=2,3").code == 0
    (loose,) = (tmp_path / "runs/sweeps").glob("multirun-*")
    assert len(Sweep(loose).jobs()) == 2, "runs of no study have no rows"


def test_a_study_of_ones_own_is_collected_by_its_name(train, launches, tmp_path, study_run, command):
    assert train("sweep=toy", "seed=0", "variant=full,supervised").code == 0
    assert find_study("toy", tmp_path / "runs") == read_study("toy", tmp_path / "conf/sweep")
    for job in Sweep.existing("toy", tmp_path / "runs").jobs():
        shutil.rmtree(tmp_path / "runs" / job.run)
        study_run(tmp_path / "runs" / job.run, {"a": [0.8, 0.9]}, variant=job.variant, seed=job.seed)
    words = ("--runs", tmp_path / "runs", "--output", tmp_path / "out")
    outcome = command(dualseg.report.main, "study", "toy", *words)
    assert outcome.code == 0, outcome.err
    assert "toy: 2 finished runs of 2 variants" in outcome.out
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| without_contrast |" in table and "| supervised | full | 1 (0) |" in table
    outcome = command(dualseg.report.main, "study", "toi", *words)
    outcome.complains("toi: no such study", "conf/sweep", str(tmp_path / "runs"), "Did you mean toy?")
    index = tmp_path / "runs/sweeps/toy-cpu/sweep.json"
    index.write_text(json.dumps({"study": "toy", "definition": {"seeds": [0]}}))
    command(dualseg.report.main, "study", "toy", *words).complains("sweep.json: damaged", "delete it")


def test_a_study_whose_file_refers_to_no_variant_is_refused(tmp_path):
    (tmp_path / "toy.yaml").write_text(TOY_STUDY.replace("against: full", "against: ful"))
    with pytest.raises(ValueError, match=r"sweep toy: ful is none .* full\?"):
        read_study("toy", tmp_path)
    (tmp_path / "toy.yaml").write_text("study: toy\n")
    with pytest.raises(ValueError, match=r"toy\.yaml: describes no study"):
        read_study("toy", tmp_path)
    with pytest.raises(ValueError, match=r"la_mian: no such study .* la_main\?"):
        read_study("la_mian")
    assert isinstance(read_study("la_main"), Study)


def test_an_ensemble_that_another_sweep_evaluates_is_left_to_it(train, launches, tmp_path, monkeypatch):
    path = tmp_path / "conf/sweep/toy.yaml"
    path.write_text(TOY_STUDY + "  ensembles: {pair: [full, supervised]}\n")
    monkeypatch.setattr("dualseg.studies.sweeper.subprocess.run", lambda *_, **__: pytest.fail("evaluated twice"))
    with writing(tmp_path / "runs/toy-cpu-pair-seed0"):
        assert train("sweep=toy", "seed=0").code == 0


def test_a_variant_starts_from_the_run_of_another_one(train, launches: Launches, tmp_path: Path) -> None:
    text = TOY_STUDY.replace("  against: full\n", "  after: {full: without_contrast, without_contrast: supervised}\n")
    (tmp_path / "conf" / "sweep" / "toy.yaml").write_text(text)
    outcome = train("sweep=toy")
    assert outcome.code == 0, outcome.err
    stages = ["supervised", "supervised", "without_contrast", "without_contrast", "full", "full"]
    assert [variant for variant, _ in launches.labels()] == stages
    folders = {}
    for index in (tmp_path / "runs" / "sweeps").glob("*/sweep.json"):
        folders = {(job["variant"], job["seed"]): job["run"] for job in json.loads(index.read_text())["jobs"]}
    for words in launches.words:
        given = dict(word.split("=", 1) for word in words if "=" in word)
        before = {"full": "without_contrast", "without_contrast": "supervised"}.get(given["variant"])
        expected = f"'{tmp_path / 'runs' / folders[before, int(given['seed'])]}'" if before else None
        assert given.get("weights") == expected


def test_a_study_whose_runs_start_from_others_is_the_same_in_another_place(train, launches: Launches, tmp_path) -> None:
    text = TOY_STUDY.replace("against: full", "after: {full: supervised}")
    (tmp_path / "conf" / "sweep" / "toy.yaml").write_text(text)
    assert train("sweep=toy", "variant=full,supervised").code == 0
    known = len(launches.words)
    (tmp_path / "runs").rename(tmp_path / "it's moved, (2)")
    launches.output = tmp_path / "it's moved, (2)"
    outcome = train("sweep=toy", "variant=full,supervised", f"output='{tmp_path}/it\\'s moved, (2)'")
    assert outcome.code == 0 and len(launches.words) == known, outcome.err
    train("sweep=toy", "weights=x").complains("weights: the study toy sets it")


def test_a_run_of_a_study_that_started_from_other_weights_is_not_shown(train, launches: Launches, tmp_path) -> None:
    text = TOY_STUDY.replace("against: full", "after: {full: supervised}")
    (tmp_path / "conf" / "sweep" / "toy.yaml").write_text(text)
    words = ("sweep=toy", "variant=full,supervised", "seed=0")
    assert train(*words).code == 0
    sweep = Sweep.existing("toy", tmp_path / "runs")
    runs = {job.variant: sweep.run_folder(job) for job in sweep.jobs()}
    runs["supervised"].checkpoints.mkdir()
    (runs["supervised"].checkpoints / "iteration-000002.ckpt").write_bytes(b"weights")
    manifest = json.loads(runs["full"].manifest_file.read_text())
    noted = {"checkpoint": "iteration-000002.ckpt", "sha256": "of others"}
    runs["full"].manifest_file.write_text(json.dumps({**manifest, "weights": noted}))
    train(*words).complains(f"{runs['full'].path}: started from iteration-000002.ckpt", "is another file now")
    noted["sha256"] = hashlib.sha256(b"weights").hexdigest()
    runs["full"].manifest_file.write_text(json.dumps({**manifest, "weights": noted}))
    assert train(*words).code == 0


def test_a_run_whose_origin_is_not_finished_is_not_started(train, launches: Launches, tmp_path: Path) -> None:
    (tmp_path / "conf" / "sweep" / "toy.yaml").write_text(
        TOY_STUDY.replace("against: full", "after: {full: supervised}")
    )
    launches.becomes = lambda words: Ending(1 if "variant=supervised" in words and "seed=1" in words else 0)
    outcome = train("sweep=toy", "variant=full,supervised")
    assert outcome.code == 1
    assert ("full", "1") not in launches.labels() and ("full", "0") in launches.labels()
    assert "full seed 1: It starts from" in outcome.err and "not finished" in outcome.err


@pytest.mark.parametrize(
    ("after", "said"),
    [("{full: none}", "none is none of its variants"), ("{full: supervised, supervised: full}", "first")],
)
def test_variants_that_cannot_come_one_after_another(train, tmp_path: Path, after: str, said: str) -> None:
    (tmp_path / "conf" / "sweep" / "toy.yaml").write_text(TOY_STUDY.replace("against: full", f"after: {after}"))
    train("sweep=toy").complains("sweep toy: after", said)


def folds_of(launches: Launches) -> list[tuple[str, str, str, str]]:
    """(variant, fold, folds, seed) of each launch."""
    found = []
    for words in launches.words:
        given = dict(word.split("=", 1) for word in words if "=" in word)
        found.append((given["variant"], given["data.fold"], given["data.folds"], given["seed"]))
    return found


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The sweeps of which a verdict was to be written."""
    found: list[Path] = []
    monkeypatch.setattr("dualseg.studies.sweeper._report", lambda target: found.append(target.path))
    return found


def test_a_verdict_is_every_row_on_every_fold_and_ends_with_its_page(train, launches, reported, tmp_path):
    outcome = train("sweep=verdict", "data.labeled=3", "seed=0", "experiment=small")
    assert outcome.code == 0, outcome.err
    rows = ("with_unlabeled", "labels_only", "supervised")
    assert folds_of(launches) == [(row, str(fold), "3", "0") for fold in range(3) for row in rows]
    assert reported == [tmp_path / "runs" / "sweeps" / "verdict-phantom"]
    launches.words.clear()
    again = train("sweep=verdict", "data.labeled=3", "seed=0,1", "data.fold=2", "experiment=small")
    assert again.code == 0 and folds_of(launches) == [(row, "2", "3", "1") for row in rows]
    assert len(Sweep(reported[0]).jobs()) == 12


def test_other_folds_make_another_verdict_of_which_the_earlier_runs_are_no_part(train, launches, reported, tmp_path):
    words = ("sweep=verdict", "data.labeled=3", "seed=0", "experiment=small")
    assert train(*words).code == 0
    outcome = train(*words, "data.folds=2")
    assert outcome.code == 0 and "9 runs of other arguments " in outcome.out
    assert {job.fold for job in Sweep(reported[0]).jobs()} == {0, 1} and len(Sweep(reported[0]).jobs()) == 6
    again = train(*words, "data.folds=2", "trainer.log_every=1")
    assert again.code == 0 and "no part" not in again.out


def test_finished_runs_of_other_cases_are_refused_by_a_verdict(train, launches, reported, tmp_path):
    words = ("sweep=verdict", "data.labeled=3", "seed=0", "experiment=small", "variant=labels_only", "data.fold=0")
    assert train(*words).code == 0
    (job,) = Sweep(reported[0]).jobs()
    folder = tmp_path / "runs" / job.run
    config = {"seed": 0, "data": {"root": str(root_of(job))}}
    (folder / "config.yaml").write_text(json.dumps(config))
    cases = {"labeled": ["phantom_001", "phantom_002"], "validation": ["phantom_000"], "unlabeled": ["x"]}
    (folder / "manifest.json").write_text(json.dumps({"seconds": 1.0, "data": {"cases": cases}}))
    assert train(*words).code == 0
    (folder / "manifest.json").write_text(json.dumps({"seconds": 1.0, "data": {"cases": {**cases, "labeled": ["y"]}}}))
    outcome = train(*words)
    assert outcome.code == 2 and "with other labeled cases" in outcome.err
    (folder / "config.yaml").write_text(json.dumps({"seed": 0, "data": {"root": "/elsewhere"}}))
    outcome = train(*words)
    assert outcome.code == 2 and "data in /elsewhere" in outcome.err


def root_of(job: Any) -> Path:
    """The data root of a job."""
    (word,) = [word for word in job.arguments if word.startswith("data.root=")]
    return Path(word.removeprefix("data.root="))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("data.labeled=null",), "has no unlabeled scans"),
        (("data.labeled=1",), "data.fold=0: one labeled case cannot both train and validate"),
        (("data.labeled=2",), "data.folds=3: give 2, for there are 2 labeled cases or patients"),
        (("data.labeled=3", "data.folds=0"), "data.folds=0: give the number"),
        (("data.labeled=3", "data.fold=null"), "data.fold=null: the study verdict is of folds"),
        (("data.labeled=3", "data.folds=some"), "data.folds=some: give the number"),
        (("data.labeled=3", "scale=cpu"), "scale=cpu: the study verdict has no scales"),
        (("data.labeled=3", "method=bcp"), "method: the study verdict sets it for each of its rows"),
    ],
)
def test_what_gives_no_verdict_is_said_before_anything_is_launched(words, named, train, launches, reported):
    outcome = train("sweep=verdict", *words, "seed=0", "experiment=small")
    assert outcome.code == 2 and named in outcome.err and not launches.words and not reported


def test_a_verdict_is_on_scans_that_are_named(train, launches):
    """The default is the phantom of the demo."""
    outcome = train("sweep=verdict", "dry=true")
    assert outcome.code == 2 and "data=folder data.root=DIR" in outcome.err and not launches.words
