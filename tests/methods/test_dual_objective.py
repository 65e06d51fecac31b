"""The dual method's two objectives against `dual_derivation`: values, weights, total and gradients."""

from typing import Any

import dual_derivation as derivation
import numpy as np
import pytest
import torch
from dual_comparison import LABELED, as_arrays, assert_gradients, assert_terms, by_key
from dual_derivation import Setting
from method_toys import Stored, cpu_trainer, outputs, plain_sgd, stored_batch, stored_dual

from dualseg.errors import DualsegError
from dualseg.losses import Drawn
from dualseg.methods import DualNetwork, LossTerm, Time, dual
from dualseg.networks import SegmentationOutput

pytestmark = pytest.mark.filterwarnings("ignore:.*no `val_dataloader`")
TOTAL = 100
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "released scripts' filter": {"keep_fraction": 0.2},
    "distance": {"contrast": "distance", "margin": 1.4, "keep_fraction": 0.5},
    "numbers": {"confidence": 0.8, "temperature": 0.3, "rampup_iterations": 50, "keep_fraction": 0.6},
    "no ramp-up": {"rampup_iterations": 0},
}
WEIGHTS = {name: 0.3 + 0.2 * index for index, name in enumerate(DualNetwork.TERMS)}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The voxels that the contrast drew, one entry a call, network a before b."""
    record: list[torch.Tensor] = []
    original = dual.draw_voxels

    def recording(unreliable: torch.Tensor) -> Drawn:
        drawn = original(unreliable)
        record.append(drawn.voxels[drawn.counts])
        return drawn

    monkeypatch.setattr(dual, "draw_voxels", recording)
    return record


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("weighted", [False, True], ids=["default weights", "other weights"])
def test_described_values_and_weights_along_the_run(num_classes, variant, weighted, drawn):
    stored = outputs(num_classes, seed=num_classes)
    terms = {name: {"weight": weight} for name, weight in WEIGHTS.items()} if weighted else None
    method = stored_dual(stored, terms=terms, **VARIANTS[variant])
    setting = Setting(**VARIANTS[variant], **({"weights": WEIGHTS} if weighted else {}))
    batch, arrays = stored_batch(num_classes), as_arrays(stored)
    label = batch.label.numpy()
    for t in (0, 3, 9, 10, 37, 100):
        drawn.clear()
        torch.manual_seed(t)
        result = method.loss_terms(batch, Time(t, TOTAL))
        voxels = dict(zip("ab", (d.numpy() for d in drawn), strict=True))
        expected = derivation.described(arrays, arrays, label, t, TOTAL, voxels, setting)
        assert_terms(result, expected)
        assert all(value > 0 for value, _ in expected.values()), "an empty mask would prove nothing"


def test_union_takes_foreground_where_either_says_so(drawn):
    stored = outputs(2, seed=5)
    batch, arrays = stored_batch(2), as_arrays(stored)
    result = stored_dual(stored, fusion="union").loss_terms(batch, Time(50, TOTAL))
    voxels = dict(zip("ab", (d.numpy() for d in drawn), strict=True))
    expected = derivation.described(arrays, arrays, batch.label.numpy(), 50, TOTAL, voxels, Setting(fusion="union"))
    assert_terms(result, expected)
    mean = derivation.described(arrays, arrays, batch.label.numpy(), 50, TOTAL, voxels, Setting())
    assert mean["entropy_filtered", "a"][0] != pytest.approx(expected["entropy_filtered", "a"][0], rel=1e-2)


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("variant", ["defaults", "distance"])
def test_described_gradients(num_classes, variant, drawn):
    """L_A + L_B in one backward pass; every sg(.) of the specification is where it stands."""
    stored = outputs(num_classes, seed=20 + num_classes)
    method = stored_dual(stored, **VARIANTS[variant])
    setting = Setting(**VARIANTS[variant])
    batch, arrays = stored_batch(num_classes), as_arrays(stored)
    label, t = batch.label.numpy(), 60
    terms = method.loss_terms(batch, Time(t, TOTAL))
    sum(term.weight * term.value for term in terms).backward()
    voxels = dict(zip("ab", (d.numpy() for d in drawn), strict=True))

    def objective(live: dict[str, derivation.Output]) -> float:
        return derivation.total(derivation.described(live, arrays, label, t, TOTAL, voxels, setting))

    assert_gradients(method, objective, arrays, voxels)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_released_values_have_no_ramp(num_classes):
    stored = outputs(num_classes, seed=30 + num_classes)
    method = stored_dual(stored, objective="released")
    batch, arrays = stored_batch(num_classes), as_arrays(stored)
    expected = derivation.released(arrays, arrays, batch.label.numpy(), Setting())
    for t in (0, 7, 100):
        assert_terms(method.loss_terms(batch, Time(t, TOTAL)), expected)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_released_gradients(num_classes):
    """The divergence trains A alone, the cosine both; both over labeled and unlabeled patches alike."""
    stored = outputs(num_classes, seed=40 + num_classes)
    method = stored_dual(stored, objective="released")
    batch, arrays = stored_batch(num_classes), as_arrays(stored)
    label = batch.label.numpy()
    sum(term.weight * term.value for term in method.loss_terms(batch, Time(0, TOTAL))).backward()

    def objective(live: dict[str, derivation.Output]) -> float:
        return derivation.total(derivation.released(live, arrays, label, Setting()))

    assert_gradients(method, objective, arrays, {})


def flow(method: dual.DualNetwork, term: LossTerm) -> set[tuple[str, str, str]]:
    """(network, logits or features, labeled or unlabeled half) that the term's gradient reaches."""
    leaves = {(i, kind): getattr(method.networks[i], kind) for i in ("a", "b") for kind in ("logits", "features")}
    gradients = torch.autograd.grad(term.value, list(leaves.values()), retain_graph=True, allow_unused=True)
    reached = set()
    for (i, kind), gradient in zip(leaves, gradients, strict=True):
        if gradient is not None:
            halves = {"labeled": gradient[:LABELED], "unlabeled": gradient[LABELED:]}
            reached |= {(i, kind, half) for half, g in halves.items() if g.abs().max() > 0}
    return reached


