"""The term ERDA against loops over voxels in float64, and its gradients against finite differences."""

import numpy as np
import pytest
import torch
from method_toys import Bare, BarePair, Stored, tiny_parts
from torch import Tensor

from dualseg.data.batch import Batch
from dualseg.errors import DualsegError
from dualseg.methods import ERDA, Time
from dualseg.methods import erda as module
from dualseg.methods.erda import MovingClasses
from dualseg.methods.erda import erda as of_voxels

SHAPE = (3, 2, 2)
VOXELS = 12
F = 5
NAMES = ("background", "atrium", "ventricle")


def method_of(term: ERDA, classes: int = 2, networks: str = "ab", seed: int = 0) -> Bare:
    g = torch.Generator().manual_seed(seed)
    stored = {
        i: Stored(torch.randn(4, classes, *SHAPE, generator=g), torch.randn(4, F, *SHAPE, generator=g))
        for i in networks
    }
    parts = {**tiny_parts(**stored), "class_names": NAMES[:classes]}
    torch.manual_seed(seed)
    return (BarePair if len(networks) == 2 else Bare)(**parts, terms={"erda": term})


def batch_of(classes: int = 2, labeled: int = 2, seed: int = 0) -> Batch:
    label = torch.randint(classes, (labeled, *SHAPE), generator=torch.Generator().manual_seed(seed))
    label.view(-1)[:classes] = torch.arange(classes)[: label.numel()]
    return Batch(torch.zeros(4, 1, *SHAPE), label, ["case"] * 4)


def terms_of(method, batch: Batch) -> dict[str, object]:
    return {t.network: t for t in method.loss_terms(batch, Time(3, 10)) if t.name == "erda"}


def numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def perceptron(classes: MovingClasses, f: np.ndarray) -> np.ndarray:
    """g of rows (n, F), with the statistics of these rows."""
    first, norm, _, last = classes.g
    hidden = np.array([numbers(first.weight) @ row + numbers(first.bias) for row in f])
    for channel in range(F):
        x = hidden[:, channel]
        x = (x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).mean() + 1e-5)
        hidden[:, channel] = numbers(norm.weight)[channel] * x + numbers(norm.bias)[channel]
    return np.array([numbers(last.weight) @ np.maximum(row, 0) + numbers(last.bias) for row in hidden])


def rows_of(volumes: np.ndarray) -> np.ndarray:
    return np.array([v[:, x, y, z] for v in volumes for x in range(3) for y in range(2) for z in range(2)])


