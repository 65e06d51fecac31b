"""Processes that prepare batches: what becomes of a run whose workers die, hang, or find no room for their batches."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from dualseg import train
from dualseg.data import loading
from dualseg.data.batch import Batch
from dualseg.data.loading import BatchLoader, check_shared_memory, shared
from dualseg.errors import DualsegError

pytestmark = pytest.mark.timeout(120)
MIB = 2**20


@pytest.fixture(autouse=True)
def quick_answers(monkeypatch):
    """torch looks after its workers every five seconds."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))


class Doing(Dataset[int]):
    """Ten items, and something that is done in the worker of the fourth."""

    def __init__(self, what: Callable[[], Any] | None = None) -> None:
        self.what = what

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> int:
        if index == 3 and self.what:
            self.what()
        return index


def as_batch(items: list[int]) -> Batch:
    image = torch.full((1, 20000), items[0])
    return shared(Batch(image, image[:0], [str(items[0]), str(os.getpid())]))


def loader(what: Callable[[], Any] | None = None) -> BatchLoader:
    return BatchLoader(Doing(what), collate_fn=as_batch, num_workers=2)


def me(number: int) -> Callable[[], Any]:
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_order(workers):
    batches = list(BatchLoader(Doing(), collate_fn=as_batch, num_workers=workers))
    assert [batch.case[0] for batch in batches] == [str(n) for n in range(10)]
    assert all(batch.image.is_shared() == bool(workers) for batch in batches)


def test_a_killed_worker_ends_the_run_with_its_signal():
    handler = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(DualsegError, match=r"data\.num_workers .*SIGKILL.*memory.*same command"):
        list(loader(me(signal.SIGKILL)))
    assert signal.getsignal(signal.SIGCHLD) is handler, "else its death is raised wherever the run is"


def test_workers_from_which_nothing_comes_are_given_up(monkeypatch):
    """Stopped, so that even its threads that hand over earlier batches hang."""
    monkeypatch.setattr(loading, "PATIENCE", 0.3)
    with pytest.raises(DualsegError, match=r"no batch came .*data\.num_workers"):
        list(loader(me(signal.SIGSTOP)))


def test_a_batch_without_room_is_an_error_of_the_run(monkeypatch):
    """torch's own message, of a worker; left to torch, the batch would be missing without one that the run hears."""

    def full(self: torch.Tensor) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(DualsegError, match=r"no room .*; .* free of .*--shm-size"):
        list(loader())


def test_no_room_for_the_start_of_workers(monkeypatch):
    def full(self: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(DataLoader, "__iter__", full)
    with pytest.raises(DualsegError, match=r"no room .*; /dev/shm"):
        list(loader())


def test_a_bug_in_a_worker_stays_one():
    with pytest.raises(ZeroDivisionError):
        list(loader(lambda: 1 / 0))


def test_workers_take_signals_from_their_run_alone():
    """A terminal and systemd send them to all processes; the run answers after its iteration, which needs a batch."""
    batches = iter(loader())
    pids = {next(batches).case[1] for _ in range(2)}
    assert len(pids) == 2
    subprocess.run(["sh", "-c", f"kill -INT {' '.join(pids)}; kill -TERM {' '.join(pids)}"], check=True)
    assert len(list(batches)) == 8
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids), "they end with the last batch"


# room in shared memory


@pytest.fixture
def shared_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let it be so many MiB."""

    def size(mib: float) -> None:
        blocks = int(mib * MIB / 4096)
        facts = SimpleNamespace(f_blocks=blocks, f_bavail=blocks, f_frsize=4096)
        monkeypatch.setattr(loading.os, "statvfs", lambda path: facts)

    return size


def test_batches_in_flight_need_room(shared_memory):
    """Two that each worker prepares ahead, and the one in use."""
    shared_memory(64)
    check_shared_memory(3, 64 * MIB // 7)
    check_shared_memory(0, 10**12)
    with pytest.raises(
        DualsegError, match=r"/dev/shm: 64\.0 MiB of 64\.0 MiB .*data\.num_workers=3 need 66\.8 MiB.*shm"
    ):
        check_shared_memory(3, 10 * 10**6)


def test_a_run_is_refused_before_it_leaves_anything(command, tiny, phantom, tmp_path, shared_memory):
    """One batch: four images of 32^3 float32, and two labels of int64."""
    shared_memory(1)
    words = [word.replace("16,16,16", "32,32,32") for word in tiny(phantom.root, tmp_path / "runs")]
    command(train.main, *words, "data.num_workers=2").complains("/dev/shm", "data.num_workers=2", "need 5.0 MiB")
    assert not (tmp_path / "runs").exists()


SMALL = """
import sys; sys.path[:0] = {paths!r}
from test_loading import loader
from dualseg.errors import DualsegError
try:
    list(loader())
except DualsegError as error:
    sys.exit(f"{{error}}")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small /dev/shm, as root")
def test_a_dev_shm_that_is_full_by_then():
    here = Path(__file__).resolve().parent
    script = SMALL.format(paths=[str(here), str(here.parents[1])])
    mount = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"'
    ended = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount, "sh", sys.executable, "-c", script],
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    if "unshare" in ended.stderr or "mount:" in ended.stderr:
        pytest.skip(ended.stderr)
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert "no room" in last and "; /dev/shm has 0." in last
