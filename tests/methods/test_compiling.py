"""Compiled networks train as the uncompiled ones do, are saved as they are, and are no reason for a run to fail."""

import shutil
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from method_toys import Normed, Tiny, Volumes, cpu_trainer, differing, tiny_parts, volumes_data, whole_and_resumed
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters

from dualseg import train
from dualseg.errors import DualsegError
from dualseg.methods import MeanTeacher
from dualseg.methods.compiling import CompiledNetwork
from dualseg.networks import PlainUNet, ResidualEncoderUNet, ResNet34VNet, SegmentationOutput, VNet
from dualseg.runs.folder import RunFolder
from dualseg.training import assembly


class Net(nn.Module):
    """With a convolution, BatchNorm and dropout."""

    feature_channels = 4

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Normed(), Tiny(in_channels=4)

    def forward(self, image: torch.Tensor) -> SegmentationOutput:
        return self.second(self.first(image).features)


@pytest.fixture(autouse=True)
def nothing_is_captured_yet() -> None:
    torch._dynamo.reset()
    counters.clear()


def graphs() -> int:
    """That torch has captured in this test."""
    return counters["stats"]["unique_graphs"]


def made(compiled: bool) -> MeanTeacher:
    torch.manual_seed(1)
    method = MeanTeacher(**tiny_parts(Volumes(), a=Net()))
    if compiled:
        method.compile_networks()
    return method


@pytest.mark.skipif(shutil.which("g++") is None, reason="the inductor needs a C++ compiler")
def test_training_is_that_of_the_networks_as_they_are_and_resumes_bit_by_bit(tmp_path) -> None:
    """By the inductor: dropout draws the same, BatchNorm's statistics and the average move in the same way."""
    eager = made(compiled=False)
    cpu_trainer(4).fit(eager, volumes_data())
    assert graphs() == 0
    whole, resumed = whole_and_resumed(lambda: made(compiled=True), tmp_path, iterations=4, at=2)
    found = graphs()
    assert found >= 2, "one is trained and one is watched"
    whole.trainer.limit_val_batches = 1
    whole.trainer.validate(whole, volumes_data(held_out_validation=1), verbose=False)
    assert graphs() == found and whole.results, "an evaluation compiles nothing"
    assert whole.state_dict().keys() == eager.state_dict().keys()
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(whole.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert differing(whole.state_dict(), resumed.state_dict()) == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: VNet(1, 2, 4),
        lambda: ResNet34VNet(1, 2, 4),
        lambda: PlainUNet(1, 2, [4, 8, 8], [[1, 1, 1], [2, 2, 2], [2, 2, 2]], [[3, 3, 3]] * 3),
        lambda: ResidualEncoderUNet(1, 2, [4, 8], [[1, 1, 1], [2, 2, 2]], [[3, 3, 3]] * 2, [1, 2]),
    ],
    ids=["vnet", "resnet34", "plain_unet", "residual_encoder"],
)
@pytest.mark.parametrize("training", [True, False])
def test_a_network_is_one_graph(make: Any, training: bool) -> None:
    found = torch._dynamo.explain(make().train(training))(torch.zeros(2, 1, 32, 32, 32))
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


@pytest.fixture(params=["forward", "backward"])
def tries(request, monkeypatch) -> list[int]:
    """The compiler of one of the two passes is broken; an entry each time that it is tried."""
    tries: list[int] = []

    def broken(graph: Any, inputs: Any) -> Any:
        tries.append(1)
        raise RuntimeError("no compiler is there")

    def working(graph: Any, inputs: Any) -> Any:
        return make_boxed_func(graph.forward)

    passes = {"fw_compiler": working, "bw_compiler": working, request.param[:1] + "w_compiler": broken}
    backend = aot_autograd(**passes)
    compile_by = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network, *, dynamic, options: compile_by(network, backend=backend))
    return tries


def test_what_torch_cannot_compile_goes_on_with_a_warning(tries, capsys) -> None:
    network, image = Normed().eval(), torch.randn(1, 1, 4, 4, 4)
    compiled = CompiledNetwork("a", network, required=False)
    outputs = [compiled(image).logits for _ in range(2)]
    assert torch.equal(outputs[0], network(image).logits) and torch.equal(outputs[0], outputs[1])
    outputs[1].sum().backward()
    assert len(tries) == 1 and capsys.readouterr().err.count("RuntimeError: no compiler is there") == 1


def test_what_must_be_compiled_is_an_error_that_names_the_key(tries) -> None:
    compiled = CompiledNetwork("a", Normed(), required=True)
    with pytest.raises(DualsegError, match=r"trainer\.compile=true: .* network a .*no compiler is there"):
        compiled(torch.randn(1, 1, 4, 4, 4))


def test_a_run_says_whether_it_was_compiled(command, tiny, phantom, tmp_path, monkeypatch) -> None:
    compile_by = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network, *, dynamic, options: compile_by(network, backend="eager"))
    for setting in ("auto", "true"):
        run = RunFolder(tmp_path / "runs" / f"run_{setting}")
        words = tiny(phantom.root, run.path.parent)
        ended = command(train.main, *words, f"name=run_{setting}", f"trainer.compile={setting}", "method=supervised")
        assert ended.code == 0, ended.err
        assert run.manifest()["compiled"] == (setting == "true") == (graphs() > 0)


def test_an_image_that_the_network_cannot_take_is_its_own_error() -> None:
    compiled = CompiledNetwork("a", Normed(), required=True)
    with pytest.raises(RuntimeError, match="to have 1 channels, but got 2 channels"):
        compiled(torch.zeros(1, 2, 4, 4, 4))


@pytest.mark.parametrize(
    "setting, iterations, accelerator, gpu, processes, expected",
    [
        ("auto", 1000, "auto", True, 1, [False]),
        ("auto", 1000, "gpu", True, 1, [False]),
        ("auto", 999, "auto", True, 1, []),
        ("auto", 1000, "cpu", True, 1, []),
        ("auto", 1000, "auto", False, 1, []),
        ("auto", 1000, "auto", True, 2, []),
        (False, 6000, "auto", True, 1, []),
        (True, 1, "cpu", False, 2, [True]),
    ],
)
def test_when_networks_are_compiled(monkeypatch, setting, iterations, accelerator, gpu, processes, expected) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpu)
    found: list[bool] = []
    method = SimpleNamespace(compile_networks=lambda *, required: found.append(required))
    config = {"trainer": {"compile": setting, "accelerator": accelerator, "max_iterations": iterations}}
    assert assembly.compile_networks(config, method, processes) == bool(expected)  # type: ignore[arg-type]
    assert found == expected


@pytest.mark.parametrize(
    "setting, began, expected", [("auto", True, True), ("auto", False, False), (True, False, True)]
)
def test_a_resumed_run_goes_on_as_it_began(monkeypatch, setting, began, expected) -> None:
    """Whatever `auto` would choose now: for a run that was begun by an older version, or is trained on for longer."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: not began)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: not began)
    method = SimpleNamespace(compile_networks=lambda *, required: None)
    config = {"trainer": {"compile": setting, "accelerator": "auto", "max_iterations": 2000}}
    assert assembly.compile_networks(config, method, 1, began) == expected  # type: ignore[arg-type]
