"""The mean over a mask that may be empty."""

import math

import pytest
import torch
from loss_derivations import assert_connected_zero

from dualseg.losses.masked import masked_mean


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mean_of_the_chosen(dtype):
    values = torch.tensor([[1.0, 2.0], [4.0, -8.5]], dtype=dtype, requires_grad=True)
    mean = masked_mean(values, torch.tensor([[True, False], [False, True]]))
    assert mean.item() == -3.75
    assert mean.dtype == dtype
    mean.backward()
    assert values.grad.tolist() == [[0.5, 0.0], [0.0, 0.5]]


@pytest.mark.parametrize("spoiled", [math.nan, math.inf])
def test_empty_mask_even_over_spoiled_values(spoiled):
    values = torch.tensor([1.0, spoiled], requires_grad=True)
    assert_connected_zero(masked_mean(values, torch.zeros(2, dtype=torch.bool)), values)


def test_no_values_at_all():
    values = torch.zeros(0, requires_grad=True)
    assert_connected_zero(masked_mean(values, torch.zeros(0, dtype=torch.bool)), values)
