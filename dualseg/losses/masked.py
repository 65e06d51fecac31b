"""Means over sets that may be empty: 0 there, still connected to the graph (method.md section 1)."""

from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` is true; 0 where it is true nowhere.

    Args:
        values: any shape, float32.
        mask: bool, the same shape.

    `where` rather than a product, so that a value outside the mask can never turn the mean into NaN.
    """
    return values.where(mask, values.new_zeros(())).sum() / mask.sum().clamp(min=1)


def mean(values: Tensor) -> Tensor:
    """Mean of all `values`; 0 where there are none."""
    return values.sum() / max(values.numel(), 1)
