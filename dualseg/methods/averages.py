"""Averaged networks: frozen copies that follow trained ones, a mean teacher's for example."""

import copy
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from dualseg.arguments import fraction, one_of, switch
from dualseg.errors import DualsegError

Variant = Literal["described", "averaged_buffers"]


@dataclass(frozen=True)
class Average:
    """An exponential moving average of a network, moved after each step that the method asks for.

    theta' <- d theta' + (1 - d) theta; at iteration t, d = min(1 - 1 / (t + 1), decay) with `warmup`, else `decay`.

    Attributes:
        of: name of the network that it follows.
        decay: d.
        warmup: let the average follow fast at first: a move at t = 0 is a copy.
        buffers: average floating-point buffers (BatchNorm's statistics) as well; else they are the average's own, which
            moves them in training mode, and in an iteration in which it does not run in that mode, its network's.

    Raises:
        DualsegError: a decay outside 0 to 1, or a warmup or buffers other than true or false.
    """

    of: str
    decay: float = 0.99
    warmup: bool = True
    buffers: bool = False

    def __post_init__(self) -> None:
        fraction("decay", self.decay)
        switch("warmup", self.warmup)
        switch("buffers", self.buffers)

    @classmethod
    def teacher(cls, of: str, variant: Variant, decay: float = 0.99, warmup: bool = True) -> "Average":
        """A teacher in one of the two forms that are in use.

        Args:
            variant: `described`: its weights are averaged, its BatchNorm statistics are its own, so it runs in training
                mode (SSL4MIS, UA-MT, BCP); `averaged_buffers`: both are averaged, and it runs in evaluation mode.

        Raises:
            DualsegError: another variant, or as `Average`, naming the key of `method`.
        """
        one_of("method.variant", variant, get_args(Variant))
        try:
            return cls(of, decay, warmup, buffers=variant == "averaged_buffers")
        except DualsegError as error:
            raise DualsegError(f"method.{error}") from error

    @property
    def mode(self) -> Literal["eval", "train"]:
        """The mode for `watch` in which its BatchNorm statistics fit: evaluation needs averaged ones."""
        return "eval" if self.buffers else "train"


def averaged_copy(network: nn.Module) -> nn.Module:
    """A frozen copy, to start from."""
    copied = copy.deepcopy(network)
    copied.requires_grad_(False)
    return copied


@torch.no_grad()
def move(average: nn.Module, network: nn.Module, setting: Average, iteration: int, own_buffers: bool = True) -> None:
    """Move an average once.

    Args:
        average: the averaged network, changed in place.
        network: what it follows.
        setting: how.
        iteration: t, that of the step before.
        own_buffers: without `setting.buffers`: leave its buffers as they are; else they become the network's.
    """
    decay = min(1 - 1 / (iteration + 1), setting.decay) if setting.warmup else setting.decay
    followed = network.state_dict()
    moved = {name for name, _ in average.named_parameters()}
    copied = set()
    if setting.buffers:
        moved |= {name for name, buffer in average.named_buffers() if buffer.is_floating_point()}
    elif not own_buffers:
        copied = {name for name, _ in average.named_buffers()}
    own = average.state_dict()
    # all at once: on a GPU one tensor after the other would take longer than the arithmetic
    torch._foreach_lerp_([own[name] for name in moved], [followed[name] for name in moved], 1 - decay)
    for name in copied:
        own[name].copy_(followed[name])
