"""What every method inherits: one optimizer, counted iterations, schedules, precision, memory format, checkpoints."""

import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from hydra.utils import get_class
from method_toys import Stored, Tiny, Volumes, cpu_trainer, outputs, plain_sgd, stored_batch, stored_dual, tiny_parts
from method_toys import volumes_data as data_of
from torch import Tensor

from dualseg.configuration import conf_dir
from dualseg.data.batch import Batch
from dualseg.errors import DualsegError
from dualseg.losses import supervised_ce
from dualseg.methods import Average, DualNetwork, LossTerm, SegmentationMethod, Supervised, Term, Time
from dualseg.methods.schedules import constant, gaussian_rampup, polynomial_decay, step_decay
from dualseg.methods.terms import progress
from dualseg.networks import ResNet34VNet, VNet

pytestmark = pytest.mark.filterwarnings("ignore:.*not resumable")
OBJECTIVES = ["described", "released"]


class Watch(pl.Callback):
    """Parameters and learning rates after every iteration, and what the optimizer was asked to do."""

    def __init__(self) -> None:
        self.parameters: list[dict[str, Tensor]] = []
        self.rates: list[list[float]] = []
        self.steps: list[int] = []

    def _note(self, method: pl.LightningModule) -> None:
        self.parameters.append({name: p.detach().clone() for name, p in method.named_parameters()})

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._note(pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self._note(pl_module)
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])
        self.steps.append(trainer.global_step)


def fit(method: SegmentationMethod, iterations: int, source: Volumes | None = None, **settings: Any) -> Watch:
    watch = Watch()
    cpu_trainer(iterations, callbacks=[watch], **settings).fit(method, data_of(source))
    return watch


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_optimizer_steps_both_networks_once_an_iteration(objective):
    method = DualNetwork(**tiny_parts(), objective=objective)
    watch = fit(method, 5)
    trainer = method.trainer
    (optimizer,) = trainer.optimizers
    assert [group["name"] for group in optimizer.param_groups] == ["a", "b"]
    for group in optimizer.param_groups:
        assert {id(p) for p in group["params"]} == {id(p) for p in method.networks[group["name"]].parameters()}
        assert (group["weight_decay"], group["momentum"]) == (1e-4, 0.9)
    assert trainer.global_step == 5
    assert watch.steps == [1, 2, 3, 4, 5]
    for before, after in zip(watch.parameters, watch.parameters[1:], strict=False):
        for network in "ab":
            own = [name for name in after if name.startswith(f"networks.{network}.")]
            assert any(not torch.equal(before[name], after[name]) for name in own)


def test_the_backward_pass_runs_once_an_iteration_on_the_weighted_sum(monkeypatch):
    totals: list[tuple[float, float]] = []
    method = DualNetwork(**tiny_parts(), terms={"cosine": {"weight": 4.0}}, rampup_iterations=3)
    terms: list[LossTerm] = []
    loss_terms, backward = method.loss_terms, method.manual_backward

    def recording(*args: Any) -> list[LossTerm]:
        terms[:] = loss_terms(*args)
        return terms

    def once(total: Tensor) -> None:
        totals.append((total.item(), sum(term.weight * term.value.item() for term in terms)))
        backward(total)

    monkeypatch.setattr(method, "loss_terms", recording)
    monkeypatch.setattr(method, "manual_backward", once)
    fit(method, 4)
    assert len(totals) == 4
    for total, expected in totals:
        assert total == pytest.approx(expected, rel=1e-5)


