"""The guard: its ratios, when it closes and opens again, and what the run says of it."""

from functools import partial

import numpy as np
import pytest
import torch
from method_toys import Tiny, Volumes, cpu_trainer, differing, tiny_parts, volumes_data, whole_and_resumed

import dualseg.methods
from dualseg.data import SemiSupervisedDataModule
from dualseg.data.batch import Batch
from dualseg.errors import DualsegError
from dualseg.methods import (
    BidirectionalCopyPaste,
    CrossPseudoSupervision,
    DualISBI,
    DualMix,
    DualNetwork,
    SemSim,
    SoloMix,
    SSLContrastive,
    Supervised,
    Time,
    TwoNetworks,
)
from dualseg.methods import guard as guards
from dualseg.methods.audit import audit
from dualseg.methods.guard import Guard
from dualseg.runs import collapse as told
from dualseg.runs.collapse import collapse


def labels_with(*shares, voxels=10_000):
    """A label map of which each class but the background fills that share."""
    label = torch.zeros(1, voxels, 1, 1, dtype=torch.int64)
    start = 0
    for k, share in enumerate(shares, start=1):
        label[0, start : start + round(share * voxels)] = k
        start += round(share * voxels)
    return label


def guard_for(*shares):
    guard = Guard(1 + len(shares), acts=True)
    guard.expect(torch.tensor([1 - sum(shares), *shares]))
    return guard


def test_ratios_are_means_of_a_hundred_iterations_and_then_moving_averages():
    guard = guard_for(0.1, 0.02)
    assert guard.open == 1, "nothing was seen yet"
    found, expected = np.random.default_rng(0).uniform(0.5, 2, (120, 2)).round(2), np.zeros(2)
    for n, one in enumerate(found, start=1):
        guard.see(labels_with(*one * [0.1, 0.02]))
        expected = found[:n].mean(axis=0) if n <= 100 else 0.99 * expected + 0.01 * one
        np.testing.assert_allclose(guard.ratio.numpy(), expected, rtol=1e-4)
    assert guard.open == 1


def test_a_teacher_that_finds_nothing_yet_is_not_believed_before_it_does():
    """Its empty pseudo-labels would teach that there is nothing: r is 0, then n / (50 + n)."""
    guard = guard_for(0.1, 0.02)
    for _ in range(50):
        guard.see(labels_with(0.1, 0.0))
        assert guard.open == 0
    steps = 0
    while not guard.open:
        guard.see(labels_with(0.1, 0.02))
        steps += 1
    assert steps == 17


@pytest.mark.parametrize("wrong", [0.0, 1.0])
def test_it_closes_when_a_class_drains_or_floods_and_opens_when_it_is_back(wrong):
    guard = guard_for(0.1, 0.02)
    for _ in range(100):
        guard.see(labels_with(0.1, 0.02))
    steps = 0
    while guard.open:
        guard.see(labels_with(0.1, wrong * 0.9))
        steps += 1
        assert steps < 200
    # 0.99^n < 1/4, or 1 + 44 (1 - 0.99^n) > 4: what one odd iteration is far from
    assert steps == (138 if wrong == 0 else 8)
    back = 0
    while not guard.open:
        guard.see(labels_with(0.1, 0.02))
        back += 1
        assert back < 500
    assert back > 0


@pytest.mark.parametrize(("holding", "at_first", "later"), [(0.05, 10, 0.0), (0.01, 50, 0.035)])
def test_chance_alone(holding, at_first, later):
    """Right pseudo-labels of 2 patches an iteration, of which so many hold the class at all: 200 runs of 4,500."""
    hits = np.random.default_rng(0).binomial(2, holding, (4500, 200)) / (2 * holding)
    ratio, outside = np.ones(200), []
    for n, hit in enumerate(hits, start=1):
        weight = max(1 - guards.DECAY, 1 / n)
        ratio = (1 - weight) * ratio + weight * hit
        outside.append(((ratio < guards.LOW) | (ratio > guards.HIGH)).mean())
    assert sum(outside[:300]) == pytest.approx(at_first, abs=1), "iterations"
    assert np.mean(outside[300:]) == pytest.approx(later, abs=0.005 * (later > 0))


