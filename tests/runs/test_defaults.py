"""Run folders of other versions: a key that they lack has its default, and their name and identity stay."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir

from dualseg.configuration import conf_dir
from dualseg.errors import DualsegError
from dualseg.files import write_json
from dualseg.runs import identity as run_identity
from dualseg.runs.claim import check_claim
from dualseg.runs.defaults import with_defaults
from dualseg.runs.folder import RunFolder
from dualseg.runs.identity import ADDED, flatten, identity, run_name
from dualseg.training.settings import resolve

# what no default can stand for: it says which default it is, or there is none
TELLS_WHICH = ("data.name", "method.name", "networks.a.architecture", "networks.b.architecture")

TERMS = (
    *("contrast", "cosine", "cross_pseudo", "entropy_filtered", "rectification", "supervised_ce", "supervised_dice"),
    "uncertainty",
)
# Keys of the identity of every method's default configuration; a new one belongs into ADDED instead
KEYS_OF_NAMES = {
    "": "base_channels dropout evaluate_on objective seed weights",
    "batch.": "labeled unlabeled",
    "data.": "augmentation downsample held_out_test held_out_validation labeled labeled_ratio name patch_size stride "
    "source._target_",
    "inference.": "batch_size distance_unit",
    "lr_schedule.": "_target_ factor milestones",
    "method.": "_target_ confidence contrast fusion gradient_clip_norm keep_fraction margin name objective "
    "prototype_momentum rampup_iterations temperature",
    "method.terms.": " ".join(f"{term}.{key}" for term in TERMS for key in ("enabled", "weight")),
    "networks.a.": "_target_ architecture base_channels dropout",
    "networks.b.": "_target_ architecture base_channels dropout",
    "optimizer.": "_partial_ _target_ lr momentum weight_decay",
    "trainer.": "channels_last devices max_iterations num_nodes precision strategy sync_batchnorm threads "
    "validate_every",
}


def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return resolve(compose("train", overrides=["data.root=/data", *overrides]))


def without(config: dict[str, Any], key: str) -> dict[str, Any]:
    config = copy.deepcopy(config)
    *parents, last = key.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    del node[last]
    return config


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("data=folder", "recipe=none", "method=supervised"),
        ("method=mean_teacher", "+term=[erda,guided_contrast]"),
        ("+term=erda",),
        ("data=brats", "method=dual_gentle", "networks=segresnet_vnet", "lr_schedule=polynomial"),
    ],
)
def test_each_key_that_is_missing_has_the_default_of_its_group(overrides):
    config = composed(*overrides)
    assert with_defaults(config) == config
    for key in flatten(config):
        if key not in TELLS_WHICH and not key.endswith("_target_"):
            expected = {k: v for k, v in identity(config).items() if k != key or k not in ADDED}
            assert identity(with_defaults(without(config, key))) == expected, key
    for key in ("inference", "trainer", "optimizer"):
        expected = {} if key == "optimizer" else config[key]
        assert with_defaults({k: v for k, v in config.items() if k != key}).get(key, {}) == expected


def test_defaults_take_the_place_of_nothing_that_is_there():
    config = composed("base_channels=4", "dropout=0.2", "inference.batch_size=9", "method.terms.cosine.weight=2")
    assert with_defaults(config) == config
    older = without(without(config, "networks.a.dropout"), "method.confidence")
    assert with_defaults(older) == config, "${dropout} is that of the run"
    own = {"method": {"name": "mine", "_target_": "mine.Method"}, "optimizer": {"_target_": "torch.optim.Adam"}}
    filled = with_defaults(own)
    assert (filled["method"], filled["optimizer"]) == (own["method"], own["optimizer"])
    assert with_defaults({"data": None, "networks": ["a"]})["data"] is None


@pytest.fixture
def older(tmp_path: Path) -> tuple[RunFolder, dict[str, Any]]:
    """A run folder whose config.yaml lacks keys that today's configuration has."""
    config = composed(f"output={tmp_path}")
    run = RunFolder.of(config)
    run.open(config)
    write_json(run.manifest_file, {"dualseg": "0", "data": {}})
    (run.checkpoints / "iteration-000002.ckpt").touch()
    stored = config
    for key in ("trainer.channels_last", "weights", "inference", "method.temperature", "data.downsample"):
        stored = without(stored, key)
    run.config_file.write_text(yaml.safe_dump(stored))
    return run, config


