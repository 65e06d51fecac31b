"""dualseg-train in a process of its own: started, waited for, and nothing of it left; toys for two ranks."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dualseg.data import Phantom

HERE = Path(__file__).resolve().parent
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE.parents[1]}:{HERE}"}


def two_rank_words(phantom: Phantom) -> list[str]:
    """A small run on two processes of the CPU, its folder below runs."""
    return [
        f"data.root={phantom.root}", "+data.source.train=6", "+data.source.test=2", "+data.source.shape=[40,36,32]",
        "data.patch_size=[16,16,16]", "data.stride=[16,16,16]", "data.labeled=2", "base_channels=2",
        "trainer.devices=2", "trainer.accelerator=cpu", "trainer.threads=1", "trainer.progress_bar=false",
        "output=runs",
    ]  # fmt: skip


@contextmanager
def started(cwd: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """dualseg-train in a process of its own; it and its ranks end with the block, however that ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dualseg.train", *words],
        cwd=cwd,
        env=ENV | {"DDP_NOTES": str(cwd)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # for `press_ctrl_c`
    )
    try:
        yield process
    finally:
        process.kill()  # its ranks notice
        process.communicate()
        deadline = time.monotonic() + 30
        while left := ranks_in(cwd):
            assert time.monotonic() < deadline, f"processes {left} were left running"
            time.sleep(0.1)


def ranks_in(cwd: Path) -> dict[int, int]:
    """Rank -> process id of what a run that was started in `cwd` has running, its loading workers apart."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and (entry / "cwd").resolve() == cwd.resolve():
                environment = (entry / "environ").read_bytes().split(b"\0")
                found |= {int(v[5:]): int(entry.name) for v in environment if v.startswith(b"RANK=")}
        except OSError:
            continue
    return found


def run(cwd: Path, *words: str) -> tuple[int, str, str]:
    """Exit code, output, errors."""
    with started(cwd, *words) as process:
        out, err = process.communicate(timeout=1200)
        return process.returncode, out, err


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def press_ctrl_c(process: subprocess.Popen[str]) -> None:
    """As a terminal does: SIGINT to the command and to whatever it has started in its process group."""
    os.killpg(process.pid, signal.SIGINT)


def processes_in(cwd: Path) -> set[int]:
    """All that run in `cwd`."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and (entry / "cwd").resolve() == cwd.resolve():
                found.add(int(entry.name))
        except OSError:
            continue
    return found
