"""Whatever a user gets wrong: one message that names the file or key and the fix, exit code 2, nothing left behind."""

import errno
import os
import pickle
import shutil
import subprocess
import sys

import h5py
import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir

import dualseg.methods.dual
from dualseg import audit, evaluate, export, predict, report, train
from dualseg.configuration import conf_dir
from dualseg.data.left_atrium import case_list
from dualseg.methods import DualNetwork
from dualseg.training import checkpoints
from dualseg.training.settings import resolve

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol 4", "ignore:.*not resumable")

SIDES_OF_16 = ["data.patch_size=[16,16,16]", "data.stride=[16,16,16]"]
LABELED, UNLABELED = case_list("train")[0], case_list("train")[5]


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def la_fails(command, tiny_la, small_la, runs):
    """Train on `small_la` with further words: must fail before anything is written."""

    def call(*words):
        outcome = command(train.main, *tiny_la(small_la, runs), *words)
        assert not runs.exists()
        return outcome

    return call


@pytest.fixture
def phantom_copy(phantom, tmp_path):
    return shutil.copytree(phantom.root, tmp_path / "phantom")


@pytest.fixture
def phantom_fails(command, tiny, phantom_copy, runs):
    def call(*words):
        outcome = command(train.main, *tiny(phantom_copy, runs), *words)
        assert not runs.exists()
        return outcome

    return call


# --- the data


def test_data_root_missing(la_fails, tmp_path):
    la_fails(f"data.root={tmp_path}/none").complains(f"data.root={tmp_path}/none", "no such folder", "mri_norm2.h5")


def test_data_root_not_given(command, runs):
    command(train.main, "data=la", f"output={runs}").complains("data.root", "required", "give data.root=...")
    assert not runs.exists()


@pytest.mark.parametrize("case", [LABELED, UNLABELED])
def test_a_listed_case_is_missing(la_fails, small_la, case):
    shutil.rmtree(small_la / case)
    la_fails().complains(small_la / case / "mri_norm2.h5", f"missing, but {case} ", "data.root")


@pytest.mark.parametrize("case", [LABELED, UNLABELED])
def test_an_h5_file_is_truncated(la_fails, small_la, case):
    path = small_la / case / "mri_norm2.h5"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    la_fails().complains(path, "cannot be read", "Copy or unpack it again")


@pytest.mark.parametrize("kind, case", [("images", 0), ("labels", 0), ("images", 5)])
def test_a_nifti_file_is_truncated(phantom_fails, phantom_copy, kind, case):
    path = phantom_copy / kind / f"phantom_00{case}.nii.gz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    phantom_fails().complains(path, "cannot be read as NIfTI", "copy or convert")


def test_a_file_is_something_else(phantom_fails, phantom_copy):
    path = phantom_copy / "images" / "phantom_003.nii.gz"
    path.write_text("hello")
    phantom_fails().complains(path, "cannot be read as NIfTI")


@pytest.mark.parametrize("key, case", [("image", LABELED), ("label", LABELED), ("image", UNLABELED)])
def test_a_key_is_missing(la_fails, small_la, key, case):
    path = small_la / case / "mri_norm2.h5"
    with h5py.File(path, "a") as h5:
        del h5[key]
    la_fails().complains(path, f"no dataset '{key}'", "Write the file again")


def change(path, key, function):
    with h5py.File(path, "a") as h5:
        array = function(h5[key][()])
        del h5[key]
        h5[key] = array


def test_image_and_label_of_different_shape(la_fails, small_la):
    path = small_la / LABELED / "mri_norm2.h5"
    change(path, "label", lambda label: label[1:])
    la_fails().complains(path, "label has shape (35, 34, 32), ", "image (36, 34, 32)", "same grid")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("case", [LABELED, UNLABELED])
def test_an_image_is_not_finite(la_fails, small_la, value, case):
    path = small_la / case / "mri_norm2.h5"
    change(path, "image", lambda image: np.where(np.arange(image.size).reshape(image.shape) < 2, value, image))
    la_fails().complains(path, "image holds 2 NaN", "repair the file")


