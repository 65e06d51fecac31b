"""RCPS's objective once more, in float64 numpy voxel by voxel, and its views, negatives and scales."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from dual_derivation import cross_entropy, kl, log_softmax, softmax
from method_toys import FEATURES, Stored, Tiny, tiny_parts
from torch import Tensor, nn

from dualseg.data.batch import Batch
from dualseg.errors import DualsegError
from dualseg.inference import SlidingWindow
from dualseg.methods import RCPS, Time
from dualseg.methods import rcps as module
from dualseg.methods.audit import audit
from dualseg.networks import SegmentationOutput

TOTAL = 100
SHAPE = (8, 8, 4)  # a grid of 2 x 2 x 1 for the contrast
RAMP = math.exp(-5 * (1 - 60 / TOTAL) ** 2)
WEIGHTS = {"supervised_ce": 2 / 11, "supervised_dice": 1.0} | dict.fromkeys(
    ("pseudo_label", "uncertainty", "cosine", "contrast"), 0.1 * RAMP
)


class StoredScales(Stored):
    """With logits of a coarser grid beside."""

    def __init__(self, logits: Tensor, features: Tensor) -> None:
        super().__init__(logits, features)
        self.coarse = nn.Parameter(logits[:, :, ::2, ::2, ::2].clone())

    def forward(self, image: Tensor) -> SegmentationOutput:
        return SegmentationOutput(self.logits, self.features, {"logits_2": self.coarse, "distance": self.features})


def stored(num_classes: int, patches: int, seed: int = 0, kind: type[Stored] = Stored) -> Stored:
    """What a network might say of `patches` and two views of each; classes fill blocks, so that the coarse grid has
    several."""
    g = torch.Generator().manual_seed(seed)
    coarse = 3 * torch.randn(patches, num_classes, 2, 2, 1, generator=g).repeat_interleave(4, 2).repeat_interleave(4, 3)
    base = coarse.repeat_interleave(4, 4).repeat(3, 1, 1, 1, 1)
    features = torch.randn(3 * patches, FEATURES, *SHAPE, generator=g) + base[:, :1]
    return kind(base + torch.randn(base.shape, generator=g), features)


def batch_of(num_classes: int, labeled: int, patches: int) -> Batch:
    label = torch.randint(num_classes, (labeled, *SHAPE), generator=torch.Generator().manual_seed(5))
    return Batch(torch.zeros(patches, 1, *SHAPE), label, [str(i) for i in range(patches)])


def method_of(network: nn.Module, num_classes: int, **settings: Any) -> RCPS:
    names = ("background", "atrium", "ventricle")[:num_classes]
    torch.manual_seed(3)
    return RCPS({"a": network}, names, SlidingWindow((16, 16, 16), (8, 8, 8)), projection=6, **settings)


def unit_embeddings(features: np.ndarray, projector: nn.Module) -> np.ndarray:
    """(3N, F, W, H, D) -> (3N, voxels of the coarse grid, 6)."""
    first, prelu, second = (
        [p.detach().double().numpy() for p in layer.parameters()]
        for layer in projector  # type: ignore[attr-defined]
    )
    found = []
    for patch in features:
        rows = []
        for x in range(0, SHAPE[0], 4):
            for y in range(0, SHAPE[1], 4):
                hidden = first[0][:, :, 0, 0, 0] @ patch[:, x : x + 4, y : y + 4, :4].mean(axis=(1, 2, 3)) + first[1]
                hidden = np.where(hidden > 0, hidden, prelu[0] * hidden)
                out = second[0][:, :, 0, 0, 0] @ hidden + second[1]
                rows.append(out / np.linalg.norm(out))
        found.append(rows)
    return np.array(found)


def of_blocks(p: np.ndarray) -> np.ndarray:
    """(N, K, W, H, D) -> (N, voxels of the coarse grid, K)."""
    blocks = p.reshape(len(p), p.shape[1], 2, 4, 2, 4, 1, 4).mean(axis=(3, 5, 7))
    return np.moveaxis(blocks.reshape(len(p), p.shape[1], -1), 1, -1)


def contrast(u: np.ndarray, p0: np.ndarray, n: int, negatives: int, tau: float = 0.1) -> float:
    total, coarse = 0.0, of_blocks(p0)
    patches = len(p0)
    for own, other in ((range(n), range(n, patches)), (range(n, patches), range(n))):
        values = []
        for patch in own:
            for v in range(coarse.shape[1]):
                k = coarse[patch, v].argmax()
                pool = [(-coarse[m, w].max(), m, w) for m in other for w in range(coarse.shape[1])]
                pool = sorted(entry for entry in pool if coarse[entry[1], entry[2]].argmax() != k)[:negatives]
                u1, u2 = u[patches + patch, v], u[2 * patches + patch, v]
                numerator = math.exp(u1 @ u2 / tau)
                for anchor in (u1, u2):
                    rest = sum(math.exp(anchor @ u[m, w] / tau) for _, m, w in pool)
                    values.append(-math.log(numerator / (numerator + rest + 1e-8)) if pool else 0.0)
        total += 2 * float(np.mean(values)) if values else 0.0
    return total


def expected(
    z: np.ndarray, f: np.ndarray, z_sg: np.ndarray, label: np.ndarray, method: RCPS, cosine_of: str = "logits"
) -> dict[str, float]:
    """Every term; `z_sg`: the same logits where the specification stops the gradient."""
    patches, n, terms = len(z) // 3, len(label), dict.fromkeys(WEIGHTS, 0.0)
    z0, sg0 = z[:patches], z_sg[:patches]
    weight = np.where(label == 0, 1.0, 10.0)
    terms["supervised_ce"] = float((weight * cross_entropy(z0[:n], label)).sum() / weight.sum())
    dice = []
    for p, y in zip(softmax(z0[:n]), label, strict=True):
        for k in range(z.shape[1]):
            truth = y == k
            dice.append(1 - (2 * p[k][truth].sum() + 1e-5) / (p[k].sum() + truth.sum() + 1e-5))
    terms["supervised_dice"] = float(np.mean(dice))
    q = softmax(sg0 / 0.5)
    for half in (slice(n), slice(n, patches)):
        for view in (1, 2):
            zt = z[view * patches : (view + 1) * patches]
            divergence = kl(sg0, zt)[half]
            soft = -(q * log_softmax(zt)).sum(axis=1)[half]
            terms["pseudo_label"] += float((np.exp(-divergence) * soft).mean())
            terms["uncertainty"] += float(divergence.mean())
        one, two = (z[view * patches : (view + 1) * patches][half] for view in (1, 2))
        if cosine_of != "logits":
            one, two = softmax(one), softmax(two)
        norms = np.sqrt((one**2).sum(axis=1) * (two**2).sum(axis=1))
        terms["cosine"] += float((1 - (one * two).sum(axis=1) / norms).mean())
    terms["contrast"] = contrast(unit_embeddings(f, method.heads["projector"]), softmax(sg0), n, method.negatives)
    return terms


CASES = [(2, 1, 2), (3, 1, 2), (2, 2, 5)]


@pytest.mark.parametrize(("num_classes", "labeled", "patches"), CASES)
@pytest.mark.parametrize("cosine_of", ["logits", "probabilities"])
def test_values_and_weights(num_classes, labeled, patches, cosine_of):
    network, batch = stored(num_classes, patches, seed=num_classes), batch_of(num_classes, labeled, patches)
    method = method_of(network, num_classes, negatives=3, cosine_of=cosine_of)
    terms = {t.name: t for t in method.loss_terms(batch, Time(60, TOTAL))}
    z, f = (p.detach().double().numpy() for p in (network.logits, network.features))
    values = expected(z, f, z, batch.label.numpy(), method, cosine_of)
    assert {name: t.value.item() for name, t in terms.items()} == pytest.approx(values, rel=1e-4)
    assert {name: t.weight for name, t in terms.items()} == pytest.approx(WEIGHTS)
    assert all(value > 0 for value in values.values())


@pytest.mark.parametrize("num_classes", [2, 3])
def test_gradients(num_classes):
    """Through exp(-D), both sides of the cosine, anchors, positives and negatives; not through the targets."""
    network, batch = stored(num_classes, 2, seed=6), batch_of(num_classes, 1, 2)
    method = method_of(network, num_classes, negatives=3)
    sum(t.weight * t.value for t in method.loss_terms(batch, Time(60, TOTAL))).backward()
    z, f = (p.detach().double().numpy() for p in (network.logits, network.features))

    def total(z_live: np.ndarray, f_live: np.ndarray) -> float:
        values = expected(z_live, f_live, z, batch.label.numpy(), method)
        return sum(WEIGHTS[name] * value for name, value in values.items())

    rng = np.random.default_rng(0)
    for which, parameter in ((0, network.logits), (1, network.features)):
        got, derived = [], []
        for patch in range(6):
            for place in rng.integers(0, (z, f)[which][0].size, 4):
                sides = []
                for step in (1e-5, -1e-5):
                    changed = [z.copy(), f.copy()]
                    changed[which][patch].flat[place] += step
                    sides.append(total(*changed))
                derived.append((sides[0] - sides[1]) / 2e-5)
                got.append(parameter.grad[patch].flatten()[place].item())
        assert np.abs(derived).max() > 0
        np.testing.assert_allclose(got, derived, atol=2e-4 * np.abs(derived).max(), rtol=1e-3)
    assert network.logits.grad[1].abs().max() == 0, "an unlabeled patch itself is a target and nothing else"
    assert network.features.grad[1].abs().max() > 0, "its features are negatives"
    assert all(p.grad.abs().max() > 0 for p in method.heads.parameters())


def test_without_uncertainty_the_pseudo_labels_are_not_weighted():
    network, batch = stored(2, 2), batch_of(2, 1, 2)
    method = method_of(network, 2, terms={"uncertainty": {"enabled": False}})
    terms = {t.name: t for t in method.loss_terms(batch, Time(60, TOTAL))}
    z = network.logits.detach().double().numpy()
    q, plain = softmax(z[:2] / 0.5), 0.0
    for view in (1, 2):
        soft = -(q * log_softmax(z[2 * view : 2 * view + 2])).sum(axis=1)
        plain += float(soft[:1].mean() + soft[1:].mean())
    assert "uncertainty" not in terms
    assert terms["pseudo_label"].value.item() == pytest.approx(plain, rel=1e-5)


def test_scales_of_the_network_are_added():
    network, batch = stored(2, 2, kind=StoredScales), batch_of(2, 1, 2)
    terms = {t.name: t for t in method_of(network, 2).loss_terms(batch, Time(60, TOTAL))}
    coarse = nn.functional.interpolate(network.coarse.detach(), SHAPE, mode="trilinear")
    z, f = network.logits.detach().double().numpy(), network.features.detach().double().numpy()
    method = method_of(network, 2)
    fine = expected(z, f, z, batch.label.numpy(), method)
    other = expected(coarse.double().numpy(), f, z, batch.label.numpy(), method)
    for name in WEIGHTS:
        both = fine[name] + (0.0 if name == "contrast" else other[name])
        if name in ("pseudo_label", "uncertainty"):
            both = fine[name] + of_scale(coarse.double().numpy(), z, name)
        assert terms[name].value.item() == pytest.approx(both, rel=1e-4), name


def of_scale(coarse: np.ndarray, z: np.ndarray, name: str) -> float:
    """Views of a coarse scale against the target of the finest."""
    mixed = np.concatenate([z[:2], coarse[2:]])
    method = method_of(Stored(torch.zeros(6, 2, *SHAPE), torch.zeros(6, FEATURES, *SHAPE)), 2)
    return expected(mixed, np.ones((6, FEATURES, *SHAPE)), z, np.zeros((1, *SHAPE), int), method)[name]


def test_views_change_contrast_brightness_and_noise_of_each_patch_for_itself():
    torch.manual_seed(0)
    image = torch.randn(400, 1, 4, 4, 4) + 2
    changed = module._changed(image)
    slopes, residuals, shifts = [], [], []
    for x, y in zip(image.flatten(1).numpy(), changed.flatten(1).numpy(), strict=True):
        slope, offset = np.polyfit(x, y, 1)
        slopes.append(slope)
        residuals.append(np.std(y - slope * x - offset))
        if residuals[-1] < 1e-5:
            shifts.append(offset / (slope * x.mean()))  # b of y = a x + b mean(a x)
    assert 0.45 < min(slopes) < 0.55
    assert 1.45 < max(slopes) < 1.55
    assert -0.501 < min(shifts) < -0.45
    assert 0.45 < max(shifts) < 0.501
    assert np.mean(np.array(residuals) < 1e-5) == pytest.approx(0.5, abs=0.1)
    assert 0.08 < max(residuals) < 0.13


def test_one_pass_over_the_patches_and_two_different_views_of_each(monkeypatch):
    seen = []
    network = Tiny(dropout=0.0)
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    method = RCPS(**tiny_parts(a=network))
    image = torch.randn(3, 1, 8, 8, 8)
    method.loss_terms(Batch(image, torch.zeros(1, 8, 8, 8, dtype=torch.long), ["x"] * 3), Time(0, TOTAL))
    (given,) = seen
    assert torch.equal(given[:3], image)
    assert not torch.allclose(given[3:6], given[6:])


@pytest.mark.parametrize(("labeled", "patches"), [(1, 2), (0, 2), (2, 2)])
def test_nothing_predicted_and_nothing_there_is_finite_and_connected(labeled, patches):
    network = stored(2, patches)
    network.logits.data[:, 0] += 60
    method = method_of(network, 2)
    batch = batch_of(2, labeled, patches)._replace(label=torch.zeros(labeled, *SHAPE, dtype=torch.long))
    terms = {t.name: t for t in method.loss_terms(batch, Time(60, TOTAL))}
    sum(t.weight * t.value for t in terms.values()).backward()
    assert all(torch.isfinite(t.value) and t.value.requires_grad for t in terms.values())
    assert terms["contrast"].value.item() == 0.0
    assert int(terms["contrast"].support) == 0
    assert all(torch.isfinite(p.grad).all() for p in method.parameters())


def test_every_term_is_live():
    rows = audit(method_of(stored(3, 2, seed=6), 3), [batch_of(3, 1, 2)], TOTAL)
    assert {(row.term, row.verdict) for row in rows} == {(name, "live") for name in RCPS.TERMS}


def test_the_projector_is_there_for_the_contrast_alone():
    assert not method_of(stored(2, 2), 2, terms={"contrast": {"enabled": False}}).heads


def test_impossible_settings_are_named():
    for setting in ({"cosine_of": "labels"}, {"negatives": 0.5}, {"temperature": 0}, {"sharpening": "T"}):
        ((key, value),) = setting.items()
        with pytest.raises(DualsegError, match=rf"method\.{key}={value}: "):
            method_of(stored(2, 2), 2, **setting)
