"""A trained run predicts what its evaluation sees, with the dataset gone and the run folder moved."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch

import dualseg.predict
import dualseg.train
from dualseg.data import Phantom
from dualseg.data.reading import VolumeReader
from dualseg.runs.folder import RunFolder
from dualseg.training.trained import build_evaluation
from dualseg.training.trusted import Trust


@pytest.mark.parametrize("downsample", [1, 2])
def test_predictions_are_those_that_an_evaluation_scores(command, tiny, phantom: Phantom, tmp_path, downsample) -> None:
    data = shutil.copytree(phantom.root, tmp_path / "data")
    sizes = ["data.patch_size=[32,32,16]", "data.stride=[16,16,8]", f"data.downsample={downsample}"]
    assert command(dualseg.train.main, *tiny(data, tmp_path / "runs"), *sizes, "name=run").code == 0
    run = RunFolder(shutil.move(tmp_path / "runs" / "run", tmp_path / "moved"))
    described = {"class_names": ["background", "atrium"], "channels": 1, "channel_names": []}
    assert json.loads(run.preprocessing_file.read_text()) == described
    case = phantom.test_cases[0]
    scan = shutil.copy(data / "images" / f"{case}.nii.gz", tmp_path / "scan.nii.gz")
    shutil.rmtree(data)
    words = [f"run={run.path}", f"input={scan}", f"output={tmp_path / 'out'}", "probabilities=true"]
    assert command(dualseg.predict.main, *words).code == 0
    predicted = np.asarray(nib.load(tmp_path / "out" / "probabilities" / "scan.nii.gz").dataobj)
    volume = VolumeReader(phantom, downsample).read_evaluation(case, 0)
    evaluation = build_evaluation(run.config(), [run], phantom, Trust()).eval()
    with torch.no_grad():
        evaluated = evaluation.probabilities(volume.image, volume.label.shape)["ensemble"].movedim(0, -1).numpy()
    np.testing.assert_allclose(predicted, evaluated, atol=2e-4)
    assert evaluated.std() > 1e-3


def test_a_run_of_ones_own_folder_in_nnunets_layout(command, tiny, phantom: Phantom, tmp_path) -> None:
    """Spacing, intensities, classes and channels are the run's; imagesTs is predicted under the names of its cases."""
    data = tmp_path / "data"
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (data / folder).mkdir(parents=True)
    for case in phantom.train_cases[:4]:
        shutil.copy(phantom.root / "images" / f"{case}.nii.gz", data / "imagesTr" / f"{case}_0000.nii.gz")
        shutil.copy(phantom.root / "labels" / f"{case}.nii.gz", data / "labelsTr")
    for case in phantom.test_cases:
        shutil.copy(phantom.root / "images" / f"{case}.nii.gz", data / "imagesTs" / f"{case}_0000.nii.gz")
    described = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "chamber": 1}, "file_ending": ".nii.gz"}
    (data / "dataset.json").write_text(json.dumps(described))
    own = [word for word in tiny(data, tmp_path / "runs") if not word.startswith("+")]
    words = ["data=folder", *own, "data.patch_size=[16,16,16]", "data.stride=[16,16,16]", "data.source.spacing=[3,3,3]"]
    outcome = command(dualseg.train.main, *words, "name=run")
    assert outcome.code == 0, outcome.err
    scans = shutil.move(data / "imagesTs", tmp_path / "scans")
    shutil.rmtree(data)
    outcome = command(
        dualseg.predict.main, f"run={tmp_path / 'runs' / 'run'}", f"input={scans}", f"output={tmp_path / 'out'}"
    )
    assert outcome.code == 0, outcome.err
    for case in phantom.test_cases:
        label, scan = nib.load(tmp_path / "out" / "labels" / f"{case}.nii.gz"), nib.load(scans / f"{case}_0000.nii.gz")
        assert label.shape == scan.shape
        np.testing.assert_array_equal(label.affine, scan.affine)
        assert json.loads((tmp_path / "out" / "labels" / f"{case}.json").read_text())["labels"]["chamber"] == 1
