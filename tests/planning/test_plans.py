"""Plans of small datasets: what they are made of, by which labels, and what the user's own values and edits do."""

import json
import re

import nibabel as nib
import numpy as np
import pytest
import yaml
from folder_layouts import NEW, odd_affine, save, write_nnunet

from dualseg import plan, train
from dualseg.data import Folder
from dualseg.errors import DualsegError
from dualseg.planning import plan_file
from dualseg.planning.decisions import decide
from dualseg.planning.fingerprint import DatasetFingerprint, fingerprint_of

WORDS = ("data=folder", "trainer.accelerator=cpu")
CT = {**NEW, "channel_names": {"0": "CT"}}


def bare(root):
    return Folder(root, spacing=None, intensity=None)


def plan_files(root):
    return sorted(root.glob("dualseg-plan-*.yaml"))


def fingerprint(spacing, shape, count=20):
    spread = np.random.default_rng(0).uniform(0.9, 1.1, (count, 1))
    spacings = spacing * spread if np.ndim(spacing) == 1 else np.array(spacing, float)
    shapes = np.tile(shape, (len(spacings), 1))
    return DatasetFingerprint(spacings, shapes, ("a",), {"organ": [1.0]}, (None,), ("background", "organ"))


# --- what is measured


def test_shapes_and_spacings_are_those_of_the_headers_in_anatomical_order(tmp_path):
    root = write_nnunet(tmp_path, 3, 2)
    source = bare(root)
    found = fingerprint_of(source, source.train_cases, source.unlabeled_cases)
    for case, spacing, shape in zip(
        [*source.train_cases, *source.unlabeled_cases], found.spacings, found.shapes, strict=True
    ):
        image = nib.as_closest_canonical(nib.load(root / "imagesTr" / f"{case}_0000.nii.gz"))
        np.testing.assert_allclose(spacing, image.header.get_zooms(), rtol=1e-5)
        assert tuple(shape) == image.shape


def test_intensities_of_ct_are_those_under_the_labels_that_may_be_read(tmp_path):
    root = write_nnunet(tmp_path, 4, 1, channels=1, description=CT)
    source = bare(root)
    labeled = source.train_cases[:2]
    for case in source.train_cases[2:]:  # what is not the run's to read may be anything
        (root / "labelsTr" / f"{case}.nii.gz").write_bytes(b"no label")
    found = fingerprint_of(source, labeled, (*source.train_cases[2:], *source.unlabeled_cases))
    values = np.concatenate(
        [
            np.asarray(nib.load(root / "imagesTr" / f"{case}_0000.nii.gz").dataobj)[
                np.asarray(nib.load(root / "labelsTr" / f"{case}.nii.gz").dataobj) > 0
            ]
            for case in labeled
        ]
    )
    low, high = np.percentile(values, [0.5, 99.5])
    (foreground,) = found.foreground
    assert (foreground.low, foreground.high) == pytest.approx((low, high), rel=1e-5)
    assert foreground.mean == pytest.approx(values.clip(low, high).mean(), rel=1e-4)
    assert foreground.deviation == pytest.approx(values.clip(low, high).std(), rel=1e-4)
    assert found.labels == labeled
    assert all(len(values) == 2 and min(values) > 0 for values in found.volumes.values())


# --- what is decided


def test_an_axis_three_times_coarser_takes_its_tenth_percentile_but_no_finer_than_the_others():
    spacings = np.column_stack([np.ones(11), np.ones(11), np.linspace(2, 7, 11)])
    plan = decide(fingerprint(spacings, (100, 100, 20)), {"base_channels": 8}, 2**30)
    assert plan.values["spacing"] == [1, 1, pytest.approx(np.percentile(spacings[:, 2], 10))]
    spacings[:3, 2] = 0.2
    assert decide(fingerprint(spacings, (100, 100, 20)), {"base_channels": 8}, 2**30).values["spacing"][2] == 1
    even = np.column_stack([np.ones(5), np.ones(5), np.full(5, 2.9)])
    assert decide(fingerprint(even, (100, 100, 20)), {"base_channels": 8}, 2**30).values["spacing"] == [1, 1, 2.9]


