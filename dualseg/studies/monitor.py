"""What a person sees of a sweep: a line for every run that ends, and a bar for all of them."""

import threading
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from dualseg.errors import DualsegError
from dualseg.machine import duration
from dualseg.runs.collapse import collapse
from dualseg.studies.index import Job, State, Sweep, dice_of, iterations_done
from dualseg.studies.timing import measured_rates, overview, seconds_left

POLL_SECONDS = 2.0
ENDED: tuple[State, ...] = ("done", "failed", "damaged")


class Monitor:
    """Watches the folders of a sweep's runs from a thread, whatever launches them; a context manager.

    Args:
        sweep: whose records tell of failures.
        jobs: its runs.
        scale: of which rates are known before a run is finished.
    """

    def __init__(self, sweep: Sweep, jobs: Sequence[Job], scale: str | None) -> None:
        self.sweep, self.jobs, self.scale = sweep, jobs, scale
        self._known = {job.run: sweep.state(job) for job in jobs}
        self._rates = measured_rates(sweep, jobs, scale)  # read from every manifest: anew only when a run has ended
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        console = Console(highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[now]}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,  # in a file, the lines alone
        )
        self._bar = self._progress.add_task(sweep.name, total=len(jobs), now="")

    def __enter__(self) -> "Monitor":
        self._progress.start()
        self._say(f"{self.sweep.path}: {overview(self._known.values())}")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        try:
            self._look()
        finally:
            self._progress.stop()

    def _watch(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            with suppress(DualsegError):  # such as a folder that cannot be settled now: looked at again, and at the end
                self._look()

    def _look(self) -> None:
        for job in self.jobs:
            if self._known[job.run] == "done":
                continue
            state = self.sweep.state(job)
            if state in ENDED and state != self._known[job.run]:
                self._say(self._line(job, state))
                self._rates = measured_rates(self.sweep, self.jobs, self.scale)
            self._known[job.run] = state
        if not self._progress.disable:
            done = sum(state in ENDED for state in self._known.values())
            self._progress.update(self._bar, completed=done, now=self._now())

    def _line(self, job: Job, state: State) -> str:
        ended = sum(known in ENDED for known in self._known.values()) + 1
        start = f"[{ended:{len(str(len(self.jobs)))}}/{len(self.jobs)}] {state:6} {job.label}"
        if state == "failed":
            return f"{start}: {self.sweep.failure(job.run)} Output: {self.sweep.log_file(job.run)}"
        folder = self.sweep.run_folder(job)
        if state == "damaged":
            return f"{start}: {folder.damage()}"
        try:
            seconds = folder.manifest()["seconds"]
        except (DualsegError, KeyError):
            return start
        score = dice_of(folder)
        dice = "" if score is None else f"  Dice {100 * score:.2f} %"
        warning = collapse(folder.curves_file)
        return f"{start}{dice}  {duration(seconds)}" + (f"\n  warning: {warning}" if warning else "")

    def _now(self) -> str:
        running = [job for job in self.jobs if self._known[job.run] == "running"]
        left, unknown = seconds_left(self.sweep, self.jobs, self._rates)
        shown = [f"{job.label} {iterations_done(self.sweep.run_folder(job))}/{job.iterations}" for job in running[:2]]
        more = [f"{len(running) - 2} more"] if len(running) > 2 else []
        time = [] if unknown or not left else [f"{duration(left / max(len(running), 1))} left"]
        return ", ".join([*shown, *more, *time])

    def _say(self, line: str) -> None:
        self._progress.console.print(line, markup=False)
