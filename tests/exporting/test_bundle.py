"""A bundle run by MONAI's own command, without dualseg, gives the labels of dualseg-predict."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from export_toys import PHANTOM, write_run
from monai.bundle import ConfigParser
from packaging.requirements import Requirement
from predict_toys import random_affine, save
from scipy import ndimage

import dualseg.predict

HIDING = """
import importlib.machinery as machinery
HIDDEN = {hidden!r}
found = machinery.PathFinder.find_spec
machinery.PathFinder.find_spec = lambda name, *rest: None if name.partition(".")[0] in HIDDEN else found(name, *rest)
"""
CLIP = {"clip": [-100.0, 250.0], "mean": 40.0, "deviation": 60.0}
FOLDER = {"class_names": ["background", "liver", "tumour"], "spacing": [1.9, 2.3, 2.0]}


def required_by(requirement: str) -> set[str]:
    """The distributions that pip would install for it, of those that are here, by their normal names."""
    found: set[tuple[str, str]] = set()  # of a distribution and one of its extras, or none
    waiting = [Requirement(requirement)]
    while waiting:
        wanted = waiting.pop()
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        for extra in {"", *wanted.extras} - {extra for known, extra in found if known == name}:
            found.add((name, extra))
            try:
                needs = [Requirement(line) for line in metadata.requires(name) or []]
            except metadata.PackageNotFoundError:  # of another platform, perhaps
                continue
            waiting += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
    return {name for name, _ in found}


def unknown_to(requirement: str) -> set[str]:
    """The modules here that a machine on which only `requirement` was installed lacks."""
    there = required_by(requirement)
    owners = metadata.packages_distributions()
    normal = {module: {re.sub(r"[-_.]+", "-", o).lower() for o in of} for module, of in owners.items()}
    return {"dualseg"} | {module for module, of in normal.items() if not of & there}


def run_here(bundle: Path, scans: Path, out: Path) -> None:
    """As MONAI's command does, without the seconds that a process of its own takes, and with all packages."""
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser.update({"bundle_root": str(bundle), "dataset_dir": str(scans), "output_dir": str(out)})
    with torch.no_grad():
        parser.get_parsed_content("run")


def run_elsewhere(bundle: Path, scans: Path, out: Path) -> None:
    """MONAI's command on a machine with monai[fire,nibabel], as far as Python can tell."""
    unknown = unknown_to("monai[fire,nibabel]")
    assert {"scipy", "h5py"} <= unknown and not unknown & {"monai", "torch", "fire", "nibabel"}
    hiding = bundle.parent / "hiding"
    hiding.mkdir()
    (hiding / "sitecustomize.py").write_text(HIDING.format(hidden=unknown))
    environment = {**os.environ, "PYTHONPATH": str(hiding), "OMP_NUM_THREADS": "1"}
    check = [sys.executable, "-c", "import dualseg"]
    hidden = subprocess.run(check, cwd=bundle.parent, env=environment, capture_output=True, text=True, check=False)
    assert "No module named 'dualseg'" in hidden.stderr
    words = ["run", "--bundle_root", bundle, "--config_file", bundle / "configs" / "inference.json"]
    words += ["--dataset_dir", scans, "--output_dir", out]
    command = [sys.executable, "-m", "monai.bundle", *map(str, words)]
    result = subprocess.run(
        command, cwd=bundle.parent, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]


def noise(rng: np.random.Generator, shape: tuple[int, ...], channels: int) -> np.ndarray:
    """(C, *shape) float32: structure of several sizes with an offset and a scale, and a border of zeros."""
    array = np.stack([ndimage.gaussian_filter(rng.normal(size=shape), 1.5) * 400 + 90 for _ in range(channels)])
    array[:, :2] = 0
    return array.astype(np.float32)