def test_a_small_volume_is_one_patch_and_a_large_one_is_cut_to_the_memory():
    small = decide(fingerprint((1.0, 1.0, 1.0), (35, 50, 36)), {"base_channels": 8}, 2**30).values
    assert small["patch_size"] == [40, 56, 40] and small["stride"] == [20, 28, 20]
    sizes = [
        np.prod(
            decide(fingerprint((0.8, 0.8, 2.5), (500, 500, 120)), {"base_channels": 16}, gib * 2**30).values[
                "patch_size"
            ]
        )
        for gib in (2, 4, 8)
    ]
    assert sizes[0] < sizes[1] < sizes[2]


def test_what_the_user_gives_stands_and_the_rest_follows():
    given = {"patch_size": [48, 48, 24], "base_channels": 32}
    values = decide(fingerprint((1.0, 1.0, 1.0), (100, 100, 100)), given, 2**30).values
    assert values["patch_size"] == [48, 48, 24] and values["stride"] == [24, 24, 12]
    assert values["channels"][0] == 32 and np.prod(values["strides"], axis=0).tolist() == [8, 8, 4]


def test_no_memory_is_refused():
    with pytest.raises(DualsegError, match=r"plan\.memory=1 MiB: .*hold a patch .*base_channels"):
        decide(fingerprint((1.0, 1.0, 1.0), (300, 300, 300)), {"base_channels": 32}, 2**20)


# --- the file


def test_each_list_of_labels_has_its_own_plan_which_is_read_from_then_on(tmp_path, command):
    root = write_nnunet(tmp_path, 5, 1)
    first = command(plan.main, *WORDS, f"data.root={root}", "data.labeled=2")
    assert first.code == 0 and len(first.out.splitlines()) == 10 and "written" in first.err
    (path,) = plan_files(root)
    assert len(yaml.safe_load(path.read_text())["measured"]["labels"]) == 2
    again = command(plan.main, *WORDS, f"data.root={root}", "data.labeled=2")
    assert again.out == first.out and not again.err
    command(plan.main, *WORDS, f"data.root={root}", "data.source.fold=0")
    assert len(plan_files(root)) == 2


def test_validation_and_test_labels_are_not_opened(tmp_path, command):
    root = write_nnunet(tmp_path, 5, 1, test=2)
    Folder(root)  # writes the split
    parts = json.loads((root / "dualseg-split.json").read_text())
    held = [*parts["labeled"][0::5], *parts["test"]]  # of fold 0 of 5
    for case in held:
        for folder in ("labelsTr", "labelsTs"):
            if (file := root / folder / f"{case}.nii.gz").exists():
                file.write_bytes(b"no label")
    assert command(plan.main, *WORDS, f"data.root={root}", "data.source.fold=0").code == 0


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda text: text.replace("batch: ", "batch: -"), r"plan\.batch=-"),
        (lambda text: text.replace("  kernels:", "  kernel:"), r"plan\.kernels=None"),
        (lambda text: text.replace("plan:", "plan: ["), "cannot be read"),
        (lambda text: "[" * 100_000, "cannot be read"),
        (lambda text: "[]", "is no plan"),
        (lambda text: text.replace("  batch:", "  bach: 2\n  batch:"), r"plan\.bach: no such decision"),
        (lambda text: re.sub(r"intensity: .*", "intensity: [{mean: 3}]", text), "intensity"),
        (lambda text: re.sub(r"blocks: .*", "blocks: [1]", text), r"plan\.blocks: has 1 stages"),
        (lambda text: re.sub(r"patch_size: .*", "patch_size: [33, 32, 32]", text), r"plan\.patch_size=\[33, 32, 32\]"),
        (lambda text: re.sub(r"stride: .*", "stride: [200, 2, 2]", text, count=1), r"plan\.stride=\[200, 2, 2\]"),
    ],
)
def test_a_damaged_plan_is_refused_by_name(tmp_path, command, edit, complaint):
    root = write_nnunet(tmp_path, 3, 1)
    command(plan.main, *WORDS, f"data.root={root}")
    (path,) = plan_files(root)
    path.write_text(edit(path.read_text()))
    ended = command(plan.main, *WORDS, f"data.root={root}")
    ended.complains(path.name)
    assert re.search(complaint, ended.err)


