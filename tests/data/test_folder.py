"""data=folder: geometry in millimetres by nibabel, labels that are never opened, metrics on the volumes' own voxels."""

import json
import shutil

import h5py
import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from folder_layouts import NEW, odd_affine, save, volume, write_decathlon, write_nnunet
from nibabel.affines import apply_affine, voxel_sizes
from scipy.ndimage import map_coordinates

from dualseg import evaluate, train
from dualseg.data import Folder, Image, SemiSupervisedDataModule
from dualseg.data.checking import check_dataset
from dualseg.data.left_atrium import case_list
from dualseg.data.reading import VolumeReader
from dualseg.data.splits import split_cases
from dualseg.errors import DualsegError
from dualseg.inference import SlidingWindow
from dualseg.methods import NetworkEvaluation
from dualseg.metrics.functional import label_scores
from dualseg.networks.blocks import SegmentationOutput

ONE = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "dot": 1}}


def loaded(path):
    image = nib.load(path)
    return np.asarray(image.dataobj, dtype=np.float64), image.affine


# --- geometry


@pytest.mark.parametrize("seed", range(6))
def test_a_landmark_stays_at_its_millimetre_position(tmp_path, seed):
    """Raw file -> what the networks see, in the image and, to the nearest voxel, in the label."""
    affine = odd_affine(seed, (0.8, 1.1, 3.0))
    shape = (40, 34, 20)
    middle = apply_affine(affine, [14.3, 20.6, 8.4])
    places = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    distance = np.linalg.norm(places - middle, axis=-1)
    save(tmp_path / "imagesTr" / "a_0000.nii.gz", (1000 * np.exp(-(distance**2) / 32)).astype(np.float32), affine)
    save(tmp_path / "labelsTr" / "a.nii.gz", (distance < 6).astype(np.uint8), affine)
    (tmp_path / "dataset.json").write_text(json.dumps(ONE))
    source = Folder(tmp_path, spacing=[1.5, 1.2, 2.0], intensity=None)
    image, label = source.read_image("a"), source.read_label("a")
    assert "".join(nib.aff2axcodes(image.affine)) == "RAS" and label.shape == image.array.shape[1:]
    np.testing.assert_allclose(voxel_sizes(image.affine), [1.5, 1.2, 2.0], rtol=0.03)

    indices = np.moveaxis(np.indices(label.shape), 0, -1).reshape(-1, 3)
    centre = apply_affine(image.affine, np.average(indices, axis=0, weights=image.array.ravel()))
    np.testing.assert_allclose(centre, middle, atol=0.1)
    assert label.dtype == np.uint8 and label.any()
    raw, _ = loaded(tmp_path / "labelsTr" / "a.nii.gz")
    nearest = apply_affine(np.linalg.inv(affine) @ image.affine, np.moveaxis(np.indices(label.shape), 0, -1))
    clear = np.abs(nearest - np.round(nearest)).max(axis=-1) < 0.49  # not half way between two voxels
    clear &= (np.round(nearest) >= 0).all(-1) & (np.round(nearest) < shape).all(-1)
    np.testing.assert_array_equal(label[clear], raw[tuple(np.round(nearest[clear]).astype(int).T)])
    assert clear.mean() > 0.5, "enough is compared"


def test_the_target_is_the_median_of_the_training_images_from_their_headers(tmp_path, monkeypatch):
    root = write_nnunet(tmp_path, 4, 1, test=2)
    spacings = []
    for number in range(5):
        ras = nib.as_closest_canonical(nib.load(root / "imagesTr" / f"c{number:02d}_0000.nii.gz"))
        spacings.append(voxel_sizes(ras.affine))
    assert len({tuple(np.round(s, 3)) for s in spacings}) > 2
    monkeypatch.setattr(nib.arrayproxy.ArrayProxy, "__array__", lambda *a, **k: pytest.fail("voxels were read"))
    source = Folder(root)
    np.testing.assert_allclose(source.spacing, np.median(spacings, axis=0), rtol=1e-5)
    for path in (root / "imagesTr").iterdir():
        path.write_bytes(b"")
    assert Folder(root).spacing == source.spacing, "headers are read once"
    (root / "dualseg-split.json").unlink()
    (write_nnunet(tmp_path / "again", 4, 1) / "imagesTr" / "c01_0000.nii.gz").write_bytes(b"")
    damaged = Folder(tmp_path / "again")  # to be checked
    with pytest.raises(DualsegError, match="c01_0000"):
        damaged.check_cases()


