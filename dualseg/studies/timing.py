"""How far a sweep is, and how long the rest takes: from runs that are finished, or from measurements that ship."""

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from dualseg.errors import DualsegError
from dualseg.files import read_json
from dualseg.machine import duration
from dualseg.planning import plan_file
from dualseg.runs.folder import RunFolder, iteration_of
from dualseg.runs.tables import nothing_scored
from dualseg.studies.index import STATES, Job, State, Sweep, dice_of, iterations_done
from dualseg.studies.members import ensemble_folder, ensemble_problem
from dualseg.training.dataset import source_and_split

LEAST = 0.05  # seconds of an iteration on a CPU, however small the patch: 0.06 to 0.14 with 24x24x16 on a busy core
BY_SIZE = "by the size of its patches, without a GPU; a slow or busy machine takes two or three times as long"
GUESSED_BY = "solo_mix-plain_unet"
ARCHITECTURES = ("plain_unet", "residual_encoder", "resnet34", "vnet", "segresnet")
LOOKED_AT = 20  # runs, the newest of an output folder
SETTLED = 50  # iterations, below which a run's time is mostly its start and its evaluation
NVIDIA = Path("/dev/nvidiactl")  # is there where a driver is; torch takes seconds to say so
FEW = 1000  # iterations, below which a network that begins anew may find hardly anything
_FOLD = re.compile(r"(data\.(source\.)?)?fold[= ]\d+")  # in the label of a run


@dataclass(frozen=True)
class Rate:
    """Seconds per iteration of runs of one kind, their evaluation included, and where that was measured."""

    seconds: float
    source: str


def measured_rates(sweep: Sweep, jobs: Iterable[Job], scale: str | None) -> dict[str, Rate]:
    """Kind of run -> rate: of this sweep's finished runs where there are some, else of the output folder's others.

    Else it is of dualseg/studies/timings.csv.

    There a row of scale `any` is of a kind on any dataset: seconds for an iteration of `Job.work` 1. Of what is in none
    of these, a guess: that each of its networks takes what `GUESSED_BY` takes.
    """
    rows = [*csv.DictReader(files("dualseg.studies").joinpath("timings.csv").read_text().splitlines())]
    rates = {
        row["kind"]: Rate(float(row["seconds_per_iteration"]), row["hardware"]) for row in rows if row["scale"] == scale
    }
    jobs = list(jobs)
    for row in (row for row in rows if row["scale"] == "any"):
        for job in jobs:
            if job.kind.endswith(f"-{row['kind']}") and job.kind not in rates and job.work:
                scaled = max(float(row["seconds_per_iteration"]) * job.work, LEAST)
                rates[job.kind] = Rate(scaled, f"{BY_SIZE}; measured on {row['hardware']}")
    guess = next(row for row in rows if row["kind"] == GUESSED_BY)
    for job in jobs:
        if job.kind not in rates and job.work:
            networks = max(1, sum(job.kind.count(name) for name in ARCHITECTURES))
            guessed = max(float(guess["seconds_per_iteration"]) * job.work * networks, LEAST)
            rates[job.kind] = Rate(guessed, f"never measured: a guess, {networks} x {GUESSED_BY}; {BY_SIZE}")
    own: dict[str, list[float]] = {}
    for job in jobs:
        folder = sweep.run_folder(job)
        try:
            seconds = folder.manifest()["seconds"] if folder.finished else None
        except (DualsegError, KeyError):
            continue
        if seconds:
            own.setdefault(job.kind, []).append(seconds / job.iterations)
    beside = _rates_beside(sweep, [job for job in jobs if job.kind not in own])
    here = {kind: Rate(mean(values), _count(len(values), "finished run")) for kind, values in own.items()}
    return rates | beside | here


