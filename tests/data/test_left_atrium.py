"""The Left Atrium layout: damaged files are refused by name, and the real volumes are read as they were published."""

import hashlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from dualseg import train
from dualseg.data import LeftAtrium
from dualseg.data.left_atrium import case_list
from dualseg.data.reading import VolumeReader
from dualseg.data.volumes import Image
from dualseg.errors import DualsegError

FIRST = case_list("train")[0]


@pytest.fixture
def path(small_la):
    return small_la / FIRST / "mri_norm2.h5"


def test_image_label_and_spacing_are_those_of_the_file(small_la, path):
    source = LeftAtrium(small_la)
    image, label = source.read_image(FIRST), source.read_label(FIRST)
    with h5py.File(path) as h5:
        np.testing.assert_array_equal(image.array[0], h5["image"][()])
        np.testing.assert_array_equal(label, h5["label"][()])
    assert image.array.shape == (1, 36, 34, 32) and image.array.dtype == np.float32 and label.dtype == np.uint8
    np.testing.assert_array_equal(image.affine, np.diag([0.625, 0.625, 0.625, 1]))
    assert VolumeReader(source).read_evaluation(FIRST, 0).spacing == (0.625, 0.625, 0.625)


def test_other_number_types_are_read_as_float32(small_la, path):
    with h5py.File(path, "a") as h5:
        image = h5["image"][()]
        del h5["image"]
        h5["image"] = image.astype(np.float64)
    assert LeftAtrium(small_la).read_image(FIRST).array.dtype == np.float32


def test_a_volume_normalised_after_its_crop_is_the_same_for_a_scan_that_is_darker_as_a_whole(small_la, path):
    with h5py.File(path, "a") as h5:
        original = h5["image"][()].astype(np.float64)
        h5["image"][...] = 0.3 * original - 0.5
    image = LeftAtrium(small_la, normalize_crop=True).read_image(FIRST).array[0]
    np.testing.assert_allclose(image, (original - original.mean()) / original.std(), atol=1e-5)


def test_a_scan_is_prepared_as_the_volumes_are_read(small_la):
    scan = Image(np.random.default_rng(0).normal(5, 2, (1, 140, 130, 90)).astype(np.float32), np.eye(4))
    scan.array[:, 20:120, 20:110] += 50
    plain = LeftAtrium.for_scans({}).prepare_scan(scan).array
    again = LeftAtrium.for_scans({"normalize_crop": True}).prepare_scan(scan).array
    np.testing.assert_allclose(again, (plain - plain.mean()) / plain.std(), atol=1e-4)


def test_normalize_crop_is_a_switch(small_la):
    with pytest.raises(DualsegError, match=r"data\.source\.normalize_crop=yes: .*true or false"):
        LeftAtrium(small_la, normalize_crop="yes")


def test_a_missing_root_is_refused(tmp_path):
    with pytest.raises(DualsegError, match=rf"data\.root={tmp_path}/none: no such folder.*mri_norm2\.h5"):
        LeftAtrium(tmp_path / "none")


def test_a_missing_case_is_refused(small_la, path):
    path.unlink()
    with pytest.raises(DualsegError, match=rf"{path}: missing.* {FIRST} .*data\.root"):
        LeftAtrium(small_la).read_image(FIRST)


@pytest.mark.parametrize("key", ["image", "label"])
def test_a_missing_key_is_refused(small_la, path, key):
    with h5py.File(path, "a") as h5:
        h5.move(key, "renamed")
    with pytest.raises(DualsegError, match=rf"{path}: has no dataset '{key}', only \[.*'renamed'.*\]"):
        VolumeReader(LeftAtrium(small_la)).read_pair(FIRST)


ODD = {
    "complex": lambda h5, key: h5.create_dataset(key, data=np.zeros((4, 4, 4), np.complex64)),
    "bytes": lambda h5, key: h5.create_dataset(key, data=np.full((4, 4, 4), b"abc")),
    "text": lambda h5, key: h5.create_dataset(key, shape=(4, 4, 4), dtype=h5py.string_dtype()),
    "one text": lambda h5, key: h5.create_dataset(key, data="abc"),
    "lists": lambda h5, key: h5.create_dataset(key, shape=(4, 4, 4), dtype=h5py.vlen_dtype("i4")),
    "records": lambda h5, key: h5.create_dataset(key, data=np.zeros((4, 4, 4), [("a", "f4"), ("b", "i2")])),
    "opaque": lambda h5, key: h5.create_dataset(key, data=np.zeros((4, 4, 4), "V5")),
    "times": lambda h5, key: h5.create_dataset(
        key, data=np.zeros((4, 4, 4), "M8[s]").astype(h5py.opaque_dtype("M8[s]"))
    ),
    "references": lambda h5, key: h5.create_dataset(key, shape=(4, 4, 4), dtype=h5py.ref_dtype),
    "nothing": lambda h5, key: h5.create_dataset(key, data=h5py.Empty("f4")),
    "group": lambda h5, key: h5.create_group(key),
    "type": lambda h5, key: h5.__setitem__(key, np.dtype("f4")),
}


