"""How far the reading of a dataset is."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def with_bar(items: Sequence[Item], doing: str) -> Iterable[Item]:
    """The items, with a bar on stderr where that is a terminal and they take more than a second."""
    bar: Iterable[Item] = tqdm(items, doing, unit="volume", leave=False, delay=1, disable=None)
    return bar