def test_a_plan_that_knows_other_labels_is_refused(tmp_path, command):
    root = write_nnunet(tmp_path / "set", 5, 1)
    own = (*WORDS, f"data.root={root}", f"plan.file={tmp_path / 'plan.yaml'}")
    assert command(plan.main, *own).code == 0
    command(plan.main, *own, "data.labeled=2", "data.held_out_test=2").complains("plan.yaml: ", "may not read")
    command(plan.main, *own[:-1], f"plan.file={tmp_path}").complains("is no file")


@pytest.mark.parametrize("word", ["plan.file=plan.yaml", "plan.memory=2GiB"])
def test_what_is_for_a_folder_alone_is_refused_elsewhere(word, tmp_path, command):
    words = ["data=phantom", f"data.root={tmp_path / 'phantom'}", "networks=planned", "method=supervised", word]
    command(train.main, *words).complains(word.partition("=")[0], "data=folder alone")


@pytest.mark.parametrize(
    "word",
    [
        "data.patch_size=[33,32]",
        "data.patch_size=abc",
        "data.patch_size=64",
        "data.patch_size=[64,64,-1]",
        "base_channels=abc",
        "base_channels=0",
        "data.downsample=abc",
        "plan=null",
        "plan.memory=0",
        "plan.memory=much",
        "data.foreground=2",
        "data.source.splits=nowhere/split.json",
    ],
)
def test_words_that_cannot_work_leave_no_plan_behind(tmp_path, command, word):
    root = write_nnunet(tmp_path, 3, 1)
    command(plan.main, *WORDS, f"data.root={root}", word).complains(word.partition("=")[0])
    assert not plan_files(root)


def test_the_plan_lies_with_the_user_where_nothing_can_be_written_beside_the_split(tmp_path, command, monkeypatch):
    root = write_nnunet(tmp_path / "set", 3, 1)
    Folder(root)  # writes the split
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(plan_file, "is_writable", lambda folder: False)  # root may write anywhere
    assert command(plan.main, *WORDS, f"data.root={root}").code == 0
    assert not plan_files(root) and len([*(tmp_path / "home" / "dualseg").glob("set-*-plan-3labels-*.yaml")]) == 1


def test_the_spacing_that_is_given_decides_the_patch(tmp_path, command):
    """Six of eight scans have slices of 6 mm: their median keeps these, the plan's own rule does not."""
    for number, slices in enumerate([6.0] * 6 + [1.5] * 2):
        affine = np.diag([1.0, 1.0, slices, 1.0])
        label = np.zeros((48, 48, round(72 / slices)), np.uint8)
        label[10:20, 10:20, 2:8] = 1
        save(tmp_path / "imagesTr" / f"c{number}_0000.nii.gz", np.zeros(label.shape, np.float32) + label, affine)
        save(tmp_path / "labelsTr" / f"c{number}.nii.gz", label, affine)
    described = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "x": 1}}
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    words = (*WORDS, f"data.root={tmp_path}")
    planned = command(plan.main, *words).out
    for spacing in ("median", "null", "[1,1,6]"):
        given = command(plan.main, *words, f"data.source.spacing={spacing}").out
        assert re.search(r"patch_size 48x48x12 ", given) and "strides    1x1x1 2x2x1" in given, given
    assert "patch_size 48x48x48" in planned and "strides    1x1x1 2x2x2" in planned


def test_networks_that_are_not_planned_get_a_patch_that_they_can_halve(tmp_path, command):
    root = write_nnunet(tmp_path, 3, 1)
    for networks in ("vnet", "segresnet_vnet"):
        shown = command(plan.main, *WORDS, f"data.root={root}", f"networks={networks}", "method=supervised")
        sides = [int(side) for side in re.search(r"patch_size (\d+)x(\d+)x(\d+)", shown.out).groups()]
        assert all(side % 16 == 0 for side in sides)
        assert "in multiples of 16" in shown.out and "channels" not in shown.out, "no decision that no network takes"


def test_what_is_given_is_shown_as_it_trains(tmp_path, command):
    root = write_nnunet(tmp_path, 3, 1)
    words = ("data.source.intensity=null", "data.stride=[8,8,8]", "batch.labeled=2")
    shown = command(plan.main, *WORDS, f"data.root={root}", *words).out
    assert re.search(r"intensity  None   \(given\)", shown) and "stride     8x8x8   (given)" in shown
    assert "batch      2   (given)" in shown


