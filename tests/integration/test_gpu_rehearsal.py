"""What is prepared for a lent GPU runs: tiny, on the CPU, as `make gpu` has it."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def call(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False)


def test_a_step_is_measured(tmp_path: Path) -> None:
    ended = call("check", str(tmp_path / "out"), "solo_mix", "--rehearse")
    assert ended.returncode == 0, ended.stderr + (tmp_path / "out" / "solo_mix.log").read_text()
    found = json.loads((tmp_path / "out" / "solo_mix.json").read_text())
    assert found["seconds of bare passes"] > 0 and found["floor"] > 0 and 0 < found["seconds"] < 10
    assert "\nsolo_mix " in ended.stdout and "aten::" in (tmp_path / "out" / "solo_mix.txt").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [(("check", "nonsense"), "no step nonsense; choose from supervised"), (("run", "mix_8"), "--la-root (make: ROWS=")],
)
def test_what_is_missing_is_said_before_anything_starts(tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    ended = call(words[0], str(tmp_path / "out"), *words[1:])
    assert ended.returncode == 2 and told in ended.stderr and not (tmp_path / "out").exists()


def test_a_row_comes_back_packed(tmp_path: Path, small_la: Path) -> None:
    words = ["data.held_out_test=74", "evaluate_on=[]"]
    ended = call("run", str(tmp_path / "out"), "mix_2", *words, "--la-root", str(small_la), "--rehearse")
    log = (tmp_path / "out" / "mix_2-0.log").read_text()
    assert ended.returncode == 0, ended.stderr + log
    (archive,) = (tmp_path / "out").glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = [Path(name).name for name in packed.getnames()]
    assert {"manifest.json", "metrics.json", "curves.csv"} <= {*names}
    assert not any(name.endswith(".ckpt") for name in names)
    (weights,) = (tmp_path / "out").glob("*.pt.0")
    assert {*torch.load(weights)} >= {"networks.a.output_block.conv.conv.weight"}
