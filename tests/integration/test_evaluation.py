"""An evaluation scores what its run was not trained on, prepared as for training: what dualseg-predict writes."""

import csv
import hashlib
import json
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from folder_layouts import save

from dualseg import evaluate, predict, train
from dualseg.metrics.functional import scores
from dualseg.runs.folder import checkpoint_of
from dualseg.training import case_callbacks
from dualseg.training.checkpoints import read_checkpoint

ONE = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "ball": 1}}
SHAPE = (24, 24, 24)
TRAINED = ["b00", "b01", "b02"]


def ball(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A bright ball in noise, and its label, in voxels of 1 mm."""
    rng = np.random.default_rng(seed)
    away = np.linalg.norm(np.moveaxis(np.indices(SHAPE), 0, -1) - rng.uniform(9, 14, 3), axis=-1)
    label = (away < rng.uniform(5, 8)).astype(np.uint8)
    return (100 * label + rng.normal(50, 10, SHAPE)).astype(np.float32), label


def write_site(root: Path, first: int, thick: int = 1, described: dict = ONE) -> Path:
    """Four labeled cases bNN, and two of imagesTs, from number `first` on, in slices of `thick` mm."""
    for number in range(first, first + 6):
        image, label = ball(number)
        image = image.reshape(*SHAPE[:2], -1, thick).mean(axis=3)
        affine = np.diag([1.0, 1, thick, 1])
        affine[2, 3] = (thick - 1) / 2
        end = "Tr" if number < first + 4 else "Ts"
        for channel in range(len(described["channel_names"])):
            save(root / f"images{end}" / f"b{number:02d}_{channel:04d}.nii.gz", image * (1 + channel), affine)
        save(root / f"labels{end}" / f"b{number:02d}.nii.gz", label[:, :, ::thick], affine)
    (root / "dataset.json").write_text(json.dumps(described))
    labeled = [f"b{number:02d}" for number in range(first, first + 4)]
    split(root, labeled[:3], labeled[3:], [f"b{number:02d}" for number in (first + 4, first + 5)])
    return root


def split(root: Path, labeled: Sequence[str], validation: Sequence[str], test: Sequence[str]) -> None:
    content = {"labeled": labeled, "validation": validation, "test": test}
    (root / "dualseg-split.json").write_text(json.dumps(content))


WORDS = (
    "data=folder", "recipe=none",
    "method=supervised", "networks=vnet", "base_channels=4", "dropout=0", "data.patch_size=[16,16,16]",
    "data.stride=[8,8,8]", "trainer.accelerator=cpu", "trainer.threads=1", "trainer.progress_bar=false",
    "trainer.max_iterations=30", "optimizer.lr=0.05",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the dataset `site1` and `run`, which was trained on it."""
    home = tmp_path_factory.mktemp("trained")
    write_site(home / "site1", 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["dualseg-train", *WORDS, f"data.root={home}/site1", f"output={home}", "name=run"])
        train.main()
    return home


@pytest.fixture
def home(trained: Path, tmp_path: Path) -> Path:
    """A copy of `trained` to do harm to."""
    home = Path(shutil.copytree(trained, tmp_path / "home"))
    config = home / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(trained), str(home)))
    return home


def content(name: str, folder: Path) -> dict:
    return json.loads((folder / name).read_text())


def dice_of(evaluation: Path) -> dict[str, float]:
    with (evaluation / "cases.csv").open() as file:
        return {row["case"]: float(row["dice"]) for row in csv.DictReader(file)}


def test_a_run_says_by_name_what_it_was_trained_on(home):
    data = content("manifest.json", home / "run")["data"]
    assert data["cases"] == {"labeled": TRAINED, "unlabeled": [], "validation": ["b03"], "test": ["b04", "b05"]}
    assert [*data["images"]] == TRAINED and len({*data["images"].values()}) == 3


