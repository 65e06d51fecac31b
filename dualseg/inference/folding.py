"""BatchNorm folded into the convolution before it: in evaluation one pass over memory less per layer."""

import copy
from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """A copy that computes the same, up to rounding, with fewer layers; a network in training mode is returned itself.

    Folded is every BatchNorm3d with running statistics right after a convolution in a plain `nn.Sequential`, where
    nothing else can see what lies between the two.
    """
    if network.training:
        return network
    folded = copy.deepcopy(network)
    for module in folded.modules():
        if type(module) is not nn.Sequential:
            continue
        for (first, convolution), (second, norm) in pairwise(list(module.named_children())):
            if (
                isinstance(convolution, nn.Conv3d | nn.ConvTranspose3d)
                and isinstance(norm, nn.BatchNorm3d)
                and norm.track_running_stats
            ):
                transposed = isinstance(convolution, nn.ConvTranspose3d)
                # in float64, so that the weights are rounded once
                fused = fuse_conv_bn_eval(convolution.double(), norm.double(), transpose=transposed)
                setattr(module, first, fused.to(next(network.parameters()).dtype))
                setattr(module, second, nn.Identity())
    return folded
