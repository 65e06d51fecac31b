"""What cannot work whatever the volumes hold. No torch here: a mistake in the configuration must answer at once."""

from typing import Any

from dualseg.data.splits import Split
from dualseg.errors import DualsegError


def check_batch(labeled: int, unlabeled: int, split: Split) -> None:
    """Raises: DualsegError unless `split` has cases for both halves of the batch."""
    if labeled < 0 or unlabeled < 0 or labeled + unlabeled == 0:
        raise DualsegError(f"batch.labeled={labeled}, batch.unlabeled={unlabeled}: give at least one patch.")
    if labeled and unlabeled and not split.unlabeled:
        raise DualsegError(
            f"data.labeled={len(split.labeled)}: leaves no unlabeled volume, but the method takes {unlabeled} per "
            "batch; lower data.labeled, or train on labels alone: method=supervised, or batch.unlabeled=0 with bcp."
        )


def check_mix(labeled: int, processes: int = 1) -> None:
    """Raises: DualsegError unless each process has none, or two labeled patches at least to mix with one another."""
    if 0 < labeled < 2 * processes:
        each = f" {processes} processes," if processes > 1 else ""
        raise DualsegError(
            f"batch.labeled={labeled}:{each} augmentation.mix=true mixes labeled patches with one another; give at "
            f"least {2 * processes}, or augmentation.mix=false."
        )


def check_mirror_axes(axes: Any) -> None:
    """Raises: DualsegError unless this is `auto` or a list of axes, each once."""
    whole = isinstance(axes, list) and all(type(axis) is int and 0 <= axis <= 2 for axis in axes)
    if axes != "auto" and not (whole and len({*axes}) == len(axes)):
        raise DualsegError(
            f"data.augmentation.mirror_axes={axes}: give auto, or a list of axes such as [0,1,2]; 0 is from right to "
            "left, [] mirrors nothing."
        )
