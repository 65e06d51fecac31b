"""The planned networks: nnU-Net's names and arithmetic, MONAI's DynUNet, padding, scales, and what is refused."""

import copy
import math
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import DynUNet
from torch import Tensor, nn

from dualseg.errors import DualsegError
from dualseg.networks import PlainUNet, PlannedUNet, ResidualEncoderUNet
from dualseg.networks.blocks import pad_to_multiple

STAGES: dict[str, Any] = {
    "channels": [4, 6, 6, 8, 10],
    "strides": [[1, 1, 1], [2, 2, 1], [2, 1, 2], [2, 2, 1], [1, 2, 1]],  # product 8, 8, 2
    "kernels": [[3, 3, 1], [3, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 1]],
}
BLOCKS = [1, 3, 2, 2, 1]
SCALES = {"logits_scale1": (2, 2, 1), "logits_scale2": (4, 2, 2)}  # and by how much they are coarser
Network = type[PlannedUNet]
NETWORKS = [ResidualEncoderUNet, PlainUNet]


def build(kind: Network, inputs: int = 2, classes: int = 3, **changes: Any) -> PlannedUNet:
    stages = {**STAGES, **changes}
    if kind is ResidualEncoderUNet:
        stages = {"blocks": BLOCKS[: len(stages["strides"])], **stages}
    torch.manual_seed(0)
    return kind(in_channels=inputs, num_classes=classes, **stages)


def unlike(network: nn.Module) -> nn.Module:
    """No two tensors alike, and no norm of weight 0, so that a swapped pair shows."""
    for parameter in network.parameters():
        with torch.no_grad():
            parameter.uniform_(-0.6, 0.8)
    return network


# --- the residual encoder, written down once more from nnU-Net's names