@pytest.mark.parametrize("value", [2, 255])
def test_label_values_outside_the_classes(la_fails, small_la, value):
    path = small_la / LABELED / "mri_norm2.h5"
    change(path, "label", lambda label: label * np.uint8(value))
    la_fails().complains(path, f"label holds the values 0, {value}", "expected whole numbers 0..1")


def test_nifti_label_values_outside_the_classes(phantom_fails, phantom_copy):
    path = phantom_copy / "labels" / "phantom_001.nii.gz"
    label = nib.load(path)
    nib.save(nib.Nifti1Image(3 * np.asarray(label.dataobj), label.affine), path)
    phantom_fails().complains(path, "must be 0 or 1")


@pytest.mark.parametrize(
    "split, words",
    [
        ("validation", ["data.held_out_validation=1", "evaluate_on=[validation]"]),
        ("validation", ["data.held_out_validation=1", "trainer.validate_every=1"]),
        ("test", ["evaluate_on=[test]"]),
    ],
)
def test_a_bad_evaluation_volume_is_found_before_the_run(phantom_fails, phantom_copy, split, words):
    case = {"validation": 5, "test": 7}[split]
    path = phantom_copy / "labels" / f"phantom_00{case}.nii.gz"
    path.write_bytes(path.read_bytes()[:500])
    phantom_fails(*words).complains(path, "cannot be read as NIfTI")


# --- the configuration


