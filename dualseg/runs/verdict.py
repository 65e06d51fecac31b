"""What a run carries of a verdict: whether unlabeled scans are shown to help a training like its own. No torch."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from dualseg.errors import DualsegError
from dualseg.files import read_object, write_json
from dualseg.names import check_folder_name
from dualseg.runs.folder import VERDICT, RunFolder

LEAST_CASES = 6  # with fewer no sign-flip test reaches 5 %: 2 / 2**5 is more. A bootstrap of 2 of one sign excludes 0
NOT_VERIFIED = "not verified: no verdict was made, see dualseg-train -m sweep=verdict with its data=... data.root=..."


def training_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What two trainings have in common that one verdict is of: all but labels, seed, and what a plan decides."""
    data = config["data"]
    return {
        "data": {"name": data["name"], "root": str(data["root"]), "unlabeled": data.get("source", {}).get("unlabeled")},
        "networks": {name: network["architecture"] for name, network in config["networks"].items()},
        "iterations": config["trainer"]["max_iterations"],
        **{key: config.get(key) for key in ("method", "objective", "augmentation", "optimizer", "lr_schedule")},
    }


def classes_to_clean(runs: Iterable[RunFolder]) -> list[str]:
    """Classes whose largest component alone is above all of their components, over the held-out cases of the runs.

    By the mean of Dice over cases, the runs of a case averaged first; none below `LEAST_CASES` cases.

    Raises:
        DualsegError: a file of a run is damaged.
    """
    gains: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))  # class -> case -> of each run
    for run in runs:
        for file in sorted(run.components.glob("*.json")):
            for name, pair in read_object(file).items():
                try:
                    before, after = map(float, pair)
                except (TypeError, ValueError) as error:
                    raise DualsegError(f"{file}: damaged ({error}); train {run.path} again.") from error
                gains[name][file.stem].append(after - before)
    means = {name: [fmean(own) for own in cases.values()] for name, cases in gains.items()}
    return [name for name, own in means.items() if len(own) >= LEAST_CASES and fmean(own) > 0]


def carry(folder: RunFolder, verdict: Mapping[str, Any]) -> None:
    """Keep in a run folder what the verdict on its training says, so that it goes wherever the folder goes."""
    write_json(folder.verdict_file, {key: verdict[key] for key in ("short", "sentence")})


def carry_from_study(folder: RunFolder, labeled: int) -> None:
    """`carry` for a run that no study trained: of the verdict on such a training in its output folder, if there is one.

    Args:
        folder: of the run.
        labeled: cases that it trained on; a verdict of runs with more labels is none on this one.

    Raises:
        DualsegError: the study's verdict.json is damaged.
    """
    config = folder.config()
    file = folder.path.resolve().parent / "sweeps" / f"verdict-{config['data']['name']}" / VERDICT
    if not file.is_file():
        return
    found = read_object(file)
    try:
        if found["training"] == training_of(config) and labeled >= found["labels"][0]:
            carry(folder, found)
    except (KeyError, IndexError, TypeError) as error:
        raise DualsegError(f"{file}: damaged ({error}); delete it, and start the verdict again.") from error


@dataclass(frozen=True)
class Recommended:
    """What to predict with: run folders, and the classes of which the largest component alone is kept."""

    runs: tuple[Path, ...]
    keep_largest: tuple[str, ...] = ()


def recommended(path: str | Path) -> Recommended:
    """What a verdict recommends, where `path` is the folder of its sweep; else `path` alone.

    Raises:
        DualsegError: its verdict.json is damaged.
    """
    place = Path(path).expanduser()
    if not (place / VERDICT).is_file() or (place / "config.yaml").is_file():
        return Recommended((place,))
    content = read_object(place / VERDICT)
    runs, classes = content.get("runs"), content.get("keep_largest")
    for names in (runs, classes):
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not runs:
            raise DualsegError(f"{place / VERDICT}: damaged; delete it, and start the verdict again.")
    for name in runs or ():
        check_folder_name("run", name)
    found = tuple(place.resolve().parent.parent / name for name in runs or ())
    if missing := [run for run in found if not run.is_dir()]:
        fix = "give the folder of the verdict's sweep, OUTPUT/sweeps/verdict-DATASET"
        raise DualsegError(f"{place}: recommends {missing[0].name}, which is not in {missing[0].parent}; {fix}.")
    return Recommended(found, tuple(classes or ()))


def verification(folder: RunFolder) -> str | None:
    """`verified +2.1 [0.4, 3.9]` or `not verified ...`; None for a run that trained without unlabeled patches.

    Raises:
        DualsegError: the run's verdict.json is damaged.
    """
    if not folder.config().get("batch", {}).get("unlabeled"):
        return None
    file = folder.verdict_file
    if not file.is_file():
        return NOT_VERIFIED
    short = read_object(file).get("short")
    if not isinstance(short, str):
        raise DualsegError(f"{file}: damaged; delete it, and start the verdict again.")
    return short
