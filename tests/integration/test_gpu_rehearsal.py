"""What is prepared for a lent GPU runs: tiny, on the CPU, as `make gpu` has it."""

import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The script in this process, with such words; the processes that it starts are real."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    def called(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["gpu.py", *words])
        try:
            return gpu.main()
        except SystemExit as end:
            return int(end.code or 0)

    return called


def test_a_step_is_measured(tmp_path: Path, call: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    code = call("check", str(tmp_path / "out"), "solo_mix", "--rehearse")
    assert code == 0, (tmp_path / "out" / "solo_mix.log").read_text()
    found = json.loads((tmp_path / "out" / "solo_mix.json").read_text())
    assert found["seconds of bare passes"] > 0 and found["floor"] > 0 and 0 < found["seconds"] < 10
    assert "\nsolo_mix " in capsys.readouterr().out and "aten::" in (tmp_path / "out" / "solo_mix.txt").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [(("check", "nonsense"), "no step nonsense; choose from supervised"), (("run", "mix_8"), "--la-root (make: ROWS=")],
)
def test_what_is_missing_is_said_before_anything_starts(
    tmp_path: Path, words: tuple[str, ...], told: str, call: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(words[0], str(tmp_path / "out"), *words[1:]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_row_comes_back_packed(tmp_path: Path, small_la: Path, call: Callable[..., int]) -> None:
    words = ["data.held_out_test=74", "evaluate_on=[]"]
    code = call("run", str(tmp_path / "out"), "mix_2", *words, "--la-root", str(small_la), "--rehearse")
    assert code == 0, (tmp_path / "out" / "mix_2-0.log").read_text()
    (archive,) = (tmp_path / "out").glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = [Path(name).name for name in packed.getnames()]
    assert {"manifest.json", "metrics.json", "curves.csv"} <= {*names}
    assert not any(name.endswith(".ckpt") for name in names)
    (weights,) = (tmp_path / "out").glob("*.pt.0")
    assert {*torch.load(weights)} >= {"networks.a.output_block.conv.conv.weight"}
