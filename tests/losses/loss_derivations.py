"""Slow float64 derivations of method.md section 3, voxel by voxel, and the comparison of a loss with one of them.

Nothing here uses PyTorch's arithmetic: a derivation reads lists of channel values, one list a voxel, in the order
(n, w, h, d). Gradients are central finite differences of the derivation, never of the loss under test.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

Voxels = Sequence[Sequence[float]]
SPATIAL = (2, 3, 2)  # unequal sizes: a confusion of axes shows
NUM_VOXELS = 2 * math.prod(SPATIAL)


def voxels(tensor: Tensor | np.ndarray) -> list[list[float]]:
    """(N, C, W, H, D) -> one list of C channel values a voxel, by explicit indices."""
    nested = tensor.tolist()
    n, c, w, h, d = tensor.shape
    return [
        [nested[i][k][x][y][z] for k in range(c)]
        for i, x, y, z in itertools.product(range(n), range(w), range(h), range(d))
    ]


def flat(tensor: Tensor) -> list:
    """(N, W, H, D) -> one value a voxel, in the order of `voxels`."""
    nested = tensor.tolist()
    return [nested[i][x][y][z] for i, x, y, z in itertools.product(*map(range, tensor.shape))]


def log_softmax(logits: Sequence[float]) -> list[float]:
    top = max(logits)
    total = math.fsum(math.exp(value - top) for value in logits)
    return [value - top - math.log(total) for value in logits]


def softmax(logits: Sequence[float]) -> list[float]:
    return [math.exp(value) for value in log_softmax(logits)]


def first_argmax(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda k: values[k])


def cross_entropy(logits: Sequence[float], label: int) -> float:
    return -log_softmax(logits)[label]


def kl(logits_q: Sequence[float], logits_p: Sequence[float]) -> float:
    """KL(q || p); q = 0 contributes 0."""
    log_q, log_p = log_softmax(logits_q), log_softmax(logits_p)
    return math.fsum(math.exp(a) * (a - b) for a, b in zip(log_q, log_p, strict=True))


def entropy(logits: Sequence[float]) -> float:
    return -math.fsum(p * math.log(p) for p in softmax(logits) if p > 0)


def mean(values: Sequence[float]) -> float:
    """0 over the empty set, as the specification says."""
    return math.fsum(values) / len(values) if values else 0.0


def normalise(vector: Sequence[float]) -> list[float]:
    norm = max(math.sqrt(math.fsum(v * v for v in vector)), 1e-6)
    return [v / norm for v in vector]


def finite_differences(derivation: Callable[[Voxels], float], tensor: Tensor, step: float = 1e-5) -> np.ndarray:
    """Central differences of `derivation` with respect to every element of an (N, C, W, H, D) tensor."""
    point = tensor.detach().double().numpy().copy()
    gradient = np.zeros_like(point)
    for index in np.ndindex(*point.shape):
        here = point[index]
        point[index] = here + step
        above = derivation(voxels(point))
        point[index] = here - step
        below = derivation(voxels(point))
        point[index] = here
        gradient[index] = (above - below) / (2 * step)
    return gradient


def assert_loss(
    loss: Callable[[Tensor], Tensor], derivation: Callable[[Voxels], float], at: Tensor, step: float = 1e-5
) -> np.ndarray:
    """Value and gradient of `loss` at `at`, in its dtype, equal those of `derivation`; returns the derived gradient."""
    single = at.dtype == torch.float32
    leaf = at.detach().clone().requires_grad_()
    value = loss(leaf)
    assert value.shape == ()
    assert value.dtype == at.dtype
    value.backward()
    expected = derivation(voxels(at.double()))
    np.testing.assert_allclose(value.item(), expected, rtol=2e-6 if single else 1e-12, atol=1e-7 if single else 1e-12)
    derived = finite_differences(derivation, at, step)
    scale = max(np.abs(derived).max(), 1e-3)
    assert leaf.grad is not None
    np.testing.assert_allclose(leaf.grad.numpy(), derived, rtol=0, atol=scale * (1e-5 if single else 1e-7))
    return derived


def assert_connected_zero(value: Tensor, leaf: Tensor) -> None:
    """0, finite, and connected to the graph: `leaf` receives zeros rather than None or NaN."""
    assert value.item() == 0.0
    assert value.requires_grad
    value.backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, torch.zeros_like(leaf))


def random_logits(seed: int, num_classes: int, dtype: torch.dtype = torch.float64, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(2, num_classes, *SPATIAL, generator=generator, dtype=torch.float64)).to(dtype)


def random_labels(seed: int, num_classes: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(num_classes, (2, *SPATIAL), generator=generator)


def extreme_pairs(num_classes: int) -> tuple[Tensor, Tensor]:
    """Logits of two networks, float32 (N, K, 1, 1, 1): saturated patterns of +-1e4 and +-60 (also one logit against
    all others, and all equal), every pattern of one network against every one of the other."""
    patterns = []
    for size in (1e4, 60.0):
        for k in range(num_classes):
            one = [-size] * num_classes
            one[k] = size
            patterns += [one, [-value for value in one]]
        patterns += [[size] * num_classes, [-size] * num_classes]
    pairs = list(itertools.product(patterns, patterns))
    shape = (len(pairs), num_classes, 1, 1, 1)
    return torch.tensor([a for a, _ in pairs]).view(shape), torch.tensor([b for _, b in pairs]).view(shape)
