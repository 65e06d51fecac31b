"""What the first patches that a network does not take are answered with."""

import re

import torch
from torch import Tensor, nn

from dualseg.errors import DualsegError, missing_package
from dualseg.machine import is_out_of_memory
from dualseg.networks import TappedNetwork

_NOT_OF_PATCHES = (DualsegError, NotImplementedError, RecursionError, torch.AcceleratorError)
_OF_THE_DEVICE = re.compile(r"\bCUDA\b|cuDNN|CUBLAS|deterministic implementation", re.IGNORECASE)


def explain_first_pass(
    error: RuntimeError | ValueError | ImportError, name: str, network: nn.Module, image: Tensor
) -> None:
    """Say which network could not take which patches: what is wrong with them is known to its layers alone.

    Args:
        error: what the network's first forward pass has raised. One that says itself what to do is let through, and so
            is that of a network of the user's own, with a note: it may be a bug of its code, to find by its traceback.
        name: of the network.
        image: (N, C, W, H, D).

    Raises:
        DualsegError: naming the network and `data.patch_size`.
    """
    if isinstance(error, _NOT_OF_PATCHES) or is_out_of_memory(error) or _OF_THE_DEVICE.search(str(error)):
        return
    kind = type(network.network if isinstance(network, TappedNetwork) else network).__name__
    if isinstance(error, ImportError):
        said = f"networks.{name}: {kind} {missing_package(error)}"
    else:
        reason = str(error).partition("\n")[0].rstrip(".")
        patches = f"data.patch_size={[*image.shape[2:]]} ({len(image)} in a batch)"
        fix = "Give another data.patch_size, a larger batch or another network."
        said = f"networks.{name}: {kind} does not take {patches}: {reason}. {fix}"
        if isinstance(network, TappedNetwork):
            said += f" networks.{name}.divisor=N pads patches to multiples of N."
    if not type(network).__module__.startswith("dualseg."):
        error.add_note(said)
        return
    raise DualsegError(said) from error
