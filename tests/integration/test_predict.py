"""A trained run predicts what its evaluation sees, with the dataset gone and the run folder moved."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch

import dualseg.predict
import dualseg.train
from dualseg import assembly
from dualseg.data import Phantom
from dualseg.data.reading import VolumeReader
from dualseg.runs.folder import RunFolder


@pytest.mark.parametrize("downsample", [1, 2])
def test_predictions_are_those_that_an_evaluation_scores(command, tiny, phantom: Phantom, tmp_path, downsample) -> None:
    data = shutil.copytree(phantom.root, tmp_path / "data")
    sizes = ["data.patch_size=[32,32,16]", "data.stride=[16,16,8]", f"data.downsample={downsample}"]
    assert command(dualseg.train.main, *tiny(data, tmp_path / "runs"), *sizes, "name=run").code == 0
    run = RunFolder(shutil.move(tmp_path / "runs" / "run", tmp_path / "moved"))
    assert json.loads(run.preprocessing_file.read_text()) == {"class_names": ["background", "atrium"], "channels": 1}
    case = phantom.test_cases[0]
    scan = shutil.copy(data / "images" / f"{case}.nii.gz", tmp_path / "scan.nii.gz")
    shutil.rmtree(data)
    words = [f"run={run.path}", f"input={scan}", f"output={tmp_path / 'out'}", "probabilities=true"]
    assert command(dualseg.predict.main, *words).code == 0
    predicted = np.asarray(nib.load(tmp_path / "out" / "probabilities" / "scan.nii.gz").dataobj)
    volume = VolumeReader(phantom, downsample).read_evaluation(case, 0)
    evaluation = assembly.build_evaluation(run.config(), [run], phantom).eval()
    with torch.no_grad():
        evaluated = evaluation.probabilities(volume.image, volume.label.shape)["ensemble"].movedim(0, -1).numpy()
    np.testing.assert_allclose(predicted, evaluated, atol=2e-4)
    assert evaluated.std() > 1e-3
