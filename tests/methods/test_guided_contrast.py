"""The term guided contrast against loops over voxels in float64; its banks against lists."""

from collections import defaultdict

import numpy as np
import pytest
import torch
from method_toys import Bare, BarePair, Stored, Tiny, tiny_parts
from torch import Tensor

from dualseg import views
from dualseg.data.batch import Batch
from dualseg.errors import DualsegError
from dualseg.methods import GuidedContrast, Time
from dualseg.methods import guided_contrast as module
from dualseg.methods.guided_contrast import Bank, balanced_voxels

SHAPE = (3, 2, 2)
VOXELS = 12
NAMES = ("background", "atrium", "ventricle")
END = Time(10, 10)


def numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def rows_of(volumes: np.ndarray) -> np.ndarray:
    return np.array([v[:, x, y, z] for v in volumes for x in range(3) for y in range(2) for z in range(2)])


def batch_of(labeled: int = 2, samples: int = 4) -> Batch:
    image = torch.randn(samples, 1, *SHAPE, generator=torch.Generator().manual_seed(1))
    return Batch(image, torch.zeros(labeled, *SHAPE, dtype=torch.long), ["case"] * samples)


def pair_of(classes: int, **settings) -> BarePair:
    g = torch.Generator().manual_seed(classes)
    shared = torch.randn(4, classes, *SHAPE, generator=g)
    stored = {
        i: Stored(2 * shared + torch.randn(4, classes, *SHAPE, generator=g), torch.randn(4, 5, *SHAPE, generator=g))
        for i in "ab"
    }
    torch.manual_seed(0)
    parts = {**tiny_parts(**stored), "class_names": NAMES[:classes]}
    torch.manual_seed(0)
    return BarePair(**parts, terms={"guided_contrast": GuidedContrast(**settings)})


class View:
    """What a view has of each unlabeled voxel, in float64."""

    def __init__(self, logits: np.ndarray, features: np.ndarray, projector: torch.nn.Linear) -> None:
        p = np.exp(rows_of(logits))
        p /= p.sum(axis=1, keepdims=True)
        self.label, self.confidence = p.argmax(axis=1), p.max(axis=1)
        projected = [numbers(projector.weight) @ f + numbers(projector.bias) for f in rows_of(features)]
        self.e = np.array([e / np.linalg.norm(e) for e in projected])


def loss_of(a: View, b: View, older: list, tau: float, gamma: float) -> float:
    """l_i over the voxels where b is sure; the bank of b has its own voxels and (class, e) of before."""
    losses = []
    for i in range(len(a.e)):
        if b.confidence[i] < gamma:
            continue
        positive = np.exp(a.e[i] @ b.e[i] / tau)
        others = sum(np.exp(a.e[i] @ e / tau) for k, e in older if k != a.label[i])
        others += sum(np.exp(a.e[i] @ b.e[n] / tau) for n in range(len(b.e)) if b.label[n] != a.label[i] and n != i)
        losses.append(-np.log(positive / (positive + others)))
    return float(np.mean(losses)) if losses else 0.0


@pytest.mark.parametrize(("classes", "tau", "gamma"), [(2, 0.1, 0.75), (3, 0.5, 0.6)])
def test_of_two_networks_each_is_the_others_view(classes, tau, gamma):
    method = pair_of(classes, temperature=tau, confidence=gamma)
    older: dict[str, list] = {"a": [], "b": []}
    for seed in range(2):
        for i in "ab":
            torch.manual_seed(seed)
            torch.nn.init.normal_(method.networks[i].features)
        found = {t.network: t for t in method.loss_terms(batch_of(), END)}
        views = {}
        for i in "ab":
            network = method.networks[i]
            projector = method.heads["guided_contrast"].projectors[i]
            views[i] = View(numbers(network.logits)[2:], numbers(network.features)[2:], projector)
        assert (views["a"].label != views["b"].label).any(), "else a fresh voxel is never its own negative"
        for i, j in (("a", "b"), ("b", "a")):
            expected = loss_of(views[i], views[j], older[j], tau, gamma)
            assert found[i].value.item() == pytest.approx(expected, rel=1e-4), (seed, i)
            assert int(found[i].support) == (views[j].confidence >= gamma).sum() > 0
            assert found[i].weight == 0.1
        for i in "ab":
            older[i] += zip(views[i].label, views[i].e, strict=True)


