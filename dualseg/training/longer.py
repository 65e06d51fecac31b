"""continue=true: a run is trained on to another length, where one of that length would have begun in the same way."""

from collections.abc import Iterator

from dualseg.errors import DualsegError
from dualseg.methods.base import SegmentationMethod
from dualseg.runs.folder import RunFolder


def check_longer(method: SegmentationMethod, folder: RunFolder, iterations: int) -> None:
    """What the run has done until now is what one of `iterations` would have done.

    Args:
        method: of the run at that length.
        folder: of the run.
        iterations: more than it has behind it.

    Raises:
        DualsegError: the learning rate or the objective follows the length of the run.
    """
    before = folder.config()["trainer"]["max_iterations"]
    if keys := list(_followers(method, before, iterations)):
        raise DualsegError(
            f"{folder.path}: continue=true: a run of {iterations} iterations would not have begun as this one of "
            f"{before} did, since {', '.join(keys)} follow{'s' * (len(keys) == 1)} its length. Start another "
            f"run from its networks: weights={folder.path} name=..."
        )


def _followers(method: SegmentationMethod, before: int, iterations: int) -> Iterator[str]:
    rate = method.lr_schedule
    if any(rate(iteration, before) != rate(iteration, iterations) for iteration in range(before)):
        yield "lr_schedule"
    yield from method.follow_length()
