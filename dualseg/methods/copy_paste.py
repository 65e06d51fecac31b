"""What methods share that mix labeled and unlabeled patches and label the latter with averaged networks."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dualseg.arguments import fraction
from dualseg.methods.averages import Average
from dualseg.methods.base import SegmentationMethod
from dualseg.methods.terms import Time
from dualseg.views import largest_component


class CopyPaste(SegmentationMethod):
    """First a share of the run on labeled patches alone, mixed with one another; then mixed with unlabeled ones.

    Without unlabeled patches the labeled ones are mixed with one another throughout.

    Args:
        pretraining: share of the run on labeled patches alone, in which the averages are copies.
        others: see `SegmentationMethod`.

    Raises:
        DualsegError: a share that cannot be.
    """

    mixes = True
    pseudo_labels = True

    def __init__(self, *args: Any, pretraining: float = 0.25, **kwargs: Any) -> None:
        fraction("method.pretraining", pretraining)
        self.pretraining = pretraining
        super().__init__(*args, **kwargs)

    def check_batch(self, labeled: int, unlabeled: int) -> None:
        super().check_batch(labeled, unlabeled or 1)

    def pretrains(self, time: Time) -> bool:
        """Whether this iteration is on labeled patches alone."""
        return time.iteration < round(self.pretraining * time.total)

    def follow_length(self) -> Iterator[str]:
        if self.pretraining > 0:
            yield "method.pretraining"
        yield from super().follow_length()

    def moving_averages(self, time: Time) -> Mapping[str, Average]:
        if not self.pretrains(time):
            return self.averages
        # copies: self-training starts from equal networks
        return {name: replace(average, decay=0.0, buffers=True) for name, average in self.averages.items()}

    def largest(self, predicted: Tensor, classes: Iterable[int]) -> Tensor:
        """Pseudo-labels: of each of `classes` the largest component alone; the guard sees what was predicted.

        Args:
            predicted: (N, W, H, D) int64, of whole unlabeled patches.
        """
        self.note_pseudo_labels(predicted)
        label, seconds = largest_component(predicted, classes)
        if seconds is not None:
            self.watched["time/largest_component"] = torch.tensor(seconds)
        return label
