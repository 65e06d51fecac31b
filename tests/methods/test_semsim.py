"""SemSim's objective once more, in float64 numpy voxel by voxel."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from dual_derivation import cross_entropy, dice_loss, softmax
from method_toys import FEATURES, Stored, Tiny, tiny_parts
from torch import nn

from dualseg.data.batch import Batch
from dualseg.errors import DualsegError
from dualseg.inference import SlidingWindow
from dualseg.methods import SemSim, Time
from dualseg.methods import semsim as module
from dualseg.methods.audit import audit

TOTAL = 100
SHAPE = (16, 16, 8)  # a grid of 2 x 2 x 1 for likeness
WEIGHTS = {
    "supervised_ce": 0.25, "supervised_dice": 0.25, "pseudo_label": 0.25, "intra_image": 0.125, "cross_image": 0.125,
}  # fmt: skip
LABELED, UNLABELED = 2, 3
SETTINGS: dict[str, Any] = {"confidence": 0.6, "temperature": 0.3, "sharpness": 20.0, "channels": 6}


def stored(num_classes: int, seed: int = 0, labeled: int = LABELED, unlabeled: int = UNLABELED) -> Stored:
    """What a network might say of a batch and its views: blocks of 8^3 voxels are of one class, more or less."""
    g = torch.Generator().manual_seed(seed)
    size = labeled + 3 * unlabeled
    base = 3 * torch.randn(size, num_classes, 2, 2, 1, generator=g)
    for axis in (2, 3, 4):
        base = base.repeat_interleave(8, axis)
    features = 0.5 * torch.randn(size, FEATURES, *SHAPE, generator=g)
    features[:, :num_classes] += base
    return Stored(base + 0.3 * torch.randn(base.shape, generator=g), features)


def batch_of(num_classes: int, labeled: int = LABELED, unlabeled: int = UNLABELED) -> Batch:
    g = torch.Generator().manual_seed(9)
    label = torch.randint(num_classes, (labeled, 4, 4, 2), generator=g)
    for axis in (1, 2, 3):
        label = label.repeat_interleave(4, axis)
    n = labeled + unlabeled
    return Batch(torch.zeros(n, 1, *SHAPE), label, [str(i) for i in range(n)])


def method_of(network: nn.Module, num_classes: int, **settings: Any) -> SemSim:
    names = ("background", "atrium", "ventricle")[:num_classes]
    torch.manual_seed(3)
    return SemSim({"a": network}, names, SlidingWindow((16, 16, 16), (8, 8, 8)), **{**SETTINGS, **settings})


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The boxes of the two strong views, which cover some blocks of 8^3 voxels and some voxels more."""
    g = torch.Generator().manual_seed(1)
    drawn: list[np.ndarray] = []

    def some_boxes(image: torch.Tensor) -> torch.Tensor:
        box = torch.zeros(len(image), *image.shape[2:], dtype=torch.bool)
        for patch in box[1:]:  # one patch has none
            x, y = torch.randint(2, (2,), generator=g).tolist()
            patch[8 * x : 8 * x + 9, 8 * y : 8 * y + 10] = True
        drawn.append(box.numpy())
        return box

    monkeypatch.setattr(module, "_boxes", some_boxes)
    return drawn


def blocks(volume: np.ndarray) -> np.ndarray:
    """(N, C, W, H, D) -> (N, 4, C)."""
    means = volume.reshape(len(volume), volume.shape[1], 2, 8, 2, 8, 1, 8).mean(axis=(3, 5, 7))
    return np.moveaxis(means.reshape(len(volume), volume.shape[1], 4), 1, 2)


def pasted(values: np.ndarray, box: np.ndarray) -> np.ndarray:
    """(N, voxels, ...) with the box of the patch before."""
    return np.array([[values[i - 1 if b else i, v] for v, b in enumerate(box[i])] for i in range(len(values))])


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


