"""Schedules: pure functions of the iteration t and the length T of the run."""

import math
from collections.abc import Callable, Sequence

from dualseg.errors import DualsegError

Schedule = Callable[[int, int], float]
"""(iteration, max_iterations) -> factor."""


def gaussian_rampup(iteration: int, length: int) -> float:
    """exp(-5 (1 - min(t, T) / T)^2), from exp(-5) to 1 over `length` iterations; 1 throughout if `length` is 0."""
    if length == 0:
        return 1.0
    return math.exp(-5.0 * (1.0 - min(iteration, length) / length) ** 2)


def step_decay(milestones: Sequence[float] = (2500 / 6000, 5000 / 6000), factor: float = 0.1) -> Schedule:
    """Multiply the learning rate by `factor` after each milestone.

    Args:
        milestones: iterations (whole numbers > 1) or fractions of the run (0 < m <= 1).

    Raises:
        DualsegError: a milestone that is neither.
    """
    for milestone in milestones:
        if milestone <= 0 or (milestone > 1 and milestone != int(milestone)):
            raise DualsegError(f"lr_schedule.milestones: {milestone} is neither an iteration nor a fraction in (0, 1].")

    def schedule(iteration: int, max_iterations: int) -> float:
        passed = sum(iteration >= (round(m * max_iterations) if m <= 1 else m) for m in milestones)
        return factor**passed

    return schedule


def polynomial_decay(power: float = 0.9) -> Schedule:
    """(1 - t / T)^power."""
    return lambda iteration, max_iterations: (1.0 - min(iteration, max_iterations) / max_iterations) ** power


def constant() -> Schedule:
    """1 throughout."""
    return lambda iteration, max_iterations: 1.0
