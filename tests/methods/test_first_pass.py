"""A network that does not take the patches is named, with them and what is wrong, instead of a traceback."""

import pytest
import torch
from method_toys import Bare
from monai.networks.nets import BasicUNet, SwinUNETR, UNet
from torch import Tensor, nn

from dualseg.errors import DualsegError, missing_package
from dualseg.inference import SlidingWindow
from dualseg.networks import SegmentationOutput, TappedNetwork, VNet


class Failing(nn.Module):
    """Fails as it is told to."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__()
        self.error = error

    def forward(self, image: Tensor) -> SegmentationOutput:
        if self.error is not None:
            raise self.error
        return SegmentationOutput(torch.cat([image, image], dim=1), image)


class Ours(Failing):
    """As if it were one of dualseg's."""


Ours.__module__ = "dualseg.networks.ours"


def see(network: nn.Module, samples: int = 2, side: int = 16) -> None:
    window = SlidingWindow((side,) * 3, (side,) * 3)
    Bare({"a": network}, ("background", "atrium"), window).see("a", torch.zeros(samples, 1, side, side, side))


@pytest.mark.parametrize(
    "network, samples, words",
    [
        (VNet(1, 2, base_channels=2), 1, ["VNet", "1 in a batch", "Expected more than 1 value per channel"]),
        (TappedNetwork(BasicUNet(3, 1, 2, features=(2,) * 6)), 2, ["BasicUNet", "spatial element", "divisor=N"]),
        (TappedNetwork(SwinUNETR(1, 2, feature_size=12)), 2, ["SwinUNETR", "divisible by 2**5", "divisor=N"]),
        (TappedNetwork(UNet(3, 1, 2, (2,) * 4, (2,) * 3, norm="batch"), divisor=3), 2, ["UNet", "Sizes of tensors"]),
    ],
)
def test_patches_that_a_network_does_not_take(network, samples, words):
    with pytest.raises(DualsegError) as caught:
        see(network, samples)
    for word in ("networks.a", "data.patch_size=[16, 16, 16]", *words):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: no kernel image is available for execution on the device"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
        RuntimeError("upsample_trilinear3d_backward does not have a deterministic implementation, but you set ..."),
        NotImplementedError("an operator"),
    ],
)
def test_what_is_not_about_the_patches_is_let_through(error):
    with pytest.raises(type(error)) as caught:
        see(Ours(error))
    assert caught.value is error


def test_a_package_that_the_first_pass_imports():
    with pytest.raises(DualsegError, match=r"networks\.a: Ours needs einops, .*pip install einops"):
        see(Ours(ImportError("from einops import rearrange (No module named 'einops').\n\nTraceback ...")))
    assert missing_package(ImportError("broken\nin two lines")) == "broken"


@pytest.mark.parametrize(
    "error", [DualsegError("feature_layer: say another"), RuntimeError("CUDA out of memory"), KeyError("a bug")]
)
def test_what_says_itself_what_to_do_and_bugs_are_let_through(error):
    with pytest.raises(type(error)) as caught:
        see(Ours(error))
    assert caught.value is error


def test_a_network_of_the_user_s_own_keeps_its_traceback_with_a_note():
    with pytest.raises(RuntimeError, match="a bug") as caught:
        see(Failing(RuntimeError("a bug")))
    (note,) = caught.value.__notes__
    assert "networks.a" in note and "data.patch_size=[16, 16, 16]" in note


def test_a_network_that_has_taken_patches_fails_for_another_reason():
    network = Ours(None)
    window = SlidingWindow((16, 16, 16), (16, 16, 16))
    method = Bare({"a": network}, ("background", "atrium"), window)
    method.see("a", torch.zeros(1, 1, 16, 16, 16))
    network.error = RuntimeError("a bug")
    with pytest.raises(RuntimeError) as caught:
        method.see("a", torch.zeros(1, 1, 16, 16, 16))
    assert caught.value is network.error