@pytest.mark.parametrize("write", [write_nnunet, write_decathlon])
def test_both_layouts_read_the_same_volumes(tmp_path, write):
    source = Folder(write(tmp_path), spacing=None, intensity=None)
    for number in (0, 3):
        array, label, affine = volume(number)
        for channel in range(2):
            ras = nib.as_closest_canonical(nib.Nifti1Image(array[channel], affine))
            image = source.read_image(f"c{number:02d}")
            np.testing.assert_array_equal(image.array[channel], np.asarray(ras.dataobj))
            np.testing.assert_allclose(image.affine, ras.affine, atol=1e-4)
        ras = nib.as_closest_canonical(nib.Nifti1Image(label, affine))
        np.testing.assert_array_equal(source.read_label(f"c{number:02d}"), np.asarray(ras.dataobj))
        assert source.read_reference(f"c{number:02d}") is None


def test_intensities_of_each_channel(tmp_path):
    root = write_nnunet(tmp_path)
    raw = Folder(root, spacing=None, intensity=None).read_image("c00").array
    both = Folder(root, spacing=None).read_image("c00").array
    for own, channel in zip(both, raw, strict=True):
        np.testing.assert_allclose(own, (channel - channel.mean()) / channel.std(), atol=1e-4)
    first, second = Folder(root, spacing=None, intensity=[[80, 120], None]).read_image("c00").array
    np.testing.assert_allclose(first, np.clip((raw[0] - 80) / 40, 0, 1), atol=1e-6)
    np.testing.assert_array_equal(second, raw[1])
    nonzero = Folder(root, spacing=None, intensity="zscore_nonzero").read_image("c00").array
    body = raw[0] != 0
    np.testing.assert_allclose(nonzero[0][body], ((raw[0] - raw[0][body].mean()) / raw[0][body].std())[body], atol=1e-4)
    assert Folder(root, intensity=[-100, 200]).intensity == ([-100.0, 200.0],) * 2
    clip = {"clip": [80, 120], "mean": 90, "deviation": 5}
    clipped = Folder(root, spacing=None, intensity=clip).read_image("c00").array
    np.testing.assert_allclose(clipped, (np.clip(raw, 80, 120) - 90) / 5, rtol=1e-6)