class ByTheBook:
    """The network from its state dict by name alone, each name taken once."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = dict(state)

    def convolved(self, x: Tensor, name: str, stride: Any = 1, bias: bool = True) -> Tensor:
        weight = self.state.pop(f"{name}.conv.weight")
        padding = [(side - 1) // 2 for side in weight.shape[2:]]
        x = F.conv3d(x, weight, self.state.pop(f"{name}.conv.bias") if bias else None, stride, padding)
        mean, variance = x.mean(dim=(2, 3, 4), keepdim=True), x.var(dim=(2, 3, 4), keepdim=True, unbiased=False)
        scale, shift = (self.state.pop(f"{name}.norm.{kind}").view(1, -1, 1, 1, 1) for kind in ("weight", "bias"))
        return (x - mean) / torch.sqrt(variance + 1e-5) * scale + shift

    def active(self, x: Tensor) -> Tensor:
        return x.clamp(min=0) + 0.01 * x.clamp(max=0)

    def block(self, x: Tensor, name: str, channels: int, stride: list[int]) -> Tensor:
        y = self.active(self.convolved(x, f"{name}.conv1", stride))
        y = self.convolved(y, f"{name}.conv2")
        pooled = stride != [1, 1, 1]
        if pooled:
            for axis, step in enumerate(stride, start=2):
                x = torch.stack(x.split(1, dim=axis)).unflatten(0, (-1, step)).mean(dim=1).movedim(0, axis)
                x = x.squeeze(axis + 1)
        if x.shape[1] != channels:
            x = self.convolved(x, f"{name}.skip.{int(pooled)}", bias=False)
        return self.active(x + y)

    def __call__(self, x: Tensor) -> list[Tensor]:
        x = self.active(self.convolved(x, "encoder.stem.convs.0"))
        scales = []
        for stage, (channels, stride) in enumerate(zip(STAGES["channels"], STAGES["strides"], strict=True)):
            for number in range(BLOCKS[stage]):
                name = f"encoder.stages.{stage}.blocks.{number}"
                x = self.block(x, name, channels, stride if number == 0 else [1, 1, 1])
            scales.append(x)
        logits = []
        for step in range(len(scales) - 1):
            weight, bias = (self.state.pop(f"decoder.transpconvs.{step}.{kind}") for kind in ("weight", "bias"))
            x = F.conv_transpose3d(x, weight, bias, stride=STAGES["strides"][-1 - step])
            x = torch.cat([x, scales[-2 - step]], dim=1)
            x = self.active(self.convolved(x, f"decoder.stages.{step}.convs.0"))
            weight, bias = (self.state.pop(f"decoder.seg_layers.{step}.{kind}") for kind in ("weight", "bias"))
            logits.insert(0, F.conv3d(x, weight, bias))
        return logits


def test_the_residual_encoder_is_nnunets_walked_by_its_names() -> None:
    network = unlike(build(ResidualEncoderUNet).double())
    image = torch.randn(2, 2, 16, 24, 12, dtype=torch.float64)
    with torch.no_grad():
        output = network(image)
        book = ByTheBook(network.state_dict())
        logits = book(image)
    assert not book.state, "names that nnU-Net's network does not have"
    for found, expected in zip([output.logits, *output.others.values()], logits[:-1], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_the_presets_parameters_are_as_many_as_nnunets() -> None:
    """102,350,575 is what dynamic_network_architectures 0.4.4 has for three classes."""
    with torch.device("meta"):
        network = ResidualEncoderUNet(
            1, 3, [32, 64, 128, 256, 320, 320], [[1] * 3, *[[2] * 3] * 5], [[3] * 3] * 6, [1, 3, 4, 6, 6, 6]
        )
    assert sum(parameter.numel() for parameter in network.parameters()) == 102_350_575


# --- the plain U-Net beside MONAI's own class


def test_the_plain_unet_is_dynunet() -> None:
    ours = unlike(build(PlainUNet).double())
    theirs = DynUNet(
        3, 2, 3, STAGES["kernels"], STAGES["strides"], STAGES["strides"][1:], STAGES["channels"],
        norm_name=("INSTANCE", {"affine": True}), deep_supervision=True, deep_supr_num=2,
    ).double()  # fmt: skip
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("skip_layers.") for name in missing)
    image = torch.randn(2, 2, 16, 24, 12, dtype=torch.float64)
    with torch.no_grad():
        output, stacked = ours(image), theirs(image)
        torch.testing.assert_close(output.logits, stacked[:, 0], rtol=0, atol=0)
        torch.testing.assert_close([*output.others.values()], theirs.heads, rtol=0, atol=0)
        torch.testing.assert_close(ours.eval()(image).logits, theirs.eval()(image), rtol=0, atol=0)


# --- both


@pytest.mark.parametrize("kind", NETWORKS)
def test_shapes_in_training_and_evaluation(kind: Network) -> None:
    network = build(kind)
    image = torch.randn(2, 2, 16, 24, 12)
    output = network(image)
    assert output.logits.shape == (2, 3, 16, 24, 12)
    assert output.features.shape == (2, 4, 16, 24, 12)
    assert network.feature_channels == 4
    shapes = {name: (2, 3, 16 // x, 24 // y, 12 // z) for name, (x, y, z) in SCALES.items()}
    assert {name: tensor.shape for name, tensor in output.others.items()} == shapes
    assert network.eval()(image).others == {}
    assert build(kind, deep_supervision=False)(image).others == {}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("count, scales", [(3, 0), (4, 1), (5, 2)])
def test_all_decoder_stages_but_the_coarsest_give_logits(kind: Network, count: int, scales: int) -> None:
    network = build(kind, **{key: value[:count] for key, value in STAGES.items()})
    assert len(network(torch.randn(1, 2, 16, 16, 4)).others) == scales


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("training", [True, False])
def test_the_last_convolution_of_the_features_gives_the_logits(kind: Network, training: bool) -> None:
    network = build(kind).train(training)
    output = network(torch.randn(2, 2, 16, 16, 5))
    last = network.heads[0]
    weight, bias = last.parameters()
    torch.testing.assert_close(output.logits, F.conv3d(output.features, weight, bias), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", NETWORKS)
def test_odd_sizes_are_zero_padded_at_the_end_and_cropped_at_every_scale(kind: Network) -> None:
    network = unlike(build(kind))
    image = torch.randn(2, 2, 13, 16, 5)
    padded = torch.zeros(2, 2, 16, 16, 6)
    padded[:, :, :13, :, :5] = image
    with torch.no_grad():
        output, expected = network(image), network(padded)
    torch.testing.assert_close(output.logits, expected.logits[:, :, :13, :, :5])
    torch.testing.assert_close(output.features, expected.features[:, :, :13, :, :5])
    for name, (x, y, z) in SCALES.items():
        sides = (math.ceil(13 / x), math.ceil(16 / y), math.ceil(5 / z))
        assert output.others[name].shape[2:] == sides
        w, h, d = sides
        torch.testing.assert_close(output.others[name], expected.others[name][:, :, :w, :h, :d])


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_thin_slab_is_not_padded(kind: Network) -> None:
    strides = [[1, 1, 1], [2, 2, 1], [2, 2, 1], [2, 2, 1], [2, 2, 1]]
    network = build(kind, strides=strides)
    slab = torch.randn(1, 2, 32, 32, 12)
    assert network.divisor == (16, 16, 1)
    assert pad_to_multiple(slab, network.divisor) is slab
    output = network(slab)
    assert [tensor.shape[4] for tensor in (output.logits, *output.others.values())] == [12] * 3
    output.logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.heads[0].parameters())


@pytest.mark.parametrize("kind", NETWORKS)
def test_initial_weights(kind: Network) -> None:
    network = build(kind, channels=[16, 32, 32, 64, 64])
    for module in network.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            fan_in, count = module.weight[0].numel(), module.weight.numel()
            expected = math.sqrt(2 / (1 + 0.01**2) / fan_in)  # He et al. for a slope of 0.01
            assert module.weight.std().item() == pytest.approx(expected, rel=6 / math.sqrt(2 * count))
            assert module.bias is None or not module.bias.any()
    zeroed = {name.rpartition(".")[0] for name, p in network.named_parameters() if "weight" in name and not p.any()}
    blocks = {f"encoder.stages.{s}.blocks.{n}.conv2.norm" for s, own in enumerate(BLOCKS) for n in range(own)}
    assert zeroed == (blocks if kind is ResidualEncoderUNet else set())


def trained(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("on", [True, False])
@pytest.mark.usefixtures("one_rank")
def test_the_gradient_reaches_all_that_is_not_frozen_and_ddp_waits_for_nothing(kind: Network, on: bool) -> None:
    network = unlike(build(kind))
    network.supervise_scales(on)
    parallel = nn.parallel.DistributedDataParallel(network)
    for _ in range(2):  # the second forward pass would complain of parameters that the first left out
        output = parallel(torch.randn(2, 2, 16, 16, 6))
        torch.stack([z.square().mean() for z in (output.logits, *output.others.values())]).sum().backward()
    for name, parameter in trained(network).items():
        assert parameter.grad is not None and parameter.grad.any(), name
    frozen = set(dict(network.named_parameters())) - set(trained(network))
    heads = {"deep_supervision_heads"} if kind is PlainUNet else {"decoder.seg_layers.1", "decoder.seg_layers.2"}
    coarsest = {"decoder.seg_layers.0"} if kind is ResidualEncoderUNet else set()
    expected = coarsest if on else coarsest | heads
    assert {start for name in frozen for start in expected if name.startswith(start)} == expected
    assert all(name.startswith(tuple(expected)) for name in frozen)


@pytest.mark.parametrize("kind", NETWORKS)
def test_batch_norm_in_place_of_every_instance_norm(kind: Network) -> None:
    instance, batch = build(kind), build(kind, norm="batch")
    norms = {name for name, module in instance.named_modules() if isinstance(module, nn.InstanceNorm3d)}
    assert norms == {name for name, module in batch.named_modules() if isinstance(module, nn.BatchNorm3d)} != set()
    assert not any(isinstance(module, nn.InstanceNorm3d) for module in batch.modules())
    for (name, one), (_, other) in zip(instance.named_parameters(), batch.named_parameters(), strict=True):
        assert one.shape == other.shape, name
        if name.rpartition(".")[0] in norms:  # as it would start by itself, or as its block starts
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    image = torch.randn(2, 2, 16, 16, 6)
    assert torch.isfinite(batch(image).logits).all()
    with pytest.raises(DualsegError, match=r"norm=group"):
        build(kind, norm="group")


@pytest.mark.parametrize("kind", NETWORKS)
def test_copies_and_pickles_after_a_training_step(kind: Network) -> None:
    network = unlike(build(kind))
    image = torch.randn(2, 2, 16, 16, 6)
    expected = network(image)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        torch.testing.assert_close(twin(image).others, expected.others, rtol=0, atol=0)
        assert trained(twin).keys() == trained(network).keys()


@pytest.mark.parametrize("kind", NETWORKS)
def test_channels_last_and_autocast(kind: Network) -> None:
    network = build(kind).eval()
    image = torch.randn(2, 2, 16, 16, 6)
    with torch.no_grad():
        expected = network(image).logits
        network.to(memory_format=torch.channels_last_3d)
        last = network(image.contiguous(memory_format=torch.channels_last_3d)).logits
        torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = network(image).logits
    assert half.dtype == torch.bfloat16
    assert (half - expected).abs().max() < 0.1 * expected.abs().max()


# --- what is refused


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("training", [True, False])
def test_one_voxel_at_the_coarsest_stage(kind: Network, training: bool) -> None:
    network = build(kind).train(training)
    with pytest.raises(DualsegError, match=r"patch of \(8, 7, 2\) .* \(8, 8, 2\) .*one voxel"):
        network(torch.randn(2, 2, 8, 7, 2))
    network(torch.randn(2, 2, 8, 8, 3))


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"channels": None}, "channels=None: give a whole number above 0 for each stage"),
        ({"channels": [4, 6, 0, 8, 10]}, "channels=.*whole number above 0"),
        ({"channels": "44444"}, "channels=44444: give"),
        ({"channels": [4, 6]}, "strides: has 5 stages, channels 2"),
        ({"strides": [2, 2, 2, 2, 2]}, "strides=.*three whole numbers above 0"),
        ({"strides": [[1, 1]] * 5}, "strides=.*three whole numbers above 0"),
        ({"strides": [[2, 1, 1], *STAGES["strides"][1:]]}, r"strides=.*the first stage .* \[1,1,1\]"),
        ({"kernels": [[2, 3, 3]] * 5}, "kernels=.*odd"),
        ({"kernels": [[3, 3, 3]] * 4}, "kernels: has 4 stages, channels 5"),
        ({"channels": [4], "strides": [[1] * 3], "kernels": [[3] * 3]}, r"channels=\[4\]: .*at least [23] stages"),
    ],
)
def test_stages_that_cannot_be(kind: Network, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DualsegError, match=message):
        build(kind, **changes)


def test_blocks_and_kernels_that_only_one_of_them_refuses() -> None:
    with pytest.raises(DualsegError, match="blocks: has 2 stages, channels 5"):
        build(ResidualEncoderUNet, blocks=[1, 2])
    with pytest.raises(DualsegError, match=r"blocks=.*whole number above 0"):
        build(ResidualEncoderUNet, blocks=[1, 2, 0, 2, 2])
    with pytest.raises(DualsegError, match=r"kernels: .* too small .*stride"):
        build(PlainUNet, strides=[[1, 1, 1], [3, 1, 1], [3, 1, 1], [1, 1, 1], [1, 1, 1]])
