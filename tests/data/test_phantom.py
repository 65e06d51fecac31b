import builtins
import io
import itertools
import json
import os
import time

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from dualseg.data import phantom as module
from dualseg.data.phantom import FIELD_OF_VIEW, Phantom, make_phantom
from dualseg.data.volumes import VolumeSource
from dualseg.errors import DualsegError

SMALL = (32, 32, 24)


@pytest.fixture(scope="module")
def full_size():
    """The first 32 cases of seed 0: (image, label, affine)."""
    return [make_phantom(0, index) for index in range(32)]


def files(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_is_a_volume_source_with_its_cases_in_order(tmp_path):
    source = Phantom(tmp_path / "a", train=3, test=2, shape=SMALL)
    assert isinstance(source, VolumeSource)
    assert (source.name, source.class_names, source.channels) == ("phantom", ("background", "atrium"), 1)
    assert source.train_cases == ("phantom_000", "phantom_001", "phantom_002")
    assert source.test_cases == ("phantom_003", "phantom_004")
    for case in source.train_cases + source.test_cases:
        image, label = source.read_image(case), source.read_label(case)
        assert image.array.shape == (1, *SMALL) and image.array.dtype == np.float32
        assert label.shape == SMALL and label.dtype == np.uint8
        assert image.affine.shape == (4, 4)


def test_what_is_read_is_what_was_made(tmp_path):
    source = Phantom(tmp_path, train=2, test=0, shape=SMALL, seed=5)
    image, label, affine = make_phantom(5, 1, SMALL)
    np.testing.assert_array_equal(source.read_image("phantom_001").array[0], image)
    np.testing.assert_array_equal(source.read_label("phantom_001"), label)
    np.testing.assert_allclose(source.read_image("phantom_001").affine, affine, atol=1e-5)
    label_affine = nib.load(tmp_path / "labels/phantom_001.nii.gz").affine
    np.testing.assert_array_equal(label_affine, source.read_image("phantom_001").affine)


def test_two_roots_are_identical_byte_for_byte(tmp_path):
    Phantom(tmp_path / "a", train=3, test=1, shape=SMALL, seed=2)
    Phantom(tmp_path / "b", train=3, test=1, shape=SMALL, seed=2)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert len(files(tmp_path / "a")) == 9


def test_a_case_depends_on_seed_and_index_alone(tmp_path):
    forwards = [make_phantom(7, index, SMALL) for index in range(4)]
    backwards = [make_phantom(7, index, SMALL) for index in reversed(range(4))][::-1]
    for one, other in zip(forwards, backwards, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
    # Neither the counts nor the split move a case.
    Phantom(tmp_path / "a", train=1, test=2, shape=SMALL, seed=7)
    Phantom(tmp_path / "b", train=3, test=0, shape=SMALL, seed=7)
    a, b = files(tmp_path / "a"), files(tmp_path / "b")
    assert {k: v for k, v in a.items() if k != "dataset.json"} == {k: v for k, v in b.items() if k != "dataset.json"}


def test_cases_and_seeds_differ():
    made = [make_phantom(seed, index, SMALL) for seed in (0, 1) for index in (0, 1)]
    for one, other in itertools.combinations(made, 2):
        assert (one[0] != other[0]).mean() > 0.5
        assert (one[1] != other[1]).any()
        assert np.abs(one[2] - other[2]).max() > 0.01


def test_generation_is_pinned(full_size):
    """Whoever changes the generator must raise GENERATOR_VERSION and these figures; they bear last-bit differences."""
    assert module.GENERATOR_VERSION == 1
    pinned = {0: (13464, [1.2852, 1.8359]), 31: (7355, [1.4688, 0.0625])}
    for index, (voxels, intensities) in pinned.items():
        image, label, _ = full_size[index]
        assert abs(int(label.sum()) - voxels) <= 3
        np.testing.assert_allclose(image[16::32, 32, 24], intensities, rtol=0, atol=0.01)


def test_intensities_are_z_scored(full_size):
    for image, _, _ in full_size:
        assert image.dtype == np.float32 and np.isfinite(image).all()
        assert abs(image.mean(dtype=np.float64)) < 1e-3 and abs(image.std(dtype=np.float64) - 1) < 1e-3


def test_labels_are_one_chamber_of_plausible_size(full_size):
    for image, label, _ in full_size:
        assert label.dtype == np.uint8 and set(np.unique(label)) == {0, 1}
        assert 0.015 < label.mean() < 0.15
        components, _ = ndimage.label(label)
        assert np.bincount(components.ravel())[1:].max() > 0.9 * label.sum()
        # Bright, but not the only bright thing: a threshold must not solve the task.
        assert image[label == 1].mean() > 0.5
        threshold = image > (image[label == 1].mean() + image[label == 0].mean()) / 2
        assert 2 * (threshold & (label == 1)).sum() / (threshold.sum() + label.sum()) < 0.7


def test_the_chamber_varies_in_size_place_and_contrast(full_size):
    fraction = np.array([label.mean() for _, label, _ in full_size])
    centre = np.array([ndimage.center_of_mass(label) for _, label, _ in full_size])
    contrast = np.array([image[label == 1].mean() for image, label, _ in full_size])
    assert fraction.max() > 1.5 * fraction.min()
    assert (centre.std(0) > 1).all()
    assert contrast.std() > 0.1


def test_affines_are_orthonormal_times_spacing_and_oblique(full_size):
    affines = np.stack([affine for _, _, affine in full_size])
    spacing = np.linalg.norm(affines[:, :3, :3], axis=1)
    nominal = FIELD_OF_VIEW / (64, 64, 48)
    assert (np.abs(spacing / nominal - 1) <= 0.071).all() and (spacing.std(0) > 0.01).all()
    directions = affines[:, :3, :3] / spacing[:, None, :]
    products = directions.transpose(0, 2, 1) @ directions
    np.testing.assert_allclose(products, np.broadcast_to(np.eye(3), (32, 3, 3)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(directions), -1)  # first axis points left
    assert (np.array([nib.aff2axcodes(a) for a in affines]) == ["L", "A", "S"]).all()
    tilt = np.degrees(np.arccos(directions[:, 2, 2]))
    assert tilt.max() > 10 and np.abs(affines[:, :3, 3]).min(0).max() > 0
    np.testing.assert_array_equal(affines[:, 3], np.tile([0, 0, 0, 1], (32, 1)))


def test_a_coarser_grid_shows_the_same_field_of_view():
    _, _, fine = make_phantom(0, 0, (64, 64, 48))
    _, _, coarse = make_phantom(0, 0, (32, 32, 24))
    spacing = np.linalg.norm(fine[:3, :3], axis=0)
    np.testing.assert_allclose(np.linalg.norm(coarse[:3, :3], axis=0), 2 * spacing, atol=2e-3)


def test_reading_an_image_opens_no_label(tmp_path, monkeypatch):
    source = Phantom(tmp_path, train=2, test=0, shape=SMALL)
    opened = []

    def tracing(function):
        def call(path, *args, **kwargs):
            opened.append(os.fspath(path) if not isinstance(path, int) else path)
            return function(path, *args, **kwargs)

        return call

    for owner, name in ((nib, "load"), (builtins, "open"), (io, "open"), (os, "open")):
        monkeypatch.setattr(owner, name, tracing(getattr(owner, name)))
    source.read_image("phantom_001")
    assert any("images" in str(path) for path in opened)
    assert not any("labels" in str(path) for path in opened)
    opened.clear()
    source.read_label("phantom_001")
    assert any("labels" in str(path) for path in opened)  # the trace sees labels when they are read


def test_images_are_read_without_any_label_on_disk(tmp_path):
    source = Phantom(tmp_path, train=1, test=0, shape=SMALL)
    expected = source.read_image("phantom_000").array
    (tmp_path / "labels/phantom_000.nii.gz").unlink()
    np.testing.assert_array_equal(source.read_image("phantom_000").array, expected)
    with pytest.raises(DualsegError, match=r"labels.phantom_000\.nii\.gz"):
        source.read_label("phantom_000")


def test_second_construction_makes_nothing(tmp_path, monkeypatch):
    Phantom(tmp_path, train=2, test=1, shape=SMALL)
    times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    monkeypatch.setattr(module, "make_phantom", None)
    Phantom(tmp_path, train=2, test=1, shape=SMALL)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == times


def test_missing_files_are_made_again(tmp_path):
    Phantom(tmp_path, train=3, test=1, shape=SMALL)
    before = files(tmp_path)
    for name in ("images/phantom_001.nii.gz", "labels/phantom_003.nii.gz"):
        (tmp_path / name).unlink()
    Phantom(tmp_path, train=3, test=1, shape=SMALL)
    assert files(tmp_path) == before


@pytest.mark.parametrize("after", range(1, 5))
def test_interrupted_generation_leaves_whole_files_and_is_completed(tmp_path, monkeypatch, after):
    Phantom(tmp_path / "whole", train=2, test=0, shape=SMALL)
    whole = files(tmp_path / "whole")
    saved = itertools.count(1)

    def interrupted(image, path, save=nib.save):
        if next(saved) == after:
            path.write_bytes(b"half a volume")
            raise KeyboardInterrupt
        save(image, path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(nib, "save", interrupted)
        Phantom(tmp_path / "cut", train=2, test=0, shape=SMALL)
    left = files(tmp_path / "cut")
    assert len(left) == after  # dataset.json and after - 1 volumes
    assert all(whole[name] == content for name, content in left.items())
    Phantom(tmp_path / "cut", train=2, test=0, shape=SMALL)
    assert files(tmp_path / "cut") == whole


def test_dataset_json_records_the_request(tmp_path):
    Phantom(tmp_path, train=2, test=1, shape=SMALL, seed=3)
    recorded = json.loads((tmp_path / "dataset.json").read_text())
    assert recorded == {"generator": module.GENERATOR_VERSION, "seed": 3, "train": 2, "test": 1, "shape": [32, 32, 24]}


@pytest.mark.parametrize("change", [{"seed": 1}, {"train": 1}, {"test": 0}, {"shape": (32, 32, 32)}])
def test_another_dataset_in_the_root_is_refused(tmp_path, change):
    request = {"train": 2, "test": 1, "shape": SMALL, "seed": 0}
    Phantom(tmp_path, **request)
    before = files(tmp_path)
    with pytest.raises(DualsegError, match=r"dataset\.json: holds .*another data\.root"):
        Phantom(tmp_path, **{**request, **change})
    assert files(tmp_path) == before


def test_an_older_generators_volumes_are_refused(tmp_path, monkeypatch):
    Phantom(tmp_path, train=1, test=0, shape=SMALL)
    monkeypatch.setattr(module, "GENERATOR_VERSION", module.GENERATOR_VERSION + 1)
    with pytest.raises(DualsegError, match="generator"):
        Phantom(tmp_path, train=1, test=0, shape=SMALL)


def test_foreign_folders_are_left_alone(tmp_path):
    for text in ("{not json", "[" * 100_000):
        (tmp_path / "dataset.json").write_text(text)
        with pytest.raises(DualsegError, match=r"dataset\.json.*cannot be read"):
            Phantom(tmp_path, train=1, test=0, shape=SMALL)
    (tmp_path / "dataset.json").unlink()
    (tmp_path / "images").mkdir()
    with pytest.raises(DualsegError, match=r"no dataset\.json"):
        Phantom(tmp_path, train=1, test=0, shape=SMALL)
    assert [p.name for p in tmp_path.rglob("*")] == ["images"]


def test_label_values_out_of_range_are_refused(tmp_path):
    source = Phantom(tmp_path, train=1, test=0, shape=SMALL)
    path = tmp_path / "labels/phantom_000.nii.gz"
    nib.save(nib.Nifti1Image(np.full(SMALL, 2, np.uint8), np.eye(4)), path)
    with pytest.raises(DualsegError, match=r"phantom_000\.nii\.gz.*0 or 1"):
        source.read_label("phantom_000")


@pytest.mark.parametrize(
    "wrong",
    [
        {"train": 0},
        {"test": -1},
        {"seed": -1},
        {"shape": (8, 32, 32)},
        {"shape": (32, 32)},
        {"train": 10**9},
        {"test": 10**9},
        {"shape": (32, 32, 10**6)},
    ],
)
def test_arguments_out_of_range(tmp_path, wrong):
    with pytest.raises(DualsegError, match="phantom: "):
        Phantom(tmp_path / "root", **wrong)
    assert not (tmp_path / "root").exists()


def test_root_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DualsegError, match="cannot be written"):
        Phantom(tmp_path / "file" / "root", train=1, test=0, shape=SMALL)


def test_progress_is_shown_only_when_it_takes_a_while(tmp_path, monkeypatch, capfd):
    Phantom(tmp_path / "quick", train=1, test=0, shape=SMALL)
    assert "volume" not in capfd.readouterr().err

    def slow(*args, make=make_phantom):
        time.sleep(0.45)
        return make(*args)

    monkeypatch.setattr(module, "make_phantom", slow)
    Phantom(tmp_path / "file", train=4, test=0, shape=SMALL)
    assert "volume" not in capfd.readouterr().err, "a bar belongs on a terminal"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    Phantom(tmp_path / "slow", train=4, test=0, shape=SMALL)
    assert "phantom volumes" in capfd.readouterr().err