def test_a_class_that_no_label_has_is_exempt():
    guard = guard_for(0.1, 0.0)
    for _ in range(300):
        guard.see(labels_with(0.1, 0.5))
    assert guard.open == 1 and guard.ratio.tolist() == pytest.approx([1.0, 1.0])


class Rare(Volumes):
    """An organ of a thousandth of the volume."""

    def __init__(self) -> None:
        super().__init__(2, shape=(40, 40, 40))

    def read_label(self, case):
        label = np.zeros(self.shape, np.uint8)
        x, y, z = self._rng(case).integers(0, 37, 3)
        label[x : x + 4, y : y + 4, z : z + 4] = 1
        return label


def test_foreground_sampling_of_a_rare_organ_does_not_mislead_it():
    """Right pseudo-labels of uniform patches leave it open, though labeled patches hold many times their share."""
    source = Rare()
    data = SemiSupervisedDataModule(source, (16, 16, 16), labeled=2, foreground=1.0, labeled_per_batch=2)
    data.setup("fit")
    guard = Guard(2, acts=True)
    guard.expect(data.class_shares())
    rng = np.random.default_rng(0)
    labels = [torch.from_numpy(source.read_label(case)).long() for case in data.split.labeled]
    for _ in range(500):
        patches = []
        for label in labels * 2:
            x, y, z = rng.integers(0, 25, 3)
            patches.append(label[x : x + 16, y : y + 16, z : z + 16])
        guard.see(torch.stack(patches))
        assert guard.open == 1
    assert guard.ratio.item() == pytest.approx(1, abs=0.5)
    cut_around = labels_with(64 / 16**3, voxels=16**3)  # as in the labeled half
    for _ in range(500):
        guard.see(cut_around)
    assert guard.open == 0, "so shares of the labeled half would be of no use"


def made(method=DualMix, guard=True, pretraining=0.0, **settings):
    networks = {i: Tiny(dropout=0.0) for i in method.takes}
    return method(**tiny_parts(Volumes(), **networks), guard=guard, pretraining=pretraining, **settings)


@pytest.mark.parametrize("bias", [50.0, -50.0], ids=["flood", "drain"])
def test_a_run_survives_a_flood_and_a_drain(bias, monkeypatch):
    """Without the guard the pseudo-labels win over the labels; with it the networks keep what labels teach."""
    monkeypatch.setattr("dualseg.methods.guard.DECAY", 0.8)
    share = {}
    for guard in (True, False):
        torch.manual_seed(0)
        strong = {name: {"weight": 5.0} for name in ("pseudo_ce", "pseudo_dice")}
        method = made(guard=guard, terms=strong, optimizer=partial(torch.optim.SGD, lr=0.3))
        with torch.no_grad():
            for name in method.averages:  # one class everywhere, whatever the networks do
                method.networks[name].head.bias.copy_(torch.tensor([-bias, bias]))
        method.moving_averages = lambda time: {}
        opened = []
        method.log_curves = lambda values, opened=opened: opened.append(values.get("guard/open"))
        data = volumes_data()
        cpu_trainer(120, log_every_n_steps=1).fit(method, data)
        with torch.no_grad():
            image = torch.stack([data.volumes[case][0] for case in data.split.labeled])
            predicted = torch.stack([method.networks[i].eval()(image).logits.argmax(1) for i in "ab"])
            truth = torch.stack([data.volumes[case][1] for case in data.split.labeled])
        share[guard] = (predicted > 0).float().mean().item() / (truth > 0).float().mean().item()
        assert opened[-1] == (0.0 if guard else None)
    assert 0.25 < share[True] < 4
    assert not 0.25 < share[False] < 4