def test_an_evaluation_says_which_data_it_scored_and_the_run_which_it_was_trained_on(command, home):
    assert command(evaluate.main, f"run={home}/run", f"output={home}/again").code == 0
    run, evaluation = content("manifest.json", home / "run"), content("manifest.json", home / "again")
    scored = evaluation["data"]
    assert (scored["dataset"], scored["root"]) == ("site1", str(home / "site1"))
    assert scored["cases"] == {"test": ["b04", "b05"]} and scored["test"] == 2
    assert scored["evaluation_fingerprint"]["test"] == run["data"]["evaluation_fingerprint"]["test"]
    assert scored["preprocessing"] == content("preprocessing.json", home / "run")
    expected = {"dataset": "site1", "root": str(home / "site1"), "fingerprint": run["data"]["fingerprint"]}
    assert evaluation["evaluated"][str(home / "run")]["data"] == expected


def test_a_split_that_was_made_anew_does_not_make_trained_cases_unseen(command, home):
    split(home / "site1", ["b03", "b00", "b02"], ["b01"], ["b04", "b05"])
    run = f"run={home}/run"
    command(evaluate.main, run, "split=validation").complains("1 of the cases", "b01", f"{home}/run/manifest.json")
    assert command(evaluate.main, run).code == 0
    (home / "run" / "metrics.json").unlink()  # as if it had been stopped in its evaluation
    words = [*WORDS, f"data.root={home}/site1", f"output={home}", "name=run"]
    command(train.main, *words).complains("labeled cases have changed", "b01 is no more", "overwrite=true")


@pytest.mark.parametrize("role", ["training", "scored"])
def test_a_trained_volume_is_not_scored_under_another_name(command, home, role):
    """In another dataset, or in the one that the run is trained on."""
    site = home / "site1" if role == "training" else write_site(home / "site2", 10)
    twin = "b04" if role == "training" else "b15"
    for part in ("images", "labels"):
        suffix = "_0000" * (part == "images")
        shutil.copy(home / "site1" / f"{part}Tr" / f"b01{suffix}.nii.gz", site / f"{part}Ts" / f"{twin}{suffix}.nii.gz")
    if role == "training":
        outcome = command(train.main, *WORDS, f"data.root={site}", f"output={home}", "name=other")
        assert not (home / "other").exists()
    else:
        outcome = command(evaluate.main, f"run={home}/run", f"data.root={site}", f"output={home}/out", "data.name=new")
        assert not (home / "out" / "metrics.json").exists()
    outcome.complains(twin, "same voxels as b01 of site1", "leave one")


def test_a_stopped_evaluation_is_known_by_its_manifest(command, home, monkeypatch):
    """It lies there before the first slices do; a folder of slices alone is the user's."""
    words = [f"run={home}/run", f"output={home}/out"]

    def stop(*arguments, **options):
        assert "evaluated" in content("manifest.json", home / "out")
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(case_callbacks, "display_slices", stop)
        assert command(evaluate.main, *words).code == 130
    assert {path.name for path in (home / "out").iterdir()} - {".lock", "slices"} == {"manifest.json"}
    assert command(evaluate.main, *words).code == 0
    mine = home / "mine" / "slices" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.touch()
    command(evaluate.main, f"run={home}/run", f"output={home}/mine").complains("is not empty")
    assert mine.exists()


def test_weights_are_not_scored_on_what_they_were_trained_on_before(command, home):
    split(home / "site1", ["b03", "b00"], ["b02"], ["b01", "b04", "b05"])
    words = [*WORDS, f"data.root={home}/site1", f"output={home}", "name=next", "trainer.max_iterations=1"]
    weights = shutil.copy(home / "run" / "checkpoints" / "iteration-000030.ckpt", home / "copied.ckpt")
    words.append(f"weights={weights}")
    command(train.main, *words).complains("2 of the cases", "trained on, b02 ", "weights=")
    assert not (home / "next").exists()
    split(home / "site1", ["b03", "b00"], [], ["b04", "b05"])
    (home / "site1" / "labelsTr" / "b01.nii.gz").unlink()
    split(home / "site1", ["b00", "b02"], ["b03"], ["b04", "b05"])
    (home / "site1" / "imagesTr" / "b01_0000.nii.gz").unlink()
    outcome = command(train.main, *words)
    assert outcome.code == 0 and "unknown what" not in outcome.err
    own, noted = content("manifest.json", home / "next")["data"], read_checkpoint(weights)["dualseg"]["trained_on"]
    assert noted == [{key: content("manifest.json", home / "run")["data"][key] for key in noted[0]}]
    again = read_checkpoint(checkpoint_of(str(home / "next")))["dualseg"]["trained_on"]
    assert again == [{key: own[key] for key in noted[0]}, *noted]
    (before,) = content("manifest.json", home / "next")["started_from"]
    assert before["cases"]["labeled"] == TRAINED