def test_units_of_the_files_do_not_matter(tmp_path):
    """One image in micrometres, one in metres, their labels in mm: mm everywhere, and nothing new for the check."""

    def found(source):
        split = split_cases(source.train_cases, (), unlabeled_cases=["c05"])
        return sorted((finding.kind, finding.case) for finding in check_dataset(source, split).found)

    root = write_nnunet(tmp_path, 5, 1)
    before = found(Folder(root))
    expected = [Folder(root).read_image("c00"), Folder(root).read_image("c01")]
    label = Folder(root).read_label("c00")
    for case, unit, per_mm in (("c00", "micron", 1000), ("c01", "meter", 0.001)):
        for path in (root / "imagesTr").glob(f"{case}_*"):
            array, affine = loaded(path)
            image = nib.Nifti1Image(array.astype(np.int16), np.diag([per_mm, per_mm, per_mm, 1]) @ affine)
            image.header.set_xyzt_units(unit)
            nib.save(image, path)
    (root / "dualseg-split.json").unlink()
    source = Folder(root)
    for case, image in zip(("c00", "c01"), expected, strict=True):
        np.testing.assert_allclose(source.read_image(case).affine, image.affine, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(source.read_image(case).array, image.array, atol=1e-3)
    np.testing.assert_array_equal(source.read_label("c00"), label)
    assert found(source) == before


@pytest.mark.parametrize("seed", range(20))
def test_landmarks_of_random_affines(tmp_path, seed):
    """Rotations, spacings and flips at random: a bright ball and its label lie where they lay, to half a voxel."""
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    spacing, target = rng.uniform(0.7, 3, 3), rng.uniform(1, 2.5, 3)
    affine[:3, :3] = rotation @ np.diag(spacing * rng.choice([-1, 1], 3))
    affine[:3, 3] = rng.uniform(-200, 200, 3)
    shape = tuple(np.ceil(50 / spacing).astype(int))
    landmark = apply_affine(affine, (np.array(shape) - 1) * rng.uniform(0.4, 0.6, 3))
    distance = np.linalg.norm(apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1)) - landmark, axis=-1)
    save(tmp_path / "imagesTr" / "a_0000.nii.gz", (1000 * np.clip(1 - distance / 12, 0, 1)).astype(np.float32), affine)
    save(tmp_path / "labelsTr" / "a.nii.gz", (distance < 9).astype(np.uint8), affine)
    (tmp_path / "dataset.json").write_text(json.dumps(ONE))
    source = Folder(tmp_path, spacing=target.tolist(), intensity=None)
    image, label = source.read_image("a"), source.read_label("a")
    indices = np.moveaxis(np.indices(label.shape), 0, -1).reshape(-1, 3)
    for weights in (image.array, label):
        centre = np.average(indices, axis=0, weights=weights.ravel())
        off = np.linalg.solve(image.affine[:3, :3], apply_affine(image.affine, centre) - landmark)
        assert np.abs(off).max() < 0.5, "voxels of the target grid"


# --- splits


def test_roles(tmp_path):
    root = write_nnunet(tmp_path, 7, 2, test=1)
    source = Folder(root)
    assert len(source.train_cases) == 7 and len(source.unlabeled_cases) == 2 and source.test_cases == ("c09",)
    split = SemiSupervisedDataModule(source, (16, 16, 16), labeled=3).split
    assert split.labeled == source.train_cases[:3]
    assert split.unlabeled == (*source.train_cases[3:], *source.unlabeled_cases)
    fold = Folder(root, fold=1, folds=3)
    assert {*fold.train_cases, *fold.validation_cases} == {*source.train_cases}
    assert not {*fold.train_cases} & {*fold.validation_cases}
    other = tmp_path / "other.json"
    shutil.copy(root / "dualseg-split.json", other)
    content = json.loads(other.read_text())
    other.write_text(json.dumps({**content, "labeled": sorted(content["labeled"])}))
    assert Folder(root, splits=other).train_cases == tuple(f"c{n:02d}" for n in range(7))


def test_cases_without_labels_are_counted_by_ratios_and_never_held_out():
    split = split_cases("abcdefgh", (), labeled_ratio=0.2, held_out_test=1, unlabeled_cases=[*"uvw"])
    assert split.labeled == ("a", "b") and split.unlabeled == (*"cdefg", *"uvw") and split.test == ("h",)
    with pytest.raises(DualsegError, match="u: listed more than once"):
        split_cases("ab", "u", unlabeled_cases="u")
    with pytest.raises(DualsegError, match=r"3 labeled .* 2 .*have labels"):
        split_cases("ab", (), labeled=3, unlabeled_cases="u")


# --- scans from elsewhere


def test_a_scan_is_prepared_as_training_images_are_without_the_dataset(tmp_path):
    root = write_nnunet(tmp_path / "set")
    source = Folder(root, intensity=[[0, 200], "zscore"])
    expected = source.read_image("c01")
    record = json.loads(json.dumps(source.scan_record()))
    shutil.rmtree(root)
    again = Folder.for_scans(record)
    array, _, affine = volume(1)
    prepared = again.prepare_scan(Image(array.astype(np.float32), affine))
    np.testing.assert_allclose(prepared.array, expected.array, atol=1e-5)
    np.testing.assert_allclose(prepared.affine, expected.affine, atol=1e-4)
    assert again.class_names == ("background", "liver", "tumour") and again.channels == 2
    with pytest.raises(DualsegError, match="1 channels, the networks take 2"):
        again.prepare_scan(Image(array[:1].astype(np.float32), affine))


