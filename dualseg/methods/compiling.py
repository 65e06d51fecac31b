"""Networks compiled by torch for the patches that a training meets."""

import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch._functorch import config as functorch_config

from dualseg.errors import DualsegError
from dualseg.networks import SegmentationOutput

# Networks of one class share it: each is compiled anew for training and for watching, and for each number of patches
RECOMPILE_LIMIT = 64


class CompiledNetwork:
    """A network's forward pass, compiled for each shape at its first use; the network itself stays as it is.

    Weights, buffers and state dict are the network's own. Dropout draws what it draws uncompiled, so that a pass of
    the one agrees with a pass of the other within the rounding of the run's precision. On a GPU a pass is one CUDA
    graph: launching its hundreds of kernels one by one took longer than they ran (docs/speed.md). What it returns lasts
    until the next iteration, which `next_iteration` begins.

    Args:
        name: of the network, for messages.
        network: what is compiled.
        required: whether what torch cannot compile is an error; else the network goes on uncompiled, with a warning.
    """

    def __init__(self, name: str, network: nn.Module, required: bool) -> None:
        torch._dynamo.config.recompile_limit = max(RECOMPILE_LIMIT, torch._dynamo.config.recompile_limit)
        # with the forward pass, so that `__call__` notices what cannot be compiled of the backward one as well
        functorch_config.force_non_lazy_backward_lowering = True
        self.name, self.network, self.required = name, network, required
        self._call: Callable[[Tensor], SegmentationOutput] = torch.compile(
            network, dynamic=False, options={"fallback_random": True, "triton.cudagraphs": torch.cuda.is_available()}
        )

    def __call__(self, image: Tensor) -> SegmentationOutput:
        """Raises: DualsegError where `required` cannot be; and what the network itself raises."""
        try:
            return self._call(image)
        except TorchDynamoException as error:
            output: SegmentationOutput = self.network(image)  # first: what is wrong with the image is for it to say
            reason = f"torch cannot compile network {self.name} here ({_reason(error)})"
            if self.required:
                raise DualsegError(f"trainer.compile=true: {reason}; leave it at auto, or give false.") from error
            print(f"warning: {reason}; it goes on uncompiled, which is slower", file=sys.stderr)
            self._call = self.network
            return output


def next_iteration() -> None:
    """What compiled networks have returned until now is not read any more: their graphs may use its memory."""
    torch.compiler.cudagraph_mark_step_begin()


def _reason(error: Exception) -> str:
    """The first line of what the compiler itself raised."""
    inner = getattr(error, "inner_exception", error)
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    return ": ".join([type(inner).__name__, *lines[:1]])
