"""Modules of a method's own and of added terms: trained, limited on their own, saved, resumed; further outputs too."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from method_toys import (
    Normed,
    Tiny,
    Volumes,
    cpu_trainer,
    differing,
    plain_sgd,
    tiny_parts,
    volumes_data,
    whole_and_resumed,
)
from torch import Tensor, nn

from dualseg.data.batch import Batch
from dualseg.data.volumes import Image
from dualseg.errors import DualsegError
from dualseg.losses import supervised_ce
from dualseg.methods import (
    ERDA,
    GuidedContrast,
    LossTerm,
    SegmentationMethod,
    Supervised,
    Term,
    Time,
    View,
    guided_contrast,
)
from dualseg.methods.schedules import constant, step_decay
from dualseg.networks import SegmentationOutput

pytestmark = pytest.mark.filterwarnings("ignore:.*not resumable")


class WithHead(SegmentationMethod):
    """A second classifier on the features, in a head, and a discriminator with an optimizer setting of its own."""

    TERMS = {"supervised_ce": Term("labeled"), "auxiliary": Term("labeled", weight=0.5)}
    head_settings = {"auxiliary": {"lr": 0.25, "momentum": 0.0, "weight_decay": 0.0}}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.heads["auxiliary"] = nn.Conv3d(4, 2, 1)

    def objective(self, batch: Batch, time: Time) -> Iterator[LossTerm]:
        view = self.view("a").split(len(batch.label), len(batch.unlabeled.image))[0]
        yield self.term("supervised_ce", "a", supervised_ce(view.log_p, batch.label))
        logits = self.heads["auxiliary"](view.features)
        yield self.term("auxiliary", "a", supervised_ce(logits.log_softmax(dim=1), batch.label))


def with_head(**settings: Any) -> WithHead:
    return WithHead(**tiny_parts(a=Normed()), **settings)


def test_a_head_is_trained_with_settings_of_its_own():
    method = with_head(lr_schedule=step_decay((2,), 0.1), gradient_clip_norm=None)
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    trainer = cpu_trainer(1)
    trainer.fit(method, volumes_data())
    network, head = trainer.optimizers[0].param_groups
    assert (network["name"], network["lr"], network["momentum"], network["weight_decay"]) == ("a", 0.01, 0.9, 1e-4)
    assert (head["name"], head["lr"], head["momentum"], head["weight_decay"]) == ("auxiliary", 0.25, 0.0, 0.0)
    for name, p in method.heads.named_parameters():  # the first step of plain SGD, read off the last gradient
        torch.testing.assert_close(p.detach(), before[f"heads.{name}"] - 0.25 * p.grad)
        assert p.grad.any()
    longer = with_head(lr_schedule=step_decay((2,), 0.1))
    trainer = cpu_trainer(3)
    trainer.fit(longer, volumes_data())
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == pytest.approx([0.001, 0.025])


def test_settings_of_a_head_that_is_not_there_are_refused():
    method = with_head()
    method.head_settings = {"auxilliary": {"lr": 1.0}}
    with pytest.raises(DualsegError, match=r"WithHead\.head_settings: .*no head .*auxilliary"):
        cpu_trainer(1).fit(method, volumes_data())


def test_a_run_without_labels_reads_none():
    """Self-supervised: of `labeled=0` every patch is an unlabeled one, also those of labeled cases."""

    class Still(SegmentationMethod):
        TERMS = {"still": Term("unlabeled")}

        def objective(self, batch: Batch, time: Time) -> Iterator[LossTerm]:
            assert batch.label.shape == (0, *batch.image.shape[2:]) and len(batch.unlabeled.image) == 4
            seen.update(batch.case)
            yield self.term("still", "a", self.view("a").p.var())

    class Unlabeled(Volumes):
        def read_label(self, case: str) -> np.ndarray:
            pytest.fail(f"the label of {case} was read")

        def read_image(self, case: str) -> Image:
            return Image(self._rng(case).standard_normal((1, *self.shape)).astype(np.float32), np.eye(4))

    source, seen = Unlabeled(), set()
    method = Still(**tiny_parts(a=Normed()))
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    cpu_trainer(12).fit(method, volumes_data(source, labeled_per_batch=0, unlabeled_per_batch=4))
    assert seen == {*source.train_cases}
    assert differing(dict(method.named_parameters()), before)


def test_a_heads_gradient_is_limited_on_its_own():
    """The head's is a hundred times as large; the network's step is the same as with a small one."""

    class Steep(WithHead):
        TERMS = {"supervised_ce": Term("labeled"), "steep": Term("both"), "flat": Term("both")}
        head_settings = {"auxiliary": {"weight_decay": 0.0}}

        def objective(self, batch: Batch, time: Time) -> Iterator[LossTerm]:
            yield self.term("steep", None, 100 * torch.stack([p.sum() for p in self.heads.parameters()]).sum())
            yield self.term("flat", "a", torch.stack([p.sum() for p in self.networks.parameters()]).sum())

    method = Steep(**tiny_parts(a=Tiny()), optimizer=plain_sgd, lr_schedule=constant(), gradient_clip_norm=5.0)
    curves: dict[str, float] = {}
    method.log_curves = curves.update  # type: ignore[method-assign, assignment]
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    cpu_trainer(1).fit(method, volumes_data())
    for group, slope in (("heads.auxiliary.", 100.0), ("networks.a.", 1.0)):
        moved = torch.cat([(before[n] - p).flatten() for n, p in method.named_parameters() if n.startswith(group)])
        norm = slope * len(moved) ** 0.5
        assert curves[f"gradient_norm/{group.split('.')[1]}"] == pytest.approx(norm, rel=1e-5)
        torch.testing.assert_close(moved, torch.full_like(moved, slope * min(1, 5 / norm)), rtol=1e-5, atol=1e-6)


def test_a_head_is_saved_and_resumed_bit_for_bit(tmp_path):
    whole, resumed = whole_and_resumed(partial(with_head, optimizer=partial(torch.optim.SGD, lr=0.1)), tmp_path)
    assert {"heads.auxiliary.weight", "heads.auxiliary.bias"} < set(whole.state_dict())
    assert differing(whole.state_dict(), resumed.state_dict()) == []
    stored = torch.load(tmp_path / "3.ckpt", weights_only=True)["state_dict"]
    assert "heads.auxiliary.weight" in differing(whole.state_dict(), stored), "it moved on after the checkpoint"


def test_added_terms_are_trained_saved_and_resumed_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(guided_contrast, "POSITIVES", 64)

    def make() -> Supervised:
        terms = {"erda": ERDA(temperature=0.1), "guided_contrast": GuidedContrast(ramp="none", confidence=0.5)}
        return Supervised(**tiny_parts(a=Tiny()), terms=terms)

    whole, resumed = whole_and_resumed(make, tmp_path)
    state = whole.state_dict()
    assert differing(state, resumed.state_dict()) == []
    stored = torch.load(tmp_path / "3.ckpt", weights_only=True)["state_dict"]
    assert stored.keys() == state.keys()
    moved = set(differing(state, stored))
    for name in ("erda.classes.a.vectors", "erda.classes.a.g.3.weight", "guided_contrast.projectors.a.weight"):
        assert f"heads.{name}" in moved
    assert {"heads.guided_contrast.banks.0.e", "heads.guided_contrast.banks.1.count"} < moved
    groups = {group["name"]: group for group in whole.trainer.optimizers[0].param_groups}
    assert groups.keys() == {"a", "erda", "guided_contrast"}
    assert all(p.grad is not None for p in whole.heads.parameters())


def test_a_term_that_is_switched_off_leaves_nothing():
    method = Supervised(**tiny_parts(a=Tiny()), terms={"erda": ERDA(enabled=False)})
    assert list(method.heads) == []
    cpu_trainer(1).fit(method, volumes_data())
    assert [group["name"] for group in method.trainer.optimizers[0].param_groups] == ["a"]
    assert method.state_dict().keys() == Supervised(**tiny_parts(a=Tiny())).state_dict().keys()


class TwoDecoders(Normed):
    """A further decoder and a distance, which methods alone read."""

    def __init__(self) -> None:
        super().__init__()
        self.second, self.distance = nn.Conv3d(4, 2, 1), nn.Conv3d(4, 1, 1)

    def forward(self, image: Tensor) -> SegmentationOutput:
        output = super().forward(image)
        others = {"decoder": self.second(output.features), "distance": self.distance(output.features).tanh()}
        return output._replace(others=others)


class MutualDecoders(SegmentationMethod):
    """Two decoders that agree, and a distance."""

    TERMS = {"supervised_ce": Term("labeled"), "agreement": Term("unlabeled"), "distance": Term("labeled")}

    def objective(self, batch: Batch, time: Time) -> Iterator[LossTerm]:
        n = len(batch.label)
        labeled, unlabeled = self.see("a", batch.image).split(n, len(batch.image) - n)
        yield self.term("supervised_ce", "a", supervised_ce(labeled.log_p, batch.label))
        second = unlabeled.others["decoder"].softmax(dim=1)
        yield self.term("agreement", "a", (unlabeled.p - second).square().mean())
        target = 2.0 * batch.label[:, None] - 1
        yield self.term("distance", "a", (labeled.others["distance"] - target).square().mean())


def test_further_outputs_of_a_network_are_trained_and_split():
    method = MutualDecoders(**tiny_parts(a=TwoDecoders()))
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    cpu_trainer(3).fit(method, volumes_data())
    assert differing(dict(method.named_parameters()), before) == [*before], "both decoders and the distance"
    image = torch.randn(4, 1, 16, 16, 16)
    whole = method.see("a", image)
    labeled, unlabeled = whole.split(1, 3)
    assert (len(labeled), len(unlabeled)) == (1, 3)
    for name in ("decoder", "distance"):
        assert torch.equal(torch.cat([labeled.others[name], unlabeled.others[name]]), whole.others[name])
    assert isinstance(whole, View) and whole.others["distance"].shape == (4, 1, 16, 16, 16)
    method.trainer.test(method, volumes_data(), verbose=False)
    assert set(method.results["test"]) == {"a"}
    assert all(p.min() >= 0 and p.max() <= 1 for p in method.probabilities(torch.randn(1, 20, 18, 16)).values())
    assert Volumes().class_names == method.class_names
