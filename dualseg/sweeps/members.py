"""The run folders of a study's sweeps, as rows of its table."""

from pathlib import Path

from dualseg.errors import DualsegError
from dualseg.files import read_json
from dualseg.runs.collecting import Member
from dualseg.runs.folder import RunFolder
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
    found = []
    for scale in study.experiments:
        name = f"{study.name}-{scale}"
        path = runs / "sweeps" / name / "sweep.json"
        if not path.is_file():
            continue
        try:
            jobs = [(job["variant"], int(job["seed"]), str(job["run"])) for job in read_json(path)["jobs"]]
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, DualsegError):
                raise
            raise DualsegError(f"{path}: damaged ({error}); delete it and start the sweep again.") from error
        found += [Member(row, scale, seed, RunFolder(runs / run)) for row, seed, run in jobs if row in study.variants]
        for row in study.ensembles:
            for seed in sorted({seed for _, seed, _ in jobs}):
                found.append(Member(row, scale, seed, ensemble_folder(runs, study.name, scale, row, seed)))
    return found
