"""A parcellation of 300 classes keeps its labels from file to patch, score, slice, label map and bundle."""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import dualseg.check
import dualseg.evaluate
import dualseg.export
import dualseg.predict
import dualseg.train
from dualseg.data import Folder, flips_and_rotations
from dualseg.data.datamodule import SemiSupervisedDataModule
from dualseg.data.reading import VolumeReader
from dualseg.data.volumes import label_dtype
from dualseg.errors import DualsegError

CLASSES = 300
LOW, HIGH = 40, 290  # HIGH is 34 in 8 bits


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three labeled cases, and a test case, that show the classes 0, 40 and 290."""
    root = tmp_path_factory.mktemp("parcels")
    for index in range(4):
        label = np.zeros((32, 32, 24), np.int16)
        label[8:24, 8:24, 2:12], label[8:24, 8:24, 12:22] = LOW, HIGH
        image = label + np.random.default_rng(index).normal(size=label.shape)
        end, name = ("Tr", f"case{index}") if index < 3 else ("Ts", "test")
        for folder, file, array in (("images", f"{name}_0000", image.astype(np.float32)), ("labels", name, label)):
            (root / f"{folder}{end}").mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.eye(4)), root / f"{folder}{end}" / f"{file}.nii.gz")
    labels = {"background": 0, **{f"roi{k}": k for k in range(1, CLASSES)}}
    (root / "dataset.json").write_text(json.dumps({"channel_names": {"0": "MRI"}, "labels": labels}))
    return root


@pytest.mark.parametrize("spacing", [None, [2, 2, 2]])
@pytest.mark.parametrize("downsample", [1, 2])
def test_from_file_to_batch(root, spacing, downsample):
    source = Folder(root, spacing=spacing)
    reader = VolumeReader(source, downsample)
    assert set(np.unique(source.read_label("case0"))) == {0, LOW, HIGH}
    assert set(reader.read_pair("case0")[1].unique().tolist()) == {0, LOW, HIGH}
    assert set(reader.read_evaluation("test", 0).label.unique().tolist()) == {0, LOW, HIGH}
    augmentation = flips_and_rotations(1.0)
    data = SemiSupervisedDataModule(source, (32, 32, 32), None, unlabeled_per_batch=0, augmentation=augmentation)
    data.trainer = type("Trainer", (), {"max_steps": 1, "global_step": 0, "global_rank": 0, "world_size": 1})()
    data.trainer.strategy = type("Strategy", (), {"root_device": torch.device("cpu")})()
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert batch.label.dtype == torch.int64 and set(batch.label.unique().tolist()) == {0, LOW, HIGH}


def test_from_training_to_label_map_scores_and_bundle(root, command, tmp_path):
    """One network, made to say 290 everywhere."""
    words = ["method=supervised", "networks=vnet", "base_channels=2", "trainer.max_iterations=1", "name=run"]
    words += ["trainer.accelerator=cpu", "trainer.threads=1", "trainer.progress_bar=false", "evaluate_on=[]"]
    words += ["data.patch_size=[16,16,16]", "data.stride=[16,16,16]", "batch.unlabeled=0"]
    outcome = command(dualseg.train.main, "data=folder", f"data.root={root}", *words, f"output={tmp_path}")
    assert outcome.code == 0, outcome.err
    run = tmp_path / "run"
    (checkpoint,) = (run / "checkpoints").iterdir()
    content = torch.load(checkpoint, weights_only=True)
    bias = [name for name, value in content["state_dict"].items() if value.shape == (CLASSES,)][-1]
    content["state_dict"][bias][HIGH] = 1000
    torch.save(content, checkpoint)

    outcome = command(dualseg.evaluate.main, f"run={run}")
    assert outcome.code == 0, outcome.err
    evaluation = run / "evaluations" / "001-test"
    with (evaluation / "cases.csv").open(newline="") as file:
        scores = {row["class"]: float(row["dice"]) for row in csv.DictReader(file)}
    voxels = 32 * 32 * 24
    assert scores[f"roi{HIGH}"] == pytest.approx(2 * 2560 / (2560 + voxels), abs=1e-6)
    assert scores["roi34"] == 1 and scores[f"roi{LOW}"] == 0
    assert f"roi{LOW} found in 0 of 1 cases" in outcome.out and "no case contains roi34;" in outcome.out
    slices = np.load(evaluation / "slices" / "test.npz")
    assert set(np.unique(slices["axial_prediction"])) == {HIGH} and HIGH in slices["sagittal_reference"]

    scan = f"input={root / 'imagesTs'}"
    assert command(dualseg.predict.main, f"run={run}", scan, f"output={tmp_path / 'out'}", "keep_largest=all").code == 0
    (path,) = (tmp_path / "out" / "labels").glob("*.nii.gz")
    label = nib.load(path)
    assert label.get_data_dtype() == np.int16 and set(np.unique(label.dataobj)) == {HIGH}
    command(dualseg.predict.main, f"run={run}", scan, f"output={tmp_path / 'page'}", "report=true").complains(
        "report=true", "256", str(CLASSES)
    )
    assert not (tmp_path / "page").exists()
    outcome = command(dualseg.export.main, f"run={run}", "format=bundle", f"output={tmp_path / 'bundle'}")
    assert outcome.code == 0, outcome.err
    assert "$numpy.int16" in (tmp_path / "bundle" / "configs" / "inference.json").read_text()


def test_a_source_that_reads_labels_in_too_small_a_type_is_told(root, monkeypatch):
    """A cast in the source itself would wrap round before anybody can see it."""
    source = Folder(root, spacing=None)
    monkeypatch.setattr(Folder, "read_label", lambda self, case: self._own_label(case)[0].astype(np.uint8))
    with pytest.raises(DualsegError, match=r"case0\.nii\.gz.*uint8.*300 classes"):
        VolumeReader(source).read_pair("case0")


def test_the_type_of_a_label_map():
    assert [label_dtype(k) for k in (2, 256, 257, 1 << 15)] == [np.uint8, np.uint8, np.int16, np.int16]
    with pytest.raises(DualsegError, match="32769 classes"):
        label_dtype((1 << 15) + 1)
