"""What cannot work whatever the volumes hold. No torch here: a mistake in the configuration must answer at once."""

from collections.abc import Sequence
from typing import Any

from dualseg.data.splits import Split
from dualseg.errors import DualsegError

PATCH_MULTIPLE = 16  # the networks halve a patch four times


def check_patch_size(patch_size: Sequence[int]) -> None:
    """Raises: DualsegError unless these are three positive multiples of 16."""
    if len(patch_size) != 3 or any(size < 1 or size % PATCH_MULTIPLE for size in patch_size):
        mend = [max(PATCH_MULTIPLE, round(size / PATCH_MULTIPLE) * PATCH_MULTIPLE) for size in patch_size][:3]
        mend += [PATCH_MULTIPLE] * (3 - len(mend))
        raise DualsegError(f"data.patch_size={list(patch_size)}: needs three multiples of 16, for example {mend}.")


def check_batch(labeled: int, unlabeled: int, split: Split) -> None:
    """Raises: DualsegError unless `split` has cases for both halves of the batch."""
    if labeled < 0 or unlabeled < 0 or labeled + unlabeled == 0:
        raise DualsegError(f"batch.labeled={labeled}, batch.unlabeled={unlabeled}: give at least one patch.")
    if labeled and unlabeled and not split.unlabeled:
        raise DualsegError(
            f"data.labeled={len(split.labeled)}: leaves no unlabeled volume, but the method takes {unlabeled} per "
            "batch; lower data.labeled or use method=supervised."
        )


def check_mix(labeled: int) -> None:
    """Raises: DualsegError unless there are two labeled patches at least to mix with one another."""
    if labeled < 2:
        raise DualsegError(
            f"batch.labeled={labeled}: augmentation.mix=true mixes labeled patches with one another; give at least 2 "
            "for each process, or augmentation.mix=false."
        )


def check_mirror_axes(axes: Any) -> None:
    """Raises: DualsegError unless this is `auto` or a list of axes, each once."""
    whole = isinstance(axes, list) and all(type(axis) is int and 0 <= axis <= 2 for axis in axes)
    if axes != "auto" and not (whole and len({*axes}) == len(axes)):
        raise DualsegError(
            f"data.augmentation.mirror_axes={axes}: give auto, or a list of axes such as [0,1,2]; 0 is from right to "
            "left, [] mirrors nothing."
        )
