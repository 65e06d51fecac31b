"""Commands that are killed while they write, and given again: `make drill` kills them more often (kills.py)."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from kills import (
    Drill,
    Start,
    Undisturbed,
    of_a_run,
    preparation,
    problems,
    server,
    spread,
    study,
    training,
    undisturbed,
)


class Yard(NamedTuple):
    """Where the drills are held.

    Attributes:
        expected: what a training makes that nothing stops.
        trained: the folder of that training.
    """

    root: Path
    start: Start
    expected: Undisturbed
    trained: Path


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    root = tmp_path_factory.mktemp("drill")
    with server(root) as start:
        drill = training(root)
        expected = undisturbed(drill, start)
        yield Yard(root, start, expected, Path(shutil.copytree(drill.folder, root / "trained")))


def test_a_training_that_is_killed_three_times(yard: Yard) -> None:
    """While it makes the data, and at two later places."""
    changes = yard.expected.changes
    assert problems(training(yard.root), yard.start, yard.expected, changes // 6, changes // 2, changes // 4) == []


def assert_whole(drill: Drill, start: Start, kills: int) -> None:
    expected = undisturbed(drill, start)
    for place in spread(expected.changes, kills):
        assert problems(drill, start, expected, place) == [], f"killed at {place} of {expected.changes} changes"


def test_an_evaluation(yard: Yard) -> None:
    assert_whole(of_a_run(yard.root, yard.trained)["evaluation"], yard.start, 3)


def test_a_prediction(yard: Yard) -> None:
    assert_whole(of_a_run(yard.root, yard.trained)["prediction"], yard.start, 3)


def test_a_preparation(yard: Yard) -> None:
    assert_whole(preparation(yard.root), yard.start, 3)


def test_a_study(yard: Yard) -> None:
    assert_whole(study(yard.root, yard.trained), yard.start, 3)
