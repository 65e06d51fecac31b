"""Loss terms that any method can switch on (`+term=NAME`): what a term of its own brings along."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, cast

from torch import Tensor, nn

from dualseg.data.batch import Batch
from dualseg.errors import DualsegError
from dualseg.methods.terms import LossTerm, On, Ramp, Term, Time

if TYPE_CHECKING:
    from dualseg.methods.base import SegmentationMethod


class ExtraTerm(nn.Module, ABC):
    """A term beside a method's own, with the modules it needs: subclass it and write `build` and `terms`.

    A configuration adds it as `method.terms.NAME: {_target_: ..., weight: ...}`. Its parameters are trained, clipped,
    saved and resumed as a head of the method; a prototype or another state is a buffer. With several processes every
    parameter must get a gradient in every iteration, if only 0. Under a method that gives its network mixed or changed
    images (bcp, rcps, semsim), it costs one more pass of the whole batch, in training mode: `method.view` is of the
    batch as it came.

    Args:
        weight: what the term is multiplied by, at the full ramp.
        ramp: of the weight: none; start, over the first rampup_iterations; run, over the whole run.
        enabled: whether it is part of the objective.

    Raises:
        DualsegError: one of them cannot be. The message begins with KEY=VALUE, without `method.terms.NAME`.
    """

    on: ClassVar[On] = "unlabeled"

    def __init__(self, weight: float, ramp: Ramp = "none", enabled: bool = True) -> None:
        super().__init__()
        self.setting = Term(self.on, weight, ramp, enabled)

    @abstractmethod
    def build(self, method: SegmentationMethod) -> None:
        """Make the modules and buffers, knowing the method's networks and classes. Called once, where it is enabled."""

    @abstractmethod
    def terms(self, method: SegmentationMethod, name: str, batch: Batch, time: Time) -> Iterator[LossTerm]:
        """The term of each network of `method.takes`: `method.term(name, ...)`, on `method.view(network)`."""


def feature_channels(method: SegmentationMethod, network: str, needed_by: str) -> int:
    """F of a network's features.

    Raises:
        DualsegError: the network does not say.
    """
    module = method.networks[network]
    if not hasattr(module, "feature_channels"):
        raise DualsegError(
            f"networks.{network}: {needed_by} needs the network's attribute feature_channels (int), the channels of "
            f"its features; {type(module).__name__} has none."
        )
    return cast(int, module.feature_channels)


def voxel_rows(volumes: Tensor, voxels: Tensor) -> Tensor:
    """What (N, C, W, H, D) holds at voxels, flat indices (m,) into N W H D: (m, C) float32."""
    flat = volumes.flatten(2)
    size = flat.shape[2]
    return flat[voxels // size, :, voxels % size].float()