def _rates_beside(sweep: Sweep, jobs: Sequence[Job]) -> dict[str, Rate]:
    """Kind -> rate by the newest runs in the sweep's output folder: those that are finished, of that kind, not brief.

    Of a machine with a GPU only on such a one, and the other way round.
    """
    wanted, found = {job.kind: job.work for job in jobs if job.work}, defaultdict[str, list[float]](list)
    for folder in _newest(sweep.output) if wanted else ():
        try:
            other, manifest = Job.of(folder.config(), (), ""), folder.manifest()
            seconds, on_gpu, finished = manifest["seconds"], bool(manifest["hardware"]["gpu"]), folder.finished
        except (DualsegError, KeyError, TypeError, AttributeError, OSError):
            continue  # an evaluation, of an older version, damaged or just removed
        like_them = other.work and other.kind in wanted and on_gpu == NVIDIA.exists()
        if finished and seconds and like_them and other.iterations >= SETTLED:
            found[other.kind].append(seconds / other.iterations * wanted[other.kind] / other.work)
    return {
        kind: Rate(mean(values), f"{_count(len(values), 'finished run')} in {sweep.output}")
        for kind, values in found.items()
    }


def _newest(output: Path) -> list[RunFolder]:
    changed = {}
    for file in output.glob("*/metrics.json"):
        with suppress(OSError):
            changed[file.parent] = file.stat().st_mtime
    return [RunFolder(path) for path in sorted(changed, key=changed.__getitem__, reverse=True)[:LOOKED_AT]]


def seconds_left(sweep: Sweep, jobs: Iterable[Job], rates: Mapping[str, Rate]) -> tuple[float, list[str]]:
    """Seconds that the jobs that are left still take, one after the other, and the kinds of which nothing is known."""
    total, unknown = 0.0, set()
    for job in jobs:
        if sweep.state(job) in ("done", "damaged"):
            continue
        if job.kind in rates:
            remaining = max(job.iterations - iterations_done(sweep.run_folder(job)), 0)
            total += remaining * rates[job.kind].seconds
        else:
            unknown.add(job.kind)
    return total, sorted(unknown)


def overview(states: Iterable[State]) -> str:
    """3 runs: 1 done, 2 to do."""
    counts = Counter(states)
    shown = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    return f"{_count(counts.total(), 'run')}: {shown}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def time_left(sweep: Sweep, jobs: Sequence[Job], rates: Mapping[str, Rate]) -> str:
    """Hours of what is not done, and on what that estimate rests."""
    seconds, unknown = seconds_left(sweep, jobs, rates)
    used = sorted({(job.kind, rates[job.kind]) for job in jobs if job.kind in rates}, key=lambda pair: pair[0])
    to_do = [job for job in jobs if sweep.state(job) not in ("done", "damaged")]
    known = sum(job.kind in rates for job in to_do)
    some = f", for {known} of {_count(len(to_do), 'run')}" if known < len(to_do) else ""
    lines = [f"about {duration(seconds)} one after the other{some}"] if seconds else []
    lines += [f"  {kind}: {rate.seconds:.3g} s an iteration ({rate.source})" for kind, rate in used if seconds]
    lines += [f"  {kind}: never measured, not in the estimate" for kind in unknown]
    return "\n".join(lines)


def plan(sweep: Sweep, jobs: Sequence[Job], scale: str | None) -> str:
    """What a sweep would do: how many runs, on what, for how long."""
    seeds = sorted({job.seed for job in jobs})
    rows = list(dict.fromkeys(job.variant or job.label for job in jobs))
    lengths = ", ".join(f"{n:,}" for n in sorted({job.iterations for job in jobs}))
    lines = [
        f"{sweep.path}: {overview(sweep.state(job) for job in jobs)}",
        f"{_count(len(rows), 'variant')}: {', '.join(rows)}",
        f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}; {lengths} iterations a run",
        time_left(sweep, jobs, measured_rates(sweep, jobs, scale)),
    ]
    return "\n".join(line for line in lines if line)


