"""Gradient audit: which loss term sends how much gradient into which network (method.md section 4)."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dualseg.data.batch import Batch
from dualseg.errors import DualsegError
from dualseg.methods.base import SegmentationMethod
from dualseg.methods.terms import LossTerm, Time

Verdict = Literal["live", "dead", "leak", "empty", "absent"]


@dataclass(frozen=True)
class AuditRow:
    """One loss term in one network's objective, over the audited batches.

    Attributes:
        term: its name; network: whose objective it belongs to (None: shared by all).
        norms: network -> largest L2 norm of the gradient of weight x value, at full ramp; empty if absent.
        empty_masks: in how many of the batches its mask was empty.
        verdict: `live`; `dead` (it is on and sends nothing where it should, in no batch); `leak` (it reaches a network
            whose objective it is no part of); `empty` (dead, and its mask was empty in every batch); `absent`.
    """

    term: str
    network: str | None
    norms: dict[str, float]
    empty_masks: int
    verdict: Verdict


def gradient_norms(method: SegmentationMethod, term: LossTerm) -> dict[str, float]:
    """Network -> L2 norm of the gradient of `term.weight * term.value` with respect to its parameters."""
    networks = {name: method.networks[name] for name in method.takes}
    if not term.value.requires_grad:
        return dict.fromkeys(networks, 0.0)
    parameters = {name: [p for p in n.parameters() if p.requires_grad] for name, n in networks.items()}
    flat = [p for group in parameters.values() for p in group]
    gradients = torch.autograd.grad(term.weight * term.value, flat, retain_graph=True, allow_unused=True)
    rest = iter(gradients)
    return {name: _norm([next(rest) for _ in group]) for name, group in parameters.items()}


def _norm(gradients: list[Tensor | None]) -> float:
    squares = [g.double().square().sum() for g in gradients if g is not None]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


def audit(method: SegmentationMethod, batches: list[Batch], max_iterations: int) -> list[AuditRow]:
    """Audit every term of the objective on `batches` at full ramp, whatever a guard says, and name the absent ones.

    Weights do not change; BatchNorm statistics and drawn voxels do, as in training. Gradients are not scaled: under
    float16 autocast weak ones would be rounded to zero.

    Raises:
        DualsegError: no batch.
    """
    if not batches:
        raise DualsegError("audit: needs at least one batch.")
    method.train()
    networks = list(method.takes)
    norms: dict[tuple[str, str | None], dict[str, float]] = {}
    empty: dict[tuple[str, str | None], int] = {}
    with method.guard.held_open() if method.guard is not None else nullcontext():
        for iteration, batch in enumerate(batches):
            method.seed_iteration(iteration)
            for term in method.loss_terms(batch, Time(max_iterations, max_iterations)):
                key = (term.name, term.network)
                largest = norms.setdefault(key, dict.fromkeys(networks, 0.0))
                for name, norm in gradient_norms(method, term).items():
                    largest[name] = max(largest[name], norm)
                empty[key] = empty.get(key, 0) + int(term.support is not None and int(term.support) == 0)
    rows = [
        AuditRow(
            term, network, values, empty[term, network], _verdict(network, values, empty[term, network], len(batches))
        )
        for (term, network), values in norms.items()
    ]
    present = {row.term for row in rows}
    absent = [AuditRow(term, None, {}, 0, "absent") for term in method.terms if term not in present]
    return rows + absent


def _verdict(network: str | None, norms: dict[str, float], empty: int, batches: int) -> Verdict:
    meant = set(norms) if network is None else {network}
    if any(not norms[name] > 0 for name in meant):
        return "empty" if empty == batches else "dead"
    if any(norms[name] > 0 for name in norms.keys() - meant):
        return "leak"
    return "live"