@pytest.mark.parametrize(
    "words, parts",
    [
        (["data.patch_size=[32,32,33]"], ["data.patch_size=[32, 32, 33]", "multiples of 16", "[32, 32, 32]"]),
        (["data.patch_size=32"], ["data.patch_size=32", "three whole numbers"]),
        (["data.stride=[16,16,48]"], ["data.stride=[16, 16, 48]", "at most data.patch_size"]),
        (["data.labeled=0"], ["data.labeled=0", "at least 1"]),
        (["data.labeled=7"], ["data.labeled=7", "give between 1 and 6"]),
        (["data.labeled=two"], ["data.labeled=two", "whole number"]),
        (
            ["data.labeled=null", "data.labeled_ratio=0.01"],
            ["data.labeled_ratio=0.01", "leaves 0 labeled volumes of 6"],
        ),
        (["data.labeled_ratio=0.5"], ["data.labeled and data.labeled_ratio", "keep one"]),
        (["data.labeled=6"], ["data.labeled=6", "no unlabeled volume", "or train on labels alone: method=supervised"]),
        (["data.held_out_test=6"], ["data.held_out_test=6", "give 0 to 5"]),
        (["data.downsample=0.5"], ["data.downsample=0.5: give a number of at least 1"]),
        (["data.labelled=4"], ["data.labelled", "Did you mean data.labeled?"]),
        (["trainer.max_iteration=4"], ["trainer.max_iteration", "Did you mean trainer.max_iterations?"]),
        (["method.terms.cosin.weight=2"], ["method.terms.cosin", "Did you mean method.terms.cosine"]),
        (["sead=4"], ["sead", "Did you mean seed?"]),
        (["augmentation=null"], ["augmentation=null", "choose from flip_rotate, none, strong"]),
        (["networks=planned", "networks.a.blocks=[1]"], ["networks.a.blocks: has 1 stages"]),
        (["method=duel"], ["method=duel", "Did you mean dual?"]),
        (["networks=resnet34_vnett"], ["networks=resnet34_vnett", "Did you mean resnet34_vnet?"]),
        (["experiment=la_papr"], ["experiment=la_papr", "Did you mean la_paper?"]),
        (["trainer.max_iterations=0"], ["trainer.max_iterations=0", "at least 1"]),
        (["trainer.max_iterations=2.5"], ["trainer.max_iterations=2.5", "whole number"]),
        (["trainer.precision=bf16-mixed"], ["trainer.precision=bf16-mixed", "on a GPU only", "leave it at 32-true"]),
        (["trainer.precision=fp8"], ["trainer.precision=fp8", "bf16-mixed"]),
        (["objective=publish"], ["objective=publish", "described, released"]),
        (["optimizer.lr=fast"], ["optimizer.lr=fast: give a number of at least 0"]),
        (["evaluate_on=[training]"], ["evaluate_on", "training", "validation and test"]),
        (["networks=vnet"], ["networks: DualNetwork takes a and b, not ['a']; choose another networks=..."]),
        (["method=dual_gentle", "networks=vnet"], ["networks: DualNetwork takes a and b", "choose another"]),
        (
            ["method=supervised", "+network@networks.c=vnet"],
            ["networks: Supervised takes a, not ['a', 'c']", "choose"],
        ),
        (["batch.labeled=0"], ["batch.labeled=0: leaves no patch for supervised_ce"]),
        (["seed=-1"], ["seed=-1: give a whole number of at least 0"]),
        (["seed=4294967296"], ["seed=4294967296: give a whole number of at most 4294967295"]),
        (
            ["base_channels=99999999999999999999"],
            ["base_channels=99999999999999999999", "at most 2147483647"],
        ),
        (["optimizer.lr=1e308"], ["optimizer.lr=1e+308: give a number of at most 3.4e+38"]),
        (["optimizer.weight_decay=1e39"], ["optimizer.weight_decay=1e+39: give a number of at most 3.4e+38"]),
        (
            ["data.patch_size=[4096,4096,4096]"],
            ["data.patch_size=[4096, 4096, 4096]: a batch of 4 patches takes 1.12 TiB", "give a smaller one"],
        ),
        (
            ["method=supervised", "networks=vnet", "batch.labeled=1", *SIDES_OF_16],
            ["networks.a: VNet does not take data.patch_size=[16, 16, 16] (1 in a batch)"],
        ),
        (
            ["data.patch_size=[32,32"],
            ["data.patch_size=[32,32: cannot be read; write key=value, a list as key=[1,2,3]"],
        ),
        (["method"], ["method: cannot be read; write key=value"]),
        (["optimizer.lr=nan"], ["optimizer.lr=nan: give a number of at least 0"]),
        (["optimizer.momentum=x"], ["optimizer.momentum=x: give a number from 0 to 1"]),
        (["optimizer.weight_decay=x"], ["optimizer.weight_decay=x: give a number of at least 0"]),
        (["lr_schedule.factor=x"], ["lr_schedule.factor=x: give a number of at least 0"]),
        (["lr_schedule=polynomial", "lr_schedule.power=x"], ["lr_schedule.power=x: give a number of at least 0"]),
        (["dropout=2"], ["dropout=2: give a number from 0 to 1"]),
        (["method.terms.contrast=false"], ["method.terms.contrast=False: write method.terms.contrast.enabled=false"]),
        ([f"method.terms.{t}.enabled=false" for t in DualNetwork.TERMS], ["method.terms: every term is off"]),
        (["method.terms.cosine.weight=abc"], ["method.terms.cosine.weight=abc: give a number of at least 0"]),
        (["method.terms.cosine.weight=-1"], ["method.terms.cosine.weight=-1: give a number of at least 0"]),
        (["method.keep_fraction=1.5"], ["method.keep_fraction=1.5: give a number from 0 to 1"]),
        (["method.prototype_momentum=-0.1"], ["method.prototype_momentum=-0.1: give a number from 0 to 1"]),
        (["method.confidence=60"], ["method.confidence=60: give a number from 0 to 1"]),
        (["method.temperature=0"], ["method.temperature=0: give a number above 0."]),
        (["method.temperature=x"], ["method.temperature=x: give a number above 0."]),
        (["method.margin=-1"], ["method.margin=-1: give a number of at least 0"]),
        (["method.gradient_clip_norm=0"], ["method.gradient_clip_norm=0: give a number above 0, or null for no limit"]),
        (["augmentation.intensity=weak"], ["augmentation.intensity=weak: choose from strong"]),
        (["augmentation.mix=maybe"], ["augmentation.mix=maybe: give true or false"]),
        (["augmentation.mix=true", "batch.labeled=1"], ["batch.labeled=1: augmentation.mix=true", "give at least 2"]),
        (
            ["augmentation=strong", "data.augmentation.mirror_axes=[3]"],
            ["data.augmentation.mirror_axes=[3]: give auto"],
        ),
        (["augmentation=strng"], ["augmentation=strng", "Did you mean strong?"]),
        (["data.foreground=2"], ["data.foreground=2: give a number from 0 to 1"]),
        (["trainer.devices=0"], ["trainer.devices=0: give a number of at least 1, -1 or auto", "[0,1]"]),
        (["trainer.devices=[]"], ["trainer.devices=[]: give a number of at least 1"]),
        (["trainer.devices=two"], ["trainer.devices=two: give a number of at least 1"]),
    ],
)
def test_a_mistake_in_the_configuration(command, tiny, phantom, runs, words, parts):
    command(train.main, *tiny(phantom.root, runs), *words).complains(*parts)
    assert not runs.exists()


