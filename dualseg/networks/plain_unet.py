"""nnU-Net's plain U-Net (Isensee et al., Nature Methods 2021), of planned stages, of MONAI's blocks."""

from collections.abc import Sequence

from torch import Tensor, nn

from dualseg.errors import DualsegError
from dualseg.networks.planned import SLOPE, Norm, PlannedUNet, plain, set_norm


class PlainUNet(PlannedUNet):
    """The blocks of MONAI's `DynUNet`: two convolutions a stage in encoder and decoder, InstanceNorm, LeakyReLU.

    Built by DynUNet and run here, whose own `forward` enlarges the coarser logits to full size and keeps them in a list
    between calls. Weights of a DynUNet load by their names; leave out those that begin with `skip_layers.`, which it
    has a second time. As in DynUNet, a decoder stage has the kernel of the stage below it.

    Args:
        in_channels: C, channels of the image.
        num_classes: K, background included.
        channels, strides, kernels: see `PlannedUNet`; at least three stages, as DynUNet asks for.
        deep_supervision: give the logits of coarser decoder stages in training.
        norm: `instance`, of each patch alone; `batch`, BatchNorm, whose statistics of mixed patches do not fit whole
            ones.

    Attributes:
        others: see `PlannedUNet`.

    Raises:
        DualsegError: stages that cannot be.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        channels: Sequence[int],
        strides: Sequence[Sequence[int]],
        kernels: Sequence[Sequence[int]],
        deep_supervision: bool = True,
        norm: Norm = "instance",
    ) -> None:
        super().__init__(channels, strides, kernels, least=3)
        for kernel, stride in zip(plain(kernels), plain(strides), strict=True):
            if any(step > side + 1 for side, step in zip(kernel, stride, strict=True)):
                raise DualsegError(f"kernels: {kernel} is too small for a stride of {stride}; give a larger one.")
        from monai.networks.nets import DynUNet

        coarser = len(channels) - 3  # all decoder stages but the finest and the coarsest
        built = DynUNet(
            3,
            in_channels,
            num_classes,
            kernel_size=plain(kernels),
            strides=plain(strides),
            upsample_kernel_size=plain(strides)[1:],
            filters=[*channels],
            norm_name=("instance", {"affine": True}),
            act_name=("leakyrelu", {"negative_slope": SLOPE, "inplace": True}),
            deep_supervision=coarser > 0,
            deep_supr_num=max(1, coarser),
        )
        self.input_block = built.input_block
        self.downsamples = built.downsamples
        self.bottleneck = built.bottleneck
        self.upsamples = built.upsamples
        self.output_block = built.output_block
        self.deep_supervision_heads = built.deep_supervision_heads if coarser else nn.ModuleList()
        set_norm(self, norm)
        self.supervise_scales(deep_supervision)

    @property
    def heads(self) -> Sequence[nn.Module]:
        return [self.output_block, *self.deep_supervision_heads]

    def decoded(self, image: Tensor) -> list[Tensor]:
        x = image
        skips: list[Tensor] = []
        outputs: list[Tensor] = []
        for block in (self.input_block, *self.downsamples):
            x = block(x)
            skips.append(x)
        x = self.bottleneck(x)
        for block, skip in zip(self.upsamples, reversed(skips), strict=True):
            x = block(x, skip)
            outputs.insert(0, x)
        return outputs