def compare(
    export: Callable,
    command: Callable,
    run: Path,
    scans: Path,
    tmp_path: Path,
    run_bundle: Callable[[Path, Path, Path], None],
    ending: str = "",
) -> None:
    """The labels of both ways are the same on 99.99 % of voxels, of several classes, on the scan's grid."""
    bundle = tmp_path / "bundle"
    outcome = export(f"run={run}", "format=bundle", f"output={bundle}")
    assert outcome.code == 0, outcome.err
    outcome = command(dualseg.predict.main, f"run={run}", f"input={scans}", f"output={tmp_path / 'predicted'}")
    assert outcome.code == 0, outcome.err
    run_bundle(bundle, scans, tmp_path / "labels")
    expected = sorted((tmp_path / "predicted" / "labels").glob("*.nii.gz"))
    assert expected and len(expected) == len([*(tmp_path / "labels").iterdir()])
    differ = total = 0
    for path in expected:
        own = nib.load(path)
        found = nib.load(tmp_path / "labels" / path.name.replace(".nii.gz", f"{ending}_label.nii.gz"))
        assert found.shape == own.shape and found.get_data_dtype() == np.uint8
        np.testing.assert_allclose(found.affine, own.affine, atol=1e-4)
        a, b = np.asarray(own.dataobj), np.asarray(found.dataobj)
        assert len(np.unique(a)) > 1 and np.bincount(a.ravel()).max() < 0.99 * a.size
        differ, total = differ + int((a != b).sum()), total + a.size
    print(f"{differ} of {total} voxels differ")
    assert differ <= 1e-4 * total


def write_scans(folder: Path, channels: int, seed: int = 0, scale: float = 1) -> Path:
    """Two scans with oblique, flipped, anisotropic affines, as 4-D files where there are several channels.

    Args:
        scale: of the intensities; what no source scales must be small, or the toy networks are so sure of opposite
            classes that their mean is an exact tie.
    """
    rng = np.random.default_rng(seed)
    for name in ("first", "second"):
        affine, shape = random_affine(rng)
        array = noise(rng, shape, channels) * np.float32(scale)
        save(folder / f"{name}.nii.gz", array[0] if channels == 1 else np.moveaxis(array, 0, -1), affine)
    return folder


def write_brains(folder: Path, channels: int) -> Path:
    """Two scans of a ball of positive values in zeros, in an oblique 5 mm and a flipped anisotropic grid."""
    rng = np.random.default_rng(5)
    for name, spacing in (("thick", (0.9, 1.0, 5.0)), ("turned", (1.3, 0.8, 1.1))):
        affine, _ = random_affine(rng)
        affine[:3, :3] *= spacing / nib.affines.voxel_sizes(affine)
        shape = tuple(int(np.ceil(60 / edge)) for edge in spacing)
        places = [(np.arange(n) - n / 2 + 2) * edge for n, edge in zip(shape, spacing, strict=True)]
        x, y, z = np.meshgrid(*places, indexing="ij")
        brain = (x / 25) ** 2 + (y / 22) ** 2 + (z / 20) ** 2 < 1
        array = np.where(brain, np.round(abs(noise(rng, shape, channels))) + 1, 0).astype(np.int16)
        save(folder / f"{name}.nii.gz", array[0] if channels == 1 else np.moveaxis(array, 0, -1), affine)
    return folder


@pytest.mark.parametrize(("downsample", "run_bundle"), [(1, run_here), (1.7, run_here)])
def test_scans_that_need_no_preparation(export, command, tmp_path: Path, downsample: float, run_bundle) -> None:
    run = write_run(tmp_path / "run", ("resnet34", "vnet"), downsample=downsample)
    compare(export, command, run, write_scans(tmp_path / "scans", 1, scale=0.01), tmp_path, run_bundle)


@pytest.mark.parametrize(("channels", "downsample", "run_bundle"), [(2, 1, run_here), (1, 2, run_elsewhere)])
def test_scans_prepared_as_data_brats_does(export, command, tmp_path: Path, channels, downsample, run_bundle) -> None:
    record = {"class_names": ["background", "tumour"], "channels": channels, "crop": "foreground"}
    run = write_run(tmp_path / "run", ("resnet34", "vnet"), "dualseg.data.BraTS2019", record, downsample=downsample)
    compare(export, command, run, write_brains(tmp_path / "scans", channels), tmp_path, run_bundle)


@pytest.mark.parametrize(
    ("networks", "intensity", "changes", "run_bundle"),
    [
        (("segresnet", "vnet"), [[-125.0, 275.0]], {}, run_here),
        (("vnet",), [CLIP, "zscore_nonzero", None], {"downsample": 1.5}, run_elsewhere),
        (("vnet",), ["zscore", "zscore"], {"spacing": None}, run_here),
    ],
)
def test_scans_prepared_as_data_folder_does(
    export, command, tmp_path: Path, networks, intensity, changes: dict[str, Any], run_bundle
) -> None:
    record = {**FOLDER, "channels": len(intensity), "intensity": intensity}
    record |= {key: value for key, value in changes.items() if key in record}
    data = {key: value for key, value in changes.items() if key not in record}
    run = write_run(tmp_path / "run", networks, "dualseg.data.folder.Folder", record, **data)
    compare(export, command, run, write_scans(tmp_path / "scans", len(intensity), 1), tmp_path, run_bundle)