@pytest.mark.parametrize("value", ["auto", "-1", "2", "[0,1]"])
def test_devices_as_lightning_takes_them(value):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        resolve(compose("train", [f"trainer.devices={value}"]))


@pytest.mark.parametrize("main", [train.main, audit.main])
@pytest.mark.parametrize(
    "words",
    [
        pytest.param(
            ["trainer.accelerator=gpu"], marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
        ),
        ["trainer.accelerator=tpu"],
        ["trainer.accelerator=abacus"],
    ],
)
def test_a_device_that_is_not_there(command, tiny, phantom, runs, main, words):
    outcome = command(main, *tiny(phantom.root, runs), *words)
    outcome.complains("trainer.accelerator", "trainer.devices", "trainer.strategy", "trainer.precision", "auto")
    assert not runs.exists()


@pytest.mark.parametrize("words", [["trainer.devices=[0]"], ["trainer.strategy=abacus"]])
def test_devices_and_strategies_that_do_not_fit(command, tiny, phantom, runs, words):
    command(train.main, *tiny(phantom.root, runs), *words).complains("cannot be set up", "trainer.devices")
    assert not runs.exists()


@pytest.mark.parametrize(
    "key",
    ["data.foo", "data.seed", "data.source.foo", "method.foo", "networks.b.foo", "optimizer.foo", "lr_schedule.foo"],
)
def test_a_key_that_was_forced_in_with_a_plus(command, tiny, phantom, runs, key):
    command(train.main, *tiny(phantom.root, runs), f"+{key}=1").complains(f"{key}: no such", "key; leave it out")
    assert not runs.exists()


@pytest.mark.parametrize("key", ["foo", "trainer.max_iteration", "batch.foo", "inference.foo"])
def test_a_forced_key_that_nothing_reads(command, tiny, phantom, runs, key):
    """Nothing is instantiated from these: the key would make another run folder of the same run."""
    command(train.main, *tiny(phantom.root, runs), f"+{key}=1").complains(f"{key}: no such", "nothing reads it")
    assert not runs.exists()


def test_a_key_of_ones_own_is_read_by_interpolation():
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        words = ["+width=4", "base_channels=${width}", "+trainer.length=5", "trainer.max_iterations=${trainer.length}"]
        settings = resolve(compose("train", words))
    assert (settings["base_channels"], settings["trainer"]["max_iterations"]) == (4, 5)


def test_the_audit_answers_mistakes_in_the_same_way(command, tiny, tiny_la, small_la, phantom, runs):
    command(audit.main, *tiny(phantom.root, runs), "data.labelled=4").complains("Did you mean data.labeled?")
    shutil.rmtree(small_la / UNLABELED)
    command(audit.main, *tiny_la(small_la, runs)).complains(small_la / UNLABELED, "missing")
    assert not runs.exists()


# --- the output folder


def test_the_output_lies_below_a_file(phantom_fails, tmp_path):
    (tmp_path / "file").write_text("a file")
    outcome = phantom_fails(f"output={tmp_path}/file/sub")
    outcome.complains(f"output={tmp_path}/file/sub", "not writable", "choose another with output=DIR")
    assert (tmp_path / "file").read_text() == "a file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_the_output_may_not_be_written(phantom_fails, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    phantom_fails(f"output={locked}/sub").complains("not writable", "output=DIR")


