"""Two signals of the drill that once left two processes waiting for each other for ever; tests/drill has them all."""

import sys
from pathlib import Path

import pytest

from dualseg.data import Phantom

sys.path.append(str(Path(__file__).resolve().parents[1] / "drill"))

from signals import Case, drill

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize(
    "case",
    [Case("two", "rank1", "TERM", "iterating"), Case("two", "all", "TERM", "checkpointing")],
    ids=str,
)
def test_a_signal_ends_the_job_soon_honestly_and_whole(case: Case, phantom: Phantom, tmp_path: Path) -> None:
    outcome = drill(case, tmp_path, phantom)
    assert outcome.problems == [], outcome
