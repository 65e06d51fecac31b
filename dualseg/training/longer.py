"""continue=true: a finished run is trained on, where a longer run would have begun in the very same way."""

from collections.abc import Iterator

from dualseg.errors import DualsegError
from dualseg.methods.base import SegmentationMethod
from dualseg.runs.folder import RunFolder


def check_longer(method: SegmentationMethod, folder: RunFolder, iterations: int) -> None:
    """What the finished run has done until now is what one of `iterations` would have done.

    Args:
        method: of the longer run.
        folder: of the finished one.
        iterations: more than it has.

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
