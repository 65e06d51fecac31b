"""The index of a sweep: which runs it has, in which folders, and how far each of them is. No torch, no Hydra."""

import hashlib
import json
import math
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from dualseg.errors import DualsegError, nearest
from dualseg.files import read_json, read_object, sweep_below, write_json
from dualseg.names import check_folder_name
from dualseg.record import record_of
from dualseg.runs.folder import RunFolder
from dualseg.runs.lock import LOCK, being_written, holding, is_locked
from dualseg.runs.replaced import recover

WRITING = 60.0  # seconds to wait for other sweeps that write their jobs

State = Literal["done", "running", "failed", "damaged", "interrupted", "to do"]
STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        run: name of its folder within the sweep's output folder.
        arguments: of the command line that trains it.
        label: what tells it from the others, in a few words.
        kind: runs of one kind take as long an iteration: dataset, method, objective, networks.
        iterations: its length.
        seed, variant: as in its configuration.
        fold: of a study of folds, which part of the labeled cases validates it.
        work: of an iteration, about: millions of voxels that its networks see, a channel of full resolution more
            counting more; 0 where an older version wrote the sweep.
    """

    run: str
    arguments: tuple[str, ...]
    label: str
    kind: str
    iterations: int
    seed: int
    variant: str | None
    fold: int | None = None
    work: float = 0.0

    @classmethod
    def of(cls, settings: Mapping[str, Any], arguments: Sequence[str], label: str) -> "Job":
        """The job of a resolved configuration that `arguments` compose."""
        networks = "-".join(network["architecture"] for network in settings["networks"].values())
        method = settings["method"]["name"].removesuffix("_gentle")  # other weights take no other time
        parts = (settings["data"]["name"], method, settings.get("objective"), networks)
        return cls(
            run=RunFolder.of(settings).path.name,
            arguments=tuple(arguments),
            label=label,
            kind="-".join(part for part in parts if part),
            iterations=settings["trainer"]["max_iterations"],
            seed=settings["seed"],
            variant=settings["variant"],
            fold=fold_of(settings["data"]),
            work=work_of(settings),
        )


def fold_of(data: Mapping[str, Any]) -> int | None:
    """Which part of the labeled cases validates: of those that are granted, or of all that the dataset has."""
    fold: int | None = data["fold"] if data["fold"] is not None else data["source"].get("fold")
    return fold


def work_of(settings: Mapping[str, Any]) -> float:
    """Millions of voxels that the networks of a resolved configuration see in an iteration, as of 8 channels.

    Times grow with the channels by about their power of 1.5: between that of their memory and that of their products.
    """
    from dualseg.training.settings import has_twin  # here: nibabel and SciPy come with it, and `--help` needs neither

    labeled, unlabeled = settings["batch"]["labeled"], settings["batch"]["unlabeled"]
    # labeled patches take the place of the unlabeled ones
    images = 2 * labeled if has_twin(settings) and not unlabeled else labeled + unlabeled
    return images * math.prod(settings["data"]["patch_size"]) / 1e6 * (settings["base_channels"] / 8) ** 1.5


class Sweep:
    """<output>/sweeps/<name>: sweep.json, what its runs printed, and why those in failed/ failed.

    Args:
        path: the folder; nothing is written before `write`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.file = self.path / "sweep.json"
        self.output = self.path.parent.parent

    @classmethod
    def named(cls, output: str | Path, study: str | None, scale: str | None, arguments: Sequence[str]) -> "Sweep":
        """The sweep of a study at a scale, or of a list of arguments, which finds the same sweep again.

        Raises:
            DualsegError: its name would lead out of <output>/sweeps.
        """
        digest = hashlib.sha256(json.dumps(sorted(arguments)).encode()).hexdigest()[:8]
        name = f"{study}-{scale}" if study else f"multirun-{digest}"
        check_folder_name("study and scale", name)
        return cls(Path(output).expanduser() / "sweeps" / name)

    @classmethod
    def existing(cls, sweep: str, output: str | Path = "runs") -> "Sweep":
        """The sweep of that folder, of that name below `output`, or, where there is one scale, of that study.

        Raises:
            DualsegError: there is none, or there are several.
        """
        folder = Path(output).expanduser() / "sweeps"
        candidates = [path for path in (Path(sweep).expanduser(), folder / sweep) if (path / "sweep.json").is_file()]
        candidates = candidates[:1] or [path.parent for path in sorted(folder.glob(f"{sweep}-*/sweep.json"))]
        if len(candidates) == 1:
            return cls(candidates[0])
        known = sorted(path.parent.name for path in folder.glob("*/sweep.json"))
        if candidates:
            raise DualsegError(f"{sweep}: several sweeps; give one of {', '.join(path.name for path in candidates)}.")
        there = f" There are {', '.join(known)}." if known else ""
        raise DualsegError(f"{sweep}: no such sweep in {folder}.{nearest(sweep, known) or there}")

    @classmethod
    def of_study_without_scales(cls, sweep: str, output: str | Path) -> "Sweep | None":
        """The sweep of that folder, or of that name below `output`, if its study has no scales, such as a verdict."""
        for path in (Path(sweep).expanduser(), Path(output).expanduser() / "sweeps" / sweep):
            if (path / "sweep.json").is_file():
                content = read_json(path / "sweep.json")
                return cls(path) if content.get("study") and content.get("scale") is None else None
        return None

    @classmethod
    def of_values(cls, sweep: str, output: str | Path) -> "Sweep | None":
        """The sweep of that folder, or of that name below `output`, if it is of values and of no study."""
        for path in (Path(sweep).expanduser(), Path(output).expanduser() / "sweeps" / sweep):
            if (path / "sweep.json").is_file():
                return None if read_json(path / "sweep.json").get("study") else cls(path)
        return None

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def scale(self) -> str | None:
        """That of the study; None where it is none."""
        return read_json(self.file).get("scale")

    def run_folder(self, job: Job) -> RunFolder:
        """Where to read a run: its former one, where an overwriting one was killed that may go on elsewhere."""
        return RunFolder(recover(self.output / job.run))

    def log_file(self, run: str) -> Path:
        """What the last launches of a run printed."""
        return self.path / f"{run}.log"

    def own_log_file(self, run: str) -> Path:
        """`log_file` to write to: without the link in its place that a folder from elsewhere may hold."""
        file = self.log_file(run)
        if file.is_symlink():
            file.unlink()
        return file

    def jobs(self) -> list[Job]:
        """Raises: DualsegError where sweep.json is damaged."""
        if not self.file.is_file():
            return []
        content = read_json(self.file)
        try:
            jobs = [_job(described) for described in content["jobs"]]
            for job in jobs:
                check_folder_name("run", str(job.run))
        except (DualsegError, KeyError, TypeError) as error:
            raise DualsegError(f"{self.file}: damaged ({error}); delete it and start the sweep again.") from error
        return jobs

    def write(
        self,
        jobs: Sequence[Job],
        study: str | None,
        scale: str | None,
        definition: Mapping[str, Any] | None = None,
        shared: Sequence[str] | None = None,
    ) -> list[str]:
        """Add `jobs` to those that are there: a study may be run a few seeds at a time.

        A job of a study takes the place of an earlier one of the same variant, seed and fold, of other settings.
        `definition` says what the study is, for those who collect it where conf/sweep does not have it.
        `shared`: of a study of folds the arguments that all its runs have. Jobs of others go: their folds, labels or
        lengths differ.
        Sweeps of the same name that start at the same moment, as in the tasks of a Slurm array, write one after the
        other.

        Returns:
            A sentence for each job that went.

        Raises:
            DualsegError: another sweep does not get done with writing.
        """
        with suppress(OSError):  # it cannot be made: what is written next says so
            self.path.mkdir(parents=True, exist_ok=True)
        try:
            with holding(self.path / LOCK, patience=WRITING):
                return self._write(jobs, study, scale, definition, shared)
        except BlockingIOError:
            raise being_written(self.path, "give the same command again") from None

    def _write(
        self,
        jobs: Sequence[Job],
        study: str | None,
        scale: str | None,
        definition: Mapping[str, Any] | None,
        shared: Sequence[str] | None,
    ) -> list[str]:
        """`write` by the one process that holds the lock."""
        sweep_below(self.path)
        rows = {(job.variant, job.seed, job.fold): job for job in jobs} if study else {}
        kept, replaced = [], []
        before = self.jobs()
        if shared is not None and before and read_json(self.file).get("shared") != list(shared):
            own = {job.run for job in jobs}
            gone = [job for job in before if job.run not in own]
            before = [job for job in before if job.run in own]
            if gone:
                replaced.append(f"{len(gone)} runs of other arguments are no part of it any more; their folders stay")
        for job in before:
            new = rows.get((job.variant, job.seed, job.fold), job)
            if new.run == job.run:
                kept.append(job)
            else:
                replaced.append(f"{new.label}: {new.run} takes the place of {job.run}, whose folder stays")
        known = {job.run: job for job in (*kept, *jobs)}
        content: dict[str, Any] = {"name": self.name, "study": study, "scale": scale, "definition": definition}
        content |= {} if shared is None else {"shared": list(shared)}
        write_json(self.file, {**content, "jobs": [asdict(job) for job in known.values()]})
        return replaced

    def record_failure(self, run: str, reason: str) -> None:
        """Note why the last launch of a run failed."""
        write_json(self._failure_file(run), {"reason": reason})

    def forget_failure(self, run: str) -> None:
        """Drop the record of an earlier launch."""
        self._failure_file(run).unlink(missing_ok=True)

    def failure(self, run: str) -> str | None:
        """Why the last launch of a run failed; None where it did not."""
        file = self._failure_file(run)
        if not file.is_file():
            return None
        try:
            return str(read_object(file)["reason"])
        except (DualsegError, KeyError):
            return f"the reason in {file} cannot be read; start the sweep again."

    def _failure_file(self, run: str) -> Path:
        return self.path / "failed" / f"{run}.json"

    def state(self, job: Job) -> State:
        """How far a run is, as its folder tells; it may be written by another sweep, or by hand."""
        folder = self.run_folder(job)
        if is_locked(self.output / job.run):
            return "running"
        if folder.damage() is not None:
            return "damaged"
        if folder.finished:
            return "done"
        if self.failure(job.run) is not None:
            return "failed"
        return "interrupted" if folder.latest_checkpoint() else "to do"


def _job(described: Mapping[str, Any]) -> Job:
    """As sweep.json describes it; an older version called its arguments words. Raises: KeyError where it has none."""
    facts = dict(described)
    arguments = facts.pop("arguments") if "arguments" in facts else facts.pop("words")
    return Job(arguments=tuple(arguments), **facts)


def dice_of(folder: RunFolder) -> float | None:
    """Dice, 0..1, of what stands for a finished run, on its test cases, else on its validation cases; None: unknown."""
    try:
        metrics = folder.metrics()
    except DualsegError:
        return None
    scores = metrics.get("test") or metrics.get("validation", {})
    network = record_of(metrics.get("record"), scores)
    return float(scores[network]["dice"]) if network else None


def iterations_done(folder: RunFolder) -> int:
    """Iterations behind a run: of the last whole line of its curves, 0 where there is none."""
    if not folder.curves_file.is_file():
        return 0
    with folder.curves_file.open(encoding="utf-8", errors="replace") as file:
        for line in reversed(deque(file, maxlen=2)):  # the last line may be cut off
            iteration = line.partition(",")[0]
            if line.endswith("\n") and iteration.isdigit():
                return int(iteration)
    return 0