class Slope(SegmentationMethod):
    """The sum of all weights of both networks: its gradient is 1 everywhere."""

    takes = ("a", "b")
    TERMS = {"slope": Term("both")}

    def objective(self, batch: Batch, time: Time) -> Iterator[LossTerm]:
        for name, network in self.networks.items():
            yield self.term("slope", name, torch.stack([p.sum() for p in network.parameters()]).sum())


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (step_decay((0.25, 0.75), 0.1), [1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01]),
        (step_decay((3, 7), 0.5), [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25]),
        (step_decay(), [1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01]),  # 8 * 2,500/6,000 = 3.3 and 8 * 5,000/6,000 = 6.7
        (polynomial_decay(0.9), [(1 - t / 8) ** 0.9 for t in range(8)]),
        (constant(), [1] * 8),
    ],
)
def test_the_learning_rate_is_really_applied(schedule, factors):
    optimizer = partial(torch.optim.SGD, lr=0.5)
    method = Slope(**tiny_parts(), optimizer=optimizer, lr_schedule=schedule, gradient_clip_norm=None)
    watch = fit(method, 8)
    for before, after, factor in zip(watch.parameters, watch.parameters[1:], factors, strict=False):
        for name, value in after.items():
            np.testing.assert_allclose(before[name] - value, np.full(value.shape, 0.5 * factor), atol=2e-6)


def test_the_logged_rate_is_the_one_that_was_applied():
    method = Slope(**tiny_parts(), lr_schedule=step_decay((2,), 0.1))
    logged: list[float] = []
    method.log_curves = lambda values: logged.append(values["lr"])  # type: ignore[method-assign, assignment]
    fit(method, 4, log_every_n_steps=1)
    assert logged == pytest.approx([0.01, 0.01, 0.001, 0.001])


@pytest.mark.parametrize("limit", [2.0, 10.0, None])
def test_each_networks_gradient_is_limited_on_its_own(limit):
    class Steep(Slope):
        def objective(self, batch: Batch, time: Time) -> Iterator[LossTerm]:
            a, b = super().objective(batch, time)
            yield from [LossTerm("slope", "a", 100 * a.value, 1.0), b]

    method = Steep(**tiny_parts(), optimizer=plain_sgd, lr_schedule=constant(), gradient_clip_norm=limit)
    curves: dict[str, float] = {}
    method.log_curves = curves.update  # type: ignore[method-assign, assignment]
    watch = fit(method, 1)
    for network, slope in (("a", 100.0), ("b", 1.0)):
        names = [name for name in watch.parameters[0] if name.startswith(f"networks.{network}.")]
        moved = torch.cat([(watch.parameters[0][n] - watch.parameters[1][n]).flatten() for n in names])
        norm = slope * len(moved) ** 0.5
        assert curves[f"gradient_norm/{network}"] == pytest.approx(norm, rel=1e-5), "the norm before it is limited"
        expected = slope * (1.0 if limit is None else min(1.0, limit / norm))
        np.testing.assert_allclose(moved, np.full(len(moved), expected), rtol=1e-5)


def test_step_decay_in_iterations_and_in_fractions_agree():
    fractions, iterations = step_decay((2500 / 6000, 5000 / 6000)), step_decay((2500, 5000))
    configured = step_decay((0.4166667, 0.8333333))  # conf/lr_schedule/step.yaml
    for t in (0, 2499, 2500, 4999, 5000, 5999):
        expected = 1.0 if t < 2500 else 0.1 if t < 5000 else 0.01
        for schedule in (fractions, iterations, configured):
            assert schedule(t, 6000) == pytest.approx(expected)
    assert configured(124, 300) == 1.0
    assert configured(125, 300) == pytest.approx(0.1)


@pytest.mark.parametrize("milestone", [0, -3, 2.5])
def test_an_impossible_milestone_is_refused(milestone):
    with pytest.raises(DualsegError, match=rf"lr_schedule.milestones: {milestone}"):
        step_decay((milestone,))


def test_ramps_of_the_specification():
    assert gaussian_rampup(0, 40) == pytest.approx(np.exp(-5))
    assert gaussian_rampup(20, 40) == pytest.approx(np.exp(-5 / 4))
    assert gaussian_rampup(40, 40) == gaussian_rampup(400, 40) == gaussian_rampup(0, 0) == 1.0
    method = stored_dual(outputs(2))
    terms = {term.key: term.weight for term in method.loss_terms(stored_batch(2), Time(5, 200))}
    assert terms["loss/a/cosine"] == pytest.approx(np.exp(-5 * 0.75**2))  # w over a tenth of the run
    assert terms["loss/b/contrast"] == pytest.approx(0.1 * np.exp(-5 * 0.975**2))  # lambda_c over all of it


