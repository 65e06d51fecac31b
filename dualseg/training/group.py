"""A fresh group of processes for one run: started, waited for, and none of them left. No torch here.

A group is started here rather than by Lightning, which repeats the command line of the process that it runs in: in a
Hydra multirun the second rank would go through the whole sweep again, beside the first.
"""

import errno
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dualseg.errors import DualsegError
from dualseg.processes import GROUP, PEER_LOST, python_of
from dualseg.signals import PATIENCE, STOPS, Stop, held_back

GRACE = 10.0  # seconds in which the other ranks may end by themselves once one has failed
MARGIN = 5.0  # seconds beyond `PATIENCE`, after which ranks end by themselves


@dataclass(frozen=True)
class Ending:
    """How a group ended.

    Attributes:
        code: its exit code.
        reason: one sentence why it failed; empty where the console has said it.
        signal: the SIGINT or SIGTERM that asked for its end, also where it was finished by then; None without one.
    """

    code: int
    reason: str = ""
    signal: int | None = None


def run_group(arguments: Sequence[str], processes: int, log: Path | None = None, stop: Stop | None = None) -> Ending:
    """Run `dualseg-train ARGUMENTS` as `processes` ranks on this machine, and wait for all of them.

    What rank 0 prints goes to the terminal, or into `log`; what another rank says of an error is shown only if it is
    the first to fail and rank 0 does not fail in the same way, so that one mistake gives one message. When a rank
    fails, the others are ended. The first SIGINT or SIGTERM makes the ranks write a checkpoint and stop, a second one
    kills them; so do `PATIENCE` and a little more, where they are several. If this process dies, they die (`as_rank`).

    Args:
        arguments: of the command line.
        processes: how many ranks.
        log: where the output is appended, of a run of a sweep; None: the terminal.
        stop: shared by groups that threads wait for; None, in the main thread alone: one of its own.

    Raises:
        DualsegError: MASTER_PORT is set and cannot be had.
    """
    with ExitStack() as stack:
        # the runs of a sweep, which have a log, may stand beside one another: a free port each
        port = stack.enter_context(_port(os.environ.get("MASTER_PORT") if log is None else None))
        console = None if log is None else stack.enter_context(log.open("w+b"))
        # a file each, for a pipe that nobody reads fills up
        said = [None, *(stack.enter_context(tempfile.TemporaryFile()) for _ in range(1, processes))]
        ranks: list[subprocess.Popen[bytes]] = []
        stack.callback(_kill, ranks)
        if stop is None:
            stop = stack.enter_context(Stop.heard())
        elif stop.signals:  # before its turn came
            return Ending(128 + stop.signals[0], signal=stop.signals[0])
        for number in range(processes):
            out, err = (console, console) if number == 0 else (subprocess.DEVNULL, said[number])
            with held_back():
                process = subprocess.Popen(
                    [*python_of("dualseg.train"), *arguments],
                    env=_environment(number, processes, port),
                    stdin=subprocess.PIPE,  # nothing is written: it closes when this process dies
                    stdout=out,
                    stderr=err,
                    start_new_session=True,  # a terminal's Ctrl-C reaches this process alone, which passes it on
                )
                ranks.append(process)
        first = _wait(ranks, stop)
        code, reason = _judge(ranks, first, stop)
        messages = [] if first is None else _message(ranks, first, said[first])
        if reason:
            messages.append(f"error: {reason}")
        if console is None:
            print(*messages, sep="\n", end="\n" if messages else "", file=sys.stderr, flush=True)
            return Ending(code, reason, _first(stop))
        console.seek(0, os.SEEK_END)
        console.write("".join(f"{message}\n" for message in messages).encode())
        return Ending(code, (reason or _last_words(console)) if code else "", _first(stop))


def _first(stop: Stop) -> int | None:
    return next(iter(stop.signals), None)