def test_another_dataset_is_prepared_as_the_run_was_trained(command, home):
    """Its own median spacing is another one; the scores are those of the maps that dualseg-predict writes."""
    site = write_site(home / "site2", 10, thick=4)
    outcome = command(evaluate.main, f"run={home}/run", f"data.root={site}", f"output={home}/out")
    assert outcome.code == 0, outcome.err
    assert "spacing is (1.0, 1.0, 4.0)" in outcome.err
    assert content("manifest.json", home / "out")["data"]["dataset"] == "site2"
    assert command(predict.main, f"run={home}/run", f"input={site}/imagesTs", f"output={home}/maps").code == 0
    for case, dice in dice_of(home / "out").items():
        maps = (home / "maps" / "labels" / f"{case}.nii.gz", site / "labelsTs" / f"{case}.nii.gz")
        predicted, label = (np.asarray(nib.load(path).dataobj) == 1 for path in maps)
        assert scores(predicted, label).dice == pytest.approx(dice, abs=0.002)
        assert dice > 0.5


def test_a_median_that_changed_since_does_not_change_the_scores(command, home):
    own = home / "site1" / "dualseg-split.json"
    own.write_text(json.dumps({**json.loads(own.read_text()), "median_spacing": [1.0, 1.0, 3.0]}))
    assert command(evaluate.main, f"run={home}/run", f"output={home}/out").code == 0
    with (home / "run" / "cases.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    assert dice_of(home / "out") == {row["case"]: float(row["dice"]) for row in rows}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": {"background": 0, "box": 1}}, ["class_names", "background, box", "background, ball"]),
        ({"labels": {"background": 0, "ball": 1, "box": 2}}, ["class_names", "ball, box"]),
        ({"channel_names": {"0": "T1", "1": "T2"}}, ["channels", "2 (T1, T2)", "1 (MRI)"]),
    ],
)
def test_another_dataset_has_the_runs_classes_and_channels(command, home, change, words):
    site = write_site(home / "site2", 10, described={**ONE, **change})
    outcome = command(evaluate.main, f"run={home}/run", f"data.root={site}", f"output={home}/out")
    outcome.complains(*words, "was trained on")
    assert not (home / "out").exists()


@pytest.mark.parametrize("words", ["data.source.spacing=[1,1,2]", "data.source.intensity=null", "data.downsample=2"])
def test_the_preparation_is_not_changed_at_evaluation(command, home, words):
    before = sorted(home.rglob("*"))
    command(evaluate.main, f"run={home}/run", words).complains(words.partition("=")[0], "trained with", "leave it out")
    assert sorted(home.rglob("*")) == before
    same = ["data.source.spacing=median", "data.source.intensity=[zscore]", f"output={home}/out"]
    assert command(evaluate.main, f"run={home}/run", *same).code == 0


def test_runs_that_prepare_otherwise_are_no_ensemble(command, home):
    other = shutil.copytree(home / "run", home / "other")
    record = content("preprocessing.json", other)
    runs = (f"run={home}/run", f"run={other}", f"output={home}/both")
    (other / "preprocessing.json").write_text(json.dumps({**record, "intensity": ["zscore_nonzero"]}))
    command(evaluate.main, *runs).complains(other, "intensity=['zscore_nonzero']", "cannot be ensembled")
    (other / "preprocessing.json").write_text(json.dumps({**record, "spacing": None}))
    command(evaluate.main, *runs).complains(other, "spacing=None", "cannot be ensembled")
    (other / "preprocessing.json").write_text(json.dumps(record))
    assert command(evaluate.main, *runs).code == 0