def prototypes_of(g: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    of = [[row for row, y in zip(g, label, strict=False) if y == c] for c in range(classes)]
    return np.array([np.mean(rows, axis=0) if rows else np.full(F, np.nan) for rows in of])


def loss_of(g: np.ndarray, z: np.ndarray, prototypes: np.ndarray, temperature: float, weight: float) -> float:
    """Mean over voxels of lambda H(p) + KL(p || q); p and the sums are over the classes whose prototype is no NaN."""
    total, there = 0.0, [c for c, prototype in enumerate(prototypes) if not np.isnan(prototype).any()]
    for row, logits in zip(g, z, strict=True):
        cosines = [row @ prototypes[c] / np.linalg.norm(row) / np.linalg.norm(prototypes[c]) for c in there]
        p = np.exp(np.array(cosines) / temperature)
        p /= p.sum()
        q = (np.exp(logits) / np.exp(logits).sum())[there]
        total += weight * -np.sum(p * np.log(p)) + np.sum(p * np.log(p / q))
    return total / len(g)


@pytest.mark.parametrize(("classes", "temperature", "weight"), [(2, 1.0, 1.0), (3, 0.1, 0.3)])
def test_the_value_is_that_of_a_loop_over_voxels(classes, temperature, weight):
    method = method_of(ERDA(temperature=temperature, entropy_weight=weight, momentum=0.75), classes)
    batch, known = batch_of(classes), {}
    label = batch.label.numpy().ravel()
    for seed in (0, 1):  # the second one moves the prototypes
        for i in "ab":
            torch.nn.init.normal_(method.networks[i].features)
        found = terms_of(method, batch)
        for i in "ab":
            network = method.networks[i]
            g = perceptron(method.heads["erda"].classes[i], rows_of(numbers(network.features)))
            new = prototypes_of(g, label, classes)
            known[i] = 0.75 * known[i] + 0.25 * new if seed else new
            expected = loss_of(g[24:], rows_of(numbers(network.logits))[24:], known[i], temperature, weight)
            assert found[i].value.item() == pytest.approx(expected, rel=2e-5), (seed, i)
            assert (found[i].weight, int(found[i].support)) == (0.1, 2 * VOXELS)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_class_that_no_label_had_so_far_has_no_part_in_p(missing):
    method, batch = method_of(ERDA(temperature=0.5, entropy_weight=0.3), 3), batch_of(3)
    batch.label[batch.label == missing] = (missing + 1) % 3
    network, classes = method.networks["a"], method.heads["erda"].classes["a"]
    term = terms_of(method, batch)["a"]
    term.value.backward()
    features, z = numbers(network.features), rows_of(numbers(network.logits))[24:]
    prototypes = prototypes_of(perceptron(classes, rows_of(features)), batch.label.numpy().ravel(), 3)

    def value(step: float = 0.0, place: tuple[int, ...] = (2, 0, 0, 0, 0)) -> float:
        moved = features.copy()
        moved[place] += step
        return loss_of(perceptron(classes, rows_of(moved))[24:], z, prototypes, 0.5, 0.3)

    assert term.value.item() == pytest.approx(value(), rel=2e-5)
    assert int(term.support) == 2 * VOXELS
    for place in [(2, 0, 0, 0, 0), (3, 4, 2, 1, 1)]:
        expected = (value(1e-5, place) - value(-1e-5, place)) / 2e-5
        assert network.features.grad[place].item() == pytest.approx(expected, rel=1e-3, abs=1e-7)
    assert network.logits.grad.isfinite().all() and network.logits.grad[2:].abs().max() > 0


def test_the_gradient_of_the_logits_is_q_minus_p_and_reaches_no_other_network():
    method = method_of(ERDA(), 3)
    found = terms_of(method, batch_of(3))
    found["a"].value.backward()
    a, b = method.networks["a"], method.networks["b"]
    g = perceptron(method.heads["erda"].classes["a"], rows_of(numbers(a.features)))
    prototypes = prototypes_of(g, batch_of(3).label.numpy().ravel(), 3)
    q = np.array([np.exp(z) / np.exp(z).sum() for z in rows_of(numbers(a.logits))[24:]])
    s = np.array([[r @ c / np.linalg.norm(r) / np.linalg.norm(c) for c in prototypes] for r in g[24:]])
    p = np.exp(s) / np.exp(s).sum(axis=1, keepdims=True)
    gradient = rows_of(a.logits.grad.numpy())
    np.testing.assert_allclose(gradient[24:], (q - p) / 24, atol=1e-6)
    assert not gradient[:24].any(), "no labeled voxel is predicted"
    assert b.logits.grad is None and b.features.grad is None


def test_the_gradient_of_p_is_that_of_the_paper():
    """d/ds_i = p_i (l_i - sum_j p_j l_j), l = -log q."""
    g = torch.Generator().manual_seed(0)
    s = torch.randn(4, 3, generator=g).double().requires_grad_()
    log_q = torch.randn(4, 3, generator=g).double().log_softmax(dim=1)
    of_voxels(s, log_q, torch.ones(3, dtype=torch.bool)).sum().backward()
    for own, p, l in zip(s.grad, s.detach().softmax(dim=1), -log_q, strict=True):  # noqa: E741
        mean = sum(p[j] * l[j] for j in range(3))
        for i in range(3):
            assert own[i].item() == pytest.approx((p[i] * (l[i] - mean)).item())


def test_features_and_g_get_the_gradient_of_finite_differences():
    method = method_of(ERDA(temperature=0.5))
    batch, network = batch_of(), method.networks["a"]
    classes = method.heads["erda"].classes["a"]
    terms_of(method, batch)["a"].value.backward()
    features, z = numbers(network.features), rows_of(numbers(network.logits))[24:]
    prototypes = prototypes_of(perceptron(classes, rows_of(features)), batch.label.numpy().ravel(), 2)

    def value(step: float, place: tuple[int, ...]) -> float:
        moved = features.copy()
        moved[place] += step
        return loss_of(
            perceptron(classes, rows_of(moved))[24:], z, prototypes, 0.5, 1.0
        )  # prototypes stay: no gradient

    for place in [(2, 0, 0, 0, 0), (3, 4, 2, 1, 1), (0, 1, 1, 0, 1)]:  # labeled ones count in BatchNorm's statistics
        expected = (value(1e-5, place) - value(-1e-5, place)) / 2e-5
        assert network.features.grad[place].item() == pytest.approx(expected, rel=1e-3, abs=1e-7)
    assert all(p.grad is not None for p in classes.parameters())
    assert classes.g[3].weight.grad.abs().max() > 0


def test_without_coadaptation_only_the_prediction_learns():
    with_it, without = method_of(ERDA()), method_of(ERDA(coadapt=False))
    values = []
    for method in (with_it, without):
        term = terms_of(method, batch_of())["a"]
        values.append(term.value.item())
        term.value.backward()
    assert values[0] == values[1]
    a, plain = with_it.networks["a"], without.networks["a"]
    torch.testing.assert_close(a.logits.grad, plain.logits.grad)
    assert a.features.grad.abs().max() > 0
    assert plain.features.grad is None
    head = without.heads["erda"]
    assert not any(p.requires_grad for p in head.parameters())
    assert all(p.grad is None for p in head.parameters())


def test_a_class_that_a_batch_lacks_keeps_its_prototype_and_the_first_value_is_taken():
    classes = MovingClasses(2, 3, momentum=0.9)
    g = torch.tensor([[1.0, 0.0], [3.0, 2.0], [0.0, 5.0]])
    vectors, present = classes.updated(g, torch.tensor([0, 0, 1]))
    assert present.tolist() == [True, True, False]
    torch.testing.assert_close(vectors, torch.tensor([[2.0, 1.0], [0.0, 5.0], [0.0, 0.0]]))
    vectors, present = classes.updated(g[:2], torch.tensor([2, 0]))
    assert present.all()
    torch.testing.assert_close(vectors, torch.tensor([[2.1, 1.1], [0.0, 5.0], [1.0, 0.0]]))
    unchanged, present = classes.updated(g[:0], torch.zeros(0, dtype=torch.long))
    assert present.all() and torch.equal(unchanged, vectors)


@pytest.mark.parametrize("case", ["no foreground", "no labels", "nothing unlabeled"])
def test_without_what_it_needs_it_is_zero_and_still_connected(case):
    method = method_of(ERDA(), networks="a")
    batch = batch_of(labeled={"no foreground": 2, "no labels": 0, "nothing unlabeled": 4}[case])
    if case == "no foreground":
        batch.label.zero_()
    (term,) = terms_of(method, batch).values()
    term.value.backward()
    assert (term.value.item(), int(term.support)) == (0.0, 0)
    gradients = [p.grad for p in method.heads["erda"].parameters()]
    assert all(g is not None and not g.any() for g in gradients), "a process of several would wait for them"


def test_of_many_voxels_some_are_drawn_anew_each_time(monkeypatch):
    monkeypatch.setattr(module, "DRAWN", 8)
    method, values = method_of(ERDA(momentum=1.0), networks="a"), set()
    for seed in range(4):
        torch.manual_seed(seed)
        (term,) = terms_of(method, batch_of()).values()
        assert int(term.support) in (0, 8), "8 labeled voxels may lack a class"
        values.add(term.value.item())
    assert len(values) > 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"temperature": 0}, "temperature=0"),
        ({"temperature": "warm"}, "temperature=warm"),
        ({"momentum": 1.5}, "momentum=1.5"),
        ({"entropy_weight": -1}, "entropy_weight=-1"),
        ({"coadapt": "no"}, "coadapt=no: give true or false"),
        ({"ramp": "up"}, "ramp=up"),
        ({"weight": float("nan")}, "weight=nan"),
    ],
)
def test_settings_that_cannot_be(settings, said):
    with pytest.raises(DualsegError, match=f"^{said}"):
        ERDA(**settings)


def test_the_network_must_say_how_wide_its_features_are():
    parts = tiny_parts()
    del parts["networks"]["b"].feature_channels
    with pytest.raises(DualsegError, match=r"networks\.b: the term ERDA .* feature_channels"):
        BarePair(**parts, terms={"erda": ERDA()})
