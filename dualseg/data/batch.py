"""What a method gets in an iteration."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Patches, the labeled ones first.

    Attributes:
        image: (N, C, W, H, D) float32.
        label: (N_l, W, H, D) int64, of the first N_l patches; N_l may be 0.
        case: N names.
        targets: further targets of the labeled patches, such as a signed distance, (N_l, ...) each.
    """

    image: Tensor
    label: Tensor
    case: Sequence[str]
    targets: Mapping[str, Tensor] = {}

    @property
    def labeled(self) -> "Batch":
        """The labeled patches alone."""
        n = len(self.label)
        return Batch(self.image[:n], self.label, self.case[:n], self.targets)

    @property
    def unlabeled(self) -> "Batch":
        """The unlabeled patches alone."""
        n = len(self.label)
        return Batch(self.image[n:], self.label[:0], self.case[n:])
