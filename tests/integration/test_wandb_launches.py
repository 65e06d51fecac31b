"""`logger=wandb` and how launches go: sweeps, kills, folders that cannot be written, machines without an account."""

import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import yaml
from wandb_records import records

import dualseg.train
from dualseg.data import Phantom

STUDY = """# @package _global_
study: toy
scale: cpu
sweep:
  experiments: {cpu: small}
  seeds: [0]
  variants:
    full: {}
    supervised: {method: supervised}
"""


def test_the_runs_of_a_sweep_are_a_group_of_one_record_each(
    command: Callable[..., Any], tiny, phantom: Phantom, tmp_path
):
    for group, name, text in (("sweep", "toy", STUDY), ("experiment", "small", "# @package _global_\n{}\n")):
        (tmp_path / "conf" / group).mkdir(parents=True)
        (tmp_path / "conf" / group / f"{name}.yaml").write_text(text)
    output = tmp_path / "runs"
    words = [*tiny(phantom.root, output), "logger=wandb", "trainer.log_every=1"]
    outcome = command(dualseg.train.main, "-m", "--config-dir", tmp_path / "conf", "sweep=toy", *words)
    assert outcome.code == 0, outcome.err
    runs = [path for path in output.iterdir() if (path / "config.yaml").is_file()]
    full, supervised = sorted((r for run in runs for r in records(run)), key=lambda r: r.config["variant"])
    assert full.run.run_group == supervised.run.run_group == "toy"
    assert {full.run.display_name, supervised.run.display_name} == {run.name for run in runs}
    assert full.run.run_id != supervised.run.run_id
    assert full.config.keys() == supervised.config.keys()  # columns of one table
    assert [record.config["method"] for record in (full, supervised)] == ["dual", "supervised"]
    for record in (full, supervised):
        assert [row["iteration"] for row in record.history] == [1, 2]
        assert record.exit_code == 0
    curves = {name for name in supervised.history[0] if not name.startswith("_")}
    assert {"loss/a/supervised_ce", "lr"} <= curves <= full.history[0].keys()


KILLED = """
import os, signal, sys
import dualseg.methods
from dualseg.train import main

step = dualseg.methods.SegmentationMethod.training_step

def killing_step(self, *batch):
    if self.trainer.global_step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    step(self, *batch)

dualseg.methods.SegmentationMethod.training_step = killing_step
main()
"""


def services(parent: int) -> list[Path]:
    """Of /proc: the processes that W&B has started for `parent`, which need not be its children any more."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if b"--pid" in words and words[words.index(b"--pid") + 1] == str(parent).encode():
            found.append(process)
    return found


def test_a_killed_run_leaves_no_process_and_goes_on_in_one_record(command, tiny, phantom: Phantom, tmp_path):
    words = [
        *tiny(phantom.root, tmp_path), "logger=wandb", "name=one", "method=supervised",
        "trainer.max_iterations=5", "trainer.log_every=1", "trainer.checkpoint_every=2",
    ]  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", KILLED, *words], stdout=subprocess.DEVNULL) as process:
        seen = []
        while process.poll() is None:
            seen += services(process.pid)
            time.sleep(0.05)
    assert process.returncode == -signal.SIGKILL
    assert seen  # else this test could not fail
    deadline = time.monotonic() + 30
    while services(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not services(process.pid)
    (killed,) = (tmp_path / "one").glob("logs/wandb/offline-run-*")  # an empty record: W&B writes late
    outcome = command(dualseg.train.main, *words)
    assert outcome.code == 0, outcome.err
    (now,) = records(tmp_path / "one")
    assert killed.name.endswith(now.run.run_id)
    assert [row["_step"] for row in now.history] == [1, 2, 3, 4, 5]


def test_a_folder_that_cannot_be_written_is_said_at_once(command, tiny, phantom, tmp_path, monkeypatch):
    output = tmp_path / "runs"
    words = [*tiny(phantom.root, output), "logger=wandb", "name=one"]
    config = dualseg_config(words)
    (output / "one" / "logs").mkdir(parents=True)
    (output / "one" / "config.yaml").write_text(yaml.safe_dump(config))
    allowed, logs = os.access, output / "one" / "logs"
    # permissions do not bind root
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != logs and allowed(path, mode))
    command(dualseg.train.main, *words).complains(str(logs), "W&B", "logger=wandb")
    monkeypatch.undo()
    (logs / "wandb").write_text("a file")
    command(dualseg.train.main, *words).complains(str(logs / "wandb"), "W&B", "logger=wandb")
    (output / "one" / "config.yaml").unlink()  # of a run that was killed before it wrote that
    command(dualseg.train.main, *words).complains(str(logs / "wandb"), "W&B", "logger=wandb")


def dualseg_config(words: list[str]) -> dict[str, Any]:
    from hydra import compose, initialize_config_dir

    from dualseg.configuration import conf_dir
    from dualseg.training.settings import resolve

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return resolve(compose("train", overrides=words))


def test_a_project_that_wandb_refuses_leaves_no_folder(command, tiny, phantom, tmp_path):
    words = [*tiny(phantom.root, tmp_path / "runs"), "logger=wandb", "logger.project=a/b"]
    command(dualseg.train.main, *words).complains("logger.project", "a/b")
    assert not (tmp_path / "runs").exists()


TWO_COMMANDS = """
import sys
from dualseg.train import main

for more in ([], ["logger.offline=false", "name=two"]):
    sys.argv = [*words, *more]
    try:
        main()
        print("code 0", flush=True)
    except SystemExit as stop:
        print("code", stop.code, flush=True)
"""


def test_no_account_no_prompt_no_network(tiny, phantom, tmp_path):
    """On a terminal, without a home folder: a command neither asks nor calls W&B's server, which is a socket here."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_") and k != "NETRC"}
    words = [*tiny(phantom.root, tmp_path / "runs"), "logger=wandb", "method=supervised", "name=one"]
    script = f"words = {['dualseg-train', *words]}{TWO_COMMANDS}"
    with socket.create_server(("127.0.0.1", 0)) as server:
        environment["MPLCONFIGDIR"] = matplotlib.get_configdir()  # else matplotlib looks for fonts, for seconds
        environment |= {"HOME": "/proc/none", "WANDB_BASE_URL": f"http://127.0.0.1:{server.getsockname()[1]}"}
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-c", script], env=environment, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 4096):
                shown += chunk
                assert b"Enter your choice" not in shown, "a prompt"
        except OSError:  # the terminal's other end is closed
            pass
        finally:
            process.kill()
            process.wait()
            os.close(ours)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody called
            server.accept()
    text = shown.decode()
    assert "code 0" in text, text
    assert "code 2" in text, text
    assert "error: logger.offline=false: " in text and "W&B account" in text
    assert not (tmp_path / "runs" / "two").exists()
    (record,) = records(tmp_path / "runs" / "one")
    assert record.exit_code == 0
    assert not record.run.run_group  # no study