def test_a_dataset_that_is_prepared_otherwise_by_now_does_not_go_on_with_a_run(command, home):
    (home / "run" / "metrics.json").unlink()
    described = home / "site1" / "dataset.json"
    described.write_text(json.dumps({**ONE, "labels": {"background": 0, "box": 1}}))
    words = [*WORDS, f"data.root={home}/site1", f"output={home}", "name=run"]
    command(train.main, *words).complains(home / "run", "class_names=['background', 'ball']", "now has", "box")


def test_a_run_folder_of_an_older_version_gives_the_same_scores_and_maps(command, home):
    """It lacks what has come since: keys of its configuration, the record of its cases and of its code."""
    words = [*WORDS, f"data.root={home}/site1", f"output={home}"]
    older = home / "older"
    shutil.copytree(home / "run", older)
    config, manifest = yaml.safe_load((older / "config.yaml").read_text()), content("manifest.json", older)
    for key in ("inference", "weights", "evaluate_on", "logger"):
        del config[key]
    for group, key in (("trainer", "channels_last"), ("trainer", "num_nodes"), ("data", "downsample")):
        del config[group][key]
    for key in ("cases", "images"):
        del manifest["data"][key]
    del manifest["started_from"], manifest["code"]
    (older / "config.yaml").write_text(yaml.safe_dump(config))
    (older / "manifest.json").write_text(json.dumps(manifest))

    for name in ("run", "older"):
        evaluated = command(evaluate.main, f"run={home}/{name}", f"output={home}/{name}-scores")
        assert evaluated.code == 0, evaluated.err
        scans = f"input={home}/site1/imagesTs"
        assert command(predict.main, f"run={home}/{name}", scans, f"output={home}/{name}-maps").code == 0
        shown = command(train.main, *words, f"name={name}")
        assert shown.code == 0 and shown.out.startswith("Finished"), shown
    assert (home / "run-scores" / "cases.csv").read_text() == (home / "older-scores" / "cases.csv").read_text()
    for path in sorted((home / "run-maps" / "labels").glob("*.nii.gz")):
        maps = [np.asarray(nib.load(home / f"{name}-maps" / "labels" / path.name).dataobj) for name in ("run", "older")]
        assert np.array_equal(*maps) and maps[0].any()

    (older / "metrics.json").unlink()  # as if it had been stopped in its evaluation
    outcome = command(train.main, *words, "name=older")
    assert outcome.code == 0 and outcome.out.startswith("Resuming"), outcome
    assert content("manifest.json", older)["data"]["cases"]["labeled"] == TRAINED
    assert content("metrics.json", older) == content("metrics.json", home / "run")


def test_a_run_is_of_the_code_that_it_was_started_with(command, home, monkeypatch):
    module = home / "own_method.py"
    module.write_text("from dualseg.methods import Supervised\n\n\nclass Mine(Supervised):\n    factor = 1\n")
    monkeypatch.syspath_prepend(home)
    monkeypatch.setitem(sys.modules, "own_method", None)  # after this test it is gone, for others of that name
    del sys.modules["own_method"]
    words = [*WORDS, f"data.root={home}/site1", f"output={home}", "name=own", "method._target_=own_method.Mine"]
    words += ["trainer.max_iterations=1", "evaluate_on=[]"]
    assert command(train.main, *words).code == 0
    noted = content("manifest.json", home / "own")["code"]
    assert noted == {"own_method": hashlib.sha256(module.read_bytes()).hexdigest()}
    assert command(train.main, *words).out.startswith("Finished")
    module.write_text(module.read_text().replace("factor = 1", "factor = 2"))
    command(train.main, *words).complains(home / "own", module, "changed since", "overwrite=true")
    assert command(train.main, *words, "overwrite=true").out.startswith("Training")
    assert content("manifest.json", home / "own")["code"] != noted