def test_a_run_is_a_function_of_its_seed():
    def weights(seed: int) -> dict[str, Tensor]:
        method = DualNetwork(**tiny_parts(), seed=seed, keep_fraction=0.3)
        torch.rand(3)
        fit(method, 3)
        return {name: value.clone() for name, value in method.state_dict().items()}

    first, again, other = weights(0), weights(0), weights(1)  # the batches are the same: dropout and draws differ
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not all(torch.equal(value, other[name]) for name, value in first.items())


class MeanTeacher(SegmentationMethod):
    """A sketch of another method, as a reader would write it: one network trained, one its moving average."""

    averages = {"teacher": Average("a", decay=0.9, warmup=False)}
    TERMS = {"supervised_ce": Term("labeled"), "consistency": Term("both", ramp="run")}

    def objective(self, batch: Batch, time: Time) -> Iterator[LossTerm]:
        student, teacher = self.see("a", batch.image), self.watch("teacher", batch.image, "train")
        n = len(batch.label)
        yield self.term("supervised_ce", "a", supervised_ce(student.log_p[:n], batch.label))
        yield self.term("consistency", "a", (student.p - teacher.p).square().mean())


def test_a_method_with_one_trained_and_one_averaged_network():
    torch.manual_seed(0)
    method = MeanTeacher(**tiny_parts(a=Tiny()))
    watch = fit(method, 4)
    assert method.trainer.global_step == 4
    (optimizer,) = method.trainer.optimizers
    assert [group["name"] for group in optimizer.param_groups] == ["a"]
    average = {k: v for k, v in watch.parameters[0].items() if k.startswith("networks.teacher.")}
    assert average and all(torch.equal(v, watch.parameters[0][k.replace("teacher", "a")]) for k, v in average.items())
    for after in watch.parameters[1:]:
        for name, value in average.items():
            average[name] = value + 0.1 * (after[name.replace("teacher", "a")] - value)
            torch.testing.assert_close(after[name], average[name])
            assert not torch.equal(after[name], after[name.replace("teacher", "a")])
    assert not any(p.requires_grad for p in method.networks["teacher"].parameters())
    method.trainer.test(method, data_of(), verbose=False)
    assert set(method.results["test"]) == {"a", "teacher"}


