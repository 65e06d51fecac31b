"""The dataset that `data` names: whether it is there, without faults that show early, and how it is split. No torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dualseg.data.checks import check_batch
from dualseg.data.splits import Split, split_source
from dualseg.data.volumes import VolumeSource
from dualseg.errors import DualsegError
from dualseg.runs.folder import RunFolder
from dualseg.training.instantiating import naming_keys_of


def source_and_split(settings: Mapping[str, Any]) -> tuple[VolumeSource, Split]:
    """The dataset and which of its cases are labeled, unlabeled, validation and test; no volume is read.

    Raises:
        DualsegError: the first thing that is wrong, within an InstantiationException where the dataset says so.
    """
    from hydra.utils import instantiate

    data = settings["data"]
    with naming_keys_of("data.source", data["source"]):
        source = instantiate(data["source"])
    return source, split_source(source, data)


def check_same_cases(folder: RunFolder, settings: Mapping[str, Any]) -> None:
    """A finished run trained and was validated on the files and cases that `settings` would take now.

    Raises:
        DualsegError: it did not: cases were labeled, added or left out since, or it is of another folder.
    """
    noted_root, now = folder.config().get("data", {}).get("root"), Path(settings["data"]["root"])
    root = Path(str(noted_root))
    fix = "give overwrite=true to train anew, or another output=..."
    if noted_root is not None and root.resolve() != now.resolve():
        raise DualsegError(f"{folder.path}: finished, but of the data in {root}, not {now}; {fix}.")
    _, split = source_and_split(settings)
    noted = folder.manifest().get("data", {}).get("cases", {})
    roles = ["labeled", "validation", *(["unlabeled"] if settings["batch"]["unlabeled"] else [])]
    for role in roles:
        if role in noted and sorted(noted[role]) != sorted(getattr(split, role)):
            raise DualsegError(f"{folder.path}: finished, but with other {role} cases than {now} has now; {fix}.")


def check_data(settings: Mapping[str, Any]) -> None:
    """The dataset is there, without faults that show before a volume is read, and can be split as asked.

    Raises:
        DualsegError: as `source_and_split`; such a fault; the split cannot serve the batch or the validation.
    """
    source, split = source_and_split(settings)
    source.check_cases()
    check_batch(settings["batch"]["labeled"], settings["batch"]["unlabeled"], split)
    every = settings["trainer"]["validate_every"]
    if every and not split.validation:
        fix = "give data.held_out_validation=N, or leave it null"
        raise DualsegError(f"trainer.validate_every={every}: there is no validation case; {fix}.")
