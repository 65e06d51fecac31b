"""The words of `dualseg-prepare`. No torch here: a mistake must answer at once."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dualseg.data.brats2019 import MODALITIES
from dualseg.errors import DualsegError, nearest
from dualseg.preparation.base import Preparation
from dualseg.preparation.brats2019 import BraTS2019Preparation
from dualseg.preparation.left_atrium import LeftAtriumPreparation
from dualseg.preparation.pancreas_ct import PancreasPreparation
from dualseg.preparation.words import KEYS
from dualseg.words import read_words

DATASETS: dict[str, type[Preparation]] = {
    "la": LeftAtriumPreparation,
    "pancreas": PancreasPreparation,
    "brats": BraTS2019Preparation,
}


@dataclass(frozen=True)
class Options:
    """What the command line asks for: how, from where, to where, with how many processes."""

    preparation: Preparation
    raw: Path
    out: Path
    workers: int


def parse_words(words: Sequence[str]) -> Options:
    """key=value words -> Options.

    Raises:
        DualsegError: an unknown or repeated key, an impossible value, or data, raw or out is missing.
    """
    given = read_words(words, "dualseg-prepare", KEYS)
    raw, out = (Path(given[key]).expanduser() for key in ("raw", "out"))
    return Options(_preparation(given), raw, out, _workers(given.get("workers")))


def _preparation(given: dict[str, str]) -> Preparation:
    data = given["data"]
    if data not in DATASETS:
        raise DualsegError(f"data={data}: choose from {', '.join(DATASETS)}.{nearest(data, list(DATASETS))}")
    kind = DATASETS[data]
    if given.get("crop", kind.crops[0]) not in kind.crops:
        why = "; BraTS is cropped to the brain, which needs no label" if data == "brats" else ""
        raise DualsegError(f"crop={given['crop']}: choose from {', '.join(kind.crops)}{why}.")
    crop = next((crop for crop in kind.crops if crop == given.get("crop")), kind.crops[0])
    if kind is not BraTS2019Preparation:
        for key in ("modalities", "regions"):
            if key in given:
                raise DualsegError(f"{key}: belongs to data=brats.")
        return kind(crop)
    modalities = tuple(given.get("modalities", "[flair]").strip("[]").replace(" ", "").split(","))
    if not {*modalities} <= {*MODALITIES} or len({*modalities}) < len(modalities):
        raise DualsegError(f"modalities={given['modalities']}: give some of [{','.join(MODALITIES)}], each once.")
    regions = given.get("regions", "false").lower()
    if regions not in ("true", "false"):
        raise DualsegError(f"regions={given['regions']}: give true or false.")
    return BraTS2019Preparation(crop, modalities, regions == "true")


def _workers(given: str | None) -> int:
    if given is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not given.isdecimal() or int(given) < 1:
        raise DualsegError(f"workers={given}: give a number of processes, 1 or more.")
    return int(given)
