"""What the tests of networks share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

GROUPS: list[object] = []


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone, which stays in `GROUPS`.

    A network that is parallel must not be the last to hold it: as that network goes, torch 2.13 waits for the group's
    threads with the interpreter's lock in hand, and one of them may need that lock.
    """
    assert not torch.distributed.is_initialized(), "another test left its process group open"
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    GROUPS.append(torch.distributed.group.WORLD)
    yield
    torch.distributed.destroy_process_group()
