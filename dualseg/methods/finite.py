"""Losses that are not finite: noted on the device, so that no iteration waits for it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dualseg.errors import DualsegError
from dualseg.methods.terms import LossTerm


class FiniteLoss:
    """Notes of each iteration whether its terms were finite; `check` reads the notes."""

    def __init__(self) -> None:
        self._noted: list[tuple[int, list[str], Tensor, Sequence[str]]] = []

    def note(self, terms: Sequence[LossTerm], total: Tensor, iteration: int, cases: Sequence[str]) -> None:
        """Note an iteration. `cases`: of its batch."""
        values = torch.stack([total.detach(), *(term.value.detach() for term in terms)])
        names = [term.key.removeprefix("loss/") for term in terms]
        self._noted.append((iteration, names, values.isfinite(), cases))

    def check(self) -> None:
        """Read and forget the notes.

        Raises:
            DualsegError: a loss was not finite: the first iteration in which that was so, its terms and cases.
        """
        noted, self._noted = self._noted, []
        if not noted:
            return
        finite = torch.stack([flags[0] for _, _, flags, _ in noted]).tolist()
        if all(finite):
            return
        iteration, names, flags, cases = noted[finite.index(False)]
        bad = [name for name, good in zip(names, flags.tolist()[1:], strict=True) if not good]
        raise DualsegError(
            f"loss not finite at iteration {iteration}: {', '.join(bad) or 'total'}; cases {', '.join(cases)}. The "
            "last checkpoint is kept. Lower optimizer.lr, use trainer.precision=bf16-mixed or 32-true, check the cases."
        )
