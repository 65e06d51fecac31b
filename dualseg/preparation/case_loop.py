"""All cases of a dataset, several at a time; what is finished is kept, what fails does not stop the others."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from dualseg import __version__
from dualseg.data.h5 import RECORD
from dualseg.errors import DualsegError
from dualseg.files import is_temporary, read_json, sweep_below, write_json
from dualseg.preparation.base import Preparation
from dualseg.preparation.writing import is_finished, prepare_case
from dualseg.runs.lock import LOCK, writing
from dualseg.signals import STOPS, held_back

PICTURES = "pictures"
THREADS = "OMP_NUM_THREADS"
EVERY = 10  # cases that are there, of which the first has a picture

Task = Callable[[], None]  # prepares one case


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        finished: cases that are there, in the order of the lists.
        kept: how many of them were there before.
        failed: case -> why.
        problems: files that nothing could be done with.
        left_out: kind of DICOM file -> how many add to no volume.
        not_in_download: listed cases that are not there, as was to be expected.
        missing: all other listed cases that are not there.
        unlisted: how many cases of the raw folder are in no list.
    """

    finished: list[str] = field(default_factory=list)
    kept: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    not_in_download: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unlisted: int = 0


def prepare_dataset(preparation: Preparation, raw: Path, out: Path, workers: int) -> Outcome:
    """Prepare every listed case that lies below `raw`.

    Raises:
        DualsegError: a folder cannot be used, or holds no case.
    """
    _check_folders(raw, out)
    with writing(out, fix="choose another out"):
        return _prepare(preparation, raw, out, workers)


def _prepare(preparation: Preparation, raw: Path, out: Path, workers: int) -> Outcome:
    listed = preparation.listed()
    found = preparation.find(raw)
    there = {*found.cases, *found.failed}
    if not there & {*listed}:
        raise DualsegError(
            f"raw={raw}: holds no case of {preparation.source.name}; docs/data.md says what belongs there."
        )
    absent = [case for case in listed if case not in there]
    outcome = Outcome(
        failed={case: found.failed[case] for case in listed if case in found.failed},
        problems=found.problems,
        left_out=found.left_out,
        not_in_download=[case for case in absent if case in preparation.not_in_download],
        missing=[case for case in absent if case not in preparation.not_in_download],
        unlisted=len(there - {*listed}),
    )
    _claim(out, preparation, outcome)
    sweep_below(out)
    for case, reason in outcome.failed.items():
        print(f"{case}: {reason}")
    tasks: dict[str, Task] = {}
    for index, case in enumerate(case for case in listed if case in found.cases):
        if is_finished(preparation.file(out, case)):
            outcome.kept += 1
        else:
            picture = out / PICTURES / f"{case}.png" if index % EVERY == 0 else None
            tasks[case] = partial(prepare_case, preparation, case, found.cases[case], out, picture)
    label = f"{preparation.source.name} to {out}"
    try:
        with closing(_run(tasks, workers)) as ended:
            for case, reason in tqdm(ended, desc=label, total=len(tasks), disable=None if tasks else True):
                if reason:
                    outcome.failed[case] = reason
                    tqdm.write(f"{case}: {reason}")
    finally:
        sweep_below(out)
    outcome.finished = [case for case in listed if is_finished(preparation.file(out, case))]
    return outcome


def _check_folders(raw: Path, out: Path) -> None:
    if not raw.is_dir():
        raise DualsegError(f"raw={raw}: no such folder.")
    if out.exists() and not out.is_dir():
        raise DualsegError(f"out={out}: is a file; give a folder.")
    own, other = raw.resolve(), out.resolve()
    if own == other or own in other.parents or other in own.parents:
        raise DualsegError(
            f"out={out}: one of out and raw={raw} lies in the other; raw files are never touched, move out."
        )


def _claim(out: Path, preparation: Preparation, outcome: Outcome) -> None:
    """Record what the folder holds before the first case, so that no two preparations mix in one folder."""
    path = out / RECORD
    settings = preparation.settings()
    if path.exists():
        record = read_json(path)
        record = record if isinstance(record, dict) else {}
        other = [f"{key}={record.get(key)}" for key in settings if record.get(key) != settings[key]]
        if other:
            raise DualsegError(f"{path}: was prepared with {', '.join(other)}; choose another out.")
    elif out.is_dir() and any(path.name != LOCK and not is_temporary(path) for path in out.iterdir()):
        raise DualsegError(f"out={out}: is not empty, and not of dualseg-prepare; choose another folder.")
    absent = {"not_in_download": outcome.not_in_download, "missing": outcome.missing}
    write_json(path, {**settings, **absent, "dualseg": __version__})


def _run(tasks: Mapping[str, Task], workers: int) -> Generator[tuple[str, str], None, None]:
    """Case and why it failed (empty: it did not), as they end."""
    if workers == 1 or len(tasks) < 2:
        for case, task in tasks.items():
            yield case, _attempt(task)
        return
    waiting = dict(tasks)
    while waiting:
        suspects = yield from _in_processes(waiting, workers)
        for case in suspects:  # each alone: the process that died says nothing of the case that it was at
            if (yield from _in_processes({case: waiting.pop(case)}, 1)):
                yield case, "its process was killed, for lack of memory most likely; lower workers, or free memory."


def _in_processes(waiting: dict[str, Task], workers: int) -> Generator[tuple[str, str], None, list[str]]:
    """As `_run`, in so many processes, until one of them dies.

    Args:
        waiting: what to do; what is done is taken out.

    Returns:
        The cases that were at work by then, which are left in `waiting`.
    """
    # spawned: a fork of a process with threads can hang
    pool = ProcessPoolExecutor(min(workers, len(waiting)), multiprocessing.get_context("spawn"), _begin)
    left = iter(list(waiting.items()))
    running: dict[Future[str], str] = {}
    suspects: list[str] = []
    try:
        while not suspects:
            for case, task in islice(left, workers - len(running)):
                with _one_thread_each(), held_back(), suppress(BrokenProcessPool):  # the others are told
                    running[pool.submit(_attempt, task)] = case
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                case = running.pop(future)
                try:
                    reason = future.result()
                except BrokenProcessPool:
                    suspects.append(case)
                else:
                    del waiting[case]
                    yield case, reason
        return suspects + list(running.values())
    except BaseException:  # asked to stop; what a case had begun to write is swept when all processes have ended
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes that are started meanwhile compute in one thread: more in each would slow one another down."""
    threads = os.environ.get(THREADS)
    os.environ[THREADS] = "1"
    try:
        yield
    finally:
        del os.environ[THREADS]
        if threads is not None:
            os.environ[THREADS] = threads


def _attempt(task: Task) -> str:
    try:
        task()
    except DualsegError as error:
        return str(error)
    except MemoryError as error:
        return f"out of memory ({error}); lower workers"
    except Exception as error:  # a case that nobody has thought of does not stop the others either
        return f"{type(error).__name__}: {error}"
    return ""


def _begin() -> None:
    """Of a process: it ends with the one that has started it, and a terminal's Ctrl-C is for that one to answer."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