def test_described_terms_reach_their_own_network_and_half():
    method = stored_dual(outputs(2))
    terms = method.loss_terms(stored_batch(2), Time(50, TOTAL))
    assert {(term.name, term.network) for term in terms} == {(name, i) for name in DualNetwork.TERMS for i in "ab"}
    supervised = {"supervised_ce", "supervised_dice", "rectification"}
    for term in terms:
        half = "labeled" if term.name in supervised else "unlabeled"
        kind = "features" if term.name == "contrast" else "logits"
        assert flow(method, term) == {(term.network, kind, half)}, term.key


def test_released_terms_reach_what_section_4_says():
    method = stored_dual(outputs(2), objective="released")
    reached = {key: flow(method, t) for key, t in by_key(method.loss_terms(stored_batch(2), Time(0, TOTAL))).items()}
    expected: dict[tuple[str, str | None], set[tuple[str, str, str]]] = {
        (name, i): {(i, "logits", "labeled")}
        for name in ("supervised_ce", "supervised_dice", "rectification")
        for i in "ab"
    }
    whole = ("labeled", "unlabeled")
    expected |= {(name, "a"): {("a", "logits", half) for half in whole} for name in ("cross_pseudo", "uncertainty")}
    expected["cosine", None] = {(i, "logits", half) for i in "ab" for half in whole}
    assert reached == expected


@pytest.mark.parametrize("objective", ["described", "released"])
@pytest.mark.parametrize("off", DualNetwork.TERMS)
def test_a_switch_removes_its_term_and_nothing_else(objective, off):
    stored, batch = outputs(2, seed=3), stored_batch(2)

    def values(terms: dict[str, dict[str, Any]]) -> dict[tuple[str, str | None], float]:
        torch.manual_seed(0)
        method = stored_dual(stored, objective=objective, terms=terms)
        return {key: t.value.item() for key, t in by_key(method.loss_terms(batch, Time(50, TOTAL))).items()}

    everything, rest = values({}), values({off: {"enabled": False}})
    assert rest.keys() == {key for key in everything if key[0] != off}
    same = [key for key in rest if not (off == "uncertainty" and key[0] == "cross_pseudo")]
    assert {key: rest[key] for key in same} == {key: everything[key] for key in same}
    if off == "uncertainty":  # the plain mean, without the weight exp(-D)
        arrays, first = as_arrays(stored), LABELED if objective == "described" else 0
        logits = {i: arrays[i][0][first:] for i in "ab"}
        for i, j in [("a", "b"), ("b", "a")] if objective == "described" else [("a", "b")]:
            expected = derivation.cross_entropy(logits[i], logits[j].argmax(axis=1)).mean()
            assert rest["cross_pseudo", i] == pytest.approx(expected, rel=1e-5)
            assert rest["cross_pseudo", i] > 1.05 * everything["cross_pseudo", i]