@pytest.mark.parametrize("key", ["image", "label"])
@pytest.mark.parametrize("odd", ODD)
def test_what_is_no_array_of_real_numbers_is_refused(small_la, path, key, odd):
    with h5py.File(path, "a") as h5:
        del h5[key]
        ODD[odd](h5, key)
    source = LeftAtrium(small_la)
    for read in (source.read_image if key == "image" else source.read_label, VolumeReader(source).read_pair):
        with pytest.raises(DualsegError, match=rf"{path}: '{key}' .*real numbers"):
            read(FIRST)


def test_a_file_cut_anywhere_is_refused(small_la, path):
    whole = path.read_bytes()
    for length in [0, 1, 100, *range(2000, len(whole), len(whole) // 40)]:
        path.write_bytes(whole[:length])
        with pytest.raises(DualsegError, match=rf"{path}: cannot be read .*Truncated\?"):
            LeftAtrium(small_la).read_image(FIRST)


def test_damaged_files_are_refused_or_read_but_never_end_in_another_error(small_la, path):
    """h5py answers damage with OSError, KeyError, RuntimeError, TypeError, ... depending on where it is."""
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    source, refused = LeftAtrium(small_la), 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(4):
            damaged[rng.integers(3000)] = rng.integers(256)
        path.write_bytes(damaged)
        for read in (source.read_image, source.read_label):
            try:
                read(FIRST)
            except DualsegError as error:
                assert str(path) in str(error)
                refused += 1
    assert refused > 100


def test_messages_about_voxels_name_the_file(small_la, path):
    with h5py.File(path, "a") as h5:
        h5["label"][0, 0, 0] = 9
    with pytest.raises(DualsegError, match=rf"{path}: label .*values 0, 1, 9; .* 0\.\.1"):
        VolumeReader(LeftAtrium(small_la)).read_pair(FIRST)


# --- the real volumes


SHARED = Path(__file__).resolve().parents[3] / "shared" / "la2018"


@pytest.mark.parametrize("name", ["train", "test"])
def test_the_shipped_lists_are_the_official_ones(name):
    official = SHARED / f"{name}.list"
    if not official.is_file():
        pytest.skip(f"{official} is not there to compare with")
    assert case_list(name) == tuple(official.read_text().split())


@pytest.mark.data
def test_real_volumes_are_the_published_ones_byte_for_byte(la_root):
    """SHA256SUMS is of the image's bytes (float32, C order) followed by the label's (uint8)."""
    source = LeftAtrium(la_root)
    sums = SHARED / "SHA256SUMS"
    published = dict(reversed(line.split()) for line in sums.read_text().splitlines()) if sums.is_file() else {}
    for case in case_list("train")[:3]:
        image, label = source.read_image(case).array, source.read_label(case)
        assert image.shape == (1, *label.shape) and min(label.shape) >= 80
        assert image.dtype == np.float32 and label.dtype == np.uint8
        assert set(np.unique(label)) == {0, 1} and 0.005 < label.mean() < 0.2
        if published:
            digest = hashlib.sha256(np.ascontiguousarray(image[0]).tobytes() + np.ascontiguousarray(label).tobytes())
            assert digest.hexdigest() == published[case]


@pytest.mark.data
def test_two_networks_train_on_real_volumes_and_are_scored_on_their_own_grid(la_root, command, tmp_path):
    words = [
        "experiment=la_paper",
        f"data.root={la_root}",
        f"output={tmp_path}",
        "data.held_out_test=77",  # three cases remain, which are there even where only a few are unpacked
        "data.held_out_validation=1",
        "data.labeled=1",
        "data.downsample=4",
        "data.patch_size=[32,32,16]",
        "data.stride=[32,32,16]",
        "evaluate_on=[validation]",
        "base_channels=4",
        "trainer.max_iterations=2",
        "trainer.accelerator=cpu",
        "trainer.threads=1",
        "trainer.progress_bar=false",
    ]
    ended = command(train.main, *words)
    assert ended.code == 0, ended.err
    (run,) = tmp_path.iterdir()
    state = torch.load(run / "checkpoints" / "iteration-000002.ckpt", weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in state.values())
    rows = [row.split(",") for row in (run / "cases.csv").read_text().splitlines()[1:]]
    assert [row[:4] for row in rows] == [
        [case_list("train")[2], "validation", n, "atrium"] for n in ("a", "b", "ensemble")
    ]
    curves = [row.split(",") for row in (run / "logs" / "curves.csv").read_text().splitlines()[1:]]
    losses = {name: float(value) for _, name, value in curves if name.startswith("loss/")}
    assert len(losses) == 17 and np.isfinite(list(losses.values())).all()
