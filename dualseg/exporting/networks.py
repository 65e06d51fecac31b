"""The networks of a run as programs of tensors, and what one must know to feed them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from dualseg.data.volumes import VolumeSource
from dualseg.inference.folding import fold_batch_norm
from dualseg.runs.evaluation import checkpoints_of
from dualseg.runs.folder import RunFolder
from dualseg.runs.verdict import verification


class Inference(nn.Module):
    """A trained network without its features: image (N, C, W, H, D) -> logits or probabilities (N, K, W, H, D).

    Args:
        network: returns (logits, features); a copy with its BatchNorm folded is kept, in evaluation mode.
        softmax: probabilities.
    """

    def __init__(self, network: nn.Module, softmax: bool) -> None:
        super().__init__()
        self.network = fold_batch_norm(network.eval())
        self.softmax = softmax

    def forward(self, image: Tensor) -> Tensor:
        logits = self.network(image).logits
        return logits.softmax(dim=1) if self.softmax else logits


def example_patches(count: int, channels: int, patch_size: Sequence[int]) -> Tensor:
    """(count, C, w, h, d) of noise, the same at every call."""
    return torch.randn(count, channels, *patch_size, generator=torch.Generator().manual_seed(0))


def as_program(inference: Inference, channels: int, patch_size: Sequence[int]) -> ExportedProgram:
    """The program for batches of any size of patches of this one."""
    example = example_patches(2, channels, patch_size)  # two: torch takes the number one for a constant
    with torch.no_grad():
        return torch.export.export(inference, (example,), dynamic_shapes={"image": {0: Dim("batch")}}, strict=False)


def describe(run: RunFolder, source: VolumeSource) -> dict[str, Any]:
    """What the networks of a run take and give; values of JSON."""
    data = run.config()["data"]
    record = source.scan_record()
    return {
        "class_names": list(source.class_names),
        "channels": source.channels,
        "patch_size": list(data["patch_size"]),
        "downsample": data["downsample"],
        "spacing": record.get("spacing"),
        "intensity": record.get("intensity"),
        "dataset": data["source"]["_target_"],
        "unlabeled_scans": verification(run),
        "preprocessing": record,
        **checkpoints_of([run])[str(run.path)],
    }