# --- runs that exist


@pytest.fixture(scope="module")
def trained(phantom, tmp_path_factory):
    """A finished run of two small networks; its name is `done`."""
    output = tmp_path_factory.mktemp("runs")
    words = [
        *(f"data.root={phantom.root}", "+data.source.train=6", "+data.source.test=2"),
        *("+data.source.shape=[40,36,32]", "data.patch_size=[16,16,16]", "data.stride=[16,16,16]", "data.labeled=2"),
        *("base_channels=2", "trainer.max_iterations=2", "trainer.accelerator=cpu", "trainer.threads=1"),
        *("trainer.progress_bar=false", "evaluate_on=[]", f"output={output}", "name=done"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["dualseg-train", *words])
        train.main()
    return output / "done"


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the finished run to do harm to."""
    return shutil.copytree(trained, tmp_path / "runs" / "done")


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_run_name_is_taken_by_another_configuration(command, tiny, phantom, run):
    before = content(run)
    words = [*tiny(phantom.root, run.parent), "name=done"]
    outcome = command(train.main, *words, "optimizer.lr=0.02")
    outcome.complains(run, "another configuration", "optimizer.lr: 0.01 there, 0.02 now", "name=... or overwrite=true")
    assert content(run) == before


def test_a_finished_run_is_not_shown_for_other_data(command, tiny, phantom, run, tmp_path):
    before = content(run)
    words = [*tiny(phantom.root, run.parent), "name=done"]
    assert command(train.main, *words).code == 0
    other = tmp_path / "none"
    outcome = command(train.main, *words, f"data.root={other}")
    outcome.complains(run, f"data.root={phantom.root}", other, "name=...", "overwrite=true")
    assert content(run) == before and not other.exists()


def test_weights_of_another_architecture(command, tiny, phantom, run, tmp_path):
    file = run / "checkpoints" / "iteration-000002.ckpt"
    words = [*tiny(phantom.root, tmp_path / "new"), f"weights={file}"]
    wider = command(train.main, *words, "base_channels=8")
    wider.complains(file, "another architecture", "network a", "(2,", "(8,", "networks=... and widths")
    other = command(train.main, *words, "networks=vnet_vnet")
    other.complains(file, "another architecture", "network a", "absent")
    single = command(train.main, *words, "method=supervised")
    single.complains(file, "networks ['a', 'b'], ", "configuration ['a']")
    assert not (tmp_path / "new").exists()


def rewrite(file, function):
    content = torch.load(file, weights_only=True)
    function(content)
    torch.save(content, file)


def test_a_checkpoint_from_a_newer_version(command, tiny, phantom, run, tmp_path):
    file = run / "checkpoints" / "iteration-000002.ckpt"
    rewrite(file, lambda saved: saved["dualseg"].update(format=99, version="7.0"))
    words = tiny(phantom.root, tmp_path / "new")
    command(train.main, *words, f"weights={file}").complains(file, "dualseg 7.0, newer than this", "update dualseg")
    assert not (tmp_path / "new").exists()
    evaluated = command(evaluate.main, f"run={run}")
    evaluated.complains(file, "newer than this")
    assert not (run / "evaluations").exists()


def test_a_checkpoint_that_dualseg_did_not_write(command, tiny, phantom, tmp_path):
    file = tmp_path / "other.ckpt"
    torch.save({"state_dict": {}}, file)
    words = [*tiny(phantom.root, tmp_path / "new"), f"weights={file}"]
    command(train.main, *words).complains(file, "not written by dualseg", "iteration-NNNNNN.ckpt")
    torch.save({"dualseg": {"format": 1, "averages": {}}, "state_dict": {}}, file)
    command(train.main, *words, f"weights={file}").complains(file, "state_dict holds no networks")
    command(train.main, *words, f"weights={tmp_path}/none.ckpt").complains(
        f"{tmp_path}/none.ckpt", "no such checkpoint"
    )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_checkpoint_with_weights_that_are_not_finite(command, tiny, phantom, run, tmp_path, value):
    file = run / "checkpoints" / "iteration-000002.ckpt"

    def spoil(saved):
        key = next(key for key in saved["state_dict"] if key.startswith("networks.b."))
        saved["state_dict"][key].view(-1)[0] = value
        return key

    rewrite(file, spoil)
    (run / "metrics.json").unlink()
    before = content(run)
    scan = next((phantom.root / "images").glob("*.nii.gz"))
    out = tmp_path / "out"
    for main, *words in (
        (train.main, *tiny(phantom.root, run.parent), "name=done"),
        (train.main, *tiny(phantom.root, tmp_path / "new"), f"weights={file}"),
        (evaluate.main, f"run={run}"),
        (predict.main, f"run={run}", f"input={scan}", f"output={out}"),
        (export.main, f"run={run}", "format=bundle", f"output={out}"),
    ):
        command(main, *words).complains(file, "not finite", "networks.b.")
        assert content(run) == before
        assert not (tmp_path / "new").exists() and not out.exists()


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_checkpoint_with_code_in_it_is_refused_and_not_run(command, tiny, phantom, run, tmp_path, how):
    bomb, crater = tmp_path / "bomb.ckpt", tmp_path / "crater"
    payload = {**torch.load(run / "checkpoints" / "iteration-000002.ckpt", weights_only=True), "more": Bomb(crater)}
    if how == "torch":
        torch.save(payload, bomb)
    else:
        bomb.write_bytes(pickle.dumps(payload))
    words = tiny(phantom.root, tmp_path / "new")
    message = command(train.main, *words, f"weights={bomb}").complains(bomb, "could run code", "iteration-NNNNNN.ckpt")
    assert "weights_only" not in message, "torch advises to load the file unsafely: that must not reach the user"
    assert not crater.exists() and not (tmp_path / "new").exists()
    shutil.copy(bomb, run / "checkpoints" / "iteration-000009.ckpt")  # as if a run folder had come from elsewhere
    command(evaluate.main, f"run={run}").complains("iteration-000009.ckpt", "could run code")
    assert not crater.exists()
    with pytest.raises(Exception, match="File exists"):  # the bomb is live: a plain load would have run it
        crater.mkdir()
        torch.load(bomb, weights_only=False)


@pytest.mark.parametrize("length", [0, 1000, -1000])
def test_a_damaged_checkpoint_on_resuming(command, tiny, phantom, run, length):
    file = run / "checkpoints" / "iteration-000002.ckpt"
    file.write_bytes(file.read_bytes()[:length])
    (run / "metrics.json").unlink()
    before = content(run)
    outcome = command(train.main, *tiny(phantom.root, run.parent), "name=done")
    outcome.complains(file)
    assert content(run) == before


@pytest.mark.parametrize(
    "main, words, parts",
    [
        (evaluate.main, ["run=none"], ["none: no run folder", "dualseg-train"]),
        (evaluate.main, ["none"], ["none: write key=value", "run=none"]),
        (evaluate.main, ["split=test"], ["run=RUN_FOLDER is required"]),
        (evaluate.main, ["run=RUN", "split=train"], ["split=train", "test or validation"]),
        (evaluate.main, ["run=RUN", "data.rot=x"], ["data.rot", "Did you mean data.root?"]),
        (evaluate.main, ["run=RUN", "data.stride=[99,1,1]"], ["data.stride=[99, 1, 1]"]),
        (evaluate.main, ["run=RUN", "split=validation"], ["split=validation", "data.held_out_validation=N"]),
        (report.main, ["run", "none"], ["none: no run folder", "config.yaml"]),
    ],
)
def test_mistakes_of_the_commands_on_run_folders(command, trained, main, words, parts):
    before = content(trained)
    command(main, *(word.replace("RUN", str(trained)) for word in words)).complains(*parts)
    assert content(trained) == before


def test_an_evaluation_is_never_written_over_another(command, trained, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "metrics.json").write_text("{}")
    command(evaluate.main, f"run={trained}", f"output={tmp_path}/old").complains("not empty", "never written over")
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["metrics.json"]


# --- what goes wrong along a run


def only_run(runs):
    (run,) = runs.iterdir()
    assert not [path for path in run.rglob("*") if ".tmp." in path.name], "temporary files are left"
    assert not (run / "metrics.json").exists(), "the run must not count as finished"
    return run


def saved_iterations(run):
    return sorted(int(path.stem.rpartition("-")[2]) for path in (run / "checkpoints").iterdir())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of ..."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to"),
        MemoryError(),
    ],
)
def test_out_of_memory(command, tiny, phantom, runs, monkeypatch, error):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(dualseg.methods.dual, "cross_pseudo", fail)
    outcome = command(train.main, *tiny(phantom.root, runs))
    outcome.complains("out of memory", "data.patch_size", "batch.labeled", "base_channels", "data.downsample")
    assert not runs.exists(), "a run that failed in its first iteration leaves nothing"


def test_other_runtime_errors_are_not_hidden(command, tiny, phantom, runs, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("a bug")

    monkeypatch.setattr(dualseg.methods.dual, "cross_pseudo", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        command(train.main, *tiny(phantom.root, runs))
    assert not runs.exists()


def test_a_folder_that_was_there_before_a_failure_stays(command, tiny, phantom, run, monkeypatch):
    (run / "checkpoints" / "iteration-000002.ckpt").unlink()  # as if it had been killed before its first checkpoint
    (run / "metrics.json").unlink()
    (run / "logs" / "curves.csv").unlink()
    monkeypatch.setattr(dualseg.methods.dual, "cross_pseudo", None)
    with pytest.raises(TypeError):
        command(train.main, *tiny(phantom.root, run.parent), "name=done")
    assert (run / "manifest.json").is_file()


def refuse(content, path):
    """torch.save that hits the end of the disk: some bytes are written, then the system refuses."""
    with path.open("wb") as target:
        target.write(b"0" * 10_000)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@pytest.mark.parametrize("how", ["ENOSPC", "kernel"])
def test_the_disk_is_full_while_a_checkpoint_is_written(
    command, tiny, phantom, runs, monkeypatch, files_of_at_most, how
):
    real = torch.save

    def limited(content, path):
        with files_of_at_most(100_000):
            real(content, path)

    failing = refuse if how == "ENOSPC" else limited
    calls = []

    def save(content, path):
        calls.append(path)
        return (real if len(calls) < 3 else failing)(content, path)

    words = [*tiny(phantom.root, runs), "trainer.max_iterations=4", "trainer.checkpoint_every=1"]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.torch, "save", save)
        outcome = command(train.main, *words)
    outcome.complains("iteration-000003.ckpt", "disk full?", "Earlier checkpoints are good", "free space")
    run = only_run(runs)
    assert saved_iterations(run) == [2]
    checkpoints.read_checkpoint(run / "checkpoints" / "iteration-000002.ckpt")
    # with space again the same command goes on from there
    assert command(train.main, *words).code == 0
    assert saved_iterations(run) == [4]


def test_the_disk_is_full_while_curves_are_written(command, tiny, phantom, runs, monkeypatch):
    from dualseg.training.curves import CurveLogger

    def fail(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(CurveLogger, "log_metrics", fail)
    command(train.main, *tiny(phantom.root, runs)).complains("No space left", "Free space", "resumes")
    assert not runs.exists()


@pytest.mark.parametrize("how", ["renamed", "replaced", "deleted"])
def test_the_run_folder_is_moved_while_it_trains(command, tiny, phantom, runs, monkeypatch, how):
    real = DualNetwork.training_step

    def step(self, batch, index):
        run = runs / "one"
        if self.trainer.global_step == 2 and how == "deleted":
            shutil.rmtree(run)
        elif self.trainer.global_step == 2:
            run.rename(runs / "other")
            if how == "replaced":
                run.write_text("")
        real(self, batch, index)

    words = [*tiny(phantom.root, runs), "name=one", "trainer.max_iterations=4", "trainer.checkpoint_every=1"]
    with monkeypatch.context() as patch:
        patch.setattr(DualNetwork, "training_step", step)
        command(train.main, *words).complains(runs / "one", "moved or deleted", "Move it back")
    if how == "renamed":
        assert not (runs / "one").exists() and saved_iterations(runs / "other") == [2]
        (runs / "other").rename(runs / "one")
        assert command(train.main, *words).code == 0
        assert saved_iterations(runs / "one") == [4]


def test_a_loss_that_is_not_finite(command, tiny, phantom, runs, monkeypatch):
    real = dualseg.methods.base.supervised_ce
    calls = []

    def poisoned(log_p, label):
        calls.append(None)
        # two networks a call each: the fifth call is network a's in iteration 2
        return real(log_p, label) * (float("nan") if len(calls) == 5 else 1.0)

    monkeypatch.setattr(dualseg.methods.base, "supervised_ce", poisoned)
    words = [*tiny(phantom.root, runs), "trainer.max_iterations=4", "trainer.checkpoint_every=1"]
    outcome = command(train.main, *words)
    message = outcome.complains("loss not finite", "iteration 2: ", "a/supervised_ce", "Lower optimizer.lr")
    assert "b/supervised_ce" not in message
    assert message.count("phantom_00") == 4, "the cases of the batch are named"
    run = only_run(runs)
    assert saved_iterations(run) == [2]
    state = checkpoints.read_checkpoint(run / "checkpoints" / "iteration-000002.ckpt")["state_dict"]
    assert all(value.isfinite().all() for value in state.values())


def test_weights_that_are_not_finite_do_not_push_out_the_last_good_checkpoint(
    command, tiny, phantom, runs, monkeypatch
):
    """A step can overflow on a finite loss; the loss shows it an iteration later, when a checkpoint may be due."""
    real, steps = torch.optim.SGD.step, []

    def overflow(self, *arguments, **options):
        result = real(self, *arguments, **options)
        steps.append(None)
        if len(steps) == 2:
            self.param_groups[0]["params"][0].data.fill_(float("inf"))
        return result

    monkeypatch.setattr(torch.optim.SGD, "step", overflow)
    words = [*tiny(phantom.root, runs), "trainer.max_iterations=4", "trainer.checkpoint_every=1"]
    outcome = command(train.main, *words)
    outcome.complains("weights not finite", "iteration 2: ", "networks.a.", "checkpoint is kept")
    assert saved_iterations(only_run(runs)) == [1]


# --- as a user sees it: the console script in a process of its own


def test_the_console_script_answers_in_the_same_way(tiny_la, small_la, runs, tmp_path):
    path = small_la / LABELED / "mri_norm2.h5"
    path.write_bytes(path.read_bytes()[:3000])
    ended = subprocess.run(
        [sys.executable, "-m", "dualseg.train", *tiny_la(small_la, runs)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 2
    assert "Traceback" not in ended.stdout + ended.stderr
    message = ended.stderr.splitlines()[-1]
    assert message.startswith(f"error: {path}: cannot be read")
    assert {path.name for path in tmp_path.iterdir()} == {"la"}, "nothing is left in the working directory"


def test_configurations_of_runs_are_plain_yaml(trained):
    """So that a run folder from elsewhere executes nothing when it is read."""
    assert "!!" not in (trained / "config.yaml").read_text()
    assert yaml.safe_load((trained / "config.yaml").read_text())["base_channels"] == 2


# likewise a batch: tests/integration/test_ddp.py
def test_volumes_that_processes_cannot_share_are_said_before_the_run(tiny, phantom, runs):
    part = "trainer.devices: 2 processes for 1 volumes to evaluate; use fewer"
    own = ["trainer.devices=2", "trainer.strategy=ddp", "evaluate_on=[test]", "data.held_out_test=1"]
    words = [*tiny(phantom.root, runs), *own]
    ended = subprocess.run(
        [sys.executable, "-m", "dualseg.train", *words], capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("error: ") == ended.stderr.count(part) == 1, ended.stderr
    assert not runs.exists()
