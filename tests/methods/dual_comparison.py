"""Terms of methods with two `Stored` networks against a derivation: values, weights and gradients."""

import importlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from dual_derivation import Output, Terms
from method_toys import SHAPE, Stored

from dualseg.losses import Drawn
from dualseg.methods import LossTerm, TwoNetworks

LABELED = 2


def as_arrays(stored: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, Output]:
    return {i: (logits.double().numpy().copy(), f.double().numpy().copy()) for i, (logits, f) in stored.items()}


def by_key(terms: list[LossTerm]) -> dict[tuple[str, str | None], LossTerm]:
    keyed = {(term.name, term.network): term for term in terms}
    assert len(keyed) == len(terms)
    return keyed


def assert_terms(terms: list[LossTerm], expected: Terms) -> None:
    keyed = by_key(terms)
    assert keyed.keys() == expected.keys()
    for key, (value, weight) in expected.items():
        assert keyed[key].value.dtype == torch.float32
        assert keyed[key].value.item() == pytest.approx(value, rel=1e-5, abs=1e-7), key
        assert keyed[key].weight == pytest.approx(weight, rel=1e-12), key


def assert_gradients(
    method: TwoNetworks,
    objective: Callable[[dict[str, Output]], float],
    arrays: dict[str, Output],
    drawn: dict[str, np.ndarray],
) -> None:
    """Gradients on the stored logits and features equal central differences of `objective` at a sample of entries."""
    rng = np.random.default_rng(0)
    for i in ("a", "b"):
        stored = method.networks[i]
        assert isinstance(stored, Stored)
        for which, parameter in ((0, stored.logits), (1, stored.features)):
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            got = gradient.double().numpy()
            places = [tuple(int(rng.integers(s)) for s in got.shape) for _ in range(10)]
            places += [tuple(map(int, place)) for place in np.argwhere(np.abs(got) >= 0.9 * np.abs(got).max())[:4]]
            for v in drawn.get(i, ())[:2]:
                sample, *voxel = (int(n) for n in np.unravel_index(v, (len(got) - LABELED, *SHAPE)))
                places += [(LABELED + sample, channel, *voxel) for channel in range(2)]
            derived = []
            for place in places:
                sides = []
                for step in (1e-5, -1e-5):
                    live = {n: (logits.copy(), f.copy()) for n, (logits, f) in arrays.items()}
                    live[i][which][place] += step
                    sides.append(objective(live))
                derived.append((sides[0] - sides[1]) / 2e-5)
            assert np.abs(derived).max() > 0 or which == 1
            scale = max(np.abs(got).max(), np.abs(derived).max(), 1e-12)
            np.testing.assert_allclose([got[p] for p in places], derived, rtol=0, atol=2e-4 * scale)


def prototype_draws(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """What `prototype_distance` draws from now on: a's foreground, a's background, b's foreground, b's background."""
    record: list[np.ndarray] = []
    module = importlib.import_module("dualseg.losses.prototype_distance")
    original = module.draw_voxels

    def recording(*args: torch.Tensor) -> Drawn:
        found: Drawn = original(*args)
        record.append(found.voxels[found.counts].numpy())
        return found

    monkeypatch.setattr(module, "draw_voxels", recording)
    return record