def test_closed_it_takes_the_weight_of_unlabeled_terms_alone():
    method = made()
    method.guard.ratio.fill_(5.0)
    method.guard.seen.fill_(100)
    method.guard.expect(torch.tensor([0.9, 0.1]))
    batch = Batch(torch.randn(8, 1, 8, 8, 8), torch.randint(2, (4, 8, 8, 8)), list("abcdefgh"))
    weights = {term.name: float(term.weight) for term in method.loss_terms(batch, Time(9, 10))}
    assert weights == {
        "supervised_ce": 1, "supervised_dice": 1, "rectification": 0.5, "pseudo_ce": 0, "pseudo_dice": 0
    }  # fmt: skip
    method.guard.ratio.fill_(1.0)
    assert {float(t.weight) for t in method.loss_terms(batch, Time(9, 10))} == {1.0, 0.5}


def test_a_flood_that_passes(monkeypatch):
    """The teachers flood, the guard closes, labels alone teach; the teachers come back, and it opens."""
    monkeypatch.setattr("dualseg.methods.guard.DECAY", 0.8)
    method = made(decay=0.8, optimizer=partial(torch.optim.SGD, lr=0.1))
    with torch.no_grad():
        for name in method.averages:
            method.networks[name].head.bias.copy_(torch.tensor([-8.0, 8.0]))
    opened = []
    method.log_curves = lambda values: opened.append(values["guard/open"])
    cpu_trainer(150, log_every_n_steps=1).fit(method, volumes_data())
    assert opened[0] == 0 and opened[-20:] == [1.0] * 20


def test_it_is_resumed_to_the_last_bit(tmp_path):
    """From the share of the run on labels alone into the guarded one."""
    whole, resumed = whole_and_resumed(lambda: made(pretraining=0.5), tmp_path, iterations=8, at=3)
    assert not differing(whole.state_dict(), resumed.state_dict())
    assert whole.state_dict()["guard.seen"] == 4


def test_a_checkpoint_from_before_the_guard_is_taken():
    method = made(BidirectionalCopyPaste, guard=False)
    state = {name: value for name, value in method.state_dict().items() if not name.startswith("guard.")}
    assert len(state) < len(method.state_dict())
    method.load_state_dict(state)
    assert method.guard.seen == 0


def test_a_guard_that_began_at_one_goes_on_as_it_would_have():
    method = made()
    state = {name: value for name, value in method.state_dict().items() if name != "guard.seen"}
    state["guard.ratio"] = torch.tensor([0.8])
    method.load_state_dict(state)
    method.guard.expect(torch.tensor([0.9, 0.1]))
    method.guard.see(labels_with(0.0))
    assert float(method.guard.ratio) == pytest.approx(0.99 * 0.8)


def test_the_audit_is_of_all_terms_whatever_the_guard_says():
    method = made()
    method.guard.expect(torch.tensor([0.9, 0.1]))
    method.guard.ratio.fill_(9.0)
    method.guard.seen.fill_(100)
    batch = Batch(torch.randn(8, 1, 8, 8, 8), torch.randint(2, (4, 8, 8, 8)), list("abcdefgh"))
    assert method.guard.open == 0
    rows = audit(method, [batch], 10)
    assert {row.verdict for row in rows if row.term in ("pseudo_ce", "pseudo_dice")} == {"live"}
    assert (float(method.guard.ratio), float(method.guard.seen), method.guard.acts) == (9.0, 100.0, True)


WATCHED = [
    *(BidirectionalCopyPaste, CrossPseudoSupervision, DualNetwork, DualISBI),
    *(SSLContrastive, SemSim, DualMix, SoloMix),
]


