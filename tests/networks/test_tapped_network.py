"""MONAI's networks in the place of ours: the tapped features are what the last convolution reads."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import BasicUNet, DynUNet, SegResNet, SegResNetDS, UNet
from torch import Tensor, nn

from dualseg.errors import DualsegError
from dualseg.networks import SegmentationOutput, TappedNetwork


def segresnet(classes: int = 2, channels: int = 1) -> SegResNet:
    return SegResNet(spatial_dims=3, init_filters=8, in_channels=channels, out_channels=classes)


def basic_unet(classes: int = 2, channels: int = 1) -> BasicUNet:
    return BasicUNet(3, channels, classes, features=(4, 4, 8, 8, 16, 6))


def dynunet(classes: int = 2, channels: int = 1) -> DynUNet:
    return DynUNet(3, channels, classes, kernel_size=(3, 3, 3), strides=(1, 2, 2), upsample_kernel_size=(2, 2))


def residual_unet() -> UNet:
    return UNet(3, 1, 2, channels=(4, 8, 16), strides=(2, 2), num_res_units=2)


@pytest.mark.parametrize(
    ("make", "layer", "channels"),
    [(segresnet, "conv_final.2.conv", 8), (basic_unet, "final_conv", 6), (dynunet, "output_block.conv.conv", 32)],
)
@pytest.mark.parametrize(("classes", "in_channels", "size"), [(2, 1, (16, 32, 16)), (4, 3, (17, 20, 9))])
def test_the_last_convolution_of_the_features_gives_the_logits(make, layer, channels, classes, in_channels, size):
    network = TappedNetwork(make(classes, in_channels))
    output = network(torch.randn(2, in_channels, *size))
    assert isinstance(output, SegmentationOutput)
    assert network.feature_layer == layer
    assert network.feature_channels == channels
    assert output.logits.shape == (2, classes, *size)
    assert output.features.shape == (2, channels, *size)
    last = network.network.get_submodule(layer)
    expected = F.conv3d(output.features, last.weight, last.bias)
    torch.testing.assert_close(output.logits, expected, rtol=1e-4, atol=1e-5)


def test_logits_are_the_wrapped_networks_own_on_the_padded_image() -> None:
    bare = segresnet().eval()
    image = torch.randn(1, 1, 20, 16, 30)
    padded = torch.zeros(1, 1, 24, 16, 32)
    padded[:, :, :20, :, :30] = image
    with torch.no_grad():
        logits = TappedNetwork(bare, divisor=8)(image).logits
        torch.testing.assert_close(logits, bare(padded)[:, :, :20, :, :30])


def test_gradient_passes_through_logits_and_features() -> None:
    network = TappedNetwork(segresnet())
    output = network(torch.randn(1, 1, 16, 16, 16))
    output.features.square().mean().backward(retain_graph=True)
    assert network.network.convInit.conv.weight.grad.abs().max() > 0
    assert network.network.conv_final[2].conv.weight.grad is None
    output.logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


def test_copies_and_pickles_tap_their_own_layers() -> None:
    network = TappedNetwork(segresnet()).eval()
    image = torch.randn(1, 1, 16, 16, 16)
    expected = network(image)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        torch.testing.assert_close(twin(image), expected, rtol=0, atol=0)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.mul_(2.0)
        assert not torch.equal(twin(image).features, expected.features)
        torch.testing.assert_close(network(image), expected, rtol=0, atol=0)
    assert not network.network.conv_final[2].conv._forward_hooks  # nothing stays behind


@pytest.mark.usefixtures("one_rank")
def test_distributed_data_parallel() -> None:
    network = TappedNetwork(segresnet())
    output = nn.parallel.DistributedDataParallel(network)(torch.randn(1, 1, 16, 16, 16))
    assert isinstance(output, SegmentationOutput)
    (output.logits.square().mean() + output.features.square().mean()).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_channels_last_and_autocast() -> None:
    torch.manual_seed(0)
    network = TappedNetwork(segresnet()).eval()
    image = torch.randn(2, 1, 16, 16, 16)
    with torch.no_grad():
        expected = network(image)
        network.to(memory_format=torch.channels_last_3d)
        last = network(image.contiguous(memory_format=torch.channels_last_3d))
        torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = network(image)
    assert half.logits.dtype == torch.bfloat16
    assert (half.logits - expected.logits).abs().max() < 0.05 * expected.logits.abs().max()


def test_a_named_layer_is_tapped_instead() -> None:
    network = TappedNetwork(residual_unet(), feature_layer="model.2.1.conv.unit0.conv").eval()
    output = network(torch.randn(1, 1, 16, 16, 16))
    # This layer is followed by an addition of its own input: the very case that needs a name.
    layer = network.network.get_submodule("model.2.1.conv.unit0.conv")
    expected = F.conv3d(output.features, layer.weight, layer.bias, padding=1) + output.features
    assert network.feature_channels == 2
    torch.testing.assert_close(output.logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("residual_units", "channels"), [(0, 8), (2, 2)])
def test_the_unet_of_monai_needs_no_name(residual_units: int, channels: int) -> None:
    """Its last layer is a transposed convolution, or one beside a shortcut."""
    network = TappedNetwork(UNet(3, 1, 2, channels=(4, 8, 16), strides=(2, 2), num_res_units=residual_units)).eval()
    image = torch.randn(2, 1, 16, 32, 16)
    output = network(image)
    assert network.feature_channels == channels and output.features.shape == (2, channels, 16, 32, 16)
    torch.testing.assert_close(output.logits, network.network(image), rtol=0, atol=0)


class NoConvolution(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image


class Softmaxed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv3d(1, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.last(image).softmax(dim=1)


class Unused(Softmaxed):
    def forward(self, image: Tensor) -> Tensor:
        return image


class Halved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv3d(1, 2, 1, stride=2)

    def forward(self, image: Tensor) -> Tensor:
        return self.last(image)


def test_no_convolution() -> None:
    with pytest.raises(DualsegError, match="NoConvolution has no Conv3d"):
        TappedNetwork(NoConvolution())


def test_unknown_layer_names_the_nearest() -> None:
    with pytest.raises(DualsegError, match=r"feature_layer: .*'conv_final\.2'; nearest: .*conv_final\.2\.conv"):
        TappedNetwork(segresnet(), feature_layer="conv_final.2")


@pytest.mark.parametrize(
    ("network", "layer", "message"),
    [
        (Softmaxed(), None, "does not come straight from 'last'"),
        (Unused(), "last", "does not come straight from 'last'"),
        (Halved(), None, "own grid"),
        (segresnet(), "down_layers.2.0.conv", "features at 'down_layers.2.0.conv'"),
        (SegResNetDS(3, 8, 1, 2, blocks_down=(1, 1, 1), dsdepth=2), None, "not list; switch its deep supervision"),
        (
            DynUNet(3, 1, 2, (3,) * 4, (1, 2, 2, 2), (2,) * 3, filters=(4, 8, 8, 8), deep_supervision=True),
            None,
            "a tensor of shape .*switch its deep supervision",
        ),
    ],
    ids=["softmax", "unused", "halved", "coarse", "list", "stacked"],
)
def test_networks_that_do_not_fit(network: nn.Module, layer: str | None, message: str) -> None:
    tapped = TappedNetwork(network, feature_layer=layer)
    with pytest.raises(DualsegError, match=message):
        tapped(torch.randn(1, 1, 16, 16, 16))
