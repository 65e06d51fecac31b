"""Folded networks against the networks themselves, in float64 where rounding cannot hide a mistake."""

import pytest
import torch
from torch import nn

from dualseg.inference.folding import fold_batch_norm
from dualseg.networks import ResNet34VNet, VNet, monai_network


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm3d) for module in network.modules())


def trained(network: nn.Module) -> nn.Module:
    """With statistics, scales and shifts that are not the initial ones, in float64 and evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            for tensor in (module.weight.data, module.running_var, module.bias.data, module.running_mean):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return network.double().eval()


@pytest.mark.parametrize("make", [VNet, ResNet34VNet])
@torch.no_grad()
def test_a_folded_network_computes_the_same(make):
    torch.manual_seed(0)
    network = trained(make(in_channels=2, num_classes=3, base_channels=2))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    image = torch.randn(2, 2, 16, 32, 16, dtype=torch.float64)
    folded = fold_batch_norm(network)
    assert norms(network) > 10
    assert norms(folded) == 0
    assert fold_batch_norm(folded) is folded, "there is nothing left to fold"
    for ours, theirs in zip(folded(image), network(image), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before), "the network itself is left alone"


@torch.no_grad()
def test_networks_with_other_norms_and_types_keep_theirs():
    torch.manual_seed(0)
    segresnet = monai_network("SegResNet", 1, 2, init_filters=8).eval()
    image = torch.randn(1, 1, 16, 16, 16)
    ours, theirs = fold_batch_norm(segresnet)(image), segresnet(image)
    assert torch.equal(ours.logits, theirs.logits) and torch.equal(ours.features, theirs.features)
    half = trained(VNet(base_channels=2)).bfloat16()
    assert {p.dtype for p in fold_batch_norm(half).parameters()} == {torch.bfloat16}


def test_a_network_in_training_is_not_folded():
    network = VNet(base_channels=2)
    assert fold_batch_norm(network) is network


@torch.no_grad()
def test_a_norm_of_batch_statistics_is_not_folded():
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2, track_running_stats=False)).eval()
    image = torch.randn(2, 1, 4, 4, 4)
    assert torch.equal(fold_batch_norm(network)(image), network(image))