def test_a_dry_training_shows_the_plan_that_it_would_follow(tmp_path, command):
    root = write_nnunet(tmp_path / "data", 3, 1)
    words = [*WORDS, f"data.root={root}", f"output={tmp_path / 'runs'}"]
    planned = command(plan.main, *words).out
    dry = command(train.main, *words, "dry=true").out
    assert "spacing" in planned and planned in dry
    assert "note: Nothing is scored: there are no validation or test cases" in dry


def test_no_plan_is_made_where_none_is_wanted(tmp_path, command):
    root = write_nnunet(tmp_path / "set", 4, 2)
    words = ("recipe=none", "base_channels=2", "data.patch_size=[32,32,16]", "data.stride=[32,32,16]")
    words = (*words, "trainer.max_iterations=1", "evaluate_on=[]", f"output={tmp_path / 'runs'}")
    ended = command(train.main, *WORDS, f"data.root={root}", *words)
    assert ended.code == 0 and "Plan" not in ended.out, ended.err
    assert not plan_files(root) and not [*(tmp_path / "runs").glob("*/plan.yaml")]


# --- bad data


def test_bad_datasets_answer_with_one_sentence(tmp_path, command):
    def answer(root):
        return command(plan.main, *WORDS, f"data.root={root}")

    broken = write_nnunet(tmp_path / "broken", 3, 1)
    (broken / "imagesTr" / "c01_0001.nii.gz").write_bytes(b"x")
    (broken / "imagesTr" / "c01_0000.nii.gz").write_bytes(b"x")
    answer(broken).complains("c01_0000.nii.gz")
    empty = write_nnunet(tmp_path / "empty", 2, 1)
    for file in (empty / "labelsTr").iterdir():
        image = nib.load(file)
        save(file, np.zeros(image.shape, np.uint8), image.affine)
    answer(empty).complains("no foreground")
    flat = tmp_path / "flat"
    save(flat / "imagesTr" / "a_0000.nii.gz", np.zeros((40, 30, 1), np.float32), odd_affine(0))
    save(flat / "labelsTr" / "a.nii.gz", np.ones((40, 30, 1), np.uint8), odd_affine(0))
    (flat / "dataset.json").write_text(json.dumps({"channel_names": {"0": "MRI"}, "labels": {"background": 0, "x": 1}}))
    answer(flat).complains("a volume W x H x D")
    assert not any(map(plan_files, (broken, empty, flat)))


def test_one_case_is_enough(tmp_path, command):
    root = write_nnunet(tmp_path, 1, 0)
    assert command(plan.main, *WORDS, f"data.root={root}").code == 0


def test_other_datasets_have_nothing_to_plan(command, small_la):
    command(plan.main, "data=la", f"data.root={small_la}").complains("nothing is planned here")


# --- training


def test_training_plans_by_itself_shows_it_and_keeps_it(tmp_path, command):
    root = write_nnunet(tmp_path / "set", 4, 2)
    words = (*WORDS, f"data.root={root}", "method=supervised", "base_channels=2", "data.source.fold=0")
    words = (*words, "data.patch_size=[32,48,32]")
    words = (*words, "data.source.folds=2", "trainer.max_iterations=1", "evaluate_on=[]", f"output={tmp_path / 'runs'}")
    ended = command(train.main, *words)
    assert ended.code == 0, ended.err
    (path,) = plan_files(root)
    (run,) = (tmp_path / "runs").glob("*/plan.yaml")
    found = fingerprint_of(bare(root), yaml.safe_load(path.read_text())["measured"]["labels"], [])
    assert plan_file.labeled_volumes(run) == {name: (min(ml), max(ml)) for name, ml in found.volumes.items()}
    assert run.read_text() == path.read_text() and f"Plan: {path}" in ended.out
    config = yaml.safe_load((run.parent / "config.yaml").read_text())
    planned = yaml.safe_load(path.read_text())["plan"]
    assert config["data"]["patch_size"] == planned["patch_size"]
    assert config["data"]["source"]["spacing"] == planned["spacing"]
    assert config["batch"]["labeled"] == planned["batch"]
    again = command(train.main, *words)
    assert again.code == 0 and "Finished" in again.out and "Plan" not in again.out
    path.write_text(path.read_text().replace(f"batch: {planned['batch']}", "batch: 2"))
    other = command(train.main, *words)
    assert other.code == 0 and "Plan" in other.out  # another plan is another run
    assert len([*(tmp_path / "runs").glob("*/plan.yaml")]) == 2
