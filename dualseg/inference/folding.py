"""BatchNorm folded into the convolution before it: in evaluation one pass over memory less per layer."""

import copy
from collections.abc import Iterator
from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """A copy that computes the same, up to rounding, with fewer layers.

    A network in training mode is returned itself, and one in which nothing can be folded: folding twice costs nothing.
    Folded is every BatchNorm3d with running statistics right after a convolution in a plain `nn.Sequential`, where
    nothing else can see what lies between the two.
    """
    if network.training or not any(_foldable(network)):
        return network
    folded = copy.deepcopy(network)
    for module, first, second in list(_foldable(folded)):
        convolution, norm = getattr(module, first), getattr(module, second)
        transposed = isinstance(convolution, nn.ConvTranspose3d)
        # in float64, so that the weights are rounded once
        fused = fuse_conv_bn_eval(convolution.double(), norm.double(), transpose=transposed)
        setattr(module, first, fused.to(next(network.parameters()).dtype))
        setattr(module, second, nn.Identity())
    return folded


def _foldable(network: nn.Module) -> Iterator[tuple[nn.Sequential, str, str]]:
    """Each place: the sequence, the name of its convolution, the name of the BatchNorm after it."""
    for module in network.modules():
        if type(module) is not nn.Sequential:
            continue
        for (first, convolution), (second, norm) in pairwise(module.named_children()):
            if (
                isinstance(convolution, nn.Conv3d | nn.ConvTranspose3d)
                and isinstance(norm, nn.BatchNorm3d)
                and norm.track_running_stats
            ):
                yield module, first, second