def test_the_gradient_reaches_the_anchor_alone_and_is_that_of_finite_differences():
    method = pair_of(2)
    found = {t.network: t for t in method.loss_terms(batch_of(), END)}
    found["a"].value.backward()
    a, b = method.networks["a"], method.networks["b"]
    projectors = method.heads["guided_contrast"].projectors
    assert b.features.grad is None and b.logits.grad is None and a.logits.grad is None
    assert projectors["b"].weight.grad is None
    assert projectors["a"].weight.grad.abs().max() > 0
    features, logits = numbers(a.features)[2:], numbers(a.logits)[2:]
    other = View(numbers(b.logits)[2:], numbers(b.features)[2:], projectors["b"])

    def value(step: float, place: tuple[int, ...]) -> float:
        moved = features.copy()
        moved[place] += step
        return loss_of(View(logits, moved, projectors["a"]), other, [], 0.1, 0.75)

    sure = other.confidence.reshape(2, *SHAPE) >= 0.75
    checked = 0
    for where in np.argwhere(np.ones_like(sure)):
        place = (where[0], 2, *where[1:])
        expected = (value(1e-5, place) - value(-1e-5, place)) / 2e-5
        own = a.features.grad[(where[0] + 2, *place[1:])].item()
        assert own == pytest.approx(expected, rel=1e-3, abs=1e-6)
        checked += expected != 0
    assert checked == sure.sum()
    assert not a.features.grad[:2].any(), "labeled patches have no part"


def test_with_one_network_the_other_view_is_a_second_pass_over_changed_intensities(monkeypatch):
    monkeypatch.setattr(module, "_changed", lambda image: 1.5 * image + 0.1)
    parts = tiny_parts(a=Tiny(dropout=0.0))
    method = Bare(**parts, terms={"guided_contrast": GuidedContrast(confidence=0.6)})
    network, batch = method.networks["a"], batch_of()
    network.head.weight.data *= 8
    network.head.bias.data -= network(batch.image).logits.mean(dim=(0, 2, 3, 4))  # now both classes are predicted
    (term,) = method.loss_terms(batch, END)
    projector = method.heads["guided_contrast"].projectors["a"]
    views = []
    for image in (batch.image[2:], 1.5 * batch.image[2:] + 0.1):
        output = network(image)
        views.append(View(numbers(output.logits), numbers(output.features), projector))
    expected = loss_of(views[0], views[1], [], 0.1, 0.6) + loss_of(views[1], views[0], [], 0.1, 0.6)
    assert expected > 0
    assert (term.network, term.value.item()) == ("a", pytest.approx(expected, rel=1e-4))
    assert int(term.support) == sum((view.confidence >= 0.6).sum() for view in views)


@pytest.mark.parametrize(("name", "low", "high"), [("contrast", 0.5, 1.5), ("gamma", 0.7, 1.5), ("noise", None, None)])
def test_the_changed_view_has_each_change_of_intensity(name, low, high, monkeypatch):
    """All but one of them switched off: what is left, and its strengths."""
    strengths = []

    def noted(image: Tensor, *strength: Tensor, **settings: float) -> Tensor:
        strengths.extend(strength)
        return getattr(views, name)(image, *strength, **settings)

    for other in ("contrast", "gamma", "noise"):
        monkeypatch.setattr(module, other, noted if other == name else lambda image, *_, **__: image)
    torch.manual_seed(0)
    image = torch.randn(200, 1, 6, 6, 6) + 0.5
    changed = module._changed(image)
    if name == "noise":
        assert float((changed - image).std()) == pytest.approx(0.1, rel=0.02)
        return
    (numbers,) = strengths
    assert torch.equal(changed, getattr(views, name)(image, numbers))
    slack = 0.05 * (high - low)
    assert low <= numbers.min() < low + slack and high - slack < numbers.max() <= high


@pytest.mark.parametrize("networks", ["a", "ab"])
@pytest.mark.parametrize("case", ["nobody sure", "one class", "nothing unlabeled"])
def test_without_anything_to_contrast_it_is_zero_and_still_connected(case, networks):
    method = (BarePair if networks == "ab" else Bare)(
        **tiny_parts(**{i: Tiny(dropout=0.0) for i in networks}),
        terms={"guided_contrast": GuidedContrast(confidence=1.0 if case == "nobody sure" else 0.0)},
    )
    if case == "one class":
        for i in networks:
            torch.nn.init.constant_(method.networks[i].head.weight, 0.0)
            torch.nn.init.constant_(method.networks[i].head.bias[1:], -1.0)
    batch = batch_of(labeled=4 if case == "nothing unlabeled" else 2)
    terms = method.loss_terms(batch, END)
    sum(term.value for term in terms).backward()
    for term in terms:
        assert term.value.item() == 0.0
        assert (int(term.support) > 0) == (case == "one class")
    gradients = [p.grad for p in method.heads["guided_contrast"].parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)


