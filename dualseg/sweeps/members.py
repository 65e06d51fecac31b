"""The run folders of a study's sweeps, as rows of its table."""

from pathlib import Path

from dualseg.runs.collecting import Member
from dualseg.runs.folder import RunFolder
from dualseg.sweeps.index import Sweep
from dualseg.sweeps.study import Study


def ensemble_folder(sweep: Sweep, row: str, seed: int) -> RunFolder:
    """Where the runs of an ensemble row are evaluated together."""
    return RunFolder(sweep.output / f"{sweep.name}-{row}-seed{seed}")


def members_of(study: Study, runs: Path) -> dict[str, list[Member]]:
    """Scale -> the runs and ensembles, finished or not, that sweeps of `study` have put into the folder `runs`."""
    found: dict[str, list[Member]] = {}
    for scale in study.experiments:
        sweep = Sweep.named(runs, study.name, scale, ())
        jobs = [job for job in sweep.jobs() if job.variant in study.variants]
        members = [Member(job.variant, job.seed, sweep.run_folder(job)) for job in jobs if job.variant]
        for row in study.ensembles:
            for seed in sorted({job.seed for job in jobs}):
                members.append(Member(row, seed, ensemble_folder(sweep, row, seed), ensemble_alone=True))
        found[scale] = members
    return found
