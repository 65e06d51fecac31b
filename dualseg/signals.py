"""SIGINT (Ctrl-C) and SIGTERM: a command is asked to stop once, however often the machine says so. No torch here."""

import os
import select
import signal
import sys
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
    if threading.current_thread() is not threading.main_thread() or _Stopping.running:
        yield
        return
    with _Stopping() as stopping, handled(stopping.leave):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)  # a group's ranks start with them `held_back`
        yield


@contextmanager
def resumable(how: str) -> Iterator[None]:
    """An `Interrupted` that leaves this block without a message of its own says `how` to go on."""
    try:
        yield
    except Interrupted as stop:
        if stop.message:
            raise
        raise Interrupted(stop.number, f"stopped. {how}") from None


class _Stopping:
    """Raises `Interrupted` in the main thread, and sees to it that the command ends, from a thread.

    A finalizer swallows what is raised in it: then it is raised again. Where the main thread does not come to it within
    `PATIENCE`, the process is ended: that may wait in vain in a collective operation for a rank that is gone, where no
    Python code runs. Not where a process is alone and a handler within has taken the signal: that one answers when it
    has finished what it is doing.
    """

    running = False
    AGAIN = b"\0"  # no signal has this number

    def __init__(self) -> None:
        self.stop = Stop()
        self.swallowed = False

    def leave(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if self.swallowed:
            self.swallowed = False
        elif not self.stop.note(number):
            return
        elif len(self.stop.signals) > 1:
            os._exit(128 + number)
        raise Interrupted(number)

    def __enter__(self) -> "_Stopping":
        _Stopping.running = True
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.writing, False)
        # written to when a signal arrives, whatever the main thread is doing
        self.former_pipe = signal.set_wakeup_fd(self.writing, warn_on_full_buffer=False)
        self.former_hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        sys.unraisablehook = self.former_hook
        signal.set_wakeup_fd(self.former_pipe)
        os.close(self.writing)
        self.thread.join()
        os.close(self.reading)
        _Stopping.running = False

    def _unraisable(self, what: "sys.UnraisableHookArgs") -> None:
        if not issubclass(what.exc_type, Interrupted):
            self.former_hook(what)
            return
        self.swallowed = True
        os.write(self.writing, self.AGAIN)

    def _watch(self) -> None:
        number, deadline = 0, float("inf")
        while True:
            left = max(deadline - time.monotonic(), 0) if number else None
            if select.select([self.reading], [], [], left)[0]:
                byte = os.read(self.reading, 1)
                if not byte:
                    return
                if byte == self.AGAIN:
                    time.sleep(0.01)  # the finalizer is over then, or this comes again
                    signal.pthread_kill(threading.main_thread().ident or 0, number)
                elif byte[0] in STOPS and not number:
                    number, deadline = byte[0], time.monotonic() + PATIENCE
            elif self.stop.signals or world_size() > 1:
                again = "The last checkpoint is kept: give the same command again to resume."
                with suppress(OSError):
                    os.write(2, f"stopped after {PATIENCE:.0f} s. {again if world_size() > 1 else ''}\n".encode())
                os._exit(128 + number)
            else:
                number = 0
