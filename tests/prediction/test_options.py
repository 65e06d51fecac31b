"""What a command line can get wrong: answered before torch is imported, and before anything is written."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from predict_toys import save, scene, write_run

from dualseg.command.grammar import default_text, read_arguments
from dualseg.errors import DualsegError
from dualseg.prediction.options import PredictionOptions

AFFINE = np.diag([2.0, 2, 2, 1])
WORDS = ["run=r", "input=i", "output=o"]


def parse(words: list[str]) -> PredictionOptions:
    return read_arguments(PredictionOptions, words, "dualseg-predict")


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "scan.nii"
    save(path, scene(AFFINE, (32, 30, 28))[0], AFFINE)
    return path


def test_words() -> None:
    options = parse([*WORDS, "more.nii", "run=s", "keep_largest=[liver, spleen]", "memory=1.5GiB", "mirror=true"])
    assert options.run == ("r", "s") and options.input == ("i", "more.nii") and options.output == Path("o")
    assert options.keep_largest == ("liver", "spleen") and options.memory_limit == 3 * 2**29 and options.mirror
    defaults = parse(WORDS)
    assert (defaults.overlap, defaults.memory_limit, defaults.device) == (0.5, 2**33, "auto")
    assert parse([*WORDS, "memory=900mb"]).memory_limit == 900 * 10**6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["input=i", "output=o"], "run=RUN_FOLDER is required"),
        (["run=r", "output=o"], "input=SCAN is required"),
        (["run=r", "input=i"], "output=DIR is required"),
        (["run=", "input=i", "output=o"], "run=: has no value"),
        ([*WORDS, "overlapp=0.5"], "overlapp: no such key.*Did you mean overlap"),
        ([*WORDS, "overlap=1"], "overlap=1: give a number from 0 to below 1"),
        ([*WORDS, "overlap=nan"], "overlap=nan: give a number"),
        ([*WORDS, "overlap=a"], "overlap=a: give a number"),
        ([*WORDS, "mirror=yes"], "mirror=yes: give true or false"),
        ([*WORDS, "memory=8"], "memory=8: give a size such as 8GiB"),
        ([*WORDS, "memory=0GiB"], "memory=0GiB: give a size"),
        ([*WORDS, "device=gpu"], "device=gpu: give auto, cpu"),
        ([*WORDS, "keep_largest=[]"], r"keep_largest=\[\]: give names"),
        ([*WORDS, "output=p"], "output: is given twice"),
    ],
)
def test_wrong_words(words: list[str], message: str) -> None:
    with pytest.raises(DualsegError, match=message):
        parse(words)


def test_help_is_quick_and_no_words_are_an_error(tmp_path) -> None:
    began = time.perf_counter()
    shown = subprocess.run(
        [sys.executable, "-m", "dualseg.predict", "--help"], capture_output=True, text=True, check=True
    )
    assert time.perf_counter() - began < 3
    for option in fields(PredictionOptions):
        default = default_text(option)
        assert f"\n  {option.name}{f'={default}' if default else ''} " in shown.stdout


def test_the_defaults_that_help_and_docs_tell_are_true() -> None:
    told = [f"{option.name}={default_text(option)}" for option in fields(PredictionOptions) if default_text(option)]
    assert len(told) == 8 and parse([*WORDS, *told]) == parse(WORDS)


def fails(predict, tmp_path, *words, **kinds) -> str:
    """With one message, and no output folder."""
    outcome = predict(*words)
    assert not (tmp_path / "out").exists()
    return outcome.complains()


def test_inputs_that_are_not_there(predict, tmp_path) -> None:
    assert "input=/none: no such file" in fails(predict, tmp_path, "input=/none")
    (tmp_path / "empty").mkdir()
    assert "holds neither .nii.gz" in fails(predict, tmp_path, f"input={tmp_path / 'empty'}")
    (tmp_path / "empty" / "scan.mgz").write_bytes(b"\0")
    assert "files not read: 1 (scan.mgz)" in fails(predict, tmp_path, f"input={tmp_path / 'empty'}")
    message = fails(predict, tmp_path, f"input={tmp_path / 'empty/scan.mgz'}")
    assert "scan.mgz: " in message and "not read" in message


def test_no_run_folder_and_one_given_twice(predict, tmp_path, run, scan) -> None:
    assert "no run folder" in fails(predict, tmp_path, f"run={tmp_path}", f"input={scan}")
    assert "given twice" in fails(predict, tmp_path, f"run={run}", f"run={run}/", f"input={scan}")
    shutil.rmtree(run / "checkpoints")
    assert "holds no checkpoint" in fails(predict, tmp_path, f"input={scan}")


def test_a_class_that_the_run_does_not_have(predict, tmp_path, scan) -> None:
    message = fails(predict, tmp_path, f"input={scan}", "keep_largest=liver")
    assert "keep_largest=liver: no such class" in message and "bright, dark, all or none" in message


def test_runs_of_other_classes(predict, tmp_path, run, scan) -> None:
    other = write_run(tmp_path / "other")
    record = {"class_names": ["background", "dark", "bright"], "channels": 1}
    (other / "preprocessing.json").write_text(json.dumps(record))
    message = fails(predict, tmp_path, f"run={run}", f"run={other}", f"input={scan}")
    assert str(other) in message and "class_names" in message


def test_classes_that_differ_from_the_checkpoint(predict, tmp_path, scan) -> None:
    """Real networks of two classes, and a record of three."""
    from hydra.utils import instantiate

    run = write_run(tmp_path / "vnet")
    config = yaml.safe_load((run / "config.yaml").read_text())
    network = {"_target_": "dualseg.networks.VNet", "architecture": "vnet", "base_channels": 2}
    config["networks"] = {"a": network}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    two = instantiate({"_target_": network["_target_"], "base_channels": 2}, in_channels=1, num_classes=2)
    (file,) = (run / "checkpoints").iterdir()
    checkpoint = torch.load(file)
    checkpoint["state_dict"] = {f"networks.a.{key}": value for key, value in two.state_dict().items()}
    torch.save(checkpoint, file)
    message = fails(predict, tmp_path, f"run={run}", f"input={scan}")
    assert str(file) in message and "of another architecture" in message


@pytest.mark.parametrize(
    ("text", "word"),
    [("{", "cannot be read"), ("[]", "is damaged"), ('{"class_names": "x"}', "class_names is damaged")],
)
def test_a_damaged_record(predict, tmp_path, run, scan, text, word) -> None:
    (run / "preprocessing.json").write_text(text)
    message = fails(predict, tmp_path, f"input={scan}")
    assert "preprocessing.json" in message and word in message


def test_a_dataset_class_that_cannot_be_imported(predict, tmp_path, run, scan) -> None:
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("predict_toys.Rising", "my_lost_dataset.Mine"))
    message = fails(predict, tmp_path, f"input={scan}", "trust=my_lost_dataset.Mine")
    assert "my_lost_dataset.Mine cannot be imported" in message and "PYTHONPATH" in message
    (run / "config.yaml").write_text(config.replace("predict_toys.Rising", "predict_toys.scene"))
    assert "is no VolumeSource" in fails(predict, tmp_path, f"input={scan}", "trust=predict_toys.scene")


@pytest.mark.parametrize("where", ["in", "in/below", "link"])
def test_output_among_the_inputs(predict, tmp_path, scan, where) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for given in (scan.parent, scan):
        if where == "in/below" and given == scan:
            continue  # a folder beside a file is no input
        outcome = predict(f"input={given}", f"output={tmp_path / where}")
        outcome.complains(f"output={tmp_path / where}", f"input={given}", "folder of its own")
    assert [path.name for path in scan.parent.iterdir()] == ["scan.nii"]


def test_output_is_taken(predict, tmp_path, scan) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    predict(f"input={scan}", f"output={tmp_path / 'full'}").complains("is not empty")
    predict(f"input={scan}", f"output={tmp_path / 'full' / 'x'}").complains("is a file")
    predict(f"input={scan}", f"output={tmp_path / 'full' / 'x' / 'y'}").complains("cannot be made")


def test_a_device_that_is_not_there(predict, tmp_path, scan) -> None:
    assert "device=cuda:77" in fails(predict, tmp_path, f"input={scan}", "device=cuda:77")