def test_uncertainty_without_cross_pseudo_is_the_mean_divergence_alone():
    stored, batch = outputs(3, seed=4), stored_batch(3)
    method = stored_dual(stored, terms={n: {"enabled": n == "uncertainty"} for n in DualNetwork.TERMS})
    arrays = as_arrays(stored)
    terms = by_key(method.loss_terms(batch, Time(50, TOTAL)))
    assert terms.keys() == {("uncertainty", "a"), ("uncertainty", "b")}
    for i, j in (("a", "b"), ("b", "a")):
        expected = derivation.kl(arrays[j][0][LABELED:], arrays[i][0][LABELED:]).mean()
        assert terms["uncertainty", i].value.item() == pytest.approx(expected, rel=1e-5)


def test_one_step_takes_the_whole_objective_and_logs_its_terms(drawn):
    """Through Lightning: with SGD at rate 1 the change of the stored logits is minus the gradient of the total."""
    stored, batch = outputs(2, seed=9), stored_batch(2)
    method = stored_dual(stored, optimizer=plain_sgd, lr_schedule=lambda t, total: 1.0)
    curves: dict[str, float] = {}
    method.log_curves = curves.update  # type: ignore[method-assign, assignment]
    cpu_trainer(1).fit(method, torch.utils.data.DataLoader([batch], batch_size=None))
    arrays = as_arrays(stored)
    voxels = dict(zip("ab", (d.numpy() for d in drawn), strict=True))
    # a run of one iteration: a tenth of it is 0, so w = 1
    expected = derivation.described(arrays, arrays, batch.label.numpy(), 0, 1, voxels, Setting())
    assert curves.pop("loss/total") == pytest.approx(derivation.total(expected), rel=1e-5)
    assert curves.pop("lr") == 1.0
    assert curves.pop("gradient_norm/a") < 10 > curves.pop("gradient_norm/b"), "below the limit"
    assert curves.pop("ramp/start") == 1.0
    assert curves.pop("ramp/run") == pytest.approx(np.exp(-5))
    assert {name for name in curves if name.startswith("foreground/")} == set(method.watched)
    curves = {name: value for name, value in curves.items() if name not in method.watched}
    assert curves == pytest.approx({f"loss/{i}/{name}": v for (name, i), (v, _) in expected.items()}, rel=1e-5)
    again = stored_dual(stored)
    torch.manual_seed(0)
    terms = [t for t in again.loss_terms(batch, Time(0, 1)) if t.name != "contrast"]
    sum(t.weight * t.value for t in terms).backward()
    for i in "ab":
        moved = method.networks[i].logits.detach() - stored[i][0]
        torch.testing.assert_close(-moved, again.networks[i].logits.grad, rtol=1e-3, atol=1e-6)


