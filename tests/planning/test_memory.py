"""The memory that a plan counts on, against the tensors that autograd really keeps."""

import pytest
import torch
from torch import Tensor, nn

from dualseg.networks import PlainUNet, ResidualEncoderUNet
from dualseg.planning.decisions import networks_of
from dualseg.planning.memory import training_bytes
from dualseg.planning.topology import topology_of


def kept_bytes(network: nn.Module, image: Tensor) -> int:
    """Of every storage that the backward pass needs, the weights' apart, each once."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = network(image)
    assert output.logits.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize(
    ("patch", "spacing", "base_channels"),
    [((40, 56, 40), (1, 1, 1), 8), ((96, 96, 16), (0.5, 0.5, 3), 8), ((32, 32, 32), (1, 1, 1), 16)],
)
def test_a_plan_counts_on_a_little_more_than_both_networks_keep(patch, spacing, base_channels):
    unet = topology_of(patch, spacing)
    values = networks_of(unet, base_channels)
    shape = {name: values[name] for name in ("channels", "strides", "kernels")}
    pair = ResidualEncoderUNet(1, 2, **shape, blocks=values["blocks"]), PlainUNet(1, 2, **shape)
    kept = sum(kept_bytes(network, torch.randn(1, 1, *patch)) for network in pair)
    assert kept < training_bytes(patch, 1, unet, base_channels, 2) < 1.5 * kept
