"""What all training methods share: one optimizer, one step an iteration, logged loss terms, checks."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dualseg import __version__
from dualseg.errors import DualsegError
from dualseg.inference import SlidingWindow
from dualseg.methods.evaluation import NetworkEvaluation
from dualseg.methods.schedules import Schedule, step_decay

CHECKPOINT_FORMAT = 1
LABELED_TERMS = ("supervised_ce", "supervised_dice", "rectification")
DEFAULT_OPTIMIZER = partial(SGD, lr=0.01, momentum=0.9, weight_decay=1e-4)


@dataclass(frozen=True)
class LossTerm:
    """One named term of the objective.

    Attributes:
        name: as in method.md and design.md, e.g. `cross_pseudo`.
        network: the network that it trains; None: all of them.
        value: scalar float32, unweighted.
        weight: what it is multiplied by in the total: configured weight x ramp.
        support: number of voxels it is the mean of, where a mask decides that; 0 means the mask was empty.
    """

    name: str
    network: str | None
    value: Tensor
    weight: float
    support: Tensor | int | None = None

    @property
    def key(self) -> str:
        """Name of its curve: loss/<network>/<name>, or loss/<name> where it is shared."""
        return f"loss/{self.name}" if self.network is None else f"loss/{self.network}/{self.name}"


def progress(terms: Sequence[LossTerm]) -> dict[str, float]:
    """What the progress bar shows of a batch: the loss, its labeled and unlabeled part, Dice of the labeled.

    That Dice is the loss term's soft one, averaged over the networks; `dice` beside it is the last validation's.
    """
    values = [(term.name, float(term.value.detach()), term.weight) for term in terms]
    weighted = {on: sum(w * v for name, v, w in values if (name in LABELED_TERMS) == on) for on in (True, False)}
    shown = {"loss": weighted[True] + weighted[False], "labeled": weighted[True]}
    if any(name not in LABELED_TERMS for name, _, _ in values):
        shown["unlabeled"] = weighted[False]
    dice = [1 - v for name, v, _ in values if name == "supervised_dice"]
    if dice:
        shown["train_dice"] = sum(dice) / len(dice)
    return shown


class SegmentationMethod(NetworkEvaluation):
    """Base of all methods: subclass it, write `loss_terms`, and the rest is done.

    Optimisation is manual with ONE optimizer that has one parameter group per trainable network. Stepping it steps
    every network, and what Lightning counts per optimizer step stays right: `global_step` is the number of iterations,
    and under fp16 the gradient scaler checks and updates its scale once an iteration (with two optimizers the second
    would be unscaled with a scale that the first had just changed).

    Args:
        networks, class_names, sliding_window, distance_unit, regions: see `NetworkEvaluation`.
        optimizer: parameter groups -> optimizer; default SGD, lr 0.01, momentum 0.9, weight decay 1e-4.
        lr_schedule: factor of the learning rate at an iteration; default x 0.1 after 2,500/6,000 and 5,000/6,000.
        gradient_clip_norm: largest L2 norm of one network's gradient in a step; None, as in the paper: no limit. The
            contrast divides by feature norms, which dropout and ReLU can leave near zero: experiments/la_main shows
            what that does.
        seed: of dropout and of the voxels that the contrast draws.
    """

    term_names: tuple[str, ...] = ()
    """Every loss term the method knows, switched on or not."""

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        class_names: Sequence[str],
        sliding_window: SlidingWindow,
        optimizer: Callable[..., Optimizer] = DEFAULT_OPTIMIZER,
        lr_schedule: Schedule | None = None,
        gradient_clip_norm: float | None = 10.0,
        seed: int = 0,
        distance_unit: Literal["voxel", "mm"] = "voxel",
        regions: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        super().__init__(networks, class_names, sliding_window, distance_unit, regions)
        self.automatic_optimization = False
        self.optimizer = optimizer
        self.lr_schedule = lr_schedule or step_decay()
        self.gradient_clip_norm = gradient_clip_norm
        self._gradient_norms: dict[str, Tensor] = {}
        self.watched: dict[str, Tensor] = {}  # further curves of a batch, name -> scalar: `loss_terms` may fill it
        self.seed = seed

    @abstractmethod
    def loss_terms(self, batch: dict[str, Any], iteration: int, max_iterations: int) -> list[LossTerm]:
        """The objective's terms on one batch ("image" (N, C, W, H, D), "label" (N_l, W, H, D), labeled first).

        `iteration` enters the ramps alone: with iteration = max_iterations every ramp is at its full value.
        """

    def trainable_networks(self) -> dict[str, nn.Module]:
        """The networks that gradients reach; override where some are not trained (a mean teacher's, say)."""
        return dict(self.networks.items())

    def configure_optimizers(self) -> Any:
        groups = [{"params": list(n.parameters()), "name": name} for name, n in self.trainable_networks().items()]
        optimizer = self.optimizer(groups)
        total = self.trainer.max_steps
        return {"optimizer": optimizer, "lr_scheduler": LambdaLR(optimizer, lambda t: self.lr_schedule(t, total))}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        iteration, total_iterations = self.trainer.global_step, self.trainer.max_steps
        self.seed_iteration(iteration)
        optimizer = cast(LightningOptimizer, self.optimizers())
        optimizer.zero_grad()  # first: the forward passes use the gradients' memory again
        terms = self.loss_terms(batch, iteration, total_iterations)
        if not terms:
            raise DualsegError("method.terms: every term is off, so there is nothing to train on; leave one enabled.")
        total = torch.stack([term.weight * term.value for term in terms]).sum()
        if not torch.isfinite(total):
            self._stop_not_finite(terms, iteration, batch["case"])
        rate = float(optimizer.param_groups[0]["lr"])  # before the schedule moves on
        self.manual_backward(total)
        optimizer.step()
        cast(LambdaLR, self.lr_schedulers()).step()
        if iteration == 0 or (iteration + 1) % self.log_every == 0:
            values = {"loss/total": total.detach(), **{term.key: term.value.detach() for term in terms}}
            values |= {f"gradient_norm/{name}": norm for name, norm in self._gradient_norms.items()} | self.watched
            curves = {name: float(value) for name, value in values.items()}
            self.log_curves({**curves, **self.ramps(iteration, total_iterations), "lr": rate})
            self.log_dict(progress(terms), prog_bar=True, logger=False)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Limit each network's gradient on its own. Under fp16 Lightning calls this after unscaling."""
        limit = torch.inf if self.gradient_clip_norm is None else self.gradient_clip_norm
        for group in optimizer.param_groups:
            self._gradient_norms[group["name"]] = torch.nn.utils.clip_grad_norm_(group["params"], limit)

    @property
    def log_every(self) -> int:
        """Iterations between two points of the curves: the trainer's `log_every_n_steps`."""
        return cast(int, getattr(self.trainer, "log_every_n_steps"))  # noqa: B009 - Lightning sets it untyped

    def ramps(self, iteration: int, max_iterations: int) -> dict[str, float]:
        """Curves `ramp/<name>` of the method's time-dependent weights; none by default."""
        return {}

    def seed_iteration(self, iteration: int) -> None:
        """Make this iteration's random numbers a function of (seed, iteration, rank) alone, whatever ran before it.

        So a resumed run draws what the uninterrupted one would have drawn, and no generator state needs saving.
        """
        state = np.random.SeedSequence((self.seed, 3, iteration, self.global_rank)).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0] >> np.uint64(1)))

    def _stop_not_finite(self, terms: Sequence[LossTerm], iteration: int, cases: Sequence[str]) -> None:
        bad = [term.key.removeprefix("loss/") for term in terms if not torch.isfinite(term.value)]
        raise DualsegError(
            f"loss not finite at iteration {iteration}: {', '.join(bad) or 'total'}; cases {', '.join(cases)}. The "
            "last checkpoint is kept. Lower optimizer.lr, use trainer.precision=bf16-mixed or 32-true, check the cases."
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["dualseg"] = {"format": CHECKPOINT_FORMAT, "version": __version__}
