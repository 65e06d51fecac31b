"""What is written of an evaluation of finished runs, and where."""

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from dualseg.errors import DualsegError
from dualseg.files import is_temporary, refuse_links, sha256_of, sweep_below, write_text
from dualseg.record import Roles
from dualseg.runs.code import code_hashes, user_code
from dualseg.runs.folder import RunFolder, iteration_of
from dualseg.runs.lock import LOCK, is_locked, writing


def checkpoints_of(runs: Sequence[RunFolder]) -> dict[str, dict[str, Any]]:
    """Run folder -> name and SHA-256 of the checkpoint that is taken, and of the modules of the user's own behind it.

    A module of networks or dataset that has changed since the run was trained is told of on stderr.
    """
    found = {}
    for run in runs:
        path = run.checkpoint()
        found[str(run.path)] = {"checkpoint": path.name, "sha256": sha256_of(path), "code": _code_of(run)}
    return found


@contextmanager
def writing_evaluation(run: RunFolder, label: str, output: str | None) -> Iterator[RunFolder]:
    """The folder of an evaluation, locked in the block, and cleared of what one that was stopped has left there.

    The block writes manifest.json first: by it the folder is known as that of an evaluation. Where the block fails,
    what it has written is removed.

    Args:
        run: the first one to evaluate.
        label: where `output` is None the folder is evaluations/NNN-<label> of `run`: that of an evaluation that was
            stopped, or a new one.
        output: the folder that the user wants.

    Raises:
        DualsegError: `output` is a file or not empty, another process is writing it, or what would be written in is a
            link in the run folder.
    """
    with ExitStack() as stack:
        if output is None:
            target = _next_evaluation(run, label, stack)
        else:
            target = RunFolder(output)
            if target.path.exists() and not target.path.is_dir():
                raise DualsegError(f"output={target.path}: is a file; give a folder.")
            stack.enter_context(writing(target.path, "choose another output=..."))
            if not _is_unfinished(target):
                fix = "evaluations are never written over earlier ones"
                raise DualsegError(f"output={target.path}: is not empty; {fix}.")
        refuse_links(target.slices)
        sweep_below(target.path)
        _clear(target)
        try:
            yield target
        except Exception:
            _clear(target)
            raise


def _next_evaluation(run: RunFolder, label: str, stack: ExitStack) -> RunFolder:
    """Choose evaluations/NNN-<label>, and let `stack` hold its lock."""
    refuse_links(run.evaluations)
    stack.callback(_remove_if_empty, run.evaluations)  # where nothing is written
    with writing(run.evaluations):  # of evaluations that start together, one chooses after the other
        # where there are no locks, nobody can tell one that was stopped from one that runs
        known = run.evaluations.glob(f"[0-9][0-9][0-9]-{label}") if is_locked(run.evaluations) else ()
        stopped = (one for one in map(RunFolder, sorted(known)) if not is_locked(one.path) and _is_unfinished(one))
        target = next(stopped, None) or run.new_evaluation(label)
        refuse_links(target.path)
        stack.enter_context(writing(target.path))
    return target


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _clear(target: RunFolder) -> None:
    """Remove what an evaluation that is not finished has left; manifest.json, by which it is known, last."""
    shutil.rmtree(target.slices, ignore_errors=True)  # perhaps of other cases
    for file in (target.config_file, target.cases_file, target.manifest_file):
        file.unlink(missing_ok=True)


def _is_unfinished(target: RunFolder) -> bool:
    """The folder is empty, or its manifest.json says that an evaluation was stopped here, and nothing else is there."""
    if not target.path.exists():
        return True
    content = {path for path in target.path.iterdir() if path.name != LOCK and not is_temporary(path)}
    if not content:
        return True
    own = {target.manifest_file, target.config_file, target.cases_file, target.slices}
    with suppress(DualsegError):
        return target.manifest_file in content <= own and "evaluated" in target.manifest()
    return False


def _code_of(run: RunFolder) -> dict[str, str]:
    config = run.config()
    used = {"networks": config["networks"], "data": config["data"]["source"]}
    noted = run.noted_code() or {}
    files, hashes = user_code(used), code_hashes(used)
    for module, file in files.items():
        if noted.get(module, hashes[module]) != hashes[module]:
            print(f"warning: {run.path}: {file} has changed since this run was trained.", file=sys.stderr)
    return hashes


def data_of(run: RunFolder) -> dict[str, Any]:
    """On which data a run was trained: name, place and fingerprint."""
    noted = run.noted("data")
    data = run.config()["data"]
    fingerprint = noted.get("fingerprint") if isinstance(noted, dict) else None
    return {"dataset": data["name"], "root": data["root"], "fingerprint": fingerprint}


def write_evaluation(
    target: RunFolder,
    results: Mapping[str, Any],
    cases: Mapping[str, Sequence[str]],
    evaluated: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
    roles: Roles,
) -> None:
    """config.yaml, cases.csv and, last, metrics.json. `evaluated`: see `checkpoints_of`, `roles`: of the networks."""
    from dualseg.runs.results import metrics_of, write_cases

    checkpoints = {run: taken["checkpoint"] for run, taken in evaluated.items()}
    write_text(target.config_file, yaml.safe_dump({**settings, "evaluated": checkpoints}, sort_keys=False))
    write_cases(target.cases_file, results, cases)
    target.finish(metrics_of(results, min(iteration_of(Path(name)) for name in checkpoints.values()), roles))