@pytest.mark.parametrize("method", WATCHED)
def test_every_method_with_pseudo_labels_measures_and_may_be_guarded(method):
    assert method.pseudo_labels
    for guard in (False, True):
        networks = {i: Tiny(dropout=0.0) for i in method.takes}
        own = method(**tiny_parts(Volumes(), **networks), guard=guard)
        curves = {}
        own.log_curves = curves.update
        cpu_trainer(3, log_every_n_steps=1).fit(own, volumes_data())
        assert 0 <= curves["pseudo_share/atrium"] != 1
        assert curves.get("guard/open") == (float(0.25 <= curves["pseudo_share/atrium"] <= 4) if guard else None)
        if guard:
            own.guard.ratio.fill_(9.0)
            own.guard.seen.fill_(100)
            batch = Batch(torch.randn(4, 1, 8, 8, 8), torch.randint(2, (2, 8, 8, 8)), list("abcd"))
            weights = {t.name: float(t.weight) for t in own.loss_terms(batch, Time(9, 10))}
            on_unlabeled = {name for name, term in own.TERMS.items() if term.on == "unlabeled"}
            assert {name for name, weight in weights.items() if weight == 0} == on_unlabeled & weights.keys() != set()


def test_methods_with_pseudo_labels_are_these():
    found = {m for m in vars(dualseg.methods).values() if isinstance(m, type) and getattr(m, "pseudo_labels", False)}
    assert found - {TwoNetworks} == {*WATCHED}


def test_it_needs_shares_to_expect():
    batch = Batch(torch.zeros(2, 1, 4, 4, 4), torch.zeros(1, 4, 4, 4, dtype=torch.long), ["a", "b"])
    with pytest.raises(DualsegError, match=r"method\.guard=true .*class_shares"):
        cpu_trainer(1).fit(made(), torch.utils.data.DataLoader([batch], batch_size=None))


def test_a_method_without_pseudo_labels_has_none():
    with pytest.raises(DualsegError, match=r"method\.guard=true: Supervised .*no pseudo-labels"):
        Supervised(**tiny_parts(a=Tiny()), guard=True)


def curves_file(tmp_path, **curves):
    """iterations 10 to 1,000; each curve a function of the iteration."""
    path = tmp_path / "curves.csv"
    rows = [f"{i},{name},{value(i)}" for i in range(10, 1001, 10) for name, value in curves.items()]
    path.write_text("iteration,name,value\n" + "\n".join(rows) + "\n")
    return path


def test_a_class_that_floods_or_drains_is_told_of(tmp_path):
    found = collapse(
        curves_file(
            tmp_path,
            **{
                "pseudo_share/left atrium": lambda i: 1.0,
                '"pseudo_share/arch, aorta"': lambda i: 1.0 if i < 500 else 9.0,
                "pseudo_share/vein": lambda i: 1.0 if i < 500 else 0.125,
            },
        )
    )
    assert (
        "9 times as much of class arch, aorta" in found
        and "0.12 times as much of class vein" in found
        and "atrium" not in found
    )


def test_a_guard_that_was_closed_is_told_of(tmp_path):
    ratio = {"pseudo_share/atrium": lambda i: 6.0 if i <= 250 else 1.0, "pseudo_share/vein": lambda i: 1.0}
    found = collapse(curves_file(tmp_path, **{"guard/open": lambda i: float(i > 250)}, **ratio))
    assert "25 % of the run" in found and "6 times as much of class atrium" in found and "vein" not in found
    assert found.endswith("; at its end they count")
    assert collapse(curves_file(tmp_path, **{"guard/open": lambda i: 1.0}, **ratio)) is None, "the guard is asked alone"
    assert collapse(curves_file(tmp_path, **{"guard/open": lambda i: float(i > 40)}, **ratio)) is None, "at first"
    closed = collapse(curves_file(tmp_path, **{"guard/open": lambda i: float(i <= 990)}, **ratio))
    assert closed == "unlabeled scans did not count in 1 % of the run", "at the end, by no class that is known"
    assert collapse(tmp_path / "none.csv") is None


def test_both_know_the_same_limits():
    assert (told.LOW, told.HIGH) == (guards.LOW, guards.HIGH)
