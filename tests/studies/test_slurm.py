"""`launcher=slurm` without a Slurm: what is submitted, and that every job is answered for, whatever became of it.

tests/slurm/run.py (`make test-slurm`) runs a sweep on a real one.
"""

import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf
from submitit.core.utils import JobPaths, cloudpickle_dump

from dualseg import train
from dualseg.configuration import conf_dir
from dualseg.errors import DualsegError, Interrupted
from dualseg.runs.identity import run_name
from dualseg.studies import slurm
from dualseg.studies.slurm import Processes, in_task, job_states, launch
from dualseg.training.settings import resolve

# As Slurm's: a script is kept, its number is said; the third one is refused.
SBATCH = """#!/bin/sh
number=$(($(ls "$0.d" | wc -l) + 1))
[ $number -gt 2 ] && { echo "sbatch: error: invalid partition specified: x" >&2; exit 1; }
cp "$1" "$0.d/$number"
echo "Submitted batch job $number"
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with Slurm's commands, the first of PATH; sbatch.d/N is the N-th script, scancel.said what was taken."""
    folder = tmp_path / "bin"
    (folder / "sbatch.d").mkdir(parents=True)
    texts = {"sbatch": SBATCH, "srun": "", "squeue": "", "scancel": '#!/bin/sh\necho "$@" > "$0.said"\n'}
    for name, text in texts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def launcher(folder: Path, **params: Any) -> Any:
    """As Hydra sets it up: the overrides of a job are the `trainer` of its configuration."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        hydra = compose("train", ["launcher=slurm"], return_hydra_config=True).hydra
    given = {key: value for key, value in hydra.launcher.items() if key not in ("_target_", "submitit_folder")}
    given = {key: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for key, v in given.items()}
    trainer = {"devices": 1, "num_nodes": 1, "accelerator": "auto"}
    loader = SimpleNamespace(load_sweep_config=lambda _, o: OmegaConf.create({"trainer": {**trainer, **dict_of(o)}}))
    params = {**given, "submitit_folder": str(folder / "%j"), **params}
    return SimpleNamespace(params=params, hydra_context=SimpleNamespace(config_loader=loader), config=None)


def dict_of(overrides: list[str]) -> dict[str, Any]:
    return {k: int(v) if v.isdigit() else v for k, _, v in (word.partition("=") for word in overrides)}


Turn = tuple[dict[str, str] | None, dict[str, Any]]  # what squeue says, and what results have come since


def turns(monkeypatch: pytest.MonkeyPatch, folder: Path, *those: Turn, settle: float = 0.0) -> None:
    """Let the launcher see these states and results, one after the other."""
    coming = iter(those)

    def states() -> dict[str, str] | None:
        said, results = next(coming)
        for job, result in results.items():
            cloudpickle_dump(result, JobPaths(folder / "%j", job, 0).result_pickle)
        return said

    monkeypatch.setattr(slurm, "job_states", states)
    monkeypatch.setattr(slurm, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(slurm, "SETTLE_SECONDS", settle)


def done(value: Any) -> tuple[str, JobReturn]:
    returned = JobReturn(status=JobStatus.COMPLETED)
    returned.return_value = value
    return "success", returned


def reason(returned: JobReturn) -> str:
    with pytest.raises(DualsegError) as error:
        returned.return_value  # noqa: B018 - it raises
    return str(error.value)


def flags(script: Path) -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", script.read_text(), re.MULTILINE))


@pytest.mark.parametrize(
    ("trainer", "processes"),
    [
        ({"devices": 1, "num_nodes": 1, "accelerator": "cpu"}, Processes(1, 1, False)),
        ({"devices": 4, "num_nodes": 2, "accelerator": "auto"}, Processes(2, 4, True)),
        ({"devices": [0, 2], "num_nodes": 1, "accelerator": "gpu"}, Processes(1, 2, True)),
    ],
)
def test_processes_of_a_run(trainer, processes):
    assert Processes.of(trainer) == processes


@pytest.mark.parametrize("devices", ["auto", -1])
def test_slurm_must_be_told_how_many_devices(devices):
    with pytest.raises(DualsegError, match=rf"trainer\.devices={devices}: .* give a number"):
        Processes.of({"devices": devices, "num_nodes": 1, "accelerator": "auto"})


def test_one_array_for_each_number_of_processes_and_results_in_order(programs, tmp_path, monkeypatch):
    folder = tmp_path / "jobs"
    turns(
        monkeypatch,
        folder,
        ({"1_0": "RUNNING", "1_1": "PENDING", "2": "RUNNING"}, {"2": done("b")}),
        ({"1_0": "RUNNING", "1_1": "RUNNING", "2": "COMPLETED"}, {"1_1": done("c"), "1_0": done("a")}),
    )
    ended = launch(launcher(folder, partition="gpu"), [["devices=1"], ["devices=4", "num_nodes=2"], ["devices=1"]], 0)
    assert [one.return_value for one in ended] == ["a", "b", "c"]
    # the second group is one job, and so no array: its id has no index
    first, second = (flags(programs / "sbatch.d" / number) for number in "12")
    assert (first["array"], first["nodes"], first["ntasks-per-node"], first["gpus-per-node"]) == (
        "0-1%2",
        "1",
        "1",
        "1",
    )
    assert (second["nodes"], second["ntasks-per-node"], second["gpus-per-node"]) == ("2", "4", "4")
    assert {first["partition"], second["partition"]} == {"gpu"}
    assert first["signal"] == "USR2@120" and "requeue" in first and first["time"] == "1440"
    assert "--kill-on-bad-exit=1 --cpus-per-task=4" in (programs / "sbatch.d" / "1").read_text()


def test_gpus_are_asked_for_once_and_not_without_any(programs, tmp_path, monkeypatch):
    folder = tmp_path / "jobs"
    turns(monkeypatch, folder, ({}, {"1": done(1), "2": done(2)}))
    launch(launcher(folder, gres="gpu:a100:1"), [["devices=1"], ["accelerator=cpu"]], 0)
    typed, none = (flags(programs / "sbatch.d" / number) for number in "12")
    assert typed["gres"] == "gpu:a100:1" and "gpus-per-node" not in typed
    assert "gpus-per-node" not in none


def test_jobs_that_died_are_failures_with_a_reason_and_do_not_stop_the_others(programs, tmp_path, monkeypatch):
    folder = tmp_path / "jobs"
    trace = "Traceback (most recent call last):\n  File x\ndualseg.errors.DualsegError: data.root=/x: no such folder."
    dead = {"1_0": "NODE_FAIL", "1_1": "OUT_OF_MEMORY", "1_2": "TIMEOUT", "1_3": "FAILED"}
    alive = {"1_5": "RUNNING", "1_6": "PENDING"}
    log = JobPaths(folder / "%j", "1_3", 0).stderr
    log.parent.mkdir(parents=True)
    log.write_text("Warning: x\nerror: out of memory (y). Lower z.\n")
    turns(
        monkeypatch,
        folder,
        ({**dead, "1_4": "RUNNING", **alive}, {"1_4": ("error", trace)}),
        (alive, {}),
        (None, {}),  # slurmctld is being restarted
        ({"1_5": "COMPLETED", "1_6": "RUNNING"}, {"1_5": done("late")}),
        ({}, {}),
    )
    ended = launch(launcher(folder), [["devices=1"]] * 7, 0)
    assert "Slurm job 1_0, NODE_FAIL: its node failed. See " in reason(ended[0])
    assert "raise hydra.launcher.mem_gb" in reason(ended[1])
    assert "raise hydra.launcher.timeout_min" in reason(ended[2])
    assert "FAILED: it died. error: out of memory (y). Lower z. See " in reason(ended[3])
    assert reason(ended[4]) == "data.root=/x: no such folder."
    assert ended[5].return_value == "late"
    assert "Slurm knows it no longer" in reason(ended[6])
    assert [list(one.overrides or []) for one in ended[:4]] == [["devices=1"]] * 4


def test_a_job_that_is_requeued_is_waited_for(programs, tmp_path, monkeypatch):
    folder = tmp_path / "jobs"
    seen: list[Turn] = [({"1": state}, {}) for state in ("RUNNING", "NODE_FAIL", "PENDING", "COMPLETING", "COMPLETED")]
    turns(monkeypatch, folder, *seen, ({}, {"1": done("well")}), settle=1e6)
    (ended,) = launch(launcher(folder), [["devices=1"]], 0)
    assert ended.return_value == "well"


def test_a_refused_array_takes_the_others_back(programs, tmp_path):
    with pytest.raises(DualsegError, match=r"sbatch .*1 x 3 GPUs .*invalid partition specified: x.*partition"):
        launch(launcher(tmp_path / "jobs"), [["devices=1"], ["devices=2"], ["devices=3"], ["devices=2"]], 0)
    assert (programs / "scancel.said").read_text() == "1 2\n"


def test_a_signal_says_how_to_cancel(programs, tmp_path, monkeypatch, capsys):
    def interrupted() -> None:
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(slurm, "job_states", interrupted)
    with pytest.raises(Interrupted):
        launch(launcher(tmp_path / "jobs"), [["devices=1"], ["devices=2"], ["devices=1"]], 0)
    assert "scancel 1 2" in capsys.readouterr().err


def test_without_slurm_nothing_is_submitted(command, tiny, phantom, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    ended = command(train.main, "-m", "launcher=slurm", "seed=0,1", *tiny(phantom.root, tmp_path / "runs"))
    ended.complains("launcher=slurm: no sbatch here", "launcher=joblib")
    assert not list(tmp_path.rglob("*.pkl"))


def test_states_are_read_from_squeue(programs):
    (programs / "squeue").write_text('#!/bin/sh\nprintf "12_0 RUNNING\\n12_1 PENDING\\n13 COMPLETED\\n"\n')
    assert job_states() == {"12_0": "RUNNING", "12_1": "PENDING", "13": "COMPLETED"}
    (programs / "squeue").write_text("#!/bin/sh\nexit 1\n")
    assert job_states() is None


def test_a_task_fails_with_its_run_and_knows_its_command(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["_submit.py", "folder"])
    returned = done("value")[1]
    assert in_task(lambda: returned, ["seed=1", "hydra.sweep.dir=x"]) is returned
    assert sys.argv == ["dualseg-train", "seed=1"]
    failed = JobReturn(status=JobStatus.FAILED)
    failed.return_value = DualsegError("no such folder")
    with pytest.raises(DualsegError, match="no such folder"):
        in_task(lambda: failed, [])


def test_a_stopped_task_is_a_failed_run_with_what_was_said(monkeypatch):
    def stopped() -> None:
        raise Interrupted(signal.SIGINT, "stopped after iteration 5")

    monkeypatch.setattr(sys, "argv", [])
    with pytest.raises(DualsegError, match="stopped after iteration 5"):
        in_task(stopped, [])


# --- the group `launcher`


@pytest.fixture
def composed() -> Callable[..., Any]:
    def compose_train(*words: str) -> Any:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return compose("train", list(words), return_hydra_config=True)

    return compose_train


@pytest.mark.parametrize(
    ("words", "target"),
    [
        ((), "hydra._internal.core_plugins.basic_launcher.BasicLauncher"),
        (("launcher=joblib",), "hydra_plugins.dualseg_joblib.DualsegJoblibLauncher"),
        (("launcher=slurm",), "hydra_plugins.dualseg_slurm.DualsegSlurmLauncher"),
    ],
)
def test_the_launcher_is_no_part_of_a_run(composed, words, target):
    config, plain = composed(*words), composed()
    assert config.hydra.launcher._target_ == target
    for one in (config, plain):
        OmegaConf.set_readonly(one, False)
        OmegaConf.set_struct(one, False)
        del one["hydra"]
    assert resolve(config) == resolve(plain)
    assert run_name(resolve(config)) == run_name(resolve(plain))


def test_settings_of_a_launcher_from_the_command_line(composed):
    words = ("launcher=slurm", "hydra.launcher.partition=gpu", "+hydra.launcher.additional_parameters.mail-type=FAIL")
    given = composed(*words).hydra.launcher
    assert (given.partition, given.account) == ("gpu", None)
    assert given.additional_parameters == {"requeue": True, "mail-type": "FAIL"}
    assert composed("launcher=joblib", "hydra.launcher.n_jobs=3").hydra.launcher.n_jobs == 3


def test_a_sweep_file_may_choose_the_launcher(composed, tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text("# @package _global_\ndefaults:\n  - override /launcher: joblib\n")
    words = ("sweep=mine", f"hydra.searchpath=['file://{tmp_path}']")
    assert composed(*words).hydra.launcher.n_jobs == 2
    assert composed(*words, "launcher=slurm").hydra.launcher.name == "dualseg"