def test_channels_in_files_of_their_own(export, command, tmp_path: Path) -> None:
    record = {**FOLDER, "channels": 2, "intensity": ["zscore", [0.0, 200.0]]}
    run = write_run(tmp_path / "run", ("vnet",), "dualseg.data.folder.Folder", record)
    rng = np.random.default_rng(2)
    affine, shape = random_affine(rng)
    for channel, array in enumerate(noise(rng, shape, 2)):
        save(tmp_path / "scans" / f"case_{channel:04d}.nii.gz", array, affine)
    compare(export, command, run, tmp_path / "scans", tmp_path, run_here, "_0000")


def parsed(bundle: Path, scans: Path, entry: str) -> Any:
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser.update({"bundle_root": str(bundle), "dataset_dir": str(scans)})
    return parser.get_parsed_content(entry)


def test_which_files_are_channels_their_headers_say(export, tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run", ("vnet",), "dualseg.data.folder.Folder", {**FOLDER, "channels": 2, "intensity": [None] * 2}
    )
    assert export(f"run={run}", f"output={tmp_path / 'bundle'}", "format=bundle").code == 0
    scans = tmp_path / "scans[1]"
    for name in ("a", "p_0000", "p_0007"):
        save(scans / f"{name}.nii.gz", np.zeros((4, 4, 4, 2), np.int16), np.eye(4))
    for name in ("x_0000.nii", "x_0001.nii", "y_0001.nii"):  # of the last one, a channel is missing
        save(scans / name, np.zeros((4, 4, 4), np.int16), np.eye(4))
    found = [scan["image"] for scan in parsed(tmp_path / "bundle", scans, "scans")]
    whole = [str(scans / f"{name}.nii.gz") for name in ("a", "p_0000", "p_0007")]
    assert found == [*whole, *([str(scans / f"{case}_{c:04d}.nii") for c in range(2)] for case in "xy")]


@pytest.mark.parametrize("folder", ["empty", "nosuch"])
def test_a_folder_without_scans_is_no_success(export, tmp_path: Path, folder: str) -> None:
    run = write_run(tmp_path / "run", ("vnet",))
    assert export(f"run={run}", f"output={tmp_path / 'bundle'}", "format=bundle").code == 0
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "scan.mha").touch()
    with pytest.raises(SystemExit, match=f"dataset_dir={tmp_path / folder}: no folder with .nii or .nii.gz"):
        parsed(tmp_path / "bundle", tmp_path / folder, "run")


@pytest.mark.parametrize("kind", ["LeftAtrium", "PancreasCT"])
def test_what_monai_cannot_prepare_is_refused(export, tmp_path: Path, kind: str) -> None:
    record = {**PHANTOM, "crop": "ground_truth"}
    run = write_run(tmp_path / "run", ("vnet",), f"dualseg.data.{kind}", record)
    said = export(f"run={run}", "format=bundle", f"output={tmp_path / 'out'}").complains(kind, "data=folder")
    assert "format=onnx" in said
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("name", ["$__import__('os').getcwd()", "@networks", "%metadata.json"])
def test_a_class_that_monai_would_evaluate_is_refused(export, tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "run", ("vnet",), record={**PHANTOM, "class_names": ["background", name]})
    export(f"run={run}", "format=bundle", f"output={tmp_path / 'out'}").complains(f"class {name}", "expression")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_metadata_names_classes_and_channels(export, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ("vnet",))
    assert export(f"run={run}", "format=bundle", f"output={tmp_path / 'out'}").code == 0
    told = json.loads((tmp_path / "out" / "configs" / "metadata.json").read_text())
    assert told["network_data_format"]["inputs"]["image"]["num_channels"] == 1
    assert told["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "atrium"}
    assert (tmp_path / "out" / "LICENSE").is_file() and (tmp_path / "out" / "docs" / "README.md").is_file()
