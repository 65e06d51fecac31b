"""The run folders of a study's sweeps, as rows of its table."""

from pathlib import Path

from dualseg.runs.collecting import Member
from dualseg.runs.folder import RunFolder
from dualseg.sweeps.index import Sweep
from dualseg.sweeps.study import Study


def ensemble_folder(runs: Path, study: str, scale: str | None, row: str, seed: int) -> RunFolder:
    """Where the runs of an ensemble row are evaluated together: <runs>/<study>-<scale>-<row>-seed<seed>."""
    return RunFolder(runs / f"{study}-{scale}-{row}-seed{seed}")


def members_of(study: Study, runs: Path) -> list[Member]:
    """The runs and ensembles, finished or not, that the sweeps of `study` have in the folder `runs`.

    A sweep's jobs are in <runs>/sweeps/<study>-<scale>/sweep.json.

    Raises:
        DualsegError: a sweep.json is damaged.
    """
    found, rows = [], set(study.variants)
    for scale in study.experiments:
        sweep = Sweep.named(runs, study.name, scale, ())
        jobs = sweep.jobs()
        found += [Member(job.variant, scale, job.seed, sweep.run_folder(job)) for job in jobs if job.variant in rows]
        for row in study.ensembles:
            for seed in sorted({job.seed for job in jobs}):
                found.append(Member(row, scale, seed, ensemble_folder(runs, study.name, scale, row, seed)))
    return found