def test_contrast_draws_follow_the_iteration_alone(drawn):
    """Seeded anew each iteration: a resumed run draws what the uninterrupted one drew."""
    stored, batch = outputs(2), stored_batch(2)
    method = stored_dual(stored, keep_fraction=0.3)
    for iteration in (4, 5, 4):
        torch.rand(iteration)
        method.seed_iteration(iteration)
        method.loss_terms(batch, Time(50, TOTAL))
    fourth, fifth, again = drawn[0:2], drawn[2:4], drawn[4:6]
    assert all(torch.equal(x, y) for x, y in zip(fourth, again, strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(fourth, fifth, strict=True))
    assert not torch.equal(*fourth), "the networks draw independently"
    arrays = as_arrays(stored)
    reliable, _ = derivation.reliable_and_fused(
        arrays["a"][0][LABELED:], arrays["b"][0][LABELED:], Setting(keep_fraction=0.3)
    )
    for voxels in drawn:
        assert len(voxels) == (~reliable).sum() // 100 > 10
        assert len(voxels.unique()) == len(voxels)
        assert not reliable.ravel()[voxels].any()


def test_prototype_momentum_follows_the_specification(drawn):
    """c_k <- normalise(m c_k + (1 - m) new); first values as they are; the loss reads the updated prototypes."""
    momentum, setting = 0.7, Setting()
    first, second = outputs(2, seed=1), outputs(2, seed=2)
    method = stored_dual(first, prototype_momentum=momentum)
    batch = stored_batch(2)
    new: dict[str, list[dict[int, np.ndarray]]] = {"a": [], "b": []}
    for stored in (first, second):
        for i in "ab":
            method.networks[i].logits.data.copy_(stored[i][0])
            method.networks[i].features.data.copy_(stored[i][1])
        drawn.clear()
        terms = by_key(method.loss_terms(batch, Time(100, TOTAL)))
        z, f = (dict(zip("ab", t, strict=True)) for t in zip(*as_arrays(stored).values(), strict=True))
        z, f = {i: z[i][LABELED:] for i in "ab"}, {i: f[i][LABELED:] for i in "ab"}
        reliable, fused = derivation.reliable_and_fused(z["a"], z["b"], setting)
        for i in "ab":
            new[i].append(derivation.prototypes(f[i], reliable, fused, 2))
    for i, voxels in zip("ab", drawn, strict=True):
        mixed = {k: momentum * new[i][0][k] + (1 - momentum) * new[i][1][k] for k in (0, 1)}
        mixed = {k: c / np.linalg.norm(c) for k, c in mixed.items()}
        buffer = getattr(method, f"prototypes_{i}").numpy()
        np.testing.assert_allclose(buffer, np.stack([mixed[0], mixed[1]]), atol=1e-6)
        assert getattr(method, f"prototypes_{i}_present").all()
        expected = derivation.contrast(f[i], z[i], voxels.numpy(), mixed, setting)
        assert terms["contrast", i].value.item() == pytest.approx(expected, rel=1e-5)
        alone = derivation.contrast(f[i], z[i], voxels.numpy(), new[i][1], setting)
        assert alone != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("objective", ["described", "released"])
@pytest.mark.parametrize("size", [60.0, 1e4])
def test_saturated_networks_stay_finite(objective, size):
    stored = {i: (size * z.sign(), f) for i, (z, f) in outputs(3, seed=6).items()}
    method = stored_dual(stored, objective=objective)
    terms = method.loss_terms(stored_batch(3), Time(50, TOTAL))
    sum(term.weight * term.value for term in terms).backward()
    assert all(torch.isfinite(term.value) for term in terms)
    for network in method.networks.values():
        assert torch.isfinite(network.logits.grad).all()


@pytest.mark.parametrize("objective", ["described", "released"])
def test_a_batch_without_unlabeled_patches_has_zero_terms_that_stay_connected(objective):
    stored = outputs(2, samples=LABELED)
    method = stored_dual(stored, objective=objective)
    terms = method.loss_terms(stored_batch(2, samples=LABELED), Time(50, TOTAL))
    unsupervised = {"cross_pseudo", "uncertainty", "entropy_filtered", "cosine", "contrast"}
    for term in terms:
        assert torch.isfinite(term.value), term.key
        assert term.value.requires_grad, term.key
        if objective == "described" and term.name in unsupervised:
            assert term.value.item() == 0.0, term.key


def test_agreeing_networks_leave_the_correction_empty():
    logits, features = outputs(2)["a"]
    method = stored_dual({"a": (logits, features), "b": (logits, features)})
    terms = by_key(method.loss_terms(stored_batch(2), Time(50, TOTAL)))
    for i in "ab":
        assert terms["rectification", i].value.item() == 0.0
        assert int(terms["rectification", i].support) == 0
        assert terms["rectification", i].value.requires_grad


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"objective": "describd"}, ["objective=describd", "described"]),
        ({"fusion": "max"}, ["method.fusion=max", "union"]),
        ({"contrast": "triplet"}, ["method.contrast=triplet", "infonce"]),
        ({"terms": {"cosin": {"enabled": False}}}, ["method.terms.cosin", "did you mean cosine?"]),
        ({"keep_fraction": 80}, ["method.keep_fraction=80", "0 to 1"]),
        ({"prototype_momentum": 1.5}, ["method.prototype_momentum=1.5"]),
    ],
)
def test_impossible_settings_are_named(settings, words):
    with pytest.raises(DualsegError) as error:
        stored_dual(outputs(2), **settings)
    assert all(word in str(error.value) for word in words)


