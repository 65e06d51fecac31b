"""A study as its sweeps know it: what it is, and their run folders as rows of its table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dualseg.errors import DualsegError, nearest
from dualseg.files import read_json
from dualseg.names import check_folder_name
from dualseg.runs.folder import RunFolder
from dualseg.studies.collecting import Member
from dualseg.studies.index import Sweep
from dualseg.studies.study import Study, read_study, study_names, study_of


def find_study(name: str, runs: Path) -> Study:
    """The study of conf/sweep; one that is not there, as its latest sweep in the folder `runs` has noted it.

    Raises:
        DualsegError: no such study, or a file does not describe one.
    """
    if name in study_names():
        return read_study(name)
    noted: dict[str, tuple[Path, Mapping[str, Any]]] = {}
    for path in sorted((runs / "sweeps").glob("*/sweep.json"), key=lambda path: path.stat().st_mtime):
        content = read_json(path)
        if isinstance(content, dict) and content.get("definition"):
            noted[str(content.get("study"))] = path, content["definition"]
    if name not in noted:
        close = nearest(name, [*study_names(), *noted])
        raise DualsegError(f"{name}: no such study, in conf/sweep or among the sweeps of {runs}.{close}")
    path, definition = noted[name]
    try:
        return study_of(name, definition)
    except (KeyError, TypeError, AttributeError) as error:
        raise DualsegError(f"{path}: damaged ({error}); delete it and start the sweep again.") from error


def ensemble_folder(runs: Path, study: str, scale: str | None, row: str, seed: int) -> RunFolder:
    """Where the runs of an ensemble row are evaluated together: <runs>/<study>-<scale>-<row>-seed<seed>.

    Raises:
        DualsegError: the names would lead out of `runs`.
    """
    name = f"{study}-{scale}-{row}-seed{seed}"
    check_folder_name(f"sweep {study}: ensembles", name)
    return RunFolder(runs / name)


def ensemble_problem(folder: RunFolder, runs: Sequence[RunFolder]) -> str | None:
    """Why what was evaluated together in `folder` is not an evaluation of `runs`; None where it is, or nothing was."""
    if (damage := folder.damage()) is not None:
        return damage
    if not folder.finished or {Path(path).name for path in folder.config()["evaluated"]} == {r.path.name for r in runs}:
        return None
    return f"{folder.path} is of earlier runs; move it and start again"


def members_of(study: Study, runs: Path) -> list[Member]:
    """The runs and ensembles, finished or not, that the sweeps of `study` have in the folder `runs`.

    A sweep's jobs are in <runs>/sweeps/<study>-<scale>/sweep.json.

    Raises:
        DualsegError: a sweep.json is damaged.
    """
    return [
        member
        for scale in study.experiments
        for member in members_in(study, Sweep.named(runs, study.name, scale, ()), scale)
    ]


def members_in(study: Study, sweep: Sweep, scale: str = "") -> list[Member]:
    """The runs and ensembles of `study`, finished or not, of one sweep of it.

    Raises:
        DualsegError: its sweep.json is damaged.
    """
    jobs = sweep.jobs()
    found = [
        Member(job.variant, scale, job.seed, sweep.run_folder(job), job.fold)
        for job in jobs
        if job.variant is not None and job.variant in study.variants
    ]
    for row in study.ensembles:
        for seed in sorted({job.seed for job in jobs}):
            found.append(Member(row, scale, seed, ensemble_folder(sweep.output, study.name, scale, row, seed)))
    return found