# --- metrics on the volumes' own voxels


class Bright(torch.nn.Module):
    """Probabilities that are a fixed function of the voxel: smooth, of three classes."""

    def forward(self, x):
        return SegmentationOutput(torch.cat([0.3 - x[:, :1], x[:, :1], 2 * x[:, 1:] - 1.0], dim=1), x)


def test_metrics_are_those_of_the_raw_grid(tmp_path):
    """Against interpolation by scipy with the two affines, and the raw label file, never turned."""
    root = write_nnunet(tmp_path, 3, 1)
    source = Folder(root, spacing=[1.3, 1.7, 1.9])
    reader = VolumeReader(source, downsample=1.25)
    window = SlidingWindow((64, 64, 64), (64, 64, 64))
    evaluation = NetworkEvaluation({"a": Bright()}, source.class_names, window, "mm")
    for index, case in enumerate(["c00", "c01"]):
        evaluation.test_step(reader.read_evaluation(case, index), index)
    rows = evaluation.scores["a"].compute().rows
    for index, case in enumerate(["c00", "c01"]):
        seen = reader.read_image(case)
        prepared = source.read_image(case)
        factor = np.array(prepared.array.shape[1:]) / np.array(seen.shape[1:])
        shrunk = np.diag([*factor, 1.0])
        shrunk[:3, 3] = (factor - 1) / 2
        p = Bright()(seen[None]).logits[0].softmax(dim=0).numpy()
        raw, affine = loaded(root / "labelsTr" / f"{case}.nii.gz")
        places = np.moveaxis(np.indices(raw.shape), 0, -1)
        at = np.moveaxis(apply_affine(np.linalg.inv(prepared.affine @ shrunk) @ affine, places), -1, 0)
        mine = np.stack([map_coordinates(channel, at, order=1, mode="nearest") for channel in p]).argmax(axis=0)
        assert {*np.unique(mine)} == {0, 1, 2}
        expected = label_scores(mine, raw.astype(int), 3, tuple(voxel_sizes(affine)))
        for row, scores in zip([row for row in rows if row.case == index], expected, strict=True):
            np.testing.assert_allclose(row.scores[:4], scores[:4], rtol=1e-3)


# --- whole commands


WORDS = (
    "data=folder",
    "data.patch_size=[32,32,16]",
    "data.stride=[32,32,16]",
    "base_channels=2",
    "trainer.max_iterations=3",
    "trainer.accelerator=cpu",
    "trainer.threads=1",
    "trainer.progress_bar=false",
)


@pytest.mark.parametrize("write", [write_nnunet, write_decathlon])
def test_training_evaluating_and_what_the_run_records(command, tmp_path, write):
    root = write(tmp_path / "Task03", 5, 2)
    words = [*WORDS, f"data.root={root}", "data.source.fold=0", "data.labeled=2", f"output={tmp_path / 'runs'}"]
    ended = command(train.main, *words)
    assert ended.code == 0, ended.err
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("Task03-solo_mix-")
    manifest = json.loads((run / "manifest.json").read_text())["data"]
    assert {key: manifest[key] for key in ("dataset", "labeled", "unlabeled", "validation", "test")} == {
        **{"dataset": "Task03", "labeled": 2, "unlabeled": 4},
        **{"validation": 1, "test": 0},
    }
    assert {*json.loads((run / "metrics.json").read_text())["validation"]["a"]["classes"]} == {"liver", "tumour"}
    record = json.loads((run / "preprocessing.json").read_text())
    plan = yaml.safe_load((run / "plan.yaml").read_text())["plan"]
    assert record == {
        "class_names": ["background", "liver", "tumour"],
        "channels": 2,
        "channel_names": ["T1", "T2"],
        "spacing": plan["spacing"],
        "intensity": ["zscore", "zscore"],
    }
    moved = root.rename(tmp_path / "moved")
    again = command(evaluate.main, f"run={run}", "split=validation", f"data.root={moved}")
    assert again.code == 0, again.err
    first, second = (
        json.loads(p.read_text()) for p in (run / "metrics.json", next(run.glob("evaluations/*/metrics.json")))
    )
    assert second["validation"] == first["validation"]