def dice_of_confident(p: np.ndarray, target: np.ndarray) -> float:
    """(N, voxels, K) each; the target's classes where it is confident."""
    losses = []
    for k in range(p.shape[2]):
        overlap = squares = truth = 0.0
        for row, t in zip(p.reshape(-1, p.shape[2]), target.reshape(-1, p.shape[2]), strict=True):
            if t.max() >= SETTINGS["confidence"]:
                overlap += row[k] * (t.argmax() == k)
                squares += row[k] ** 2
                truth += t.argmax() == k
        losses.append(1 - (2 * overlap + 1e-5) / (squares + truth + 1e-5))
    return float(np.mean(losses))


def refine(p: np.ndarray, f: np.ndarray) -> np.ndarray:
    result = []
    for rows, features in zip(p, f, strict=True):
        for v in range(len(rows)):
            weights = [math.exp(cosine(features[u], features[v]) / SETTINGS["temperature"]) for u in range(len(rows))]
            mixed = sum(w * row for w, row in zip(weights, rows, strict=True)) / sum(weights)
            result.append((rows[v] + mixed) / 2)
    return np.array(result).reshape(p.shape)


def by_prototypes(f: np.ndarray, g: dict[tuple[int, int], np.ndarray], num_classes: int) -> np.ndarray:
    result = []
    for row in f.reshape(-1, f.shape[2]):
        scores = []
        for c in range(num_classes):
            similar = [math.exp(cosine(row, v) / SETTINGS["temperature"]) for (_, k), v in g.items() if k == c]
            scores.append(float(np.mean(similar)) if similar else 0.0)
        result.append(np.array(scores) / sum(scores))
    return np.array(result).reshape(*f.shape[:2], num_classes)


def agreements(f: np.ndarray, g: dict[tuple[int, int], np.ndarray], num_classes: int, labeled: int) -> np.ndarray:
    result = []
    for row in f.reshape(-1, f.shape[2]):
        m = np.zeros((labeled, num_classes))
        for c in range(num_classes):
            of = {j: cosine(row, v) for (j, k), v in g.items() if k == c}
            m[:, c] = [of.get(j, np.mean(list(of.values()))) for j in range(labeled)]
        p = np.exp(m) / np.exp(m).sum(axis=1, keepdims=True)
        divergences = [float((q * np.log(q / p.mean(axis=0))).sum()) for q in p]
        result.append(np.mean([math.exp(-SETTINGS["sharpness"] * d) for d in divergences]))
    return np.array(result).reshape(f.shape[:2])


def expected(
    live: tuple[np.ndarray, np.ndarray],
    frozen: tuple[np.ndarray, np.ndarray],
    batch: Batch,
    boxes: list[np.ndarray],
    head: tuple[np.ndarray, np.ndarray],
) -> dict[str, float]:
    """Every term; `frozen`: logits and features where the gradient stops, `boxes`: (N, W, H, D) of s1 and s2."""
    label, num_classes = batch.label.numpy(), live[0].shape[1]
    n, u = len(label), len(batch.image) - len(label)
    z = live[0][:n]
    terms = {
        "supervised_ce": float(cross_entropy(z, label).mean()), "supervised_dice": dice_loss(softmax(z), label),
    }  # fmt: skip

    def rows(volume: np.ndarray) -> np.ndarray:
        return np.moveaxis(volume, 1, -1).reshape(len(volume), -1, volume.shape[1])

    p_w, p_s1 = softmax(frozen[0][n : n + u]), softmax(live[0][n + u : n + 2 * u])
    fine = [box.reshape(u, -1) for box in boxes]
    coarse = [blocks(box[:, None].astype(float))[:, :, 0] > 0.5 for box in boxes]
    terms["pseudo_label"] = dice_of_confident(rows(p_s1), pasted(rows(p_w), fine[0]))
    f, f_sg = ((blocks(x) @ head[0].T + head[1]) for x in (live[1], frozen[1]))
    target = pasted(refine(blocks(p_w), f_sg[n : n + u]), coarse[0])
    terms["intra_image"] = dice_of_confident(refine(blocks(p_s1), f[n + u : n + 2 * u]), target)
    middle = label[:, 4::8, 4::8, 4::8].reshape(n, 4)
    g, g_sg = (
        {(j, c): x[j][middle[j] == c].mean(axis=0) for j in range(n) for c in range(num_classes) if c in middle[j]}
        for x in (f, f_sg)
    )
    target = pasted(by_prototypes(f_sg[n : n + u], g_sg, num_classes), coarse[1])
    weight = pasted(agreements(f_sg[n : n + u], g_sg, num_classes, n), coarse[1])
    p_cr = by_prototypes(f[n + 2 * u :], g, num_classes)
    sure = target.max(axis=2) >= SETTINGS["confidence"]
    losses = [
        -w * math.log(p[t.argmax()])
        for p, t, w in zip(*(x.reshape(-1, *x.shape[2:])[sure.ravel()] for x in (p_cr, target, weight)), strict=True)
    ]
    terms["cross_image"] = float(np.mean(losses)) if losses else 0.0
    return terms


