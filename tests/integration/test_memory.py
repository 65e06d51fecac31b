"""Training and evaluation name what they would take of memory before a volume is read."""

import pytest
from torch import nn

from dualseg import evaluate, train
from dualseg.data.phantom import Phantom
from dualseg.data.reading import VolumeReader
from dualseg.inference import SlidingWindow
from dualseg.methods.evaluation import NetworkEvaluation


def test_commands_have_a_limit(command, tiny, phantom, tmp_path, monkeypatch):
    """Of 1 GiB all is done; where it is less nothing is read and nothing written."""
    words = [*(word.replace("16,16,16", "32,32,32") for word in tiny(phantom.root, tmp_path / "runs")), "name=one"]
    with monkeypatch.context() as patch:
        patch.setattr(Phantom, "read_image", lambda self, case: pytest.fail("was read"))
        for size in ("lots", "100MiB"):
            command(train.main, *words, f"data.memory={size}").complains(f"data.memory={size}")
        patch.setattr(NetworkEvaluation, "needs", lambda self, *sizes, on_cpu: 2**40)
        said = command(train.main, *words, "data.memory=1GiB", "evaluate_on=[test]")
        said.complains("data.memory=1GiB", "phantom_006", "evaluate", "1 TiB")
    assert not (tmp_path / "runs").exists()
    assert command(train.main, *words, "data.memory=1GiB").code == 0

    run = f"run={tmp_path / 'runs' / 'one'}"
    with monkeypatch.context() as patch:
        patch.setattr(VolumeReader, "read_evaluation", lambda *arguments: pytest.fail("was read"))
        command(evaluate.main, run, "memory=lots").complains("memory=lots", "8GiB")
        said = command(evaluate.main, run, "memory=800MiB").complains("phantom_006", "memory=800MiB", "memory=1GiB")
        assert "40 x 36 x 32 voxels" in said and "data.memory" not in said
    assert not (tmp_path / "runs" / "one" / "evaluations").exists()
    assert command(evaluate.main, run, "memory=1GiB", "trainer.progress_bar=false").code == 0


def test_an_evaluation_takes_more_with_more_of_everything():
    def needs(networks=2, classes=2, batch_size=4, on_cpu=True, **sizes):
        names = [f"class{k}" for k in range(classes)]
        window = SlidingWindow((16, 16, 16), (16, 16, 16), batch_size)
        evaluation = NetworkEvaluation({f"n{k}": nn.Conv3d(1, classes, 1) for k in range(networks)}, names, window)
        return evaluation.needs(**{"channels": 1, "seen": 10**6, "own": 10**6, **sizes}, on_cpu=on_cpu)

    usual = needs()
    for more in ({"networks": 3}, {"classes": 5}, {"batch_size": 8}, {"channels": 2}, {"own": 2 * 10**6}):
        assert needs(**more) > usual, more
    assert needs(seen=8 * 10**6) > usual > needs(on_cpu=False)
    # of few classes the feature maps of a window take most, of many their scores
    small = {"seen": 1, "own": 1}
    assert needs(classes=2, **small) == pytest.approx(needs(classes=10, **small), rel=0.01)
    assert needs(classes=300, **small) >= 4 * 16**3 * 4 * 300 * 3
    # stacked probabilities and their mean alone
    assert usual > 4 * 2 * (2 + 1) * 10**6
