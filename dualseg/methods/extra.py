"""Loss terms that any method can switch on (`+term=NAME`): what a term of its own brings along."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Protocol

from torch import Tensor, nn

from dualseg.data.batch import Batch
from dualseg.methods.terms import LossTerm, On, Ramp, Term, Time
from dualseg.methods.view import View


class Host(Protocol):
    """What a term may ask of the method that it is added to: any `SegmentationMethod`, which says what each means."""

    takes: ClassVar[tuple[str, ...]]
    class_names: tuple[str, ...]

    def feature_channels(self, network: str, needed_by: str) -> int: ...

    def view(self, network: str) -> View: ...

    def see(self, network: str, image: Tensor) -> View: ...

    def term(self, name: str, network: str | None, value: Tensor, support: Tensor | int | None = None) -> LossTerm: ...


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
    def build(self, method: Host) -> None:
        """Make the modules and buffers, knowing the method's networks and classes. Called once, where it is enabled."""

    @abstractmethod
    def terms(self, method: Host, name: str, batch: Batch, time: Time) -> Iterator[LossTerm]:
        """The term of each network of `method.takes`: `method.term(name, ...)`, on `method.view(network)`."""


def voxel_rows(volumes: Tensor, voxels: Tensor) -> Tensor:
    """What (N, C, W, H, D) holds at voxels, flat indices (m,) into N W H D: (m, C) float32."""
    flat = volumes.flatten(2)
    size = flat.shape[2]
    return flat[voxels // size, :, voxels % size].float()
