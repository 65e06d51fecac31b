"""`dualseg-train -m`: the runs of a study, or of every combination of comma-separated values."""

import itertools
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from dualseg.command.overrides import quoted
from dualseg.errors import DualsegError, nearest
from dualseg.processes import processes_of, python_of
from dualseg.runs.claim import check_inputs
from dualseg.runs.folder import RunFolder
from dualseg.runs.identity import decides
from dualseg.runs.lock import is_locked
from dualseg.studies.composer import Composer
from dualseg.studies.index import Job, Sweep
from dualseg.studies.members import ensemble_folder, ensemble_problem
from dualseg.studies.monitor import Monitor
from dualseg.studies.study import Study, study_of
from dualseg.studies.timing import plan
from dualseg.training.dataset import check_same_cases
from dualseg.training.trusted import to_trust

FOR_THE_SWEEP = ("sweep", "launcher", "dry")  # arguments that are no run's own
OF_A_STUDY = ("study", "scale", "variant")  # arguments that a study's rows bring themselves


@dataclass(frozen=True)
class Combination:
    """The arguments of one run, and what tells it from the others.

    Of a study, `given` are the arguments beside those of its variant, and `shared` those of them that all runs have.
    """

    arguments: tuple[str, ...]
    label: str
    variant: str | None = None
    given: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    origin: Path | None = None


