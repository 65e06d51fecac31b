"""Precision and memory format change how a method computes, and not what."""

from typing import Any

import pytest
import torch
from method_toys import Volumes, cpu_trainer, fit_watched, outputs, stored_batch, stored_dual, tiny_parts, volumes_data

from dualseg.methods import DualNetwork, LossTerm, Time
from dualseg.networks import ResNet34VNet, VNet

pytestmark = pytest.mark.filterwarnings("ignore:.*not resumable")
OBJECTIVES = ["described", "released"]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_bf16_trains_with_losses_in_float32(objective, monkeypatch):
    method = DualNetwork(**tiny_parts(), objective=objective)
    dtypes: set[torch.dtype] = set()
    logits: set[torch.dtype] = set()
    loss_terms = method.loss_terms

    def recording(*args: Any) -> list[LossTerm]:
        terms = loss_terms(*args)
        dtypes.update(term.value.dtype for term in terms)
        return terms

    monkeypatch.setattr(method, "loss_terms", recording)
    method.networks["a"].register_forward_hook(lambda module, args, output: logits.add(output.logits.dtype))
    watch = fit_watched(method, 3, precision="bf16-mixed")
    assert logits == {torch.bfloat16}, "the networks do run in bfloat16"
    assert dtypes == {torch.float32}
    assert {value.dtype for value in watch.parameters[-1].values()} == {torch.float32}
    for network in "ab":
        name = f"networks.{network}.body.weight"
        assert not torch.equal(watch.parameters[0][name], watch.parameters[-1][name])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses_of_bfloat16_logits_are_those_of_the_same_logits_in_float32(objective):
    rounded = {i: (z.bfloat16().float(), f.bfloat16().float()) for i, (z, f) in outputs(2).items()}
    batch, values = stored_batch(2), []
    for dtype in (torch.float32, torch.bfloat16):
        method = stored_dual(rounded, objective=objective)
        method.networks.to(dtype)
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            values.append([term.value.item() for term in method.loss_terms(batch, Time(50, 100))])
    assert values[0] == pytest.approx(values[1], rel=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_memory_format_changes_no_number(objective):
    values, probabilities = [], []
    source = Volumes()
    for memory_format in (torch.contiguous_format, torch.channels_last_3d):
        torch.manual_seed(3)
        shape = {"base_channels": 4, "dropout": 0.0}
        parts = tiny_parts(source, memory_format, a=ResNet34VNet(**shape), b=VNet(**shape))
        method = DualNetwork(**parts, objective=objective)
        method.eval()
        probabilities.append(method.probabilities(torch.from_numpy(source.read_image("test_0").array)))
        method.train()
        watch: dict[int, list[float]] = {}
        loss_terms = method.loss_terms

        def recording(batch: Any, time: Time, loss_terms: Any = loss_terms, watch: Any = watch) -> Any:
            terms = loss_terms(batch, time)
            watch[time.iteration] = [term.value.item() for term in terms]
            return terms

        method.loss_terms = recording  # type: ignore[method-assign]
        cpu_trainer(1).fit(method, volumes_data(source))
        weight = next(p for p in method.networks["b"].parameters() if p.ndim == 5 and p.shape[1] > 1)
        assert weight.is_contiguous(memory_format=memory_format)
        values.append(watch[0])
    assert values[0] == pytest.approx(values[1], rel=1e-4, abs=1e-4)
    assert probabilities[0].keys() == probabilities[1].keys() == {"a", "b", "ensemble"}
    for name, p in probabilities[0].items():
        torch.testing.assert_close(p, probabilities[1][name], rtol=0, atol=1e-4)
