"""Both networks of the paper against method.md section 2, from their parameters in order of registration alone."""

import copy
import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualseg.networks import ResNet34VNet, SegmentationOutput, VNet

NETWORKS = [VNet, ResNet34VNet]


class Weights:
    """Parameters and BatchNorm statistics of a network, handed out strictly in order of registration."""

    def __init__(self, network: nn.Module) -> None:
        self.parameters: Iterator[Tensor] = iter(list(network.parameters()))
        self.statistics: Iterator[Tensor] = iter([b for b in network.buffers() if b.is_floating_point()])

    def conv(self, x: Tensor, bias: bool = True, **kwargs: int) -> Tensor:
        return F.conv3d(x, next(self.parameters), next(self.parameters) if bias else None, **kwargs)

    def up(self, x: Tensor) -> Tensor:
        return F.conv_transpose3d(x, next(self.parameters), next(self.parameters), stride=2)

    def norm(self, x: Tensor) -> Tensor:
        mean, variance = next(self.statistics), next(self.statistics)
        scale, shift = next(self.parameters), next(self.parameters)
        column = (1, -1, 1, 1, 1)
        normalised = (x - mean.view(column)) / torch.sqrt(variance.view(column) + 1e-5)
        return normalised * scale.view(column) + shift.view(column)

    def exhausted(self) -> bool:
        return next(self.parameters, None) is None and next(self.statistics, None) is None


def block(w: Weights, x: Tensor, repeats: int) -> Tensor:
    for _ in range(repeats):
        x = w.norm(w.conv(x, padding=1)).clamp(min=0)
    return x


def decode(w: Weights, scales: list[Tensor]) -> tuple[Tensor, Tensor]:
    x = scales[4]
    for level, repeats in ((3, 3), (2, 3), (1, 2), (0, 1)):
        x = block(w, w.norm(w.up(x)).clamp(min=0) + scales[level], repeats)
    return w.conv(x), x