def arrays_of(network: Stored, method: SemSim) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    weight, bias = (p.detach().double().numpy() for p in method.heads["likeness"].parameters())
    both = (network.logits.detach().double().numpy(), network.features.detach().double().numpy())
    return both, (weight[:, :, 0, 0, 0], bias)


@pytest.mark.parametrize("num_classes", [2, 3])
@pytest.mark.parametrize("seed", [1, 2])
def test_values_and_weights(num_classes, seed, boxes):
    network, batch = stored(num_classes, seed), batch_of(num_classes)
    method = method_of(network, num_classes)
    terms = {t.name: t for t in method.loss_terms(batch, Time(3, TOTAL))}
    arrays, head = arrays_of(network, method)
    values = expected(arrays, arrays, batch, boxes, head)
    assert {name: t.value.item() for name, t in terms.items()} == pytest.approx(values, rel=1e-4)
    assert {name: t.weight for name, t in terms.items()} == WEIGHTS
    for name in ("pseudo_label", "intra_image", "cross_image"):
        assert int(terms[name].support) > 0, name
        size = UNLABELED * (math.prod(SHAPE) if name == "pseudo_label" else 4)
        assert float(method.watched[f"confident/{name}"]) == pytest.approx(int(terms[name].support) / size)


def test_a_class_that_one_labeled_patch_lacks_and_one_that_all_lack(boxes):
    network, batch = stored(3, 1), batch_of(3)
    label = batch.label % 2
    label[0] = 0
    batch = batch._replace(label=label)
    method = method_of(network, 3)
    terms = {t.name: t.value for t in method.loss_terms(batch, Time(3, TOTAL))}
    sum(terms.values()).backward()
    arrays, head = arrays_of(network, method)

    def without_third(values: np.ndarray) -> np.ndarray:
        return values[:, :2]

    both = (without_third(arrays[0]), arrays[1])
    assert terms["cross_image"].item() == pytest.approx(
        expected(both, both, batch, boxes, head)["cross_image"], rel=1e-4
    )
    assert all(torch.isfinite(p.grad).all() for p in method.parameters())


@pytest.mark.parametrize("num_classes", [2, 3])
def test_gradients(num_classes, boxes):
    """To the strong views, the labeled patches and the head; the weak view is a target and nothing else."""
    network, batch = stored(num_classes, 4), batch_of(num_classes)
    method = method_of(network, num_classes)
    sum(t.weight * t.value for t in method.loss_terms(batch, Time(3, TOTAL))).backward()
    arrays, head = arrays_of(network, method)
    drawn = list(boxes)

    def total(live: list[np.ndarray]) -> float:
        values = expected((live[0], live[1]), arrays, batch, drawn, head)
        return sum(WEIGHTS[name] * value for name, value in values.items())

    rng = np.random.default_rng(0)
    second = range(LABELED + 2 * UNLABELED, LABELED + 3 * UNLABELED)
    for which, patches in ((0, (0, LABELED + UNLABELED + 1)), (1, (0, LABELED + UNLABELED + 1, second[1]))):
        gradient = (network.logits, network.features)[which].grad.double().numpy()
        got, derived = [], []
        for patch in patches:
            largest = np.abs(gradient[patch]).argmax()
            for place in (largest, rng.integers(gradient[patch].size)):
                sides = []
                for step in (1e-3, -1e-3):
                    changed = [x.copy() for x in arrays]
                    changed[which][patch].flat[place] += step
                    sides.append(total(changed))
                derived.append((sides[0] - sides[1]) / 2e-3)
                got.append(gradient[patch].flat[place])
        assert np.abs(derived).max() > 0
        np.testing.assert_allclose(got, derived, atol=2e-3 * np.abs(derived).max())
    weak = slice(LABELED, LABELED + UNLABELED)
    assert network.logits.grad[weak].abs().max() == network.features.grad[weak].abs().max() == 0
    assert network.logits.grad[second].abs().max() == 0, "of s2 the features alone are read"
    assert all(p.grad.abs().max() > 0 for p in method.heads.parameters())