def test_everything_may_be_trained_on_and_nothing_scored(command, tmp_path):
    root = write_nnunet(tmp_path / "set", 3, 1)
    for name in ("imagesTr/c09.mgz", "labelsTr/c09.mgz"):
        (root / name).write_bytes(b"of another program")
    _, label, affine = volume(0)
    label[30, 25, 18] = 2  # a piece that the larger voxels lose
    save(root / "labelsTr" / "c00.nii.gz", label, affine)
    more = ("data.downsample=2", "data.source.spacing=null")
    ended = command(train.main, *WORDS, f"data.root={root}", f"output={tmp_path / 'runs'}", *more)
    assert ended.code == 0, ended.err
    (warning,) = [line for line in ended.err.splitlines() if "pieces" in line]
    assert warning.startswith("warning: ")
    assert "1 of 4 " in warning and "pieces of tumour" in warning and "1 of 3 labels" in warning
    (warning,) = [line for line in ended.err.splitlines() if "not read" in line]
    assert (
        warning.startswith("warning: ")
        and "imagesTr: 1 file .mgz not read (c09.mgz)" in warning
        and "dualseg-check names 1 more" in warning
    )


def test_labels_of_unlabeled_cases_are_never_opened(command, tmp_path):
    def weights(name, poison):
        root = write_nnunet(tmp_path / name, 5, 1)
        split = json.loads((tmp_path / "clean" / "dualseg-split.json").read_text()) if name != "clean" else None
        poison(root / "labelsTr", split)
        output = tmp_path / f"{name}-runs"
        words = [*WORDS, f"data.root={root}", "data.labeled=2", f"output={output}", "evaluate_on=[]"]
        ended = command(train.main, *words)
        assert ended.code == 0, ended.err
        (checkpoint,) = output.glob("*/checkpoints/*.ckpt")
        return torch.load(checkpoint, weights_only=True)["state_dict"]

    def garbage(labels, split):
        for case in split["labeled"][2:]:
            (labels / f"{case}.nii.gz").write_bytes(b"no label at all")

    def another(labels, split):
        label, affine = loaded(labels / f"{split['labeled'][0]}.nii.gz")
        save(labels / f"{split['labeled'][0]}.nii.gz", np.roll(label, 5, axis=0).astype(np.uint8), affine)

    clean, poisoned, changed = (
        weights(name, poison)
        for name, poison in (("clean", lambda labels, split: None), ("garbage", garbage), ("changed", another))
    )
    assert all(torch.equal(clean[key], poisoned[key]) for key in clean)
    assert not all(torch.equal(clean[key], changed[key]) for key in clean), "labels of labeled cases must matter"


