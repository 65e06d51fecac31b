"""The guard: while pseudo-labels flood or drain, the unlabeled weight is zero."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dualseg.losses.ranks import rank_count, sum_over_ranks

LOW, HIGH = 0.25, 4.0  # what a class's share of the pseudo-labels may be, relative to its share of the labels
DECAY = 0.99


class Guard(nn.Module):
    """Compares each foreground class's share of the pseudo-labels with its share of the labels.

        r_k <- r_k + max(0.01, 1/n) (share of k in the pseudo-labels / its share in the labels - r_k)

    in the n-th iteration with pseudo-labels: the mean of the first hundred, then a moving average. So of a teacher that
    does not find k yet, r_k is 0 until it does. The guard is open while every r_k lies in [1/4, 4]. Pseudo-labels that
    flood or drain lower every unlabeled loss, so no loss shows it. Both shares are those of patches that are drawn
    anywhere; labeled patches of the batch may be drawn around the foreground. A class that the labels lack is exempt.

    Args:
        classes: K, with the background.
        acts: whether it holds weights at zero; else it only measures, each process for itself.

    Attributes:
        informed: whether it knows what to expect; until then every class is exempt.
    """

    expected: Tensor
    ratio: Tensor
    seen: Tensor

    def __init__(self, classes: int, acts: bool) -> None:
        super().__init__()
        self.acts = acts
        self.informed = False
        self.register_buffer("expected", torch.zeros(classes - 1), persistent=False)
        self.register_buffer("ratio", torch.ones(classes - 1))
        self.register_buffer("seen", torch.zeros(()))  # n

    def expect(self, shares: Tensor) -> None:
        """Set the share of each class, (K,), in labeled patches that are drawn anywhere."""
        self.expected.copy_(shares[1:])
        self.informed = True

    @torch.no_grad()
    def see(self, pseudo_label: Tensor) -> None:
        """Take in the pseudo-labels of an iteration.

        Args:
            pseudo_label: (N, W, H, D) int64, of whole patches; as many voxels on every rank.
        """
        shares = torch.stack([(pseudo_label == k).float().mean() for k in range(1, 1 + len(self.expected))])
        if self.acts:
            sum_over_ranks(shares)
            shares /= rank_count()
        known = self.expected > 0
        ratio = (shares / self.expected.where(known, 1)).where(known, 1)
        self.seen += 1
        self.ratio.lerp_(ratio, (1 / self.seen).clamp(min=1 - DECAY))

    @property
    def open(self) -> Tensor:
        """What the unlabeled weights are multiplied by: 1 or 0, a scalar on the device; 1 before anything was seen."""
        return ((self.ratio >= LOW) & (self.ratio <= HIGH)).all().float()

    @contextmanager
    def held_open(self) -> Iterator[None]:
        """A block in which it does not act, and of which it keeps nothing."""
        acts, ratio, seen = self.acts, self.ratio.clone(), self.seen.clone()
        self.acts = False
        try:
            yield
        finally:
            self.acts = acts
            self.ratio.copy_(ratio)
            self.seen.copy_(seen)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        older = f"{prefix}ratio" not in state_dict  # than the guard; one without `seen` had a moving average from 1 on
        state_dict.setdefault(f"{prefix}seen", self.seen if older else torch.full((), 1 / (1 - DECAY)))
        state_dict.setdefault(f"{prefix}ratio", self.ratio)
        super()._load_from_state_dict(state_dict, prefix, *args)
