"""One rank of the distributed test: a module that a spawned process can import."""

import torch
from loss_derivations import random_labels, random_logits
from torch import distributed

from dualseg.losses import class_prototypes, reliable_voxels

KEEP_FRACTIONS = (0.2, 0.5, 0.8)


def distributed_half(rank):
    """Rank 1 has no class 1 and four times as many reliable voxels of class 0 as rank 0; class 3 is nowhere."""
    features = random_logits(20 + rank, 5, torch.float32)
    fused = random_labels(30 + rank, 3)
    if rank == 1:
        fused = fused.where(fused != 1, 0)
    reliable = random_labels(40, 5) < (1, 4)[rank]
    return features, fused, reliable


def distributed_entropies(rank):
    """Of both networks, much alike; rank 1's are higher, so that the most uncertain fifth of the whole lies there."""
    entropy_a = random_logits(50 + rank, 1, torch.float32)[:, 0].abs() + 2 * rank
    return entropy_a, entropy_a + random_labels(60 + rank, 3) / 2


def reduce_on_rank(rank, folder):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    prototypes = class_prototypes(*distributed_half(rank), 4)
    reliable = [reliable_voxels(*distributed_entropies(rank), keep) for keep in KEEP_FRACTIONS]
    torch.save((*prototypes, *reliable), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()