@pytest.mark.parametrize(("labeled", "unlabeled"), [(2, 2), (0, 2), (2, 1), (2, 0)])
def test_no_foreground_no_labels_or_no_unlabeled_patches(labeled, unlabeled):
    network = stored(2, labeled=labeled, unlabeled=unlabeled)
    network.logits.data[:, 0] += 60
    batch = batch_of(2, labeled, unlabeled)._replace(label=torch.zeros(labeled, *SHAPE, dtype=torch.long))
    method = method_of(network, 2)
    terms = method.loss_terms(batch, Time(3, TOTAL))
    sum(t.weight * t.value for t in terms).backward()
    assert {t.name for t in terms} == set(WEIGHTS)
    assert all(torch.isfinite(t.value) and t.value.requires_grad for t in terms)
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


def test_nothing_confident_is_zero_and_says_so():
    network = stored(2)
    network.logits.data *= 0.01
    terms = {t.name: t for t in method_of(network, 2, confidence=1.0).loss_terms(batch_of(2), Time(3, TOTAL))}
    for name in ("pseudo_label", "intra_image", "cross_image"):
        assert (terms[name].value.item(), int(terms[name].support)) == (0.0, 0)
        assert terms[name].value.requires_grad


def test_inside_a_box_a_strong_view_shows_the_patch_that_the_target_shows(boxes, monkeypatch):
    seen, strong = [], []

    def marked(image: torch.Tensor) -> torch.Tensor:
        strong.append(image + 100 * (len(strong) + 1))
        return strong[-1]

    monkeypatch.setattr(module, "_strong", marked)
    network = Tiny(dropout=0.0)
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    batch = batch_of(2)._replace(image=torch.randn(LABELED + UNLABELED, 1, *SHAPE))
    SemSim(**tiny_parts(a=network)).loss_terms(batch, Time(0, TOTAL))
    for k in (0, 1):
        given = seen[0][LABELED + (k + 1) * UNLABELED :][:UNLABELED, 0].numpy()
        assert boxes[k].any() and not boxes[k].all()
        for i, inside in enumerate(boxes[k]):
            assert np.array_equal(given[i][inside], strong[k][i - 1, 0].numpy()[inside])
            assert np.array_equal(given[i][~inside], strong[k][i, 0].numpy()[~inside])
    assert not np.array_equal(*boxes)


def test_every_term_is_live_and_the_head_stands_for_two_of_them():
    rows = audit(method_of(stored(2, 1), 2), [batch_of(2)], TOTAL)
    assert {(row.term, row.verdict) for row in rows} == {(name, "live") for name in SemSim.TERMS}
    off = {name: {"enabled": False} for name in ("intra_image", "cross_image")}
    assert not method_of(stored(2), 2, terms=off).heads


def test_impossible_settings_are_named():
    for setting in ({"confidence": 95}, {"temperature": 0}, {"sharpness": -1}, {"channels": 0}):
        ((key, value),) = setting.items()
        with pytest.raises(DualsegError, match=rf"method\.{key}={value}: "):
            method_of(stored(2), 2, **setting)
