"""What every method inherits: one optimizer, counted iterations, seeds, averages, checks, what the bar shows."""

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hydra.utils import get_class
from method_toys import (
    Stored,
    Tiny,
    Volumes,
    Watch,
    cpu_trainer,
    fit_watched,
    outputs,
    plain_sgd,
    tiny_parts,
    volumes_data,
)
from torch import Tensor, nn

from dualseg.configuration import conf_dir
from dualseg.data.batch import Batch
from dualseg.errors import DualsegError
from dualseg.inference.folding import fold_batch_norm
from dualseg.losses import supervised_ce
from dualseg.methods import Average, DualNetwork, LossTerm, SegmentationMethod, Supervised, Term, Time, evaluation
from dualseg.methods.terms import progress
from dualseg.networks import ResNet34VNet, VNet

pytestmark = pytest.mark.filterwarnings("ignore:.*not resumable")
OBJECTIVES = ["described", "released"]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_optimizer_steps_both_networks_once_an_iteration(objective):
    method = DualNetwork(**tiny_parts(), objective=objective)
    watch = fit_watched(method, 5)
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
    fit_watched(method, 4)
    assert len(totals) == 4
    for total, expected in totals:
        assert total == pytest.approx(expected, rel=1e-5)


def test_a_run_is_a_function_of_its_seed():
    def weights(seed: int) -> dict[str, Tensor]:
        method = DualNetwork(**tiny_parts(), seed=seed, keep_fraction=0.3)
        torch.rand(3)
        fit_watched(method, 3)
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
    watch = fit_watched(method, 4)
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
    method.trainer.test(method, volumes_data(), verbose=False)
    assert set(method.results["test"]) == {"a", "teacher"}


@pytest.mark.parametrize("objective", [*OBJECTIVES, "supervised"])
def test_three_classes_and_two_channels_train_and_evaluate(objective):
    source = Volumes(num_classes=3, channels=2)
    shape = {"in_channels": 2, "num_classes": 3, "base_channels": 2}
    if objective == "supervised":
        method: SegmentationMethod = Supervised(**tiny_parts(source, a=VNet(**shape)))
    else:
        method = DualNetwork(**tiny_parts(source, a=ResNet34VNet(**shape), b=VNet(**shape)), objective=objective)
    watch = fit_watched(method, 1, source)
    assert all(torch.isfinite(value).all() for value in watch.parameters[-1].values())
    method.trainer.test(method, volumes_data(source), verbose=False)
    expected = {"a"} if objective == "supervised" else {"a", "b", "ensemble"}
    assert set(method.results["test"]) == expected
    for summary in method.results["test"].values():
        assert set(summary.classes) == {"atrium", "ventricle"}
        assert len(summary.rows) == 2 * 2


def test_networks_are_folded_once_for_all_volumes_of_an_evaluation(monkeypatch):
    folded, volumes = [], []

    def fold(network: nn.Module) -> nn.Module:
        folded.append(network)
        return fold_batch_norm(network)

    monkeypatch.setattr(evaluation, "fold_batch_norm", fold)

    class Watched(DualNetwork):
        def test_step(self, volume: Any, batch_idx: int) -> dict[str, Tensor]:
            probabilities = super().test_step(volume, batch_idx)
            networks = dict(self.networks.items())
            expected = self.sliding_window(networks, volume.image, volume.label.shape, self.roles.ensemble)
            assert all(torch.equal(p, expected[name]) for name, p in probabilities.items())
            volumes.append(volume)
            return probabilities

    method = Watched(**tiny_parts(a=ResNet34VNet(base_channels=2), b=VNet(base_channels=2)))
    for evaluations in (1, 2):
        cpu_trainer(1).test(method, volumes_data(), verbose=False)
        assert folded == [*method.networks.values()] * evaluations
        assert len(volumes) == 2 * evaluations
        with torch.no_grad():
            for parameter in method.parameters():  # the next one is of other weights
                parameter.mul_(1.1)


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
        cpu_trainer(8, callbacks=[watch], log_every_n_steps=5).fit(method, volumes_data())
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
    with pytest.raises(DualsegError, match=r"takes a, not \['a', 'b'\].* or give networks\.b=null"):
        Supervised(**tiny_parts(a=Tiny(), b=Tiny()))


def test_the_bar_shows_the_parts_of_the_loss_and_a_dice():
    def term(name: str, network: str, value: float, weight: float) -> LossTerm:
        return LossTerm(name, network, torch.tensor(value), weight)

    labeled = [term("supervised_dice", "a", 0.25, 2.0), term("supervised_dice", "b", 0.75, 1.0)]
    shown = progress([*labeled, term("cosine", "a", 4.0, 0.5)], DualNetwork.TERMS)
    assert shown == {"loss": 3.25, "labeled": 1.25, "unlabeled": 2.0, "soft_dice": 0.5}
    assert progress(labeled, DualNetwork.TERMS) == {"loss": 1.25, "labeled": 1.25, "soft_dice": 0.5}


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