def test_left_atrium_in_the_layout_of_nnunet_trains_alike(command, small_la, tiny_la, tmp_path):
    """Resampling and normalisation off, the same order of cases: the same batches, weights and scores."""
    root = tmp_path / "Dataset001_Atrium"
    cases = case_list("train")[:6]
    for case in cases:
        with h5py.File(small_la / case / "mri_norm2.h5") as h5:
            save(root / "imagesTr" / f"{case}_0000.nii.gz", h5["image"][()], np.diag([0.625, 0.625, 0.625, 1]))
            save(root / "labelsTr" / f"{case}.nii.gz", h5["label"][()], np.diag([0.625, 0.625, 0.625, 1]))
    described = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "atrium": 1}}
    (root / "dataset.json").write_text(json.dumps(described))
    (root / "dualseg-split.json").write_text(json.dumps({"labeled": cases[:4], "validation": cases[4:]}))
    # not all 74 cases of the real list that are not there can be held out for validation
    shared = [word for word in tiny_la(small_la, tmp_path / "la-runs") if not word.startswith(("data=", "data.root"))]
    shared = [word for word in shared if not word.startswith(("data.held_out", "evaluate_on", "output"))]
    as_is = ("recipe=none", "data.source.spacing=null", "data.source.intensity=null")
    own = ("data=folder", f"data.root={root}", *as_is)
    theirs = ("data=la", f"data.root={small_la}", "data.held_out_test=74", "data.held_out_validation=2")
    outcome = {}
    for name, words in (("own", (*own, "name=own")), ("la", (*theirs, "name=la"))):
        ended = command(train.main, *words, *shared, "evaluate_on=[validation]", f"output={tmp_path / 'runs'}")
        assert ended.code == 0, ended.err
        (checkpoint,) = (tmp_path / "runs" / name).glob("checkpoints/*.ckpt")
        run = checkpoint.parent.parent
        weights = torch.load(checkpoint, weights_only=True)["state_dict"]
        fingerprint = json.loads((run / "manifest.json").read_text())["data"]["fingerprint"]
        outcome[name] = weights, fingerprint, (run / "cases.csv").read_text()
    assert all(torch.equal(outcome["own"][0][key], value) for key, value in outcome["la"][0].items())
    assert outcome["own"][1:] == outcome["la"][1:]


# --- bad input


@pytest.mark.parametrize(
    "words, expected",
    [
        ("data.source.spacing=[1,1]", "three edges in mm"),
        ("data.source.spacing=[1,1,-1]", "three edges in mm"),
        ("data.source.spacing=mean", "three edges in mm"),
        ("data.source.intensity=minmax", "choose zscore"),
        ("data.source.intensity=[300,100]", "a window [low,high]"),
        ("data.source.intensity=[zscore]", "one for each of T1, T2"),
        ("data.source.fold=7", "give 0 to 4"),
        ("data.source.folds=4 data.source.fold=4", "give 0 to 3"),
        ("data.source.unlabeled=nowhere", "no such folder"),
        ("data.labeled=6", "give between 1 and 5"),
        ("data.source.spaceing=1", "Did you mean data.source.spacing?"),
    ],
)
def test_arguments_that_cannot_work(command, tmp_path, words, expected):
    root = write_nnunet(tmp_path / "set", 5, 1)
    ended = command(train.main, *WORDS, f"data.root={root}", *words.split(), f"output={tmp_path / 'runs'}")
    ended.complains(expected)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["ct", "CTA", "CBCT", "NCCT", "cect", "CT_venous", "low dose CT", "HU"])
def test_names_of_ct(tmp_path, name):
    root = write_nnunet(tmp_path, 2, 1, channels=1, description={**NEW, "channel_names": {"0": name}})
    assert Folder(root).ct_channels == (0,)


@pytest.mark.parametrize(
    ("intensity", "window"),
    [
        ([-160, 240], (-160, 240)),
        ({"clip": [-50, 350], "mean": 100, "deviation": 40}, (-50, 350)),
        ("zscore", None),
        (None, None),
    ],
)
def test_a_scan_is_displayed_over_the_range_that_the_networks_see(tmp_path, intensity, window):
    root = write_nnunet(tmp_path, 2, 1, channels=1)
    assert Folder(root, intensity=intensity).display_window == window


@pytest.mark.parametrize("name", ["act", "section", "CTRL", "T2", "hue"])
def test_names_of_others(tmp_path, name):
    root = write_nnunet(tmp_path, 2, 1, channels=1, description={**NEW, "channel_names": {"0": name}})
    assert Folder(root).ct_channels == ()


def test_no_label_at_all(tmp_path):
    with pytest.raises(DualsegError, match=r"labelsTr: holds no label"):
        Folder(write_nnunet(tmp_path, 0, 3))