def test_union_is_refused_for_more_than_two_classes():
    with pytest.raises(DualsegError, match=r"method\.fusion=union .*2 classes, not 4"):
        stored_dual(outputs(4), fusion="union")


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("objective", ["described", "released"])
def test_shares_of_foreground_are_watched(num_classes, objective):
    stored = outputs(num_classes, seed=60)
    method = stored_dual(stored, objective=objective)
    batch = stored_batch(num_classes)
    method.loss_terms(batch, Time(0, TOTAL))
    expected = {"foreground/labels": float((batch.label.numpy() > 0).mean())}
    for i, (logits, _) in as_arrays(stored).items():
        expected[f"foreground/{i}"] = float((logits[LABELED:].argmax(1) > 0).mean())
    assert {name: float(share) for name, share in method.watched.items()} == pytest.approx(expected, rel=1e-6)


class Dropping(Stored):
    """Other logits and features in evaluation mode than in training, as a network with dropout has."""

    def __init__(self, first: tuple[torch.Tensor, torch.Tensor], second: tuple[torch.Tensor, torch.Tensor]) -> None:
        super().__init__(*first)
        self.second = second

    def forward(self, image: torch.Tensor) -> SegmentationOutput:
        if self.training:
            return super().forward(image)
        return SegmentationOutput(*(tensor[-len(image) :] for tensor in self.second))


@pytest.mark.parametrize("objective", ["described", "released"])
def test_what_is_taught_is_of_the_second_pass(objective, drawn):
    stored, second = outputs(3, seed=50), outputs(3, seed=51)
    method = stored_dual(stored, objective=objective, second_pass=True)
    for i in ("a", "b"):
        method.networks[i] = Dropping(stored[i], second[i])
    batch = stored_batch(3)
    terms = method.loss_terms(batch, Time(60, TOTAL))
    sum(term.weight * term.value for term in terms).backward()
    assert all(network.training for network in method.networks.values())
    for i in ("a", "b"):
        share = (second[i][0][LABELED:].argmax(1) > 0).float().mean()
        assert method.watched[f"foreground/{i}"] == share != (stored[i][0][LABELED:].argmax(1) > 0).float().mean()
    voxels = dict(zip("ab", (d.numpy() for d in drawn), strict=objective == "described"))  # released: has no contrast
    first, label = as_arrays(stored), batch.label.numpy()
    taught = {i: (second[i][0].double().numpy(), first[i][1]) for i in ("a", "b")}

    def expected(live: dict[str, derivation.Output]) -> derivation.Terms:
        own = derivation.supervised(live, first, label, Setting())
        if objective == "released":
            return derivation.released(live, taught, label, Setting()) | own
        found = derivation.described(live, taught, label, 60, TOTAL, voxels, Setting()) | own
        reliable, fused = derivation.reliable_and_fused(*(taught[i][0][LABELED:] for i in ("a", "b")), Setting())
        for i in ("a", "b"):  # whose classes are the learner's own
            z, f = (x[LABELED:] for x in first[i])
            prototypes = derivation.prototypes(f, reliable, fused, 3)
            value = derivation.contrast(live[i][1][LABELED:], z, voxels[i], prototypes, Setting())
            found["contrast", i] = value, found["contrast", i][1]
        return found

    assert_terms(terms, expected(first))
    assert_gradients(method, lambda live: derivation.total(expected(live)), first, voxels)