def test_an_older_run_is_resumed_under_the_defaults(older):
    run, config = older
    assert run.config() == config
    check_claim(run, config)
    run.open(config)
    assert yaml.safe_load(run.config_file.read_text()) == config, "from now on it says them"


def test_an_older_run_is_none_of_another_value(older):
    run, config = older
    config["inference"]["distance_unit"] = "mm"
    with pytest.raises(DualsegError, match=r"inference\.distance_unit: voxel .*mm .*1 keys"):
        check_claim(run, config)


def test_what_an_option_gives_a_newer_key_is_no_default_of_older_runs():
    """They were trained without it: a third of the patches around the foreground makes another run."""
    config = composed("data=folder", "recipe=none", "method=supervised")
    older = without(without(config, "data.foreground"), "augmentation")
    assert config["data"]["foreground"] == 0.33
    filled = with_defaults(older)
    assert filled["data"]["foreground"] == 0 and filled["augmentation"] == {"intensity": None, "mix": False}
    assert run_name(older) == run_name(composed("data=folder", "recipe=none", "method=supervised", "data.foreground=0"))


def test_a_key_that_is_left_out_on_purpose_is_no_default(older):
    """~optimizer.lr: torch has another one."""
    run, config = older
    with pytest.raises(DualsegError, match=r"optimizer\.lr: 0\.01 there, absent now"):
        check_claim(run, without(config, "optimizer.lr"))
    run.config_file.write_text(yaml.safe_dump(without(config, "optimizer.lr")))
    check_claim(run, without(config, "optimizer.lr"))


def test_a_key_of_a_newer_version_changes_no_name_where_it_has_its_default(older, monkeypatch):
    run, config = older
    added = {**run_identity.ADDED, "trainer.invented": False, "networks.*.norm": "batch"}
    monkeypatch.setattr(run_identity, "ADDED", added)
    newer = copy.deepcopy(config)
    newer["trainer"]["invented"] = False
    newer["networks"]["a"]["norm"] = newer["networks"]["b"]["norm"] = "batch"
    assert run_name(newer) == run_name(config)
    check_claim(RunFolder.of(newer), newer)
    assert RunFolder.of(newer).path == run.path
    for key, value in (("invented", True), ("new", False)):
        assert run_name({**newer, "trainer": {**newer["trainer"], key: value}}) != run_name(config)
    newer["networks"]["b"]["norm"] = "group"
    assert run_name(newer) != run_name(config)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ((), "phantom-dual-described-resnet34-vnet-4labels-seed0-d87a1c1e"),
        (("data=la",), "la-dual-described-resnet34-vnet-alllabels-seed0-84f058d4"),
        (("data=folder", "recipe=none", "method=supervised"), "data-supervised-vnet-alllabels-seed0-140372db"),
        # as before patches were cut around the foreground
        (
            ("data=folder", "recipe=none", "method=supervised", "data.foreground=0"),
            "data-supervised-vnet-alllabels-seed0-c75d9074",
        ),
        (
            ("data=pancreas", "method=dual_gentle", "lr_schedule=polynomial"),
            "pancreas-dual_gentle-described-resnet34-vnet-alllabels-seed0-3fadfd03",
        ),
    ],
)
def test_names_of_finished_runs_stay(overrides, name):
    assert run_name(composed(*overrides)) == name, (
        "A key is new, or a default another one, and every run of before would be started anew. List a new key in "
        "dualseg.runs.identity.ADDED, with the value that runs without it had; write the new name here only where a "
        "default was changed on purpose."
    )


@pytest.mark.parametrize("method", ["dual", "dual_gentle", "supervised"])  # of which there are runs with these names
def test_a_new_key_is_listed_so_that_names_stay(method):
    known = {f"{start}{key}" for start, keys in KEYS_OF_NAMES.items() for key in keys.split()}
    new = sorted(identity(composed(f"method={method}")).keys() - known)
    assert not new, (
        f"{', '.join(new)}: new in conf/, so that every automatic run name changes and finished runs are started anew. "
        "List it in dualseg.runs.identity.ADDED with its default, which must do what runs without it did (or in "
        "NOT_IDENTITY, where it never decides a result)."
    )