@pytest.mark.parametrize("defect", ["shifted", "mirrored", "shape", "values", "halves", "channels", "nan"])
def test_labels_that_do_not_fit_are_named(tmp_path, defect):
    root = write_nnunet(tmp_path, 2, 1)
    path = root / "labelsTr" / "c00.nii.gz"
    label, affine = loaded(path)
    label = label.astype(np.float32)
    if defect == "shifted":
        affine[:3, 3] += 2
    elif defect == "mirrored":
        affine = affine @ np.diag([-1, 1, 1, 1])
    elif defect == "shape":
        label = label[:-1]
    elif defect == "values":
        label[0, 0, 0] = 3
    elif defect == "halves":
        label /= 2
    elif defect == "channels":
        label = np.stack([label, label], axis=-1)
    else:
        label[0, 0, 0] = np.nan
    save(path, label, affine)
    source = Folder(root, spacing=[1, 1, 1])
    for read in (source.read_label, source.read_reference):
        with pytest.raises(DualsegError, match=r"c00\.nii\.gz"):
            read("c00")
    split = split_cases(source.train_cases, (), unlabeled_cases=source.unlabeled_cases)
    kinds = {"shifted": "affine", "mirrored": "flip", "values": "label values", "halves": "label values", "nan": "NaN"}
    assert [finding.kind for finding in check_dataset(source, split).found] == [kinds.get(defect, "shape")]


def test_a_scaled_label_counts_as_its_whole_numbers(tmp_path):
    root = write_nnunet(tmp_path, 2, 1)
    whole = Folder(root, spacing=[1, 1, 1]).read_label("c00")
    path = root / "labelsTr" / "c00.nii.gz"
    label, affine = loaded(path)
    save(path, label.astype(np.float32) * np.float32(0.99999994), affine)
    source = Folder(root, spacing=[1, 1, 1])
    assert np.array_equal(source.read_label("c00"), whole)
    assert check_dataset(source, split_cases(source.train_cases, ())).found == []


@pytest.mark.parametrize("role", ["labeled", "unlabeled", "test", "excluded"])
def test_training_refuses_files_that_do_not_fit_whoever_would_read_them(command, tmp_path, role):
    root = write_nnunet(tmp_path / "set", 3, 1, test=1)
    words = [*WORDS, f"data.root={root}", f"output={tmp_path / 'runs'}"]
    case = {"unlabeled": "c03", "test": "c04"}.get(role, "c01")
    (path,) = root.glob(f"images*/{case}_0001.nii.gz")
    path.rename(tmp_path / "elsewhere.nii.gz")
    if role == "excluded":
        content = {"labeled": ["c00", "c02"], "unlabeled": ["c03"], "test": ["c04"], "excluded": ["c01"]}
        (root / "dualseg-split.json").write_text(json.dumps(content))
        Folder(root, fold=0, folds=2).check_cases()
        return
    command(train.main, *words).complains(f"{path.parent / case}: has the channels 0000", "complete the files")
    assert not (tmp_path / "runs").exists() and not (root / "dualseg-split.json").exists()
    with pytest.raises(DualsegError, match=f"{case}: has the channels"):
        SemiSupervisedDataModule(Folder(root), (16, 16, 16))
    (tmp_path / "elsewhere.nii.gz").rename(path)
    assert Folder(root).train_cases and (root / "dualseg-split.json").exists()


def test_channels_that_do_not_fit_are_named(tmp_path):
    root = write_nnunet(tmp_path / "a", 2, 1)
    array, _, affine = volume(0)
    save(root / "imagesTr" / "c00_0001.nii.gz", array[1], affine @ np.diag([1, 1, 1.5, 1]))
    with pytest.raises(DualsegError, match=r"c00_0001\.nii\.gz"):
        Folder(root).read_image("c00")
    root = write_decathlon(tmp_path / "b", 2, 1)
    save(root / "imagesTr" / "c00.nii.gz", array[0], affine)
    with pytest.raises(DualsegError, match=r"c00\.nii\.gz: image .*1 channels, dataset\.json .*2"):
        Folder(root).read_image("c00")
