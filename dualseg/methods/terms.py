"""The named terms of an objective: their defaults, what a configuration changes, their values in an iteration."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from dualseg.arguments import at_least, one_of, switch
from dualseg.errors import DualsegError
from dualseg.methods.schedules import gaussian_rampup

On = Literal["labeled", "unlabeled", "both"]
Ramp = Literal["none", "start", "run"]


@dataclass(frozen=True)
class Term:
    """Defaults of a loss term; `method.terms.NAME` of a configuration changes `weight`, `ramp` and `enabled`.

    Attributes:
        on: the patches that it is computed on.
        weight: what it is multiplied by, at the full ramp.
        ramp: `none`; `start`: up over the first `rampup_iterations`; `run`: up over the whole run.
        enabled: whether it is part of the objective.
    """

    on: On
    weight: float = 1.0
    ramp: Ramp = "none"
    enabled: bool = True

    def __post_init__(self) -> None:
        at_least("weight", self.weight, 0)
        one_of("ramp", self.ramp, ("none", "start", "run"))
        switch("enabled", self.enabled)


@dataclass(frozen=True)
class Time:
    """Where a run is: `iteration`, counted from 0, of `total`. With iteration = total every ramp is at its end."""

    iteration: int
    total: int

    def ramp(self, kind: Ramp, rampup_iterations: int) -> float:
        """Factor of a term's weight: the Gaussian ramp exp(-5 (1 - t/T)^2) of `kind`."""
        if kind == "none":
            return 1.0
        return gaussian_rampup(self.iteration, rampup_iterations if kind == "start" else self.total)


@dataclass(frozen=True)
class LossTerm:
    """The value of a term in one iteration.

    Attributes:
        name: as in `TERMS` of its method.
        network: the network that it trains; None: all of them.
        value: scalar float32, unweighted.
        weight: what it is multiplied by in the total: configured weight x ramp x what a guard says.
        support: number of voxels it is the mean of, where a mask decides that; 0 means the mask was empty.
    """

    name: str
    network: str | None
    value: Tensor
    weight: float | Tensor
    support: Tensor | int | None = None

    @property
    def key(self) -> str:
        """Name of its curve: loss/<network>/<name>, or loss/<name> where it is shared."""
        return f"loss/{self.name}" if self.network is None else f"loss/{self.network}/{self.name}"


def configured(
    defaults: Mapping[str, Term], changes: Mapping[str, Mapping[str, Any]], extras: Mapping[str, Term]
) -> dict[str, Term]:
    """The terms of a method with what `method.terms` changes of them, then the `extras`.

    Raises:
        DualsegError: no such term or setting, a setting that cannot be, or every term is off.
    """
    if not isinstance(changes, Mapping):
        raise DualsegError(f"method.terms={changes}: write method.terms.cosine.enabled=false, for example.")
    for name, change in changes.items():
        if not isinstance(change, Mapping):
            raise DualsegError(f"method.terms.{name}={change}: write method.terms.{name}.enabled=false or .weight=...")
        if name not in defaults:
            near = difflib.get_close_matches(name, defaults, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the terms are {', '.join(defaults)}."
            raise DualsegError(f"method.terms.{name}: no such loss term; {hint}")
        for key in change.keys() - {"weight", "ramp", "enabled"}:
            raise DualsegError(f"method.terms.{name}.{key}: a loss term has weight, ramp and enabled.")
    for name in extras.keys() & defaults.keys():
        raise DualsegError(f"method.terms.{name}: the method has a term of that name; give the added one another.")
    terms = {}
    for name, term in defaults.items():
        try:
            terms[name] = replace(term, **changes.get(name, {}))
        except DualsegError as error:
            raise DualsegError(f"method.terms.{name}.{error}") from error
    terms |= extras
    if terms and not any(term.enabled for term in terms.values()):
        raise DualsegError("method.terms: every term is off, so there is nothing to train on; leave one enabled.")
    return terms


def progress(terms: Sequence[LossTerm], settings: Mapping[str, Term]) -> dict[str, float]:
    """What the progress bar shows of a batch: the loss, its labeled and unlabeled part, Dice of the labeled.

    `soft_dice` is the loss term's, averaged over the networks; `dice` beside it is the last validation's.
    """
    parts: dict[str, list[float]] = {}
    for term in terms:
        on = settings[term.name].on if term.name in settings else "unlabeled"
        parts.setdefault("labeled" if on == "labeled" else "unlabeled", []).append(
            float(term.weight) * float(term.value.detach())
        )
    sums = {part: sum(values) for part, values in parts.items()}
    shown = {"loss": sum(sums.values())} | {part: sums[part] for part in ("labeled", "unlabeled") if part in sums}
    dice = [1 - float(term.value.detach()) for term in terms if term.name == "supervised_dice"]
    if dice:
        shown["soft_dice"] = sum(dice) / len(dice)
    return shown