@pytest.mark.parametrize("objective", [*OBJECTIVES, "supervised"])
def test_three_classes_and_two_channels_train_and_evaluate(objective):
    source = Volumes(num_classes=3, channels=2)
    shape = {"in_channels": 2, "num_classes": 3, "base_channels": 2}
    if objective == "supervised":
        method: SegmentationMethod = Supervised(**tiny_parts(source, a=VNet(**shape)))
    else:
        method = DualNetwork(**tiny_parts(source, a=ResNet34VNet(**shape), b=VNet(**shape)), objective=objective)
    watch = fit(method, 1, source)
    assert all(torch.isfinite(value).all() for value in watch.parameters[-1].values())
    method.trainer.test(method, data_of(source), verbose=False)
    expected = {"a"} if objective == "supervised" else {"a", "b", "ensemble"}
    assert set(method.results["test"]) == expected
    for summary in method.results["test"].values():
        assert set(summary.classes) == {"atrium", "ventricle"}
        assert len(summary.rows) == 2 * 2


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_bf16_trains_with_losses_in_float32(objective, monkeypatch):
    method = DualNetwork(**tiny_parts(), objective=objective)
    dtypes: set[torch.dtype] = set()
    logits: set[torch.dtype] = set()
    loss_terms = method.loss_terms

    def recording(*args: Any) -> list[LossTerm]:
        terms = loss_terms(*args)
        dtypes.update(term.value.dtype for term in terms)
        return terms

    monkeypatch.setattr(method, "loss_terms", recording)
    method.networks["a"].register_forward_hook(lambda module, args, output: logits.add(output.logits.dtype))
    watch = fit(method, 3, precision="bf16-mixed")
    assert logits == {torch.bfloat16}, "the networks do run in bfloat16"
    assert dtypes == {torch.float32}
    assert {value.dtype for value in watch.parameters[-1].values()} == {torch.float32}
    for network in "ab":
        name = f"networks.{network}.body.weight"
        assert not torch.equal(watch.parameters[0][name], watch.parameters[-1][name])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses_of_bfloat16_logits_are_those_of_the_same_logits_in_float32(objective):
    rounded = {i: (z.bfloat16().float(), f.bfloat16().float()) for i, (z, f) in outputs(2).items()}
    batch, values = stored_batch(2), []
    for dtype in (torch.float32, torch.bfloat16):
        method = stored_dual(rounded, objective=objective)
        method.networks.to(dtype)
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            values.append([term.value.item() for term in method.loss_terms(batch, Time(50, 100))])
    assert values[0] == pytest.approx(values[1], rel=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_memory_format_changes_no_number(objective):
    values, probabilities = [], []
    source = Volumes()
    for memory_format in (torch.contiguous_format, torch.channels_last_3d):
        torch.manual_seed(3)
        shape = {"base_channels": 4, "dropout": 0.0}
        parts = tiny_parts(source, memory_format, a=ResNet34VNet(**shape), b=VNet(**shape))
        method = DualNetwork(**parts, objective=objective)
        method.eval()
        probabilities.append(method.probabilities(torch.from_numpy(source.read_image("test_0").array)))
        method.train()
        watch: dict[int, list[float]] = {}
        loss_terms = method.loss_terms

        def recording(batch: Any, time: Time, loss_terms: Any = loss_terms, watch: Any = watch) -> Any:
            terms = loss_terms(batch, time)
            watch[time.iteration] = [term.value.item() for term in terms]
            return terms

        method.loss_terms = recording  # type: ignore[method-assign]
        cpu_trainer(1).fit(method, data_of(source))
        weight = next(p for p in method.networks["b"].parameters() if p.ndim == 5 and p.shape[1] > 1)
        assert weight.is_contiguous(memory_format=memory_format)
        values.append(watch[0])
    assert values[0] == pytest.approx(values[1], rel=1e-4, abs=1e-4)
    assert probabilities[0].keys() == probabilities[1].keys() == {"a", "b", "ensemble"}
    for name, p in probabilities[0].items():
        torch.testing.assert_close(p, probabilities[1][name], rtol=0, atol=1e-4)


def test_prototypes_are_saved_and_restored(tmp_path):
    """6 iterations at once and 3 + 3 through a checkpoint: the same prototypes and weights, to the last bit."""

    def method() -> DualNetwork:
        return DualNetwork(**tiny_parts(), prototype_momentum=0.9, keep_fraction=0.3)

    whole = method()
    fit(whole, 6)
    assert {name for name in whole.state_dict() if name.startswith("prototypes")} == {
        "prototypes_a", "prototypes_a_present", "prototypes_b", "prototypes_b_present",
    }  # fmt: skip

    class StopAfter(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "third.ckpt")
                raise StopIteration

    first = method()
    trainer = cpu_trainer(6, callbacks=[StopAfter()])
    trainer.fit(first, data_of())
    second = method()
    cpu_trainer(6).fit(second, data_of(), ckpt_path=tmp_path / "third.ckpt", weights_only=True)
    assert second.trainer.global_step == 6
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert whole.prototypes_a_present.any()
    stored = torch.load(tmp_path / "third.ckpt", weights_only=True)["state_dict"]["prototypes_a"]
    assert not torch.equal(whole.prototypes_a, stored), "they moved on after the checkpoint"
    without = DualNetwork(**tiny_parts())
    assert not any(name.startswith("prototypes") for name in without.state_dict())


def test_a_loss_that_is_not_finite_stops_at_the_next_point_of_the_curves():
    method = DualNetwork(**tiny_parts(), optimizer=plain_sgd)
    watch = Watch()
    original = method.loss_terms

    def spoiled(batch: Batch, time: Time) -> list[LossTerm]:
        terms = original(batch, time)
        if time.iteration == 2:
            i = next(n for n, t in enumerate(terms) if t.key == "loss/b/uncertainty")
            terms[i] = LossTerm("uncertainty", "b", terms[i].value * float("nan"), 1.0)
        return terms

    method.loss_terms = spoiled  # type: ignore[method-assign]
    with pytest.raises(DualsegError) as error:
        cpu_trainer(8, callbacks=[watch], log_every_n_steps=5).fit(method, data_of())
    message = str(error.value)
    assert "iteration 2" in message
    assert "b/uncertainty;" in message
    assert message.count("case_") == 4
    assert len(watch.parameters) == 5, "iteration 4 is a point of the curves, and stopped before its end"


def test_dual_needs_its_two_networks():
    with pytest.raises(DualsegError, match=r"takes a and b, not \['a', 'c'\]"):
        DualNetwork(**tiny_parts(a=Tiny(), c=Tiny()))


def test_supervised_reads_the_labeled_samples_alone():
    source = Volumes()
    method = Supervised(**tiny_parts(source, a=Tiny(dropout=0.0)))
    label = torch.randint(2, (2, 16, 16, 16), generator=torch.Generator().manual_seed(0))
    image = torch.randn(4, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    terms = method.loss_terms(Batch(image, label, []), Time(0, 10))
    assert [(t.key, t.weight) for t in terms] == [("loss/a/supervised_ce", 1.0), ("loss/a/supervised_dice", 1.0)]
    p = method.networks["a"](image[:2]).logits.double().softmax(dim=1).detach().numpy()
    y = label.numpy()
    own = np.take_along_axis(p, y[:, None], axis=1)
    dice = 1 - (2 * (p[:, 1] * y).sum() + 1e-5) / ((p[:, 1] ** 2).sum() + y.sum() + 1e-5)
    assert [t.value.item() for t in terms] == pytest.approx([-np.log(own).mean(), dice], rel=1e-5)
    image[2:] = torch.nan  # never reached
    assert all(torch.isfinite(t.value) for t in method.loss_terms(Batch(image, label, []), Time(0, 10)))


def test_stored_networks_keep_the_contract():
    """The toys of these tests answer as dualseg's networks do."""
    network = Stored(*outputs(2)["a"])
    assert network(torch.zeros(4, 1, 2, 2, 2)).features.shape[1] == network.feature_channels


def test_supervised_refuses_networks_that_it_would_not_train():
    with pytest.raises(DualsegError, match=r"takes a, not \['a', 'b'\]"):
        Supervised(**tiny_parts(a=Tiny(), b=Tiny()))


def test_prototypes_with_momentum_need_to_know_the_width_of_the_features():
    parts = tiny_parts()
    del parts["networks"]["b"].feature_channels
    with pytest.raises(DualsegError, match=r"networks\.b: .* feature_channels"):
        DualNetwork(**parts, prototype_momentum=0.9)


def test_the_bar_shows_the_parts_of_the_loss_and_a_dice():
    def term(name: str, network: str, value: float, weight: float) -> LossTerm:
        return LossTerm(name, network, torch.tensor(value), weight)

    labeled = [term("supervised_dice", "a", 0.25, 2.0), term("supervised_dice", "b", 0.75, 1.0)]
    shown = progress([*labeled, term("cosine", "a", 4.0, 0.5)], DualNetwork.TERMS)
    assert shown == {"loss": 3.25, "labeled": 1.25, "unlabeled": 2.0, "train_dice": 0.5}
    assert progress(labeled, DualNetwork.TERMS) == {"loss": 1.25, "labeled": 1.25, "train_dice": 0.5}


@pytest.mark.parametrize("name", ["dual", "dual_isbi", "rcps", "semsim", "ssl_contrastive", "supervised"])
def test_a_notebook_and_the_command_have_the_same_defaults(name):
    settings = yaml.safe_load((conf_dir() / "method" / f"{name}.yaml").read_text())["method"]
    method = get_class(settings["_target_"])
    defaults = {
        key: parameter.default
        for owner in reversed(method.__mro__)
        if issubclass(owner, SegmentationMethod)
        for key, parameter in inspect.signature(owner.__init__).parameters.items()
    }
    for key, value in settings.items():
        if key in ("name", "_target_"):
            continue
        if key == "terms":
            assert value == {n: {"enabled": t.enabled, "weight": t.weight} for n, t in method.TERMS.items()}
        elif key == "objective":
            assert defaults[key] == "described"
        else:
            assert defaults[key] == value, key
