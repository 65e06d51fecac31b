"""What all processes of a distributed training know together; one process alone is rank 0 of 1."""

import torch
from torch import Tensor, distributed


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def own_rank() -> int:
    """The number of this process."""
    return distributed.get_rank() if _is_distributed() else 0


def rank_count() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if _is_distributed() else 1


def sum_over_ranks(tensor: Tensor) -> None:
    """Add the tensors of all ranks, in place; of the same shape on every rank. No gradient."""
    if _is_distributed():
        distributed.all_reduce(tensor)


def of_all_ranks(tensor: Tensor) -> list[Tensor]:
    """The tensors of all ranks in their order; of the same shape on every rank. No gradient."""
    if not _is_distributed():
        return [tensor]
    tensors = [torch.empty_like(tensor) for _ in range(distributed.get_world_size())]
    distributed.all_gather(tensors, tensor.contiguous())
    return tensors
