"""The mean teacher against loops over voxels in float64, and the forms of its average."""

import numpy as np
import pytest
import torch
from method_toys import Tiny, Volumes, cpu_trainer, tiny_parts, volumes_data
from torch import nn

from dualseg.data.batch import Batch
from dualseg.errors import DualsegError
from dualseg.methods import MeanTeacher, Time
from dualseg.methods.audit import audit

SIZE = (5, 4, 3)
END = Time(10, 10)


class Listening(Tiny):
    """Keeps the images that it saw, and whether it was training."""

    def __init__(self, num_classes=2):
        super().__init__(num_classes=num_classes, dropout=0.0)
        self.norm, self.seen = nn.BatchNorm3d(1), []

    def forward(self, image):
        self.seen.append((image.detach().clone(), self.training))
        self.norm(image)  # its statistics alone
        return super().forward(image)


def made(classes=2, **settings):
    method = MeanTeacher(**tiny_parts(Volumes(classes), a=Listening(classes)), **settings).train()
    with torch.no_grad():  # the teacher is another network, as later in a run
        for parameter in method.networks["teacher"].parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return method


def batch_of(labeled=2, unlabeled=2, classes=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    image = torch.randn(labeled + unlabeled, 1, *SIZE, generator=g)
    label = torch.randint(classes, (labeled, *SIZE), generator=g)
    return Batch(image, label, [f"case_{n}" for n in range(len(image))])


def probabilities(network, image):
    w1, b1, w2, b2 = (
        p.detach().double().numpy().squeeze() for n, p in network.named_parameters() if not n.startswith("norm")
    )
    p = np.zeros((len(image), len(b2), *SIZE))
    for n, *v in np.ndindex(len(image), *SIZE):
        z = w2 @ np.maximum(w1 * float(image[(n, 0, *v)]) + b1, 0) + b2
        p[(n, slice(None), *v)] = np.exp(z) / np.exp(z).sum()
    return p


@pytest.mark.parametrize("classes", [2, 3])
def test_the_objective_by_hand(classes):
    method, batch = made(classes), batch_of(classes=classes)
    terms = {term.name: term for term in method.loss_terms(batch, END)}
    student, teacher = method.networks["a"], method.networks["teacher"]
    ((seen, _),) = student.seen
    assert torch.equal(seen, batch.image), "one pass over clean patches"
    p, y = probabilities(student, batch.image), batch.label.numpy()
    entropy = np.mean([-np.log(p[(n, y[(n, *v)], *v)]) for n, *v in np.ndindex(*y.shape)])
    dice = []
    for c in range(1, classes):
        own, target = p[:2, c], y == c
        dice.append(1 - (2 * (own * target).sum() + 1e-5) / ((own**2).sum() + target.sum() + 1e-5))
    ((noisy, _),) = teacher.seen
    added = noisy - batch.image[2:]
    assert 0.1 < added.abs().max() <= 0.2 + 1e-6
    assert added.std().item() == pytest.approx(0.095, abs=0.015)
    q = probabilities(teacher, noisy)
    consistency = np.mean([(p[(n + 2, *v)] - q[(n, *v)]) ** 2 for n, *v in np.ndindex(*q.shape)])
    expected = {"supervised_ce": (entropy, 0.5), "supervised_dice": (np.mean(dice), 0.5)}
    expected["consistency"] = (consistency, 0.1)
    assert list(terms) == list(expected)
    for name, (value, weight) in expected.items():
        assert (terms[name].value.item(), terms[name].weight) == (pytest.approx(value, rel=1e-4), weight)
    terms["consistency"].value.backward()
    bias = student.head.bias.grad[0].item()
    slope = 0.0
    for n, c, *v in np.ndindex(*q.shape):
        p_c, p_0 = p[(n + 2, c, *v)], p[(n + 2, 0, *v)]
        slope += 2 / q.size * (p_c - q[(n, c, *v)]) * p_c * ((c == 0) - p_0)
    assert bias == pytest.approx(slope, rel=1e-3), "the student alone has a gradient"
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_consistency_comes_up_over_the_run():
    method = made()
    weights = [{t.name: t.weight for t in method.loss_terms(batch_of(), Time(t, 10))}["consistency"] for t in (0, 5)]
    assert weights == pytest.approx([0.1 * np.exp(-5), 0.1 * np.exp(-1.25)])


@pytest.mark.parametrize(
    ("settings", "decays", "training"),
    [
        ({}, (0.0, 0.5, 2 / 3), True),
        ({"decay": 0.6}, (0.0, 0.5, 0.6), True),
        ({"variant": "averaged_buffers", "decay": 0.8, "warmup": False}, (0.8, 0.8, 0.8), False),
    ],
)
def test_the_forms_of_the_average(settings, decays, training):
    method = made(**settings)
    states = []
    step = method.training_step

    def noting(batch, batch_idx):
        before = {k: v.clone() for k, v in method.networks["teacher"].state_dict().items()}
        step(batch, batch_idx)
        states.append((before, {k: v.clone() for k, v in method.networks["a"].state_dict().items()}))
        states[-1] += ({k: v.clone() for k, v in method.networks["teacher"].state_dict().items()},)

    method.training_step = noting
    cpu_trainer(3).fit(method, volumes_data())
    for decay, (before, student, after) in zip(decays, states, strict=True):
        for name in ("body.weight", "head.bias"):
            torch.testing.assert_close(after[name], decay * before[name] + (1 - decay) * student[name])
        averaged = decay * before["norm.running_var"] + (1 - decay) * student["norm.running_var"]
        assert torch.allclose(after["norm.running_var"], averaged) == (not training)
    assert {mode for _, mode in method.networks["teacher"].seen} == {training}
    assert method.roles.record == "a"


@pytest.mark.parametrize(("labeled", "unlabeled"), [(2, 0), (0, 2), (1, 3)])
def test_batches_of_other_sizes_and_without_foreground_are_finite(labeled, unlabeled):
    method, batch = made(3), batch_of(labeled, unlabeled, 3)
    terms = method.loss_terms(batch._replace(label=batch.label * 0), END)
    sum(term.value for term in terms).backward()
    assert all(term.value.isfinite() for term in terms)
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())
    assert all(buffer.isfinite().all() for buffer in method.networks.buffers())
    assert ("consistency" in {term.name for term in terms}) == (unlabeled > 0)


def test_every_term_is_live():
    rows = audit(made(3), [batch_of(classes=3)], 10)
    assert [(row.term, row.network, row.verdict) for row in rows] == [(n, "a", "live") for n in MeanTeacher.TERMS]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "own"}, r"method\.variant=own"),
        ({"decay": 1.2}, r"method\.decay=1\.2"),
        ({"decay": "slow"}, r"method\.decay=slow"),
        ({"decay": True}, r"method\.decay=True"),
        ({"warmup": "no"}, r"method\.warmup=no"),
    ],
)
def test_an_impossible_argument_is_refused(settings, message):
    with pytest.raises(DualsegError, match=message):
        MeanTeacher(**tiny_parts(a=Tiny()), **settings)