def vnet_by_the_book(w: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
    scales = [block(w, x, 1)]
    for repeats in (2, 3, 3, 3):
        scales.append(block(w, w.norm(w.conv(scales[-1], stride=2)).clamp(min=0), repeats))
    return decode(w, scales)


def resnet_by_the_book(w: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
    scales = [w.norm(w.conv(x, bias=False, padding=3)).clamp(min=0)]
    for repeats in (3, 4, 6, 3):
        x = scales[-1]
        for index in range(repeats):
            stride = 2 if index == 0 else 1
            y = w.norm(w.conv(x, bias=False, stride=stride, padding=1)).clamp(min=0)
            y = w.norm(w.conv(y, bias=False, padding=1))
            if index == 0:
                x = w.norm(w.conv(x, bias=False, stride=2))
            x = (y + x).clamp(min=0)
        scales.append(x)
    return decode(w, scales)


def convolutions(network: nn.Module) -> list[nn.Conv3d | nn.ConvTranspose3d]:
    return [m for m in network.modules() if isinstance(m, nn.Conv3d | nn.ConvTranspose3d)]


@pytest.mark.parametrize(("network", "count"), [(VNet, 9_448_866), (ResNet34VNet, 17_930_354)])
def test_parameter_counts_are_the_published_ones(network: type[nn.Module], count: int) -> None:
    assert sum(p.numel() for p in network().parameters()) == count


@pytest.mark.parametrize(
    ("make", "by_the_book"), [(VNet, vnet_by_the_book), (ResNet34VNet, resnet_by_the_book)], ids=["vnet", "resnet34"]
)
def test_forward_is_the_specification_walked_in_order_of_registration(make, by_the_book) -> None:
    torch.manual_seed(0)
    network = make(in_channels=3, num_classes=4, base_channels=4).double().eval()
    with torch.no_grad():  # no two tensors alike, so that a swapped pair shows
        for module in network.modules():
            if isinstance(module, nn.BatchNorm3d):
                for tensor in (module.weight, module.running_var):
                    tensor.uniform_(0.5, 1.5)
                for tensor in (module.bias, module.running_mean):
                    tensor.normal_(std=0.3)
        image = torch.randn(2, 3, 32, 16, 48, dtype=torch.float64)
        output = network(image)
        weights = Weights(network)
        logits, features = by_the_book(weights, image)
    assert weights.exhausted()
    torch.testing.assert_close(output.logits, logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(output.features, features, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize(("channels", "classes", "base"), [(1, 2, 8), (4, 4, 4)])
@pytest.mark.parametrize("size", [(32, 16, 32), (17, 30, 21)])
def test_shapes(make, channels: int, classes: int, base: int, size: tuple[int, int, int]) -> None:
    network = make(in_channels=channels, num_classes=classes, base_channels=base)
    output = network(torch.randn(2, channels, *size))
    assert isinstance(output, SegmentationOutput)
    assert output.logits.shape == (2, classes, *size)
    assert output.features.shape == (2, base, *size)
    assert network.feature_channels == base


@pytest.mark.parametrize("make", NETWORKS)
def test_odd_sizes_are_zero_padded_at_the_end_and_cropped(make) -> None:
    network = make(base_channels=4).eval()
    image = torch.randn(2, 1, 17, 32, 5)
    padded = torch.zeros(2, 1, 32, 32, 16)
    padded[:, :, :17, :, :5] = image
    with torch.no_grad():
        output, expected = network(image), network(padded)
    torch.testing.assert_close(output.logits, expected.logits[:, :, :17, :, :5])
    torch.testing.assert_close(output.features, expected.features[:, :, :17, :, :5])


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize("training", [True, False])
def test_last_convolution_of_the_features_gives_the_logits(make, training: bool) -> None:
    network = make(num_classes=3, base_channels=8).train(training)
    output = network(torch.randn(2, 1, 16, 32, 20))
    weight, bias = list(network.parameters())[-2:]
    assert weight.shape == (3, 8, 1, 1, 1)
    expected = torch.einsum("kf,nfwhd->nkwhd", weight[:, :, 0, 0, 0], output.features) + bias.view(1, -1, 1, 1, 1)
    torch.testing.assert_close(output.logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", NETWORKS)
def test_initial_weights(make) -> None:
    torch.manual_seed(0)
    network = make()
    for conv in convolutions(network):
        # kaiming_normal_ counts the second axis as inputs, for transposed convolutions too.
        fan_in = conv.weight[0].numel()
        count = conv.weight.numel()
        expected = math.sqrt(2.0 / fan_in)
        spread = 6 / math.sqrt(2 * count)  # six standard errors of a sample deviation
        assert conv.weight.std().item() == pytest.approx(expected, rel=spread)
        assert abs(conv.weight.mean().item()) < 6 * expected / math.sqrt(count)
        if conv.bias is not None:
            bound = 1 / math.sqrt(fan_in)
            assert conv.bias.abs().max() <= bound
            assert conv.bias.unique().numel() == conv.bias.numel()
    # A uniform draw of the same deviation never passes sqrt(3) deviations: these are normal.
    largest = max(convolutions(network), key=lambda conv: conv.weight.numel()).weight
    assert largest.abs().max() > 3 * largest.std()
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm3d)):
        assert (norm.weight == 1).all() and (norm.bias == 0).all()


@pytest.mark.parametrize("make", NETWORKS)
def test_biases_are_where_the_specification_has_them(make) -> None:
    convs = convolutions(make(base_channels=4))
    decoder = 4 + 9 + 1  # four Up, Blocks of 3 + 3 + 2 + 1, the last convolution
    with_bias = [conv.bias is not None for conv in convs]
    if make is VNet:
        assert len(convs) == 12 + 4 + decoder and all(with_bias)
    else:
        encoder = 1 + 2 * (3 + 4 + 6 + 3) + 4
        assert with_bias == [False] * encoder + [True] * decoder


def zeroed_fraction(x: Tensor) -> float:
    return (x.flatten(2) == 0).all(dim=2).double().mean().item()


@pytest.mark.parametrize("make", NETWORKS)
def test_dropout_zeroes_half_of_the_features_channels_only_in_training(make) -> None:
    torch.manual_seed(0)
    network = make()
    image = torch.randn(16, 1, 16, 16, 16)
    with torch.no_grad():
        features = network(image).features
        assert 0.38 < zeroed_fraction(features) < 0.62  # 256 draws: four standard errors
        network.eval()
        assert zeroed_fraction(network(image).features) < 0.05
        network = make(dropout=0.0)
        assert zeroed_fraction(network(image).features) < 0.05


def test_only_the_vnet_drops_channels_at_the_bottleneck() -> None:
    torch.manual_seed(0)
    fractions = {}
    for make in NETWORKS:
        network = make(base_channels=8)
        bottleneck: list[Tensor] = []
        first_up = next(m for m in network.modules() if isinstance(m, nn.ConvTranspose3d))
        first_up.register_forward_pre_hook(lambda _, inputs, seen=bottleneck: seen.append(inputs[0]))
        with torch.no_grad():
            network(torch.randn(2, 1, 64, 64, 64))
        assert bottleneck[0].shape == (2, 128, 4, 4, 4)
        fractions[make] = zeroed_fraction(bottleneck[0])
    assert 0.38 < fractions[VNet] < 0.62
    assert fractions[ResNet34VNet] < 0.05


@pytest.mark.parametrize("make", NETWORKS)
def test_gradient_reaches_every_parameter(make) -> None:
    torch.manual_seed(0)
    network = make(in_channels=2, num_classes=3, base_channels=4, dropout=0.1)
    output = network(torch.randn(2, 2, 32, 32, 32))
    F.cross_entropy(output.logits, torch.randint(3, (2, 32, 32, 32))).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("make", NETWORKS)
def test_same_seed_same_weights_and_copies_are_equal(make) -> None:
    networks = []
    for _ in range(2):
        torch.manual_seed(3)
        networks.append(make(base_channels=4).eval())
    image = torch.randn(2, 1, 16, 16, 16)
    torch.testing.assert_close(networks[0](image), networks[1](image), rtol=0, atol=0)
    torch.testing.assert_close(copy.deepcopy(networks[0])(image), networks[0](image), rtol=0, atol=0)


@pytest.mark.parametrize("make", NETWORKS)
def test_channels_last_is_kept_by_every_layer_and_changes_no_value(make) -> None:
    torch.manual_seed(0)
    plain = make(base_channels=8).eval()
    image = torch.randn(2, 1, 32, 32, 32)
    with torch.no_grad():
        expected = plain(image)
    network = copy.deepcopy(plain).to(memory_format=torch.channels_last_3d)
    broken: list[str] = []

    def check(module: nn.Module, _: object, output: Tensor) -> None:
        if not output.is_contiguous(memory_format=torch.channels_last_3d):
            broken.append(repr(module))

    for module in network.modules():
        if not [*module.children()]:
            module.register_forward_hook(check)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # with one thread PyTorch runs 1x1x1 convolutions in the default format
    try:
        output = network(image.contiguous(memory_format=torch.channels_last_3d))
        output.logits.square().mean().backward()
    finally:
        torch.set_num_threads(threads)
    assert not broken
    assert output.logits.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", NETWORKS)
def test_bfloat16_autocast(make) -> None:
    torch.manual_seed(0)
    network = make(base_channels=4).eval()
    image = torch.randn(2, 1, 16, 16, 16)
    expected = network(image).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(image)
    assert output.logits.dtype == torch.bfloat16
    assert (output.logits - expected).abs().max() < 0.05 * expected.abs().max()
