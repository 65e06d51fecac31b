"""Prototypes that move with momentum are part of what a run saves."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from method_toys import cpu_trainer, fit_watched, tiny_parts, volumes_data

from dualseg.errors import DualsegError
from dualseg.methods import DualNetwork

pytestmark = pytest.mark.filterwarnings("ignore:.*not resumable")


def test_prototypes_are_saved_and_restored(tmp_path):
    """6 iterations at once and 3 + 3 through a checkpoint: the same prototypes and weights, to the last bit."""

    def method() -> DualNetwork:
        return DualNetwork(**tiny_parts(), prototype_momentum=0.9, keep_fraction=0.3)

    whole = method()
    fit_watched(whole, 6)
    assert {name for name in whole.state_dict() if name.startswith("prototypes")} == {
        "prototypes_a", "prototypes_a_present", "prototypes_b", "prototypes_b_present",
    }  # fmt: skip

    class StopAfter(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "third.ckpt")
                raise StopIteration

    first = method()
    trainer = cpu_trainer(6, callbacks=[StopAfter()])
    trainer.fit(first, volumes_data())
    second = method()
    cpu_trainer(6).fit(second, volumes_data(), ckpt_path=tmp_path / "third.ckpt", weights_only=True)
    assert second.trainer.global_step == 6
    for name, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert whole.prototypes_a_present.any()
    stored = torch.load(tmp_path / "third.ckpt", weights_only=True)["state_dict"]["prototypes_a"]
    assert not torch.equal(whole.prototypes_a, stored), "they moved on after the checkpoint"
    without = DualNetwork(**tiny_parts())
    assert not any(name.startswith("prototypes") for name in without.state_dict())


def test_prototypes_with_momentum_need_to_know_the_width_of_the_features():
    parts = tiny_parts()
    del parts["networks"]["b"].feature_channels
    with pytest.raises(DualsegError, match=r"networks\.b: .* feature_channels"):
        DualNetwork(**parts, prototype_momentum=0.9)
