"""Signals to the processes of a training: whatever gets one, and whenever, the job ends soon, honestly, and whole.

python tests/drill/signals.py                         # every case, about 50 minutes on two cores
python tests/drill/signals.py --only two-rank1-TERM   # those whose name begins so
python tests/drill/signals.py --repeat 10             # each so often
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "integration"), str(HERE.parents[1])]

from launching import ENV, processes_in, ranks_in, two_rank_words  # noqa: E402

from dualseg.data import Phantom  # noqa: E402
from dualseg.runs.folder import RunFolder  # noqa: E402
from dualseg.runs.lock import is_locked  # noqa: E402

SECONDS = 30.0  # in which the job ends
LATER = 60.0  # after which it is taken for one that never ends
ALONG = ("starting", "reading", "joining", "iterating", "saving", "checkpointing", "validating")
PHASES = (*ALONG, "between", "evaluating", "writing")
WITH_CHECKPOINT = PHASES[3:]  # a stop is one with a checkpoint
SIGNALS = {"TERM": [signal.SIGTERM], "INT": [signal.SIGINT], "KILL": [signal.SIGKILL], "TWICE": [signal.SIGTERM] * 2}
# who gets the signal: the command, a rank, both ranks, or all of them at once, as of systemd
TARGETS = {"one": ("command",), "two": ("command", "rank0", "rank1", "ranks", "all")}


@dataclass(frozen=True)
class Case:
    """One signal.

    Attributes:
        processes: one or two.
        target: of `TARGETS`.
        signals: of `SIGNALS`.
        phase: of `PHASES`.
    """

    processes: str
    target: str
    signals: str
    phase: str

    def __str__(self) -> str:
        return "-".join((self.processes, self.target, self.signals, self.phase))

    @property
    def code(self) -> int:
        """The honest one."""
        return 128 + SIGNALS[self.signals][0]


@dataclass
class Outcome:
    """How a job ended.

    Attributes:
        seconds: after the signal.
        problems: what is wrong with that; empty: nothing.
    """

    code: int | None
    seconds: float
    problems: list[str]
    out: str
    err: str


def cases() -> Iterator[Case]:
    """All."""
    for processes, targets in TARGETS.items():
        for target, signals, phase in product(targets, SIGNALS, PHASES):
            if not (target == "rank1" and phase == "writing"):  # it has nothing to do then
                yield Case(processes, target, signals, phase)


def drill(case: Case, folder: Path, data: Phantom, slow: int = 0) -> Outcome:
    """Start a training in the empty `folder`, wait for the phase, send the signals, and judge how it ends.

    Args:
        slow: the rank that the other one waits for.
    """
    notes = folder / "notes"
    notes.mkdir()
    process = _started(case, folder, data, slow)
    try:
        _wait_for(case.phase, notes, process, folder, case)
        began = time.monotonic()
        for number in SIGNALS[case.signals]:
            for pid in _targets(case, process, folder):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            if case.signals == "TWICE":
                time.sleep(0.3)
        with suppress(subprocess.TimeoutExpired):
            process.wait(LATER)
        seconds = time.monotonic() - began
        code = process.returncode
        problems = [] if code is not None else [f"still there after {LATER:.0f} s"]
        deadline = time.monotonic() + (5 if code is not None else 0)
        run = folder / "runs" / "drill"
        # the threads of a process that was killed hold its lock for an instant longer than they are listed
        while ((left := processes_in(folder)) or is_locked(run)) and time.monotonic() < deadline:
            time.sleep(0.1)
        if code is not None and left:
            problems.append(f"{len(left)} processes left")
    finally:
        for pid in processes_in(folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
    out, err = (folder / "out").read_text(), (folder / "err").read_text()
    if code is not None:
        code = 128 - code if code < 0 else code
        problems += _judged(case, code, seconds, RunFolder(folder / "runs" / "drill"), out, err)
    return Outcome(code, seconds, problems, out, err)


def _started(case: Case, folder: Path, data: Phantom, slow: int) -> subprocess.Popen[bytes]:
    iterations = 100000 if case.phase in ALONG else 3
    words = [
        *two_rank_words(data), f"trainer.devices={('one', 'two').index(case.processes) + 1}", "name=drill",
        "method._target_=phases.PhasedNetwork", f"trainer.max_iterations={iterations}", "data.held_out_validation=3",
        "trainer.validate_every=3", "trainer.checkpoint_every=2", "evaluate_on=[validation]",
    ]  # fmt: skip
    path = os.pathsep.join([str(HERE), ENV["PYTHONPATH"]])
    environment = {**ENV, "PYTHONPATH": path, "DRILL_NOTES": str(folder / "notes"), "DRILL_SLOW": str(slow)}
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        return subprocess.Popen(
            [sys.executable, "-m", "dualseg.train", *words],
            cwd=folder,
            env=environment,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )


def _wait_for(phase: str, notes: Path, process: subprocess.Popen[bytes], folder: Path, case: Case) -> None:
    """Until a process is in `phase`, all that there are in its beginning."""
    deadline = time.monotonic() + 120
    while True:
        if phase == "starting":
            reached = case.processes == "one" or len(ranks_in(folder)) == 2
        else:
            reached = any(notes.glob(f"{phase}.*"))
        if reached:
            break
        assert process.poll() is None, (folder / "err").read_text()
        assert time.monotonic() < deadline, f"{case} does not get there"
        time.sleep(0.01)
    time.sleep(0.5 if phase == "starting" else 0.1)  # into it; before, a command has no handlers


def _targets(case: Case, process: subprocess.Popen[bytes], folder: Path) -> list[int]:
    if case.target == "command":
        return [process.pid]
    ranks = ranks_in(folder)
    if case.target.startswith("rank") and case.target != "ranks":
        return [pid for rank, pid in ranks.items() if case.target == f"rank{rank}"]
    return [*([process.pid] if case.target == "all" else []), *ranks.values()]


def _judged(case: Case, code: int, seconds: float, run: RunFolder, out: str, err: str) -> Iterator[str]:
    if code != case.code:
        yield f"exit code {code}"
    if seconds > SECONDS:
        yield f"took {seconds:.0f} s"
    if is_locked(run.path):
        yield "locked"
    latest = run.latest_checkpoint()
    if latest is not None and not zipfile.is_zipfile(latest):
        yield f"{latest.name} is no checkpoint"
    if case.signals == "KILL":
        return
    if "Traceback" in err + out:
        yield "traceback"
    # a second signal ends all at once, also amid a write; the next start sweeps what that left
    if case.signals != "TWICE" and (left := [path.name for path in run.path.rglob(".*.tmp.*")]):
        yield f"left {left}"
    told = err.splitlines()[-1:]
    if not told or not any(words in told[0] for words in ("stopped", "To go on")):
        yield f"says {told}"
    if case.phase in WITH_CHECKPOINT and case.signals != "TWICE":
        if latest is None:
            yield "no checkpoint"
        elif case.phase in ALONG and "a checkpoint is written" not in err:
            yield "no checkpoint of its own"


def main(words: Sequence[str]) -> int:
    """Run the cases, a line for each, and say how many went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="beginning of a case's name")
    parser.add_argument("--repeat", type=int, default=1)
    given = parser.parse_args(words)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with it ignored
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no training is left
    chosen = [case for case in cases() if str(case).startswith(given.only)]
    wrong, longest = 0, 0.0
    with tempfile.TemporaryDirectory(prefix="dualseg-drill-") as folder:
        data = Phantom(Path(folder) / "phantom", train=6, test=2, shape=(40, 36, 32))
        for number, (turn, case) in enumerate(product(range(given.repeat), chosen)):
            own = Path(folder) / str(number)
            own.mkdir()
            outcome = drill(case, own, data, slow=turn % 2)
            longest = max(longest, outcome.seconds)
            wrong += bool(outcome.problems)
            print(f"{case!s:32} {outcome.seconds:5.1f} s  {'; '.join(outcome.problems) or 'good'}", flush=True)
    print(f"{number + 1} signals, {wrong} answered wrongly, longest end {longest:.1f} s")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
