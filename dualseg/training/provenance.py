"""Where a run comes from: versions, git revision, hardware, data, command, times."""

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from dualseg import __version__
from dualseg.errors import DualsegError
from dualseg.files import read_json, read_object, write_json
from dualseg.processes import program, rank

PACKAGES = ("torch", "pytorch-lightning", "monai", "hydra-core", "torchmetrics", "numpy", "scipy")
CODE = ("dualseg", "conf", "hydra_plugins")  # folders of which a new file may take part in a run


def command_line() -> str:
    """The command that started this process, as one would type it."""
    return shlex.join([*program(), *sys.argv[1:]])


def resume_command() -> str:
    """`command_line` without overwrite=true, which would empty the folder that is to be resumed."""
    return _without(command_line(), "overwrite")


def _without(command: str, key: str) -> str:
    return " ".join(argument for argument in command.split(" ") if not re.match(rf"\+{{0,2}}{key}=", argument))


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """Output of git in the folder of this package's source, None where that is no checkout."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    try:
        result = subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def _uncommitted() -> bool | None:
    """A file that git knows has changed, or a file of the code is new to it; None where this is no checkout.

    What was collected in experiments/ is no code: one study's tables must not mark the runs of the next one.
    """
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!experiments")
    new = _git("ls-files", "--others", "--exclude-standard", "--", *CODE)
    return None if changed is None or new is None else bool(changed or new)


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def describe(seed: int, data: dict[str, Any]) -> dict[str, Any]:
    """What is known before the first iteration; `data`: dataset, number of cases of each role, a run's fingerprint."""
    return {
        "dualseg": __version__,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "git": {"revision": _git("rev-parse", "HEAD"), "dirty": _uncommitted()},
        "seed": seed,
        "hardware": {
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "instructions": torch.backends.cpu.get_cpu_capability(),  # AVX2 and AVX512 round differently
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "data": data,
        "command": command_line(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "started": now(),
        "finished": None,
        "seconds": None,
        "resumed": [],
    }


def check_same_data(path: Path, data: Mapping[str, Any]) -> None:
    """Compare what a run that is to be resumed reads now with what it was started on.

    An older version has noted no names of cases. The training cases are the former ones all the same where the
    fingerprint is: it is of their names, images and labels. Of the cases of a stage that has no fingerprint either the
    number alone can be compared; a warning on stderr says so.

    Args:
        path: its manifest.json; what an older version has not noted there is not compared.
        data: what a new manifest would note under `data`: `fingerprint` of the training volumes,
            `evaluation_fingerprint` of those of each stage, `cases` of each role.

    Raises:
        DualsegError: they differ.
    """
    if not path.is_file():
        return
    earlier = read_object(path).get("data")
    if not isinstance(earlier, dict) or "fingerprint" not in earlier:
        raise DualsegError(f"{path}: has no fingerprint of the data; restore the file that the run wrote.")
    fix = "Give the former ones, or start anew with overwrite=true or another name=..."
    for role, cases in data["cases"].items():
        noted = earlier.get("cases", {}).get(role, cases)
        if noted != cases:
            other = next((case for case in [*noted, *cases] if (case in noted) != (case in cases)), None)
            what = "in another order" if other is None else f"{other} is {'no more' if other in noted else 'now'}"
            raise DualsegError(
                f"{path.parent}: the {role} cases have changed since this run was started ({what} among them; the "
                f"split file?). {fix}"
            )
    evaluated, unknown = earlier.get("evaluation_fingerprint", {}), []
    for stage in data["evaluation_fingerprint"]:
        now = len(data["cases"][stage])
        then = earlier.get(stage, now)
        if then != now:
            raise DualsegError(
                f"{path.parent}: the {stage} cases have changed since this run was started ({then} then, {now} now; "
                f"the split file?). {fix}"
            )
        if stage not in evaluated and stage not in earlier.get("cases", {}):
            unknown.append(stage)
    changed = [stage for stage, own in data["evaluation_fingerprint"].items() if evaluated.get(stage, own) != own]
    if earlier["fingerprint"] != data["fingerprint"]:
        changed.insert(0, "training")
    if changed:
        raise DualsegError(
            f"{path.parent}: the {' and '.join(changed)} volumes have changed since this run was started (data.root?, "
            f"the split file?). {fix}"
        )
    if unknown and rank() == 0:
        print(
            f"warning: {path.parent}: an older version has not noted its {' and '.join(unknown)} cases, so they are "
            "those of today's split; if that has changed, start anew with overwrite=true.",
            file=sys.stderr,
        )


def start(path: Path, description: dict[str, Any], resumed_at: int, of_another_length: bool = False) -> None:
    """Write manifest.json; a resumed run keeps its first start and lists where each later one went on.

    What the version that started it has not noted is added. A run `of_another_length` than it had until now
    (continue=true) ends as this command without continue=true would have it end, and is not finished any more.
    """
    if resumed_at and path.is_file():
        earlier = read_json(path)
        resumed = {"iteration": resumed_at, "started": description["started"], "git": description["git"]}
        data = {**description["data"], **earlier["data"]}
        command = description["command"]
        description = {**description, **earlier, "data": data, "resumed": [*earlier["resumed"], resumed]}
        if of_another_length:
            description |= {"command": _without(command, "continue"), "finished": None, "seconds": None}
    write_json(path, description)


def finish(path: Path, seconds: float) -> None:
    """Add the end time and the seconds of all launches together; `RunTime` says what they count."""
    write_json(path, {**read_json(path), "finished": now(), "seconds": round(seconds, 1)})
