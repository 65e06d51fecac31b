"""What all training methods share: one optimizer, one step an iteration, logged loss terms, averages, checks."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dualseg import __version__
from dualseg.arguments import at_least, positive, switch
from dualseg.data.batch import Batch
from dualseg.data.checks import check_mix
from dualseg.errors import DualsegError
from dualseg.inference import SlidingWindow
from dualseg.losses import over_scales, supervised_ce, supervised_dice
from dualseg.methods.averages import Average, averaged_copy, move
from dualseg.methods.compiling import CompiledNetwork, next_iteration
from dualseg.methods.evaluation import NetworkEvaluation
from dualseg.methods.extra import ExtraTerm
from dualseg.methods.finite import FiniteLoss
from dualseg.methods.first_pass import explain_first_pass
from dualseg.methods.guard import Guard
from dualseg.methods.schedules import Schedule, step_decay
from dualseg.methods.terms import LossTerm, Term, Time, configured, progress
from dualseg.methods.view import View
from dualseg.networks import PlannedUNet
from dualseg.record import roles_of
from dualseg.views import Augmentation

CHECKPOINT_FORMAT = 1
DEFAULT_OPTIMIZER = partial(SGD, lr=0.01, momentum=0.9, weight_decay=1e-4)


class SegmentationMethod(NetworkEvaluation):
    """Base of all methods: subclass it, write `objective`, and the rest is done.

    Optimisation is manual with ONE optimizer that has one parameter group per network and head. Stepping it steps
    every network, and what Lightning counts per optimizer step stays right: `global_step` is the number of iterations,
    and under fp16 the gradient scaler checks and updates its scale once an iteration (with two optimizers the second
    would be unscaled with a scale that the first had just changed).

    Args:
        networks: name -> network that returns a `SegmentationOutput`; those that `takes` names.
        class_names, sliding_window, distance_unit, regions: see `NetworkEvaluation`.
        optimizer: parameter groups -> optimizer; default SGD, lr 0.01, momentum 0.9, weight decay 1e-4.
        lr_schedule: factor of the learning rate at an iteration; default x 0.1 after 2,500/6,000 and 5,000/6,000.
        gradient_clip_norm: largest L2 norm of the gradient of one network or head in a step; None, as in the paper: no
            limit. The contrast divides by feature norms, which dropout and ReLU can leave near zero:
            experiments/la_main shows what that does.
        terms: name -> {"weight", "ramp", "enabled"}; what is not named keeps its default (`TERMS`). Under another name
            an `ExtraTerm` is added.
        rampup_iterations: length of the ramp `start`, as a float up to 1.0 its share of the run; None is a tenth of the
            run, 0 is no ramp.
        seed: of dropout and of what a method draws.
        augmentation: of every batch before the objective sees it; None: none.
        guard: whether a `Guard` may hold the weight of the unlabeled terms at zero; where it may not, it measures.

    Attributes:
        heads: further trained modules of the method's own, by name: filled in its constructor. They are trained,
            clipped, saved and resumed as networks are.
        watched: further curves of a batch, name -> scalar: `objective` may fill it.

    Raises:
        DualsegError: networks other than `takes`; a term or setting that cannot be.
    """

    takes: ClassVar[tuple[str, ...]] = ("a",)
    """Names of the networks that the configuration gives."""
    averages: Mapping[str, Average] = MappingProxyType({})
    """Name of each averaged network -> what it follows, and how."""
    record: str | None = None
    """The prediction that stands for a run: a network, an average, or `ensemble`; None: the only network of `takes`, or
    their ensemble."""
    TERMS: ClassVar[Mapping[str, Term]] = MappingProxyType({})
    """Every loss term the method knows; reports show them in this order."""
    deep_supervision: ClassVar[bool] = True
    """Whether the objective trains the coarser logits of planned networks, as `supervised` does; else they give none,
    and what makes them is frozen."""
    mixes: ClassVar[bool] = False
    """Whether it mixes labeled patches itself, so that `augmentation.mix` does not do it once more."""
    pseudo_labels: ClassVar[bool] = False
    """Whether the objective calls `note_pseudo_labels`."""
    head_settings: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
    """Head -> settings of the optimizer that are its own, such as {"lr": 1e-4}."""

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        class_names: Sequence[str],
        sliding_window: SlidingWindow,
        optimizer: Callable[..., Optimizer] = DEFAULT_OPTIMIZER,
        lr_schedule: Schedule | None = None,
        gradient_clip_norm: float | None = 10.0,
        terms: Mapping[str, Mapping[str, Any] | ExtraTerm] | None = None,
        rampup_iterations: float | None = None,
        seed: int = 0,
        distance_unit: Literal["voxel", "mm"] = "voxel",
        regions: Mapping[str, Sequence[int]] | None = None,
        augmentation: Augmentation | None = None,
        guard: bool = False,
    ) -> None:
        if sorted(networks) != sorted(self.takes):
            wanted = " and ".join(self.takes)
            spare = [f"networks.{name}=null" for name in sorted({*networks} - {*self.takes})]
            raise DualsegError(
                f"networks: {type(self).__name__} takes {wanted}, not {sorted(networks)}; choose another networks=..."
                + (f", or give {' '.join(spare)}" if spare else "")
            )
        for network in networks.values():
            if isinstance(network, PlannedUNet) and not self.deep_supervision:
                network.supervise_scales(False)
        notes = {"averages": {name: average.of for name, average in self.averages.items()}, "record": self.record}
        noted = {key: value for key, value in notes.items() if value is not None}
        roles = roles_of(noted, self.takes, type(self).__name__)
        copies = {name: averaged_copy(networks[average.of]) for name, average in self.averages.items()}
        super().__init__(
            {**networks, **copies},
            class_names,
            sliding_window,
            distance_unit,
            regions,
            roles,
        )
        self.automatic_optimization = False
        positive("method.gradient_clip_norm", gradient_clip_norm, "null for no limit")
        if rampup_iterations is not None:
            at_least("method.rampup_iterations", rampup_iterations, 0)
        self.optimizer = optimizer
        self.lr_schedule = lr_schedule or step_decay()
        self.gradient_clip_norm = gradient_clip_norm
        self.extras = {name: term for name, term in (terms or {}).items() if isinstance(term, ExtraTerm)}
        own = {name: term for name, term in (terms or {}).items() if not isinstance(term, ExtraTerm)}
        self.terms = configured(self.TERMS, own, {name: extra.setting for name, extra in self.extras.items()})
        self.rampup_iterations = 0.1 if rampup_iterations is None else rampup_iterations
        self.seed = seed
        if augmentation is not None and self.mixes:  # once is enough
            augmentation = Augmentation(augmentation.intensity) if augmentation.intensity else None
        self.augmentation = augmentation
        switch("method.guard", guard)
        if guard and not self.pseudo_labels:
            raise DualsegError(f"method.guard=true: {type(self).__name__} has no pseudo-labels to watch; leave it out.")
        self.guard = Guard(len(self.class_names), guard) if self.pseudo_labels else None
        self.heads = nn.ModuleDict()
        self.watched: dict[str, Tensor] = {}
        self._gradient_norms: dict[str, Tensor] = {}
        self._finite = FiniteLoss()
        self._time = Time(0, 1)
        self._autocast = False
        self._image: Tensor | None = None
        self._seen: dict[str, View] = {}
        self._in_training: set[str] = set()
        self._passed: set[str] = set()  # networks that have taken patches
        self._compiled: dict[str, CompiledNetwork] = {}
        for name, extra in self.extras.items():
            if extra.setting.enabled:
                extra.build(self)
                self.heads[name] = extra

    # What a method writes

    @abstractmethod
    def objective(self, batch: Batch, time: Time) -> Iterator[LossTerm]:
        """The terms on one batch, with autocast off: `see` and `watch` switch it on around a network alone.

        On a GPU nothing here may wait for the device: no `item`, no boolean index, no branch on a tensor's value.
        """

    def check_batch(self, labeled: int, unlabeled: int) -> None:
        """Whether every term that is on has patches.

        Args:
            labeled, unlabeled: patches in a batch.

        Raises:
            DualsegError: naming those that have none.
        """
        for role, count in (("labeled", labeled), ("unlabeled", unlabeled)):
            without = [name for name, term in self.terms.items() if term.enabled and term.on == role]
            if without and not count:
                off = " ".join(f"method.terms.{name}.enabled=false" for name in without)
                fix = f"give at least 1, or switch off what has none: {off}"
                raise DualsegError(f"batch.{role}=0: leaves no patch for {', '.join(without)}; {fix}.")

    def moving_averages(self, time: Time) -> Mapping[str, Average]:
        """The averages that move after this iteration's step, and how; all, as `averages` says, unless a method knows
        better."""
        return self.averages

    def follow_length(self) -> Iterator[str]:
        """Keys of the configuration by which an iteration depends on how long the run is: with one of them a finished
        run cannot be trained on (`continue=true`)."""
        ramps = {name: term.ramp for name, term in self.terms.items() if term.enabled}
        if "start" in ramps.values() and self._ramp_is_share:
            yield "method.rampup_iterations"
        yield from (f"method.terms.{name}.ramp" for name, ramp in ramps.items() if ramp == "run")

    # What it writes it with

    def on(self, *names: str) -> bool:
        """Whether any of these terms is switched on."""
        return any(self.terms[name].enabled for name in names)

    def term(self, name: str, network: str | None, value: Tensor, support: Tensor | int | None = None) -> LossTerm:
        """A term of `TERMS` with its weight at this time: configured weight x ramp, 0 where the guard says so."""
        setting = self.terms[name]
        weight: float | Tensor = setting.weight * self.ramp(setting.ramp)
        if setting.on == "unlabeled" and self.guard is not None and self.guard.acts:
            weight = weight * self.guard.open
        return LossTerm(name, network, value, weight, support)

    def note_pseudo_labels(self, *labels: Tensor) -> None:
        """Tell the guard of this iteration's pseudo-labels, before the terms that they are for.

        Args:
            labels: (N, W, H, D) int64 each, of whole unlabeled patches; N may be 0.
        """
        assert self.guard is not None, "pseudo_labels = True"
        label = torch.cat(labels)
        if not len(label):
            return
        self.guard.see(label)
        if self.guard.informed:
            names = (f"pseudo_share/{name}" for name in self.class_names[1:])
            self.watched |= dict(zip(names, self.guard.ratio.clone().unbind(), strict=True))

    def ramp(self, kind: Literal["none", "start", "run"]) -> float:
        """The ramp of that kind at this time."""
        length = self.rampup_iterations
        return self._time.ramp(kind, int(length * self._time.total if self._ramp_is_share else length))

    @property
    def _ramp_is_share(self) -> bool:
        return isinstance(self.rampup_iterations, float) and self.rampup_iterations <= 1

    def supervised(self, network: str, view: View, label: Tensor) -> Iterator[LossTerm]:
        """The terms `supervised_ce` and `supervised_dice` of a network's view of labeled patches.

        Cross-entropy is the mean over voxels, Dice that over the foreground classes. Of a network with coarser logits
        both are means over its scales, see `over_scales`.
        """
        scales = [view, *view.coarser]
        if self.on("supervised_ce"):
            log_p = [scale.log_p for scale in scales]
            yield self.term("supervised_ce", network, over_scales(supervised_ce, log_p, label))
        if self.on("supervised_dice"):
            p = [scale.p for scale in scales]
            yield self.term("supervised_dice", network, over_scales(supervised_dice, p, label))

    def feature_channels(self, network: str, needed_by: str) -> int:
        """F of a network's features.

        Raises:
            DualsegError: the network does not say; the message names `needed_by`.
        """
        module = self.networks[network]
        if not hasattr(module, "feature_channels"):
            raise DualsegError(
                f"networks.{network}: {needed_by} needs the network's attribute feature_channels (int), the channels "
                f"of its features; {type(module).__name__} has none."
            )
        return cast(int, module.feature_channels)

    def see(self, network: str, image: Tensor) -> View:
        """A network's output on (N, C, W, H, D), with gradient, in the run's precision; float32 afterwards."""
        kind = image.device.type
        with torch.autocast(kind, dtype=torch.get_autocast_dtype(kind), enabled=self._autocast):
            try:
                output = self._compiled.get(network, self.networks[network])(image)
            except (RuntimeError, ValueError, ImportError) as error:
                if network not in self._passed:
                    explain_first_pass(error, network, self.networks[network], image)
                raise
        self._passed.add(network)
        view = View.of(output)
        if image is self._image and torch.is_grad_enabled():
            self._seen[network] = view
        return view

    def view(self, network: str) -> View:
        """What `see` gives of the whole batch as it came, seen once however often it is asked for."""
        if network not in self._seen:
            assert self._image is not None, "inside an objective"
            self.see(network, self._image)
        return self._seen[network]

    def watch(self, network: str, image: Tensor, mode: Literal["eval", "train"] | None = None) -> View:
        """`see` without gradient.

        Args:
            network, image: as of `see`.
            mode: `train` keeps dropout and batch statistics, `eval` does not; None: an average's own (`Average.mode`),
                `eval` of another network.
        """
        if mode is None:
            mode = self.averages[network].mode if network in self.averages else "eval"
        module = self.networks[network]
        if mode == "train":
            self._in_training.add(network)
        before = module.training
        module.train(mode == "train")
        try:
            with torch.no_grad():
                return self.see(network, image)
        finally:
            module.train(before)

    # What runs it

    def compile_networks(self, required: bool = True) -> None:
        """From now on `see` and `watch` use compiled networks; evaluation does not.

        Args:
            required: see `CompiledNetwork`.
        """
        self._compiled = {name: CompiledNetwork(name, network, required) for name, network in self.networks.items()}

    def loss_terms(self, batch: Batch, time: Time) -> list[LossTerm]:
        """The objective's terms on one batch. `time` enters the ramps alone, unless the method says otherwise."""
        self._time = time
        kind = batch.image.device.type
        self._autocast = torch.is_autocast_enabled(kind)
        self._image, self._seen, self._in_training = batch.image, {}, set()
        with torch.autocast(kind, enabled=False):
            terms = list(self.objective(batch, time))
            for name, extra in self.extras.items():
                if extra.setting.enabled:
                    terms += extra.terms(self, name, batch, time)
        self._image, self._seen = None, {}  # their memory is the backward pass's
        if not terms:
            on = ", ".join(name for name, term in self.terms.items() if term.enabled)
            raise DualsegError(
                f"method.terms: none of {on} has a value at iteration {time.iteration}; switch on one that has."
            )
        return terms

    def trained(self) -> dict[str, nn.Module]:
        """What gradients reach: the networks of `takes`, and the heads.

        Raises:
            DualsegError: a head is named as a network is.
        """
        if twice := self.networks.keys() & self.heads.keys():
            raise DualsegError(f"{type(self).__name__}: a head and a network are named {', '.join(sorted(twice))}.")
        return {name: self.networks[name] for name in self.takes} | dict(self.heads.items())

    def configure_optimizers(self) -> Any:
        trained = self.trained()
        if unknown := sorted({*self.head_settings} - {*trained}):
            raise DualsegError(f"{type(self).__name__}.head_settings: no head is named {', '.join(unknown)}.")
        groups = [
            {"params": list(module.parameters()), "name": name, **self.head_settings.get(name, {})}
            for name, module in trained.items()
            if any(True for _ in module.parameters())
        ]
        optimizer = self.optimizer(groups)
        total = self.trainer.max_steps
        return {"optimizer": optimizer, "lr_scheduler": LambdaLR(optimizer, lambda t: self.lr_schedule(t, total))}

    def on_fit_start(self) -> None:
        shares_of = self.offered("class_shares")
        if self.guard is not None and shares_of is not None:
            self.guard.expect(shares_of())
        elif self.guard is not None and self.guard.acts:
            raise DualsegError(
                "method.guard=true needs the shares of the classes: fit with a datamodule that has class_shares(), as "
                "SemiSupervisedDataModule, or set method.guard=false."
            )

    def offered(self, name: str) -> Any:
        """What the run's datamodule has of that name; None: nothing."""
        return getattr(getattr(self.trainer, "datamodule", None), name, None)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        time = Time(self.trainer.global_step, self.trainer.max_steps)
        self.seed_iteration(time.iteration)
        optimizer = cast(LightningOptimizer, self.optimizers())
        optimizer.zero_grad()  # first: the forward passes use the gradients' memory again
        if self._compiled:
            next_iteration()
        if self.augmentation is not None:
            batch = self._augmented(batch, time.iteration, self.augmentation)
        terms = self.loss_terms(batch, time)
        total = torch.stack([term.weight * term.value for term in terms]).sum()
        self._finite.note(terms, total, time.iteration, batch.case)
        rate = float(optimizer.param_groups[0]["lr"])  # before the schedule moves on
        self.manual_backward(total)
        optimizer.step()
        cast(LambdaLR, self.lr_schedulers()).step()
        for name, average in self.moving_averages(time).items():
            move(self.networks[name], self.networks[average.of], average, time.iteration, name in self._in_training)
        if time.iteration == 0 or (time.iteration + 1) % self.log_every == 0:
            self._log(terms, total.detach(), rate)

    def _augmented(self, batch: Batch, iteration: int, augmentation: Augmentation) -> Batch:
        """The batch as the objective sees it; in float32 throughout.

        Raises:
            DualsegError: too few labeled patches to mix, as may be one in each of several processes.
        """
        if augmentation.mix:
            check_mix(len(batch.label))
        rng = np.random.default_rng((self.seed, 5, iteration, self.global_rank))
        with torch.autocast(batch.image.device.type, enabled=False):
            image, label = augmentation(batch.image, batch.label, rng)
        return batch._replace(image=image, label=label)

    def _log(self, terms: Sequence[LossTerm], total: Tensor, rate: float) -> None:
        self.check_finite()
        values = {"loss/total": total, **{term.key: term.value.detach() for term in terms}}
        values |= {f"gradient_norm/{name}": norm for name, norm in self._gradient_norms.items()} | self.watched
        if self.guard is not None and self.guard.acts:
            values["guard/open"] = self.guard.open
        kinds = dict.fromkeys(self.terms[term.name].ramp for term in terms if term.name in self.terms)
        ramps = {f"ramp/{kind}": self.ramp(kind) for kind in kinds if kind != "none"}
        self.log_curves({name: float(value) for name, value in values.items()} | ramps | {"lr": rate})
        shown = progress(terms, self.terms)
        if self.guard is not None and self.guard.acts:
            shown["guard_open"] = float(self.guard.open)
        self.log_dict(shown, prog_bar=True, logger=False)

    def check_finite(self) -> None:
        """Look whether every loss so far was finite. The device is asked here alone, at log points and before saving.

        Raises:
            DualsegError: one was not; which, when, on which cases.
        """
        self._finite.check()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Limit the gradient of each network and head on its own. Under fp16 Lightning calls this after unscaling."""
        limit = torch.inf if self.gradient_clip_norm is None else self.gradient_clip_norm
        for group in optimizer.param_groups:
            self._gradient_norms[group["name"]] = torch.nn.utils.clip_grad_norm_(group["params"], limit)

    @property
    def log_every(self) -> int:
        """Iterations between two points of the curves: the trainer's `log_every_n_steps`."""
        return cast(int, getattr(self.trainer, "log_every_n_steps"))  # noqa: B009 - Lightning sets it untyped

    def seed_iteration(self, iteration: int) -> None:
        """Make this iteration's random numbers a function of (seed, iteration, rank) alone, whatever ran before it.

        So a resumed run draws what the uninterrupted one would have drawn, and no generator state needs saving.
        """
        state = np.random.SeedSequence((self.seed, 3, iteration, self.global_rank)).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0] >> np.uint64(1)))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["dualseg"] = {
            "format": CHECKPOINT_FORMAT,
            "version": __version__,
            "averages": dict(self.roles.averages),
            "ensemble": list(self.roles.ensemble),
            "record": self.roles.record,
        }
