"""Makes the helper modules of this folder importable under pytest's importlib mode, here and in spawned processes."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def of_two_ranks(tmp_path_factory):
    """What each of two ranks makes of its half: prototypes and their presence, then R for each KEEP_FRACTIONS."""
    from loss_ranks import reduce_on_rank

    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(reduce_on_rank, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]
