"""Any other network, MONAI's included, in the place of ours: its features are tapped (method.md section 2)."""

from difflib import get_close_matches
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualseg.arguments import count
from dualseg.errors import DualsegError
from dualseg.networks.blocks import DIVISOR, SegmentationOutput, crop_output, pad_to_multiple


class TappedNetwork(nn.Module):
    """Makes an image -> logits network return its features too: the input of its last convolution.

    Where that is a transposed one, as in MONAI's UNet, they are enlarged to the image's grid.

    >>> from monai.networks.nets import SegResNet
    >>> network = TappedNetwork(SegResNet(init_filters=8, in_channels=1, out_channels=2))
    >>> network.feature_layer, network.feature_channels
    ('conv_final.2.conv', 8)

    Args:
        network: (N, C, W, H, D) -> logits (N, K, W, H, D), one tensor, no deep supervision.
        feature_layer: name, as in `network.named_modules()`, of the Conv3d or ConvTranspose3d whose input are the
            features. Default: the last registered one; every forward pass then checks that the logits are that layer's
            output, or the sum of its output and its input, as a residual unit has it.
        divisor: sides are padded with zeros at their end to multiples of this; the outputs are cropped back.

    Attributes:
        feature_channels: F, channels of the features.

    Raises:
        DualsegError: no such layer here; in `forward`, the network's output or the layer do not fit.
    """

    feature_channels: int

    def __init__(self, network: nn.Module, feature_layer: str | None = None, divisor: int = DIVISOR) -> None:
        super().__init__()
        kind = type(network).__name__
        kinds = nn.Conv3d | nn.ConvTranspose3d
        convolutions = {name: module for name, module in network.named_modules() if isinstance(module, kinds)}
        if not convolutions:
            raise DualsegError(f"networks: {kind} has no Conv3d to take features from; choose a 3-D network")
        if feature_layer is not None and feature_layer not in convolutions:
            close = get_close_matches(feature_layer, convolutions, n=3, cutoff=0) or [*convolutions][-3:]
            raise DualsegError(
                f"feature_layer: {kind} has no Conv3d named '{feature_layer}'; nearest: {', '.join(close)}"
            )
        count("divisor", divisor)
        self.network = network
        self.divisor = divisor
        self.feature_layer = feature_layer if feature_layer is not None else [*convolutions][-1]
        self.feature_channels = convolutions[self.feature_layer].in_channels
        self._layer_was_named = feature_layer is not None

    def forward(self, image: Tensor) -> SegmentationOutput:
        """(N, C, W, H, D) -> logits (N, K, W, H, D) and features (N, F, W, H, D)."""
        padded = pad_to_multiple(image, self.divisor)
        seen: list[tuple[Tensor, Tensor]] = []

        def tap(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            seen.append((inputs[0], output))

        # The hook lives only as long as the call: nothing to copy or pickle, and no activation is kept alive after it.
        handle = self.network.get_submodule(self.feature_layer).register_forward_hook(tap)
        try:
            logits = self.network(padded)
        finally:
            handle.remove()
        return crop_output(self._checked(logits, seen, padded), image.shape[2:])

    def _checked(self, logits: Any, seen: list[tuple[Tensor, Tensor]], image: Tensor) -> SegmentationOutput:
        kind = type(self.network).__name__
        if not isinstance(logits, Tensor) or logits.ndim != image.ndim:
            returned = (
                f"a tensor of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            )
            raise DualsegError(
                f"networks: {kind} must return one tensor (N, K, W, H, D), not {returned}; "
                "switch its deep supervision or further heads off"
            )
        if not seen or not (self._layer_was_named or seen[-1][1] is logits or _is_sum(logits, *seen[-1])):
            raise DualsegError(
                f"feature_layer: the output of {kind} does not come straight from '{self.feature_layer}'; "
                "name the Conv3d whose input are the features (see network.named_modules())"
            )
        features = seen[-1][0]
        if isinstance(self.network.get_submodule(self.feature_layer), nn.ConvTranspose3d):
            features = F.interpolate(features, size=image.shape[2:], mode="trilinear")
        for name, tensor in (("output", logits), (f"features at '{self.feature_layer}'", features)):
            if tensor.shape[2:] != image.shape[2:]:
                raise DualsegError(
                    f"feature_layer: {kind}'s {name} have sides {tuple(tensor.shape[2:])} for an image of "
                    f"{tuple(image.shape[2:])}; both must lie on the image's own grid"
                )
        return SegmentationOutput(logits, features)


def _is_sum(logits: Tensor, features: Tensor, output: Tensor) -> bool:
    """What a residual unit without a convolution in its shortcut gives."""
    return features.shape == output.shape == logits.shape and torch.equal(logits, output + features)


def monai_network(network: str, in_channels: int, num_classes: int, **settings: Any) -> TappedNetwork:
    """A network of `monai.networks.nets` by its class name, for 3-D volumes, tapped.

    Args:
        network: class name, e.g. "SegResNet".
        settings: its further arguments; `feature_layer` and `divisor` go to `TappedNetwork`.

    Raises:
        DualsegError: no such network.
    """
    import monai.networks.nets as nets

    if not hasattr(nets, network):
        raise DualsegError(
            f"networks: monai.networks.nets has no {network}; its names are listed in MONAI's documentation."
        )
    tap = {key: settings.pop(key) for key in ("feature_layer", "divisor") if key in settings}
    built = getattr(nets, network)(spatial_dims=3, in_channels=in_channels, out_channels=num_classes, **settings)
    return TappedNetwork(built, **tap)
