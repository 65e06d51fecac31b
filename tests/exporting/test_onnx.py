"""ONNX files against the networks of the run, through onnxruntime alone."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from export_toys import PHANTOM, write_run

from dualseg.exporting import onnx_files
from dualseg.networks import SegmentationOutput
from dualseg.runs.folder import RunFolder
from dualseg.training.preprocessing import scan_source
from dualseg.training.trained import trained_networks
from dualseg.training.trusted import Trust

FOLDER = {
    "class_names": ["background", "liver", "tumour"],
    "channels": 2,
    "spacing": [1.5, 1.5, 2.0],
    "intensity": [[-125.0, 275.0], "zscore"],
}


@pytest.mark.parametrize(
    ("networks", "source", "record"),
    [
        (("resnet34", "vnet"), "dualseg.data.Phantom", PHANTOM),
        (("segresnet",), "dualseg.data.folder.Folder", FOLDER),
        (("residual_encoder", "plain_unet"), "dualseg.data.folder.Folder", FOLDER),
    ],
)
def test_onnxruntime_gives_the_logits_of_each_network(export, tmp_path: Path, networks, source, record) -> None:
    import onnxruntime

    run = write_run(tmp_path / "run", networks, source, record)
    outcome = export(f"run={run}", "format=onnx", f"output={tmp_path / 'out'}")
    assert outcome.code == 0, outcome.err
    trained, _ = trained_networks(RunFolder(run), scan_source(RunFolder(run), Trust()), Trust())
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == sorted(f"{name}.{end}" for name in trained for end in ("onnx", "json"))
    rng = np.random.default_rng(3)
    for name, network in trained.items():
        session = onnxruntime.InferenceSession(tmp_path / "out" / f"{name}.onnx")
        for batch in (1, 2, 5):
            image = rng.normal(size=(batch, record["channels"], 32, 16, 16)).astype(np.float32)
            with torch.no_grad():
                expected = network.eval()(torch.from_numpy(image)).logits.numpy()
            (found,) = session.run(["logits"], {"image": image})
            assert expected.std() > 1e-2
            np.testing.assert_allclose(found, expected, atol=1e-4)
        inside = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
        beside = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        for told in (inside, beside):
            assert told["class_names"] == record["class_names"] and told["patch_size"] == [32, 16, 16]
            assert told["spacing"] == record.get("spacing") and told["intensity"] == record.get("intensity")
        assert 0 < beside["checked"]["largest_logit_difference"] <= beside["checked"]["tolerance"] == 1e-4


def test_large_logits_are_compared_relatively(tmp_path: Path, monkeypatch) -> None:
    """float32 has seven digits: of logits of 320, differences of 1e-4 are the last one."""

    class Session:
        off = 0.0

        def __init__(self, *arguments: object, **settings: object) -> None: ...

        def run(self, _: object, feed: dict) -> list:
            return [feed["image"] * np.float32(1 + self.off)]

    class Network(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> SegmentationOutput:
            return SegmentationOutput(image, image)

    monkeypatch.setattr(onnx_files.onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnx_files, "example_patches", lambda count, *_: torch.full((count, 1, 2, 2, 2), 320.0))
    for wrong, fine in ((1e-6, True), (1e-3, False), (np.nan, False)):
        monkeypatch.setattr(Session, "off", wrong)
        found = onnx_files._difference(tmp_path / "n.onnx", Network(), {"channels": 1, "patch_size": [2, 2, 2]})
        assert (found <= onnx_files.TOLERANCE) == fine


def test_a_file_that_differs_gets_no_name(export, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(onnx_files, "_difference", lambda *arguments: float("nan"))
    run = write_run(tmp_path / "run", ("vnet",))
    export(f"run={run}", "format=onnx", f"output={tmp_path / 'out'}").complains("n0.onnx", "differs")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("kind", ["onnx", "bundle"])
def test_a_full_disk_is_one_line_and_leaves_nothing(export, tmp_path: Path, kind, files_of_at_most) -> None:
    run = write_run(tmp_path / "run", ("vnet",))
    with files_of_at_most(20_000):
        outcome = export(f"run={run}", f"format={kind}", f"output={tmp_path / 'out'}")
    outcome.complains("cannot be written", "free space")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_without_the_packages_one_line_says_what_to_install(export, tmp_path: Path, monkeypatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    run = write_run(tmp_path / "run", ("vnet",))
    said = export(f"run={run}", "format=onnx", f"output={tmp_path / 'out'}").complains("dualseg[onnx]", "onnxscript")
    assert "onnxruntime" not in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["format=onnx", "output=OUT"], "run=RUN_FOLDER is required"),
        (["run=RUN", "output=OUT"], "format="),
        (["run=RUN", "format=onnx"], "output=DIR is required"),
        (["run=RUN", "format=tensorrt", "output=OUT"], "format=tensorrt"),
        (["run=RUN", "format=onnx", "output=OUT", "outptu=OUT"], "outptu"),
        (["run=RUN", "run=RUN", "format=onnx", "output=OUT"], "twice"),
        (["run=RUN", "format=onnx", "output="], "output="),
        (["RUN", "format=onnx", "output=OUT"], "key=value"),
        (["run=OUT", "format=onnx", "output=OUT"], "no run folder"),
        (["run=RUN", "format=onnx", "output=RUN"], "not empty"),
        (["run=RUN", "format=onnx", "output=RUN/config.yaml"], "is a file"),
    ],
)
def test_words_that_are_wrong(export, tmp_path: Path, words: list[str], said: str) -> None:
    run = write_run(tmp_path / "run", ("vnet",))
    export(*(w.replace("RUN", str(run), 1).replace("OUT", str(tmp_path / "out")) for w in words)).complains(said)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
