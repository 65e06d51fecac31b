"""dual_mix against loops over voxels in float64: pseudo-labels, mixed images, terms, its two stages, its settings."""

from functools import partial

import numpy as np
import pytest
import torch
from method_toys import Normed, States, Tiny, Volumes, cpu_trainer, tiny_parts, volumes_data
from mixing_derivation import SIZE, batch_of, decided, in_box, largest, probabilities, region_losses, weights_of

from dualseg.errors import DualsegError
from dualseg.losses import region_ce
from dualseg.methods import DualMix, Time
from dualseg.methods.audit import audit
from dualseg.methods.solo_mix import Target, _of_regions

SELF, PRE = Time(9, 10), Time(0, 10)
TERMS = tuple(DualMix.TERMS)


def pair(classes):
    """Two networks that predict several components each, and differ."""
    a, b = decided(classes), decided(classes)
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in b.parameters():
            p += 0.3 * torch.randn(p.shape, generator=g)
    return {"a": a, "b": b}


def made(classes=2, networks=None, **settings):
    return DualMix(**tiny_parts(Volumes(classes), **(networks or pair(classes))), **settings).train()


def terms_of(method, batch, time, seed=3):
    torch.manual_seed(seed)
    return {(term.name, term.network): term for term in method.loss_terms(batch, time)}


# The derivation, one voxel after another


def maps(networks, image):
    """p of both networks, (K, W, H, D) each."""
    return [
        np.stack([probabilities(weights_of(networks[i]), x) for x in image.ravel()], axis=1).reshape(-1, *SIZE)
        for i in "ab"
    ]


def shared_label(networks, image, entropy=True):
    p = maps(networks, image)
    w = [np.exp((q * np.log(q)).sum(0)) if entropy else np.ones(SIZE) for q in p]
    return largest((w[0] * p[0] + w[1] * p[1]).argmax(0), range(1, len(p[0])))


def agreement(networks, image):
    p, q = maps(networks, image)
    return np.exp(-((p * np.log(p / q)).sum(0) + (q * np.log(q / p)).sum(0)) / 2)


def weighted_ce(weights, images, labels, factors, mask):
    """sum over the mask of factor x CE, by the number of voxels there."""
    total, voxels = 0.0, 0
    for image, label, factor in zip(images, labels, factors, strict=True):
        for v in np.ndindex(*SIZE):
            if mask[v]:
                total -= factor[v] * np.log(probabilities(weights, image[v])[label[v]])
                voxels += 1
    return total / voxels


def corrected(networks, i, images, labels, mask):
    """The correction on disagreement: mean of squares where the confident classes of both differ, within the mask."""
    squares = []
    for image, label in zip(images, labels, strict=True):
        p = maps(networks, image)
        c = [np.where(q.max(0) >= 0.6, q.argmax(0), 0) for q in p]
        for v in np.argwhere((c[0] != c[1]) & mask):
            own = p["ab".index(i)][:, *v]
            squares.append(np.mean((own - np.eye(len(own))[label[tuple(v)]])[1:] ** 2))
    return np.mean(squares) if squares else 0.0


