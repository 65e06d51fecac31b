"""Processes that prepare batches (`data.num_workers`): room for what they hand over, and an end where one is lost."""

import errno
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset, get_worker_info

from dualseg.data.batch import Batch
from dualseg.errors import DualsegError
from dualseg.signals import held_back

SHARED_MEMORY = Path("/dev/shm")  # where Linux has what processes hand over to one another
PREFETCHED = 2  # batches that a worker prepares ahead, torch's default
PATIENCE = 120.0  # seconds of waiting for a batch, cut from volumes in memory, after which the workers are given up
FIX = "Lower data.num_workers, 0 needs none; or give a container more: docker run --shm-size=SIZE, or --ipc=host."


def check_shared_memory(workers: int, batch_bytes: int) -> None:
    """The batches of the workers of a machine find room in shared memory.

    Args:
        workers: of one process that trains.
        batch_bytes: of one batch, over all processes that train on this machine.

    Raises:
        DualsegError: they do not.
    """
    if not workers or not SHARED_MEMORY.is_dir():
        return
    needed = (PREFETCHED * workers + 1) * batch_bytes  # and the one in use
    size, free = _room()
    if free < needed:
        raise DualsegError(
            f"{SHARED_MEMORY}: {_mib(free)} of {_mib(size)} are free, and the batches of data.num_workers={workers} "
            f"need {_mib(needed)}. {FIX}"
        )


def _room() -> tuple[int, int]:
    """Size of the shared memory and what is free of it, in bytes."""
    facts = os.statvfs(SHARED_MEMORY)
    return facts.f_blocks * facts.f_frsize, facts.f_bavail * facts.f_frsize


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def shared(batch: Batch) -> Batch:
    """`batch`; in a worker, its tensors are moved to shared memory here.

    torch would do that in a thread of the worker that drops a batch for which there is no room, with a message of its
    own, and the run would wait for that batch for ever. What is raised here reaches the run.
    """
    if get_worker_info() is not None:
        for tensor in (batch.image, batch.label, *batch.targets.values()):
            tensor.share_memory_()
    return batch


class BatchLoader(DataLoader[Batch]):
    """A DataLoader that ends with one message where its workers do not deliver.

    Signals to the whole process group, which a terminal's Ctrl-C or systemd sends, are for the run to answer: its
    workers take no notice, since it needs them until its iteration is done.

    Raises:
        DualsegError: from iterating: a worker has died, hangs, or finds no room in shared memory.
    """

    def __init__(self, dataset: Dataset[Any], **named: Any) -> None:
        super().__init__(dataset, worker_init_fn=_begin, **named)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        return self._watched() if self.num_workers else super().__iter__()

    def _watched(self) -> Iterator[Batch]:
        others = multiprocessing.active_children()
        handler = signal.getsignal(signal.SIGCHLD)
        try:
            with held_back():  # until a worker has its handlers
                batches = super().__iter__()
        except OSError as error:
            if told := _why(error, (), False):
                raise DualsegError(told) from error
            raise
        if threading.current_thread() is threading.main_thread():
            # torch's would raise wherever the run is by then, in the writing of a checkpoint too
            signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
        workers = [child for child in multiprocessing.active_children() if child not in others]
        watch = _Watch(workers)
        try:
            for number in itertools.count():
                watch.awaited = number
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                except Exception as error:
                    if told := _why(error, workers, watch.gave_up):
                        raise DualsegError(told) from error
                    raise
                finally:
                    watch.awaited = None
                yield batch
        finally:
            watch.over.set()
            del batches  # which ends them in order
            for worker in workers:
                worker.kill()


class _Watch:
    """A thread that kills workers from which nothing comes: what waits for a dead one notices."""

    def __init__(self, workers: Sequence[BaseProcess]) -> None:
        self.workers = workers
        self.awaited: int | None = None  # number of a batch
        self.gave_up = False
        self.over = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        tick, waited, awaited = min(1.0, PATIENCE), 0.0, None
        while waited < PATIENCE:  # counted and no difference of times: a run that was suspended has not waited
            if self.over.wait(tick):
                return
            waited = waited + tick if awaited is not None and awaited == self.awaited else 0.0
            awaited = self.awaited
        self.gave_up = True
        for worker in self.workers:
            worker.kill()


def _why(error: Exception, workers: Sequence[BaseProcess], gave_up: bool) -> str:
    """What is wrong with the workers, if that is what `error` is about."""
    again = "The last checkpoint is kept: give the same command again to resume."
    if workers and isinstance(error, OSError | EOFError):  # on a line to one that is just dying
        wait([worker.sentinel for worker in workers], 1.0)
    dead = next((worker for worker in workers if worker.exitcode), None)
    if gave_up:
        what = f"no batch came from the workers of data.num_workers for {PATIENCE:.0f} s; they are ended"
    elif dead is not None and dead.exitcode is not None:
        code = dead.exitcode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        what = f"a worker of data.num_workers {how}{' (out of memory?)' * (-code == signal.SIGKILL)}"
    elif "shared memory" in str(error) or (isinstance(error, OSError) and error.errno == errno.ENOSPC):
        what = "the workers of data.num_workers find no room in shared memory"
    else:
        return ""
    if SHARED_MEMORY.is_dir():
        size, free = _room()
        what += f"; {SHARED_MEMORY} has {_mib(free)} free of {_mib(size)}"
    return f"{what}. {FIX} {again}"


def _begin(number: int) -> None:
    """Of a worker: it ends with the process that it works for, or at its word, and at nobody else's signals."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if hasattr(signal, "sigtimedwait") and parent is not None:  # which macOS has not
        threading.Thread(target=_obey, args=(parent.pid,), daemon=True).start()
    else:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


def _obey(parent: int) -> None:
    while os.getppid() == parent:
        told = signal.sigtimedwait([signal.SIGTERM], 1.0)
        if told is not None and told.si_pid == parent:
            break
    os._exit(0)
