"""What cannot work whatever the volumes hold. No torch here: a mistake in the configuration must answer at once."""

from collections.abc import Sequence

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
