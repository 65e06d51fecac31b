"""Learning rates, ramps and the limit of the gradient: what they are, and that a step really has them."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import torch
from method_toys import fit_watched, outputs, plain_sgd, stored_batch, stored_dual, tiny_parts

from dualseg.data.batch import Batch
from dualseg.errors import DualsegError
from dualseg.methods import LossTerm, SegmentationMethod, Term, Time
from dualseg.methods.schedules import constant, gaussian_rampup, polynomial_decay, step_decay

pytestmark = pytest.mark.filterwarnings("ignore:.*not resumable")


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
    watch = fit_watched(method, 8)
    for before, after, factor in zip(watch.parameters, watch.parameters[1:], factors, strict=False):
        for name, value in after.items():
            np.testing.assert_allclose(before[name] - value, np.full(value.shape, 0.5 * factor), atol=2e-6)


def test_the_logged_rate_is_the_one_that_was_applied():
    method = Slope(**tiny_parts(), lr_schedule=step_decay((2,), 0.1))
    logged: list[float] = []
    method.log_curves = lambda values: logged.append(values["lr"])  # type: ignore[method-assign, assignment]
    fit_watched(method, 4, log_every_n_steps=1)
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
    watch = fit_watched(method, 1)
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
    for length, ramp in ((0.2, 40), (1.0, 200), (50, 50), (1, 1), (0, 0)):  # a float up to 1.0 is a share of the run
        method = stored_dual(outputs(2), rampup_iterations=length)
        terms = {term.key: term.weight for term in method.loss_terms(stored_batch(2), Time(5, 200))}
        assert terms["loss/a/cosine"] == pytest.approx(np.exp(-5 * (1 - 5 / ramp) ** 2) if ramp > 5 else 1.0)
