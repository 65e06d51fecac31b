"""Pancreas-CT and BraTS-2019 in the layouts of the public codes: their lists, their files, a short training on each."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dualseg import evaluate, train
from dualseg.data import BraTS2019, PancreasCT
from dualseg.data.h5 import shipped_list
from dualseg.data.pancreas_ct import NOT_IN_DOWNLOAD
from dualseg.data.reading import VolumeReader
from dualseg.data.splits import split_source
from dualseg.errors import DualsegError

PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "splits.json"
COUNTS = {"labeled": None, "labeled_ratio": None, "held_out_validation": 0, "held_out_test": 0}
ALL = {**COUNTS, "draw": 0, "fold": None, "folds": 5}
SHAPE = (16, 14, 15)  # one window of the patch below
TINY = (
    "data.patch_size=[16,16,16]", "data.stride=[16,16,16]", "base_channels=4", "trainer.max_iterations=2",
    "trainer.accelerator=cpu", "trainer.threads=1", "trainer.progress_bar=false",
)  # fmt: skip


def write(path: Path, seed: int) -> None:
    """Noise with a brighter box, which is the label, as the public preparations write a case."""
    rng = np.random.default_rng(seed)
    label = np.zeros(SHAPE, np.uint8)
    label[3:13, 4:12, 2 + seed % 4 : 11] = 1
    image = (rng.normal(size=SHAPE) + 2 * label).astype(np.float32)
    with h5py.File(path, "w") as h5:
        h5.create_dataset("image", data=image, compression="gzip")
        h5.create_dataset("label", data=label, compression="gzip")


def folder_of(path: Path, names: Sequence[str]) -> Path:
    path.mkdir()
    for seed, name in enumerate(names):
        write(path / name, seed)
    return path


@pytest.fixture
def pancreas(tmp_path: Path) -> Path:
    """Cases 1-5 and 63-64: of split mcf_fold0 five training and two test cases."""
    return folder_of(tmp_path / "Pancreas_h5", [f"image00{number:02d}_norm.h5" for number in (1, 2, 3, 4, 5, 63, 64)])


@pytest.fixture
def brats(tmp_path: Path) -> Path:
    """The first four training, the first two validation and the first two test cases."""
    cases = [*BraTS2019(tmp_path).train_cases[:4], *BraTS2019(tmp_path).validation_cases[:2]]
    cases += BraTS2019(tmp_path).test_cases[:2]
    return folder_of(tmp_path / "data", [f"{case}.h5" for case in cases])


# --- lists


@pytest.fixture
def published() -> Any:
    if not PUBLISHED.is_file():
        pytest.skip(f"{PUBLISHED} is not there to compare with")
    return json.loads(PUBLISHED.read_text())


@pytest.mark.parametrize("split", ["mcf_fold0", "mcnet"])
def test_the_pancreas_lists_are_the_published_ones(published, tmp_path, split):
    source, lists = PancreasCT(tmp_path, split), published["pancreas_ct"][split]
    assert [int(case.removeprefix("image")) for case in source.train_cases] == lists["train"]
    assert [int(case.removeprefix("image")) for case in source.test_cases] == lists["test"]
    assert all(len(case) == len("image0001") for case in source.train_cases + source.test_cases)


def test_the_brats_lists_are_the_published_ones(published, tmp_path):
    source, lists = BraTS2019(tmp_path), published["brats2019"]["ssl4mis"]
    assert (list(source.train_cases), list(source.validation_cases)) == (lists["train"], lists["validation"])
    assert list(source.test_cases) == lists["test"]


# method.md, section 5
@pytest.mark.parametrize(
    "source, counts, ten, twenty",
    [
        (lambda root: PancreasCT(root, "mcf_fold0"), (62, 0, 20), 6, 12),
        (lambda root: PancreasCT(root, "mcnet"), (62, 0, 20), 6, 12),
        (BraTS2019, (250, 25, 60), 25, 50),
    ],
)
def test_the_splits_have_the_literatures_sizes(tmp_path, source: Callable[[Path], Any], counts, ten, twenty):
    split = split_source(source(tmp_path), ALL)
    assert (len(split.labeled), len(split.validation), len(split.test)) == counts
    assert len({*split.labeled, *split.validation, *split.test}) == sum(counts)
    for ratio, labels in ((0.1, ten), (0.2, twenty)):
        assert len(split_source(source(tmp_path), {**ALL, "labeled_ratio": ratio}).labeled) == labels


def test_the_two_pancreas_splits_share_three_test_cases(tmp_path):
    first, second = (PancreasCT(tmp_path, split) for split in ("mcf_fold0", "mcnet"))
    assert {*first.test_cases} & {*second.test_cases} == {"image0067", "image0073", "image0074"}
    assert {*first.train_cases, *first.test_cases} == {*second.train_cases, *second.test_cases}
    assert len({*first.train_cases, *first.test_cases}) == 82


def test_cases_left_out_leave_the_order_of_the_others(tmp_path):
    source = PancreasCT(tmp_path, "mcnet", exclude=NOT_IN_DOWNLOAD)
    whole = shipped_list("pancreas_mcnet_train")
    assert whole[10] == "image0070"
    assert source.train_cases == (*whole[:10], *whole[11:])
    assert (len(source.train_cases), len(source.test_cases)) == (61, 19)


# --- arguments and files


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"split": "fold0"}, r"data\.source\.split=fold0: choose from mcf_fold0, mcnet"),
        ({"exclude": ["image0083"]}, r"data\.source\.exclude=\['image0083'\]: give a list of cases of this dataset"),
        ({"exclude": "image0025"}, r"data\.source\.exclude=image0025: give a list of cases .*\[image0025,image0070\]"),
        ({"exclude": [25, 70]}, r"data\.source\.exclude=\[25, 70\]: give a list"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, arguments, message):
    with pytest.raises(DualsegError, match=message):
        PancreasCT(tmp_path, **arguments)


@pytest.mark.parametrize("source, file", [(PancreasCT, r"<case>_norm\.h5"), (BraTS2019, r"<case>\.h5")])
def test_a_missing_root_is_refused(tmp_path, source, file):
    with pytest.raises(DualsegError, match=rf"data\.root={tmp_path}/none: no such folder. Give the one .* {file}\.$"):
        source(tmp_path / "none")


@pytest.mark.parametrize("name", ["pancreas", "brats"])
def test_volumes_are_those_of_the_files(name, request):
    root = request.getfixturevalue(name)
    source = {"pancreas": PancreasCT, "brats": BraTS2019}[name](root)
    path = root / {"pancreas": "image0001_norm.h5", "brats": "BraTS19_TCIA02_370_1.h5"}[name]
    volume = VolumeReader(source).read_evaluation(source.train_cases[0], 0)
    with h5py.File(path) as h5:
        np.testing.assert_array_equal(volume.image[0], h5["image"][()])
        np.testing.assert_array_equal(volume.label, h5["label"][()])
    assert volume.image.shape == (1, *SHAPE) and volume.spacing == (1.0, 1.0, 1.0)
    assert source.where(source.train_cases[0], "label") == f"{path}: label"
    path.write_bytes(path.read_bytes()[:2500])
    with pytest.raises(DualsegError, match=rf"{path}: cannot be read .*Truncated\?"):
        source.read_image(source.train_cases[0])
    with h5py.File(path, "w") as h5:
        h5["image"] = np.zeros(SHAPE)
    with pytest.raises(DualsegError, match=rf"{path}: .*no dataset 'label'.* \['image'\]"):
        source.read_label(source.train_cases[0])


def test_a_missing_case_is_refused_and_two_of_them_are_known_to_be(pancreas):
    source = PancreasCT(pancreas)
    with pytest.raises(DualsegError, match=r"image0006_norm\.h5: missing.* image0006 .*data\.root"):
        source.read_image("image0006")
    for case in NOT_IN_DOWNLOAD:
        with pytest.raises(
            DualsegError, match=rf"{case}_norm\.h5: missing, .*public download: .*exclude=\[image0025,image0070\]\.$"
        ):
            source.read_image(case)
    with pytest.raises(DualsegError, match=r"exclude=\[image0081,image0025,image0070\]"):  # what was left out stays so
        PancreasCT(pancreas, exclude=["image0081", "image0025"]).read_image("image0070")


# --- the commands


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "cases.csv").open() as file:
        return list(csv.DictReader(file))


def test_two_networks_train_on_pancreas_and_a_run_remembers_its_split(pancreas, command, tmp_path):
    source = PancreasCT(pancreas)
    left_out = [c for c in source.train_cases + source.test_cases if not (pancreas / f"{c}_norm.h5").is_file()]
    asked = ["data=pancreas", f"data.root={pancreas}", "data.labeled=2", *TINY, f"output={tmp_path / 'runs'}"]
    refused = command(train.main, *asked)
    refused.complains(f"{pancreas}/image0006_norm.h5: missing")
    ended = command(train.main, *asked, f"data.source.exclude=[{','.join(left_out)}]")
    assert ended.code == 0, ended.err
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("pancreas-dual-described-")
    assert {(r["case"], r["split"], r["class"]) for r in rows_of(run)} == {
        (case, "test", "pancreas") for case in ("image0063", "image0064")
    }
    # by the lists of the other split, cases 1, 4 and 5 would be test cases, which this run has trained on
    other = command(evaluate.main, f"run={run}", "data.source.split=mcnet")
    other.complains("3 of the cases", "trained on, image0004 ")


def test_two_networks_train_on_brats_and_its_own_validation_list_is_scored(brats, command, tmp_path):
    source = BraTS2019(brats)
    asked = ["data=brats", f"data.root={brats}", "data.labeled=2", *TINY, f"output={tmp_path / 'runs'}"]
    others_held_out = "data.held_out_test=246"  # and not looked at: the files of four training cases are there
    ended = command(train.main, *asked, others_held_out, "augmentation=flip_rotate", "evaluate_on=[]")
    assert ended.code == 0, ended.err
    (run,) = (tmp_path / "runs").iterdir()
    manifest = json.loads((run / "manifest.json").read_text())["data"]
    assert manifest.items() >= {"dataset": "brats", "labeled": 2, "unlabeled": 2, "validation": 25}.items()
    for case in source.validation_cases[2:]:
        write(brats / f"{case}.h5", 99)  # no case that is trained on
    ended = command(evaluate.main, f"run={run}", "split=validation", f"output={tmp_path / 'scores'}")
    assert ended.code == 0, ended.err
    assert [r["case"] for r in rows_of(tmp_path / "scores") if r["network"] == "a"] == list(source.validation_cases)
