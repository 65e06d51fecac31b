"""Whether `ResidualEncoderUNet` is nnU-Net's: the weights of one in the other, and the difference of their outputs.

nnU-Net's networks are in the package dynamic-network-architectures, which is no dependency of dualseg: it pulls timm
and torchvision. They get an environment of their own, without these two, which this network does not need:

    python3 -m venv /tmp/nnunet_networks
    /tmp/nnunet_networks/bin/pip install numpy torch==2.13.0
    /tmp/nnunet_networks/bin/pip install --no-deps dynamic-network-architectures==0.4.4
    PYTHONPATH=. /tmp/nnunet_networks/bin/python experiments/beside_nnunet/compare_networks.py

Exit code 1 where a name or shape differs, or an output by more than 1e-5 of the largest logit, in training or
evaluation mode; outputs are those of double precision. With torch 2.13.0 on a CPU the difference was 0.0e+00 for all
three plans: the same digits.
"""

import sys

import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet as Theirs
from torch import Tensor, nn

from dualseg.networks.residual_encoder import ResidualEncoderUNet as Ours

TOLERANCE = 1e-5
CLASSES = 3
# name -> channels of the image, channels, strides, kernels, blocks, sides of the image
PLANS: dict[str, tuple[int, list[int], list[list[int]], list[list[int]], list[int], tuple[int, int, int]]] = {
    "isotropic": (
        1,
        [8, 16, 32, 64],
        [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
        [[3, 3, 3]] * 4,
        [1, 2, 2, 2],
        (32, 48, 32),
    ),
    "thin slab": (
        2,
        [8, 16, 32, 64, 64],
        [[1, 1, 1], [2, 2, 1], [2, 2, 1], [2, 2, 2], [2, 2, 2]],
        [[3, 3, 1], [3, 3, 1], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
        [1, 3, 4, 6, 6],
        (64, 64, 12),
    ),
    "preset M": (
        1,
        [32, 64, 128, 256, 320, 320],
        [[1, 1, 1], *[[2, 2, 2]] * 5],
        [[3, 3, 3]] * 6,
        [1, 3, 4, 6, 6, 6],
        (64, 64, 64),
    ),
}


def main() -> None:
    """Compare the two for every plan."""
    torch.manual_seed(0)
    failed = [name for name in PLANS if not same(name)]
    sys.exit(1 if failed else 0)


def same(name: str) -> bool:
    """Load the weights of theirs into ours, print what differs, and say whether that is nothing."""
    inputs, channels, strides, kernels, blocks, sides = PLANS[name]
    theirs = Theirs(
        inputs, len(channels), channels, nn.Conv3d, kernels, strides, blocks, CLASSES, 1,
        conv_bias=True, norm_op=nn.InstanceNorm3d, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True}, deep_supervision=True,
    )  # fmt: skip
    theirs.apply(theirs.initialize)
    ours = Ours(inputs, CLASSES, channels, strides, kernels, blocks)
    zeroed = [{key for key, value in parameters(network).items() if not value.any()} for network in (theirs, ours)]
    for parameter in theirs.parameters():  # norms too: no two alike, so that a swapped pair shows
        nn.init.normal_(parameter, std=0.1) if parameter.ndim > 1 else nn.init.uniform_(parameter, -0.7, 1.3)
    ours.load_state_dict(parameters(theirs))
    theirs.double(), ours.double()
    image = torch.randn(2, inputs, *sides, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs(image)
        output = ours(image)
        found = [output.logits, *output.others.values()]
        evaluated = ours.eval()(image).logits
    # theirs gives the coarsest decoder stage as well, whose loss nnU-Net weighs by 0
    off = max(relative(*pair) for pair in zip(found, expected[:-1], strict=True))
    off = max(off, relative(evaluated, expected[0]))
    alike = zeroed[0] == zeroed[1]
    count = sum(value.numel() for value in ours.parameters())
    print(
        f"{name}: {len(parameters(theirs))} tensors, {count} parameters; the same ones are 0 at the start: {alike}; "
        f"{len(found)} outputs, largest difference {off:.1e} of the largest logit"
    )
    return alike and off <= TOLERANCE


def parameters(network: nn.Module) -> dict[str, Tensor]:
    """The state dict of theirs without what it holds twice; ours has nothing of that."""
    return {
        key: value
        for key, value in network.state_dict().items()
        if ".all_modules." not in key and not key.startswith("decoder.encoder.")
    }


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference, as a share of the largest logit. Raises: AssertionError for other shapes."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return float((found - expected).abs().max() / expected.abs().max())


if __name__ == "__main__":
    main()