def plan_of_run(settings: Mapping[str, Any]) -> str:
    """What training a resolved configuration would do: where, for how many iterations, on which cases, for how long."""
    folder = RunFolder.of(settings)
    sweep = Sweep(folder.path.parent / "sweeps" / folder.path.name)  # of one run, and never written
    job = Job.of(settings, (), folder.path.name)
    split = source_and_split(settings)[1]
    cases = ", ".join(f"{len(getattr(split, role))} {role}" for role in ("labeled", "unlabeled", "validation", "test"))
    note = _note(sweep, job, "to do")  # iterations behind it
    state: str = sweep.state(job)
    if folder.changes_length(settings):
        behind = iteration_of(folder.checkpoint())
        state, note = f"to be trained on from iteration {behind:,}", ""
        job = replace(job, run=f"{job.run}, longer", iterations=job.iterations - behind)  # nothing of it is done
    lines = [
        f"{folder.path}: {state}{f', {note}' if note else ''}",
        f"{job.iterations:,} iterations; cases: {cases}",
        time_left(sweep, [job], measured_rates(sweep, [job], settings["scale"])).replace(" one after the other", ""),
    ]
    if settings["evaluate_on"] and not any(getattr(split, stage) for stage in settings["evaluate_on"]):
        lines.append(f"note: {nothing_scored(settings)}")
    if job.iterations < FEW and not settings["weights"] and state == "to do":
        lines.append(f"note: {job.iterations:,} iterations are few for networks that begin anew; see docs/own-data.md")
    if file := settings.get("plan"):
        lines.append(plan_file.shown(plan_file.read(Path(file), split.labeled), settings))
    return "\n".join(line for line in lines if line)


def status(sweep: Sweep) -> str:
    """How far each run of a sweep is, why those that failed did, and how long the rest takes."""
    jobs = sweep.jobs()
    states = {job.run: sweep.state(job) for job in jobs}
    wide = max((len(job.label) for job in jobs), default=0)
    lines = [f"{states[job.run]:11}  {job.label:{wide}}  {_note(sweep, job, states[job.run])}".rstrip() for job in jobs]
    lines += _evaluated_together(sweep, jobs)
    lines += _over_folds(sweep, [job for job in jobs if states[job.run] == "done"])
    lines.append(f"{sweep.path}: {overview(states.values())}")
    lines.append(time_left(sweep, jobs, measured_rates(sweep, jobs, sweep.scale)))
    return "\n".join(line for line in lines if line)


def _evaluated_together(sweep: Sweep, jobs: Sequence[Job]) -> list[str]:
    """A line for each ensemble row and seed of the sweep's study of which the sweep has all runs."""
    noted = read_json(sweep.file)
    definition = noted.get("definition") or {}
    runs = {(job.variant, job.seed): sweep.run_folder(job) for job in jobs}
    lines = []
    for row, variants in definition.get("ensembles", {}).items():
        for seed in sorted({job.seed for job in jobs}):
            own = [runs[variant, seed] for variant in variants if (variant, seed) in runs]
            if len(own) < len(variants):
                continue
            folder = ensemble_folder(sweep.output, noted["study"], sweep.scale, row, seed)
            problem = ensemble_problem(folder, own)
            state = "failed" if problem else "done" if folder.finished else "to do"
            lines.append(f"{state:11}  {row} seed {seed}  {problem or ' + '.join(variants)}")
    return lines


def _over_folds(sweep: Sweep, done: Sequence[Job]) -> list[str]:
    """A line for what is validated on folds and has two of them: mean and deviation of their Dice."""
    found: dict[str, dict[int, float]] = {}
    for job in done:
        if job.fold is not None and (dice := dice_of(sweep.run_folder(job))) is not None:
            label = " ".join(_FOLD.sub("", job.label).split()) or "all folds"
            found.setdefault(label, {})[job.fold] = 100 * dice
    return [
        f"{label}: Dice {mean(folds.values()):.2f} ± {stdev(folds.values()):.2f} %, mean and standard deviation over "
        f"{len(folds)} folds"
        for label, folds in found.items()
        if len(folds) > 1
    ]


def _note(sweep: Sweep, job: Job, state: State) -> str:
    if state == "done":
        return job.run
    if state == "failed":
        return f"{sweep.failure(job.run)} Output: {sweep.log_file(job.run)}"
    if state == "damaged":
        return sweep.run_folder(job).damage() or ""
    done = iterations_done(sweep.run_folder(job))
    return f"iteration {done:,} of {job.iterations:,}" if done else ""