def sweep(sweeper: Any, arguments: Sequence[str]) -> list[Any]:
    """Launch those of the runs that `arguments` describe that are not finished.

    Args:
        sweeper: Hydra's, with its configuration, loader and launcher.
        arguments: as Hydra hands them on.

    Raises:
        DualsegError: arguments that compose no run, or two runs in one folder; nothing is launched then.
        SystemExit: a run failed or is damaged; the others are finished, or another process trains them.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    config, loader = sweeper.config, sweeper.hydra_context.config_loader
    if config["continue"]:
        raise DualsegError("continue=true: trains one run on; leave -m out.")
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(list(arguments))
    if config.sweep is None:
        study, combinations = None, _of_values(overrides)
    else:
        study = study_of(config.study, cast(dict[str, Any], OmegaConf.to_container(config.sweep, resolve=True)))
        combinations = _of_study(study, config.scale, overrides)
    if study and study.verdict and not study.experiments:
        named = {one.get_key_element() for one in overrides}.union(*study.variants.values())
        if not named & {"data", "experiment"}:
            raise DualsegError(f"sweep={study.name}: on which scans? Give data=folder data.root=DIR.")
    launcher = [one for one in arguments if one.startswith("launcher=")]  # hydra.launcher.* fits no other one
    composer = Composer(sweeper, launcher)
    if study:
        combinations = [_after_its_origin(composer, study, config.scale, one) for one in combinations]
    settings = [composer.settings(combination.arguments) for combination in combinations]
    if study and study.verdict:
        _check_unlabeled(study.verdict["with_unlabeled"], settings)
    jobs = [Job.of(own, one.arguments, one.label) for own, one in zip(settings, combinations, strict=True)]
    _check_folders(jobs, config.output)
    origins = {job.run: one.origin for job, one in zip(jobs, combinations, strict=True)}
    every_argument = sorted({argument for combination in combinations for argument in combination.arguments})
    of = config.scale if study is None or study.experiments else settings[0]["data"]["name"]
    target = Sweep.named(config.output, study.name if study else None, of, every_argument)
    if config.dry:
        print(plan(target, jobs, config.scale))
        return []

    if not config.overwrite:  # what is finished is not started again, and would show results of other code or weights
        for job, own in zip(jobs, settings, strict=True):
            if target.state(job) == "done":
                check_inputs(target.run_folder(job), own)
                if study and study.verdict:
                    check_same_cases(target.run_folder(job), own)
    waiting = [job for job in jobs if config.overwrite or target.state(job) not in ("done", "damaged")]
    if config.hydra.runtime.choices["hydra/launcher"] != "submitit_slurm":  # else they are trained elsewhere
        for job, own in zip(jobs, settings, strict=True):
            if job in waiting:
                processes_of(own["trainer"])
    name, definition = (study.name, study.definition()) if study else (None, None)
    shared = sorted({argument for one in combinations for argument in one.shared if decides(argument)})
    for sentence in target.write(jobs, name, config.scale, definition, shared if study and study.folds else None):
        print(sentence)
    for job in waiting:
        target.forget_failure(job.run)  # a failure of an earlier launch
    if study and study.verdict and waiting:
        print(plan(target, jobs, config.scale).partition("\n")[2])  # the monitor's first line says the rest
    with Monitor(target, jobs, config.scale):
        for stage in sorted({_stage(study, job) for job in waiting}):  # each starts from runs of those before
            ready = [job for job in waiting if _stage(study, job) == stage]
            ready = [job for job in ready if not _lacks_its_origin(target, job, origins[job.run])]
            where = f"hydra.sweep.dir={quoted(str(target.path))}"  # by which a job finds its sweep
            of_jobs = [[*job.arguments, *launcher, where] for job in ready]
            returned = sweeper.launcher.launch(of_jobs, initial_job_idx=0) if ready else []
            for job, one in zip(ready, returned, strict=True):
                _note_loss(target, job, one)
    elsewhere = [job.label for job in jobs if target.state(job) == "running"]
    failures = [problem for job in jobs if (problem := _problem(target, job))]
    if study:
        trust = dict.fromkeys(name for own in settings for name in to_trust(own))  # this command line's own classes
        failures += evaluate_ensembles(study, config.scale, target, jobs, [*trust])
    if elsewhere:
        print(f"Running elsewhere, left to that: {', '.join(elsewhere)}. How far: dualseg-report status {target.path}")
    if failures:
        print(f"error: {len(failures)} of {len(jobs)} runs failed:", *failures, sep="\n  ", file=sys.stderr)
        raise SystemExit(1)
    if study and study.verdict:
        _report(target)
    elif study:
        print(f"Tables and figures: dualseg-report study {study.name} runs={config.output}")
    return []


def _of_values(overrides: Sequence[Any]) -> list[Combination]:
    """Every combination of comma-separated values."""
    arguments = [_choices(override) for override in overrides if override.get_key_element() not in FOR_THE_SWEEP]
    several = {choice for choices in arguments if len(choices) > 1 for choice in choices}
    found = [tuple(combination) for combination in itertools.product(*arguments)]
    return [
        Combination(c, " ".join(argument for argument in c if argument in several) or "the only run") for c in found
    ]


def _of_study(study: Study, scale: str | None, overrides: Sequence[Any]) -> list[Combination]:
    """A study's variants, a whole table of one seed before the next: an interrupted study then still says something.

    Of a study of folds all of them are run, or those that data.fold=... names.

    Raises:
        DualsegError: an unknown variant, a key that the rows of the study differ in, or several values for another one.
    """
    given = {override.get_key_element(): _choices(override) for override in overrides}
    for key in ("study", "scale"):
        if len(given.get(key, ())) > 1:
            raise DualsegError(f"{key}: give one value; a sweep is of one {key}, start another one for the other.")
    variants = [argument.partition("=")[2] for argument in given.get("variant", ())] or list(study.variants)
    for variant in variants:
        if variant not in study.variants:
            raise DualsegError(f"variant={variant}: no such row of {study.name}.{nearest(variant, [*study.variants])}")
    changed = {key for changes in study.variants.values() for key in changes} | {"name"}
    changed |= {"experiment"} if study.experiments else set()
    changed |= {"weights"} if study.after else set()
    parts = _parts(study, given)
    own = {key: choices for key, choices in given.items() if key not in (*FOR_THE_SWEEP, *OF_A_STUDY, "seed")}
    for key, choices in own.items():
        if key in changed:
            raise DualsegError(f"{key}: the study {study.name} sets it for each of its rows; leave it out.")
        if len(choices) > 1:
            several = "seed, variant and data.fold" if study.folds else "seed and variant"
            raise DualsegError(f"{key}: give one value; of a study's keys only {several} may take several.")
    seeds = given.get("seed") or [f"seed={seed}" for seed in study.seeds]
    rest = [choices[0] for choices in own.values()]
    found = []
    for seed, part, variant in itertools.product(seeds, parts, variants):
        given_arguments = (seed, *([part] if part else []), *rest)
        label = f"{variant}{part.replace('data.fold=', ' fold ')} {seed.replace('=', ' ')}"
        arguments = (*study.arguments(variant, scale), *given_arguments)
        found.append(Combination(arguments, label, variant, given_arguments, tuple(rest)))
    return found


def _parts(study: Study, given: dict[str, list[str]]) -> list[str]:
    """The arguments that make the folds of each run of a study, taken out of `given`; `data.folds` is in it then.

    Raises:
        DualsegError: data.folds is no whole number.
    """
    if not study.folds:
        return [""]
    argument = given.setdefault("data.folds", [f"data.folds={study.folds}"])[0]
    number = argument.removeprefix("data.folds=")
    if not number.isdecimal() or int(number) < 2:
        raise DualsegError(
            f"{argument}: give the number of parts of the labeled cases, such as data.folds={study.folds}."
        )
    parts = given.pop("data.fold", [f"data.fold={fold}" for fold in range(int(number))])
    for part in parts:
        if not part.removeprefix("data.fold=").isdecimal():
            raise DualsegError(
                f"{part}: the study {study.name} is of folds; give 0 to {int(number) - 1}, or leave it out."
            )
    return parts


def _after_its_origin(composer: Composer, study: Study, scale: str, combination: Combination) -> Combination:
    """With the argument by which the run starts from that of the variant it comes after, where it comes after one."""
    variant = study.after.get(combination.variant or "")
    if variant is None:
        return combination
    arguments = (*study.arguments(variant, scale), *combination.given)
    first = replace(combination, arguments=arguments, variant=variant)
    first = _after_its_origin(composer, study, scale, first)
    origin = RunFolder.of(composer.settings(first.arguments)).path
    return replace(combination, arguments=(*combination.arguments, f"weights={quoted(str(origin))}"), origin=origin)


def _stage(study: Study | None, job: Job) -> int:
    return study.stage(job.variant) if study and job.variant else 0


def _lacks_its_origin(target: Sweep, job: Job, origin: Path | None) -> bool:
    """The run that this one starts from is not finished; that is its failure then."""
    if origin is None or RunFolder(origin).finished:
        return False
    target.record_failure(job.run, f"It starts from {origin}, which is not finished; train that one first.")
    return True


def _choices(override: Any) -> list[str]:
    """One argument for each value of an override that may list several."""
    key = override.get_key_element()
    if override.is_sweep_override():
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    return [f"{key}={override.get_value_element_as_str()}"]


def _check_unlabeled(row: str, settings: Sequence[Mapping[str, Any]]) -> None:
    """Raises: DualsegError where there are no unlabeled scans to judge: the runs of `row` would be their own twins."""
    if any(own["variant"] == row and not own["batch"]["unlabeled"] for own in settings):
        raise DualsegError(
            f"{settings[0]['data']['root']}: has no unlabeled scans, so that there is nothing to judge; dualseg-train "
            "without sweep=verdict trains on the labels alone."
        )


def _check_folders(jobs: Sequence[Job], output: str) -> None:
    """Raises: DualsegError where two runs are the same, or would be written into one folder."""
    first: dict[str, Job] = {}
    for job in jobs:
        other = first.setdefault(job.run, job)
        if other is not job:
            raise DualsegError(
                f"{other.label} and {job.label}: both runs would be written to {Path(output) / job.run}; leave "
                "name=... out, or give every run another configuration."
            )


def _note_loss(target: Sweep, job: Job, returned: Any) -> None:
    """Record a job whose launcher lost it, or that fell over before it could say so itself."""
    try:
        returned.return_value  # noqa: B018 - Hydra raises what the job raised
    except Exception as error:
        if target.state(job) == "running":  # by another process, so that this one's found no place
            return
        target.record_failure(job.run, " ".join(str(error).split()) or type(error).__name__)


def _problem(target: Sweep, job: Job) -> str | None:
    """What keeps a run from being finished; None where nothing does, or another process is at it."""
    state = target.state(job)
    if state in ("done", "running"):
        return None
    damage = target.run_folder(job).damage() if state == "damaged" else None
    return f"{job.label}: {damage or target.failure(job.run) or 'not finished'}"


def _report(target: Sweep) -> None:
    """Write the study's page into the sweep's folder and print its verdict, in a process without this one's Hydra.

    Raises:
        SystemExit: that failed.
    """
    command = [*python_of("dualseg.report"), "study", str(target.path)]
    if code := subprocess.run(command, check=False).returncode:
        raise SystemExit(code)


def evaluate_ensembles(study: Study, scale: str, target: Sweep, jobs: Sequence[Job], trust: Sequence[str]) -> list[str]:
    """Evaluate together what the study wants evaluated together, as far as the runs are finished.

    Args:
        trust: the trust=... of the evaluations.

    Returns:
        What failed.
    """
    done = {(job.variant, job.seed): target.run_folder(job) for job in jobs if target.state(job) == "done"}
    failures = []
    for row, variants in study.ensembles.items():
        for seed in sorted({job.seed for job in jobs}):
            runs = [done[variant, seed] for variant in variants if (variant, seed) in done]
            folder = ensemble_folder(target.output, study.name, scale, row, seed)
            if len(runs) < len(variants):
                continue
            if (problem := ensemble_problem(folder, runs)) is not None:
                failures.append(f"{row} seed {seed}: {problem}")
            if problem is not None or folder.finished or is_locked(folder.path):  # another sweep evaluates it
                continue
            arguments = [*(f"run={run.path}" for run in runs), f"output={folder.path}"]
            log = target.own_log_file(folder.path.name)
            with log.open("a") as file:
                command = [*python_of("dualseg.evaluate"), *arguments, *trust]
                code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
            print(f"{'done  ' if code == 0 else 'failed'} {row} seed {seed}")
            if code:
                failures.append(f"{row} seed {seed}: its evaluation ended with exit code {code}; see {log}")
    return failures