def _environment(number: int, processes: int, port: int) -> dict[str, str]:
    """What Lightning's LightningEnvironment reads of processes that it has not started itself."""
    # of a torchrun around this process, which torch would look for
    own = {key: value for key, value in os.environ.items() if not key.startswith("TORCHELASTIC_")}
    return own | {
        GROUP: str(processes),
        "RANK": str(number),  # also what says, at import, which process logs
        "LOCAL_RANK": str(number),
        "NODE_RANK": "0",
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


@contextmanager
def _port(given: str | None) -> Iterator[int]:
    """A port for the ranks to meet at: MASTER_PORT, where `given`, or a free one.

    The socket stays bound meanwhile, so that the system gives its port to no other program. It does not listen, and
    allows reuse: so Linux lets rank 0 bind the port as well.
    """
    if given is not None and not (given.isdecimal() and 0 < int(given) < 2**16):
        raise DualsegError(f"MASTER_PORT={given}: no port; give a number from 1 to 65535, or unset it.")
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind(("", int(given or 0)))
        except OSError as error:
            why = "another program uses it" if error.errno == errno.EADDRINUSE else error.strerror
            raise DualsegError(
                f"MASTER_PORT={given}: the port cannot be had ({why}); give another one, or unset it: a free one is "
                "chosen then."
            ) from error
        port = held.getsockname()[1]
        if sys.platform != "linux":
            held.close()
        yield port


def _wait(ranks: Sequence[subprocess.Popen[bytes]], stop: Stop) -> int | None:
    """Until all have ended; the rank that failed first, of itself and not for the loss of another, or None."""
    failed: list[int] = []
    deadline = float("inf")
    asked = False
    while True:
        if len(stop.signals) > 1:
            _kill(ranks)
        elif stop.signals and not asked:
            asked = True
            for process in ranks:
                process.send_signal(stop.signals[0])  # does nothing to one that has ended
            if len(ranks) > 1:  # one alone may finish its iteration or case, however long that takes
                deadline = time.monotonic() + PATIENCE + MARGIN
        running = [number for number, process in enumerate(ranks) if process.poll() is None]
        failed += [n for n, process in enumerate(ranks) if process.returncode and n not in failed]
        if not running:
            causes = [n for n in failed if ranks[n].returncode != PEER_LOST]
            return causes[0] if causes else max(failed, default=None)  # rank 0 would not have shown its loss
        if failed:
            deadline = min(deadline, time.monotonic() + GRACE)
        if time.monotonic() > deadline:
            _kill(ranks)  # they stand behind the cause in `failed`
        time.sleep(0.02)


def _kill(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    """End every rank and what it has started, such as workers that load data."""
    for process in ranks:
        with suppress(ProcessLookupError, PermissionError):  # the latter is macOS's answer for a group of zombies
            os.killpg(process.pid, signal.SIGKILL)
    for process in ranks:
        process.wait()
        if process.stdin:
            process.stdin.close()


def _judge(ranks: Sequence[subprocess.Popen[bytes]], first: int | None, stop: Stop) -> tuple[int, str]:
    """Exit code and, where no rank can have said it, the reason."""
    if first is None:
        return 0, ""
    code = ranks[first].returncode
    again = "The last checkpoint is kept: give the same command again to resume."
    if stop.signals and (code < 0 or code in (PEER_LOST, *(128 + number for number in STOPS))):
        told = "" if code > 0 and code != PEER_LOST else f"stopped{' at once' * (len(stop.signals) > 1)}. {again}"
        return 128 + stop.signals[0], told
    who = f"rank {first} of {len(ranks)}" if len(ranks) > 1 else "the process"
    if code < 0:
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        return 128 - code, f"{who} was killed by {signal.Signals(-code).name}{hint}; the run is ended. {again}"
    if code == PEER_LOST:
        return 1, f"the ranks lost the connection to one another; the run is ended. {again}"
    return code, ""


def _message(ranks: Sequence[subprocess.Popen[bytes]], first: int, said: IO[bytes] | None) -> list[str]:
    """The lines of the rank that failed first, unless rank 0 failed in the same way and has said it."""
    if said is None or (ranks[first].returncode == ranks[0].returncode != PEER_LOST):
        return []
    said.seek(0)
    return [line for line in map(_shown, said.read().decode(errors="replace").split("\n")) if line]


def _shown(line: str) -> str:
    """What a terminal would show at last of a line on which a progress bar was drawn."""
    return line.rpartition("\r")[2].rstrip()


def _last_words(console: IO[bytes]) -> str:
    """The last error in a log, or else its last line."""
    console.seek(0)
    lines = [line for line in map(_shown, console.read().decode(errors="replace").split("\n")) if line]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or ["nothing was said"])[-1]
