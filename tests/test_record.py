"""Which prediction stands for a run, by what the run records and by the rule for those that record nothing."""

import pytest

from dualseg.errors import DualsegError
from dualseg.record import record_of, roles_of


def test_of_a_run_that_records_nothing() -> None:
    assert record_of(None, ["b", "ensemble", "a"]) == "ensemble"
    assert record_of(None, ["b", "a"]) == "a"
    assert record_of(None, ["x"]) == "x"
    assert record_of(None, []) is None
    assert record_of("teacher", ["a", "teacher"]) == "teacher"
    assert record_of("teacher", ["a", "ensemble"]) == "ensemble", "a split without results of it"
    assert record_of(["a"], ["a"]) == "a"


def test_roles_of_checkpoints() -> None:
    old = roles_of({"format": 1}, ["a", "b"], "x.ckpt")
    assert (old.averages, old.record, old.members) == ({}, "ensemble", ("a", "b"))
    assert roles_of({}, ["a"], "x.ckpt").members == ("a",)
    averaged = {"averages": {"teacher": "a"}, "record": "teacher", "ensemble": ["a"]}
    assert roles_of(averaged, ["a"], "x.ckpt").members == ("teacher",)
    both = {"averages": {"s": "a", "t": "b"}, "record": "ensemble", "ensemble": ["s", "t"]}
    assert roles_of(both, ["a", "b"], "x.ckpt").members == ("s", "t")


@pytest.mark.parametrize(
    "noted",
    [
        {"averages": {"teacher": "c"}},
        {"averages": {"../x": "a"}},
        {"averages": ["teacher"]},
        {"averages": None},
        {"averages": []},
        {"averages": {"teacher": ["a"]}},
        {"averages": {"a": "b"}},
        {"averages": {"ensemble": "a"}},
        {"ensemble": ["a", "a"]},
        {"record": "teacher"},
        {"ensemble": []},
        {"ensemble": "ab"},
        {"ensemble": ["a", "z"]},
        {"ensemble": ["a"], "record": "ensemble"},
        {"ensemble": [["a"]]},
        {"record": ["a"]},
    ],
)
def test_a_checkpoint_that_says_what_cannot_be(noted: dict) -> None:
    with pytest.raises(DualsegError, match=r"x\.ckpt"):
        roles_of(noted, ["a", "b"], "x.ckpt")
