"""SIGINT (Ctrl-C) and SIGTERM: a command is asked to stop once, however often the machine says so. No torch here."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from dualseg.errors import Interrupted
from dualseg.processes import in_group, world_size

STOPS = (signal.SIGINT, signal.SIGTERM)
ECHO = 0.2  # seconds in which a signal repeats the one before: `timeout` sends its own to a process twice
PATIENCE = 15.0  # seconds in which a command that is asked to stop cleans up, and ranks agree on a checkpoint

Handler = Callable[[int, FrameType | None], Any]


class Stop:
    """The SIGINT and SIGTERM that came, without those that only repeat one."""

    def __init__(self) -> None:
        self.signals: list[int] = []
        self._last = float("-inf")

    def note(self, number: int) -> bool:
        """Take a signal down; False where it repeats one.

        A rank of a group gets the group's signal twice where that is sent to all processes, as systemd does: once from
        the machine and once, whenever, from the process that started it. Only that one can be asked to stop at once.
        """
        now = time.monotonic()
        echo = now - self._last < ECHO or (bool(self.signals) and in_group())
        self._last = now
        if not echo:
            self.signals.append(number)
        return not echo

    @classmethod
    @contextmanager
    def heard(cls) -> Iterator["Stop"]:
        """Notes the signals meanwhile, instead of what they do otherwise; of the main thread alone."""
        stop = cls()
        with handled(lambda number, frame: stop.note(number)):
            yield stop


@contextmanager
def handled(handler: Handler) -> Iterator[None]:
    """Meanwhile `handler` answers SIGINT and SIGTERM, in the main thread alone."""
    before = {number: signal.signal(number, handler) or signal.SIG_DFL for number in STOPS}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


@contextmanager
def held_back() -> Iterator[None]:
    """Meanwhile the signals wait, in this thread and, until they say otherwise, in processes that it starts.

    So they are not answered before a new process knows how.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def stoppable() -> Iterator[None]:
    """Meanwhile SIGINT and SIGTERM raise `Interrupted` wherever the command is; a second one leaves at once.

    Whoever waits for the signals instead installs a handler of its own within.
    """
    if threading.current_thread() is not threading.main_thread() or _Deadline.running:
        yield
        return
    stop = Stop()

    def leave(number: int, frame: FrameType | None) -> None:
        if stop.note(number):
            if len(stop.signals) > 1:
                os._exit(128 + number)
            raise Interrupted(number)

    with _Deadline(stop), handled(leave):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)  # a group's ranks start with them `held_back`
        yield


class _Deadline:
    """A thread that ends the process `PATIENCE` seconds after the signal, should the main thread not come to it.

    That may wait in vain: in a collective operation for a rank that is gone, where no Python code runs, or after
    something has swallowed the exception. Not where a process is alone and a handler within has taken the signal: that
    one answers when it has finished what it is doing.
    """

    running = False

    def __init__(self, stop: Stop) -> None:
        self.stop = stop
        self.over = threading.Event()

    def __enter__(self) -> None:
        _Deadline.running = True
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.writing, False)
        # written to when the signal arrives, also while the main thread is busy elsewhere
        self.former = signal.set_wakeup_fd(self.writing, warn_on_full_buffer=False)
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def __exit__(self, *error: object) -> None:
        self.over.set()
        signal.set_wakeup_fd(self.former)
        os.close(self.writing)
        self.thread.join()
        os.close(self.reading)
        _Deadline.running = False

    def _watch(self) -> None:
        while byte := os.read(self.reading, 1):
            number = byte[0]
            if number not in STOPS or self.over.wait(PATIENCE) or not (self.stop.signals or world_size() > 1):
                continue
            again = "The last checkpoint is kept: give the same command again to resume."
            with suppress(OSError):
                os.write(2, f"stopped after {PATIENCE:.0f} s. {again if world_size() > 1 else ''}\n".encode())
            os._exit(128 + number)