def expected_terms(networks, batch, entropy=True, agree=True):
    """(term, network) -> value in self-training: means over x_l and x_u."""
    n = len(batch.label)
    x, y = batch.image[:, 0].double().numpy(), batch.label.numpy()
    outside = ~np.array([in_box(v) for v in np.ndindex(*SIZE)]).reshape(SIZE)
    pseudo = [shared_label(networks, image, entropy) for image in x[n:]]
    factors = [agreement(networks, image) if agree else np.ones(SIZE) for image in x[n:]]
    rows = {(name, i): [] for name in TERMS for i in "ab"}
    for half, m in ((slice(0, n // 2), outside), (slice(n // 2, n), ~outside)):
        mixed = x[:n][half] * m + x[n:][half] * ~m
        for i in "ab":
            weights = weights_of(networks[i])
            ce, dice = region_losses(weights, mixed, y[half], m)
            rows["supervised_ce", i].append(ce)
            rows["supervised_dice", i].append(dice)
            rows["rectification", i].append(corrected(networks, i, mixed, y[half], m))
            rows["pseudo_ce", i].append(weighted_ce(weights, mixed, pseudo[half], factors[half], ~m))
            rows["pseudo_dice", i].append(region_losses(weights, mixed, pseudo[half], ~m)[1])
    return {key: np.mean(values) for key, values in rows.items()}


@pytest.mark.parametrize("classes", [2, 3])
def test_the_objective_by_hand(classes):
    method, batch = made(classes), batch_of(classes=classes)
    terms = terms_of(method, batch, SELF)
    expected = expected_terms({i: method.networks[i] for i in "ab"}, batch)  # the teachers are still copies
    assert {key: term.value.item() for key, term in terms.items()} == pytest.approx(expected, rel=1e-4)
    assert {name: term.weight for (name, _), term in terms.items()} == {
        "supervised_ce": 1, "supervised_dice": 1, "rectification": 0.5, "pseudo_ce": 0.5, "pseudo_dice": 0.5
    }  # fmt: skip
    assert all(terms["rectification", i].support > 0 for i in "ab")


@pytest.mark.parametrize(("weights", "agree"), [("equal", True), ("entropy", False)])
def test_weights_of_teachers_and_voxels_by_hand(weights, agree):
    batch = batch_of(classes=3, seed=8)  # on which the weights decide some classes
    method = made(3, teacher_weights=weights, agreement=agree)
    networks = {i: method.networks[i] for i in "ab"}
    terms = terms_of(method, batch, SELF)
    expected = expected_terms(networks, batch, weights == "entropy", agree)
    usual = expected_terms(networks, batch)
    assert expected["pseudo_ce", "a"] != pytest.approx(usual["pseudo_ce", "a"], rel=1e-3), "it makes a difference"
    assert {key: term.value.item() for key, term in terms.items()} == pytest.approx(expected, rel=1e-4)


def test_no_gradient_goes_through_a_pseudo_label():
    method, batch = made(3), batch_of(classes=3)
    for name in ("teacher_a", "teacher_b"):
        method.networks[name].requires_grad_(True)
    for term in terms_of(method, batch, SELF).values():
        term.value.backward(retain_graph=True)
    assert all(p.grad is None for name in ("teacher_a", "teacher_b") for p in method.networks[name].parameters())
    assert all(p.grad.abs().sum() > 0 for i in "ab" for p in method.networks[i].parameters())
    targets = method.pseudo_targets(batch.unlabeled.image)
    assert not any(target.weight.requires_grad for target in targets.values())


def test_the_other_teacher():
    """Each network has the classes of the other's average as labels, after its largest component."""
    method, batch = made(3, teacher="other", agreement=False), batch_of(classes=3)
    targets = method.pseudo_targets(batch.unlabeled.image)
    for n, image in enumerate(batch.unlabeled.image[:, 0].double().numpy()):
        p = maps(method.networks, image)
        for i, other in (("a", 1), ("b", 0)):
            assert np.array_equal(targets[i].label[n].numpy(), largest(p[other].argmax(0), (1, 2)))
    assert not torch.equal(targets["a"].label, targets["b"].label)


def test_classes_that_keep_all_their_components():
    batch = batch_of(classes=3)
    labels = {
        name: made(3, keep_largest=kept).pseudo_targets(batch.unlabeled.image)["a"].label
        for name, kept in (("all", "all"), ("one", ["atrium"]), ("none", []))
    }
    for image, *found in zip(batch.unlabeled.image[:, 0].double().numpy(), *labels.values(), strict=True):
        p = maps(pair(3), image)
        w = [np.exp((q * np.log(q)).sum(0)) for q in p]
        raw = (w[0] * p[0] + w[1] * p[1]).argmax(0)
        expected = [largest(raw, (1, 2)), largest(raw, (1,)), raw]
        assert all(np.array_equal(label.numpy(), own) for label, own in zip(found, expected, strict=True))
    assert not torch.equal(labels["all"], labels["none"])


def test_labeled_pairs_first_and_in_the_twin():
    """Each labeled patch has a box of the next one; every voxel has a label, and none counts twice."""
    batch = batch_of(classes=3)
    twin = batch._replace(image=batch.labeled.image, case=batch.case[:4])
    early, late = terms_of(made(3), batch, PRE), terms_of(made(3), twin, SELF)
    x, y = batch.labeled.image[:, 0].double().numpy(), batch.label.numpy()
    outside = ~np.array([in_box(v) for v in np.ndindex(*SIZE)]).reshape(SIZE)
    mixed = [np.where(outside, x[k], x[(k + 1) % 4]) for k in range(4)]
    label = [np.where(outside, y[k], y[(k + 1) % 4]) for k in range(4)]
    everywhere, networks = np.ones(SIZE, bool), pair(3)
    expected = {}
    for i in "ab":
        ce, dice = region_losses(weights_of(networks[i]), mixed, label, everywhere)
        expected |= {("supervised_ce", i): ce, ("supervised_dice", i): dice}
        expected["rectification", i] = corrected(networks, i, mixed, label, everywhere)
    for terms in (early, late):
        assert {key: term.value.item() for key, term in terms.items()} == pytest.approx(expected, rel=1e-4)


def seen_images(method, batch, time, seed=3):
    images = {}
    for i in "ab":
        method.networks[i].register_forward_pre_hook(lambda _, args, i=i: images.update({i: args[0]}))
    terms_of(method, batch, time, seed)
    return images


def test_both_networks_see_the_same_images_or_each_its_own():
    batch = batch_of()
    off = {"rectification": {"enabled": False}}
    same, own = (
        seen_images(made(same_patches=s, networks={i: Tiny(dropout=0.0) for i in "ab"}, terms=off), batch, SELF, seed=5)
        for s in (True, False)
    )
    assert torch.equal(same["a"], same["b"]) and torch.equal(same["a"], own["a"])
    sources = batch.image.flatten(1)
    for i, labeled in (("a", [0, 1, 2, 3]), ("b", [2, 3, 0, 1])):  # halves of the second network are swapped
        for patch, n in zip(own[i].flatten(1), labeled, strict=True):
            from_labeled, from_unlabeled = patch == sources[n], patch == sources[4 + n]
            assert torch.equal(from_labeled, ~from_unlabeled)
    boxes = [own[i][0] == batch.image[n] for i, n in (("a", 0), ("b", 2))]  # where it is of the labeled patch
    assert boxes[0].sum() == boxes[1].sum() and not torch.equal(*boxes), "a box of its own, as large"


def test_without_boxes_whole_patches_are_seen():
    batch = batch_of()
    method = made(mix_unlabeled=False)
    images = seen_images(method, batch, SELF)["a"]
    assert torch.equal(images, batch.image[[0, 1, 6, 7]])
    terms = terms_of(method, batch, SELF)
    x, y = batch.image[:, 0].double().numpy(), batch.label.numpy()
    ce, dice = region_losses(weights_of(method.networks["a"]), x[:2], y[:2], np.ones(SIZE, bool))
    assert terms["supervised_ce", "a"].value.item() == pytest.approx(ce, rel=1e-4)
    assert terms["supervised_dice", "a"].value.item() == pytest.approx(dice, rel=1e-4)
    pseudo = [shared_label(method.networks, image) for image in x[6:]]
    dice = region_losses(weights_of(method.networks["a"]), x[6:], pseudo, np.ones(SIZE, bool))[1]
    assert terms["pseudo_dice", "a"].value.item() == pytest.approx(dice, rel=1e-4)


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("same", [True, False])
def test_every_patch_is_used_and_the_twin_sees_as_many_images(count, same):
    off = {"rectification": {"enabled": False}}
    for time, unlabeled in ((SELF, count), (PRE, count), (SELF, 0)):
        method, batch = made(same_patches=same, terms=off), batch_of(count, unlabeled)
        batch.image.requires_grad_()
        images = seen_images(method, batch, time)
        assert {len(image) for image in images.values()} == {count}
        sum(term.value for term in method.loss_terms(batch, time)).backward()
        read = batch.image.grad.flatten(1).abs().amax(dim=1) > 0
        assert read[:count].all() and (read[count:].all() or time is PRE)


@pytest.mark.parametrize(
    ("labeled", "unlabeled", "message"),
    [
        (1, 1, r"batch\.labeled=1: .*2 or more"),
        (4, 2, r"batch\.unlabeled=2: .*as many as batch\.labeled=4, or 0"),
        (0, 4, r"batch\.labeled=0"),
    ],
)
def test_a_batch_that_cannot_be_mixed_is_refused(labeled, unlabeled, message):
    with pytest.raises(DualsegError, match=message):
        made().check_batch(labeled, unlabeled)
    with pytest.raises(DualsegError, match=message):  # in one of several processes
        terms_of(made(), batch_of(labeled, unlabeled), SELF)


def test_classes_in_one_piece_are_those_of_the_labels():
    class Pieces(Volumes):
        def read_label(self, case):
            label = super().read_label(case)
            label[-2:, -2:, -2:] = 2  # class 2 in two pieces, a tenth of it apart
            label[label == 2] = 2
            label[:3, :3, 12:] = 2
            return label

    for source, kept in ((Volumes(3), (1, 2)), (Pieces(3), (1,))):
        method = DualMix(**tiny_parts(source, **pair(3)))
        assert method.kept == (1, 2), "until the labels are known"
        cpu_trainer(1).fit(method, volumes_data(source))
        assert method.kept == kept
        named = DualMix(**tiny_parts(source, **pair(3)), keep_largest=["ventricle"])
        cpu_trainer(1).fit(named, volumes_data(source))
        assert named.kept == (2,)


def test_the_teachers_are_copies_then_averages():
    states = States()
    method = made(networks={i: Normed() for i in "ab"}, optimizer=partial(torch.optim.SGD, lr=0.5))
    cpu_trainer(8, callbacks=[states]).fit(method, volumes_data())
    for t, (before, after) in enumerate(zip([states.after[0], *states.after], states.after, strict=False)):
        for i in "ab":
            for name, student in after[i].items():
                teacher, old = after[f"teacher_{i}"][name], before[f"teacher_{i}"][name]
                if not name.endswith("num_batches_tracked"):
                    expected = student if t < 2 else old + 0.01 * (student - old)
                    torch.testing.assert_close(teacher, expected, msg=f"{t} {i} {name}")
    assert method.roles.record == "ensemble"


def test_every_term_is_live():
    rows = audit(made(3), [batch_of(classes=3, seed=s) for s in range(2)], 10)
    assert {(row.term, row.network): row.verdict for row in rows} == {(t, i): "live" for t in TERMS for i in "ab"}


def test_the_coarser_logits_of_a_pseudo_label_by_hand():
    """A loss in a region, at a scale half as fine: every other voxel, with weights 2/3 and 1/3."""
    g = torch.Generator().manual_seed(0)
    fine, coarse = torch.randn(2, 3, 4, 4, 4, generator=g), torch.randn(2, 3, 2, 2, 4, generator=g)
    label = torch.randint(3, (2, 4, 4, 4), generator=g)
    region, weight = torch.rand(1, 4, 4, 4, generator=g) < 0.6, torch.rand(2, 4, 4, 4, generator=g)
    found = _of_regions(region_ce, [fine.log_softmax(1), coarse.log_softmax(1)], Target(label, weight, region), weight)

    def by_hand(logits, step):
        total, voxels = 0.0, 0
        for n, x, y, z in np.ndindex(2, 4 // step, 4 // step, 4):
            place = (x * step, y * step, z)
            if region[0][place]:
                row = logits[n, :, x, y, z].double().numpy()
                log_p = row - np.log(np.exp(row).sum())
                total, voxels = total - weight[n][place].item() * log_p[label[n][place]], voxels + 1
        return total / voxels

    assert found.item() == pytest.approx(2 / 3 * by_hand(fine, 1) + 1 / 3 * by_hand(coarse, 2), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pretraining": 1.5}, r"method\.pretraining=1\.5"),
        ({"decay": 2}, r"method\.decay=2"),
        ({"teacher": "both"}, r"method\.teacher=both: .*other"),
        ({"teacher_weights": "mean"}, r"method\.teacher_weights=mean: .*equal"),
        ({"agreement": "yes"}, r"method\.agreement=yes"),
        ({"same_patches": False}, r"method\.same_patches=false: .*rectification\.enabled=false"),
        ({"mix_unlabeled": 0}, r"method\.mix_unlabeled=0"),
        ({"keep_largest": ["liver"]}, r"method\.keep_largest=\['liver'\]: .*atrium"),
        ({"keep_largest": "atrium"}, r"method\.keep_largest=atrium"),
        ({"guard": "on"}, r"method\.guard=on"),
    ],
)
def test_an_impossible_argument_is_refused(settings, message):
    with pytest.raises(DualsegError, match=message):
        made(**settings)
