"""What a run carries of a verdict: whether unlabeled scans are shown to help a training like its own. No torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dualseg.errors import DualsegError
from dualseg.files import read_object, write_json
from dualseg.names import check_folder_name
from dualseg.runs.folder import RunFolder

VERDICT = "verdict.json"  # of a study that gives one, and in the runs that it is of
NOT_VERIFIED = "not verified: no verdict on its unlabeled scans, see dualseg-train -m sweep=verdict"


def training_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What two trainings have in common that one verdict is of: data, method, networks, length; not labels or seed."""
    return {
        "data": config["data"]["name"],
        "method": config["method"],
        "networks": {name: network["architecture"] for name, network in config["networks"].items()},
        "iterations": config["trainer"]["max_iterations"],
    }


def carry(folder: RunFolder, verdict: Mapping[str, Any]) -> None:
    """Keep in a run folder what the verdict on its training says, so that it goes wherever the folder goes."""
    write_json(folder.path / VERDICT, {key: verdict[key] for key in ("short", "sentence")})


def carry_from_study(folder: RunFolder) -> None:
    """`carry` for a run that no study trained: of the verdict on such a training in its output folder, if there is one.

    Raises:
        DualsegError: the study's verdict.json is damaged.
    """
    config = folder.config()
    file = folder.path.resolve().parent / "sweeps" / f"verdict-{config['data']['name']}" / VERDICT
    if file.is_file() and (found := read_object(file)).get("training") == training_of(config):
        carry(folder, found)


def runs_to_predict_with(path: str | Path) -> list[Path]:
    """The runs that a verdict recommends, where `path` is the folder of its sweep; else `path` alone.

    Raises:
        DualsegError: its verdict.json is damaged.
    """
    place = Path(path).expanduser()
    if not (place / VERDICT).is_file() or (place / "config.yaml").is_file():
        return [place]
    runs = read_object(place / VERDICT).get("runs")
    if not isinstance(runs, list) or not runs or not all(isinstance(name, str) for name in runs):
        raise DualsegError(f"{place / VERDICT}: names no runs; delete it, and start the verdict again.")
    for name in runs:
        check_folder_name("run", name)
    return [place.resolve().parent.parent / name for name in runs]


def verification(folder: RunFolder) -> str | None:
    """`verified +2.1 [0.4, 3.9]` or `not verified ...`; None for a run that trained without unlabeled patches.

    Raises:
        DualsegError: the run's verdict.json is damaged.
    """
    if not folder.config().get("batch", {}).get("unlabeled"):
        return None
    file = folder.path / VERDICT
    if not file.is_file():
        return NOT_VERIFIED
    short = read_object(file).get("short")
    if not isinstance(short, str):
        raise DualsegError(f"{file}: damaged; delete it, and start the verdict again.")
    return short
