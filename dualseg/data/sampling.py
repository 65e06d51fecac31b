"""Which case stands where in which batch: a pure function of (seed, iteration, position in the global batch)."""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class SampleKey(NamedTuple):
    """One sample of the run: `position` counts through the global batch, labeled samples first."""

    iteration: int
    position: int


@lru_cache(maxsize=8)
def _permutation(seed: int, stream: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, stream, epoch)).permutation(count)


def case_index(seed: int, stream: int, draw: int, count: int) -> int:
    """The case at place `draw` of an endless stream of shuffled passes over `count` cases.

    Every case comes once before any comes again; streams (0 labeled, 1 unlabeled) are shuffled independently.
    """
    epoch, offset = divmod(draw, count)
    return int(_permutation(seed, stream, epoch, count)[offset])


def sample_seed(seed: int, key: SampleKey) -> int:
    """32-bit seed of one sample's random transforms."""
    return int(np.random.SeedSequence((seed, 2, key.iteration, key.position)).generate_state(1)[0])


def foreground_generator(seed: int, key: SampleKey) -> np.random.Generator:
    """Of the draw whether, and around which voxel of the foreground, a patch is cut: apart from its transforms."""
    return np.random.default_rng((seed, 4, key.iteration, key.position))


class IterationBatchSampler(Sampler[list[SampleKey]]):
    """Yields this rank's share of every global batch from iteration `start` to the end of the run.

    Both halves are dealt out by position (rank, rank + world_size, ...), so that ranks partition the batch that one
    process would have drawn. Its length is the whole run's, also when it starts later: Lightning counts on from the
    iterations a checkpoint has behind it.

    Args:
        labeled, unlabeled: size of the halves of the global batch.
        start, stop: first iteration, and the one after the last.
    """

    def __init__(self, labeled: int, unlabeled: int, start: int, stop: int, rank: int = 0, world_size: int = 1) -> None:
        self.positions = [*range(rank, labeled, world_size), *range(labeled + rank, labeled + unlabeled, world_size)]
        self.start, self.stop = start, stop

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for iteration in range(self.start, self.stop):
            yield [SampleKey(iteration, position) for position in self.positions]

    def __len__(self) -> int:
        return self.stop
