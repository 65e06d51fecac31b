"""What keeping the largest component does to the held-out cases of a fold."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from dualseg.training.case_callbacks import ComponentWriter


def by_hand(prediction: np.ndarray, reference: np.ndarray) -> list[float]:
    """Dice of a mask and of its largest component, which is found by walking from voxel to voxel."""
    left = {tuple(map(int, voxel)) for voxel in np.argwhere(prediction)}
    components: list[set[tuple[int, ...]]] = []
    while left:
        todo, component = [left.pop()], set()
        while todo:
            x, y, z = voxel = todo.pop()
            component.add(voxel)
            near = {(x + i, y + j, z + k) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)} & left
            left -= near
            todo += near
        components.append(component)
    largest = np.zeros_like(prediction)
    for voxel in max(components, key=len, default=set()):
        largest[voxel] = True
    found = []
    for mask in (prediction, largest):
        total = mask.sum() + reference.sum()
        found.append(2 * (mask & reference).sum() / total if total else 1.0)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_dice_of_each_class_with_all_and_with_its_largest_component(seed: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(seed)
    predicted = (generator.random((9, 8, 7)) < 0.12) * generator.integers(1, 3, (9, 8, 7))
    predicted[2:5, 2:5, 2:5] = 1
    reference = np.zeros((9, 8, 7), int)
    reference[2:6, 2:5, 2:5] = 1
    outputs = {"a": torch.nn.functional.one_hot(torch.from_numpy(predicted), 4).movedim(-1, 0).float()}
    module = SimpleNamespace(roles=SimpleNamespace(record="a"), class_names=("background", "one", "two", "three"))
    volume = SimpleNamespace(case="c1", label=torch.from_numpy(reference))
    trainer: Any = SimpleNamespace(state=SimpleNamespace(fn="fit"))
    writer = ComponentWriter(tmp_path / "components")
    writer.on_validation_batch_end(trainer, cast(Any, module), outputs, volume, 0)
    assert not (tmp_path / "components").exists(), "not in the evaluations along a run"
    trainer.state.fn = "validate"
    writer.on_validation_batch_end(trainer, cast(Any, module), outputs, volume, 0)
    found = json.loads((tmp_path / "components" / "c1.json").read_text())
    assert [*found] == ["one", "two", "three"] and found["three"] == [1.0, 1.0]
    for value, name in ((1, "one"), (2, "two")):
        assert found[name] == pytest.approx(by_hand(predicted == value, reference == value))
    assert found["one"][1] > found["one"][0]
