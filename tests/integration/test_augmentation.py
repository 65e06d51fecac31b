"""A run with everything that augments: the same bits whoever prepares its batches, and wherever it was interrupted."""

import numpy as np
import pytest
import torch

import dualseg.evaluate
import dualseg.train
from dualseg.data import Phantom
from dualseg.runs.folder import RunFolder
from dualseg.training.checkpoints import read_checkpoint

AUGMENTED = [
    *("method=mean_teacher", "augmentation=strong", "augmentation.mix=true", "data.foreground=0.33"),
    *("trainer.max_iterations=6", "trainer.checkpoint_every=3", "trainer.checkpoints_kept=2"),
]


@pytest.fixture
def trained(command, tiny, phantom, tmp_path):
    """(name, further words) -> the finished run and what its command said."""

    def train(name, *words):
        outcome = command(dualseg.train.main, *tiny(phantom.root, tmp_path), *AUGMENTED, f"name={name}", *words)
        assert outcome.code == 0, outcome.err
        return RunFolder(tmp_path / name), outcome

    return train


def weights(run):
    return read_checkpoint(run.checkpoint())["state_dict"]


def same(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(first[key], second[key]) for key in first)


def test_workers_and_interruptions_change_no_bit(trained, command, tmp_path):
    alone, outcome = trained("alone", "data.num_workers=0")
    assert "note:" not in outcome.err, "an atrium has no side"
    assert all(np.isfinite(tensor.float().numpy()).all() for tensor in weights(alone).values())
    by_two, _ = trained("by_two", "data.num_workers=2")
    assert same(weights(alone), weights(by_two))

    by_two.checkpoint().unlink()
    by_two.metrics_file.unlink()
    resumed, outcome = trained("by_two", "data.num_workers=2")
    assert "from iteration 3" in outcome.out
    assert same(weights(alone), weights(resumed))

    for key in ("augmentation.mix=false", "augmentation.intensity=null", "data.foreground=0"):
        other, _ = trained(key.split("=")[0], key)
        assert not same(weights(alone), weights(other)), f"{key}: decides the result"
    config = alone.config()
    assert config["augmentation"] == {"intensity": "strong", "mix": True} and config["data"]["foreground"] == 0.33
    assert command(dualseg.evaluate.main, f"run={alone.path}").code == 0


def test_a_line_says_that_left_and_right_stay_apart(trained, monkeypatch):
    monkeypatch.setattr(Phantom, "class_names", ("background", "left_atrium"))
    _, outcome = trained("sided", "trainer.max_iterations=1")
    (note,) = [line for line in outcome.err.splitlines() if line.startswith("note: ")]
    assert "not mirrored" in note and "left_atrium" in note and "mirror_axes=[0,1,2]" in note
    _, outcome = trained("all", "trainer.max_iterations=1", "data.augmentation.mirror_axes=[0,1,2]")
    assert "note: " not in outcome.err