def test_voxels_are_drawn_from_each_class_and_patch_alike(monkeypatch):
    monkeypatch.setattr(module, "POSITIVES", 6)
    predicted = torch.zeros(2, 4, 4, 4, dtype=torch.long)
    predicted[0, :2] = 1
    predicted[1, 0, 0, :3] = 1
    predicted[1, 3] = 2
    seen = torch.zeros(128)
    for seed in range(60):
        torch.manual_seed(seed)
        voxels, counts = balanced_voxels(predicted, 3)
        assert voxels.shape == (2 * 3 * 2,)
        drawn = voxels[counts]
        assert len(drawn.unique()) == len(drawn)
        for patch, expected in ((0, [2, 2, 0]), (1, [2, 2, 2])):
            own = drawn[(drawn >= 64 * patch) & (drawn < 64 * patch + 64)]
            assert predicted.flatten()[own].bincount(minlength=3).tolist() == expected
        seen[drawn] += 1
    assert (seen[64:67] > 20).all(), "two of the three, each time others"
    assert (seen[:64] > 0).float().mean() > 0.85


def test_a_bank_keeps_the_newest_of_each_class_and_draws_no_row_that_was_never_filled(monkeypatch):
    monkeypatch.setattr(module, "LENGTH", 3 * 5)
    monkeypatch.setattr(module, "CHANNELS", 2)
    monkeypatch.setattr(module, "NEGATIVES", 3 * 5)
    bank, expected = Bank(3), defaultdict(list)
    g = torch.Generator().manual_seed(0)
    for step in range(6):
        e, label = torch.randn(4, 2, generator=g), torch.randint(2, (4,), generator=g)  # class 2 never comes
        counts = torch.rand(4, generator=g) < 0.7
        bank.push(e, label, counts)
        for row, k, counted in zip(e, label.tolist(), counts, strict=True):
            expected[k] = [*expected[k], tuple(row.tolist())][-5:] if counted else expected[k]
        negatives = bank.draw()
        for k in range(3):
            mine = negatives.there & (negatives.label == k)
            assert sorted(map(tuple, negatives.e[mine].tolist())) == sorted(expected[k]), (step, k)
        fresh = {tuple(negatives.e[n].tolist()): int(negatives.voxel[n]) for n in range(15) if negatives.there[n]}
        for n, (row, counted) in enumerate(zip(e, counts, strict=True)):
            assert not counted or fresh.pop(tuple(row.tolist())) == n
        assert set(fresh.values()) <= {-1}
    assert not negatives.there[negatives.label == 2].any()
    bank.push(torch.arange(16.0).view(8, 2), torch.zeros(8, dtype=torch.long), torch.ones(8, dtype=torch.bool))
    drawn = bank.draw()
    kept = drawn.e[drawn.there & (drawn.label == 0)]
    assert sorted(kept[:, 0].tolist()) == [0.0, 2.0, 4.0, 6.0, 8.0], "of more than it holds, the first ones"


@pytest.mark.parametrize(("classes", "length", "drawn"), [(2, 4096, 2048), (118, 69, 34), (5000, 1, 1)])
def test_the_classes_share_a_bank_and_what_is_drawn_from_it_and_each_has_its_part(classes, length, drawn):
    bank = Bank(classes)
    assert bank.e.shape == (classes * length + 1, module.CHANNELS)
    label = torch.tensor([0, classes - 1])
    bank.push(torch.eye(2, module.CHANNELS), label, torch.ones(2, dtype=torch.bool))
    negatives = bank.draw()
    assert len(negatives.e) == classes * drawn
    assert torch.equal(negatives.label[negatives.there], label)
    assert torch.equal(negatives.e[negatives.there], torch.eye(2, module.CHANNELS))


def test_with_more_classes_than_voxels_are_drawn_each_still_has_one():
    voxels, counts = balanced_voxels(torch.tensor([[[[0, 599, 3, 3]]]]), 600)
    assert len(voxels) == 600
    assert counts.nonzero().flatten().tolist() == [0, 3, 599]
    assert voxels[0] == 0 and voxels[599] == 1 and voxels[3] in (2, 3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"temperature": 0}, "temperature=0"), ({"confidence": 75}, "confidence=75"), ({"ramp": "up"}, "ramp=up")],
)
def test_settings_that_cannot_be(settings, said):
    with pytest.raises(DualsegError, match=f"^{said}"):
        GuidedContrast(**settings)
