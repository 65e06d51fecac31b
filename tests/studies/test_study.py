"""conf/sweep: every row of every study composes at every scale, and changes what it names and nothing else."""

import csv
import json
import os
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from dualseg.configuration import conf_dir
from dualseg.errors import DualsegError
from dualseg.methods import DualNetwork
from dualseg.runs.identity import identity
from dualseg.studies.index import Job
from dualseg.studies.study import read_study, study_names, study_of
from dualseg.training.dataset import check_data
from dualseg.training.settings import resolve

ROOT = Path(__file__).resolve().parents[2]
STUDIES = [
    *("brats_main", "head_neck", "hippocampus", "hippocampus_design", "la_ablation", "la_baseline", "la_dual"),
    *("la_label_count", "la_main", "la_mix", "la_mix_ablation", "la_networks", "la_seed", "pancreas_main"),
]
SCALES = [(name, scale) for name in STUDIES for scale in ("cpu", "full")]
GENTLE = ("cross_pseudo", "uncertainty", "entropy_filtered", "cosine")  # a tenth of their weight at scale=cpu
ALIASES = {"objective": ("method.objective",)}  # keys that take their value from another one


def dataset_of(study: str) -> str:
    return "head_neck" if study == "head_neck" else study.partition("_")[0]


def root_of(study: str) -> Path:
    """Of the benchmarks no file is looked at; a folder must be there to be read."""
    folder = {"hippocampus": "hippocampus", "head_neck": "head-neck-ct"}.get(dataset_of(study))
    return ROOT.parent / "shared" / folder if folder else Path("/tmp")


@cache
def configurations(name: str, scale: str) -> Mapping[str, dict[str, Any]]:
    """Variant -> resolved configuration."""
    study = read_study(name)
    if scale == "full" and study.experiments["full"] == study.experiments["cpu"]:
        # the words are those of `cpu` but for the scale's name, which composing all of them again would not show better
        named = {variant: {**settings, "scale": scale} for variant, settings in configurations(name, "cpu").items()}
        first = next(iter(named))
        assert named[first] == composed(name, first, scale)
        return named
    return {variant: composed(name, variant, scale) for variant in study.variants}


def composed(name: str, variant: str, scale: str) -> dict[str, Any]:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        words = [f"data.root={root_of(name)}", *read_study(name).arguments(variant, scale)]
        return resolve(compose("train", overrides=words), planning=False)


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Key -> value of `ours`, where the two configurations make different runs."""
    one, other = identity(ours), identity(theirs)
    keys = one.keys() | other.keys()
    return {key: one.get(key, "absent") for key in keys if one.get(key, "absent") != other.get(key, "absent")}


def test_the_studies_are_those_of_the_table():
    assert study_names() == [*STUDIES, "verdict"]  # which is of anybody's data


def test_the_rows_of_a_verdict_differ_in_nothing_but_the_unlabeled_patches_and_the_method():
    settings = {name: composed_of_verdict(name) for name in read_study("verdict").variants}
    twins = differences(settings["with_unlabeled"], settings["labels_only"])
    assert twins == {"batch.unlabeled": settings["with_unlabeled"]["batch"]["unlabeled"]} != {}
    alone = settings["supervised"]
    assert alone["networks"]["a"] == settings["with_unlabeled"]["networks"]["a"]
    assert {one["trainer"]["max_iterations"] for one in settings.values()} == {6000}
    assert all(one["evaluate_on"] == ["validation"] for one in settings.values())


def composed_of_verdict(variant: str) -> dict[str, Any]:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        words = ["data=phantom", "data.root=/tmp", *read_study("verdict").arguments(variant, None)]
        return resolve(compose("train", overrides=words), planning=False)


@pytest.mark.parametrize("name, scale", SCALES)
def test_every_variant_composes_and_its_dataset_can_be_split_as_it_asks(name, scale, monkeypatch):
    if not root_of(name).is_dir() and "CI" not in os.environ:
        pytest.skip(f"{root_of(name)}: not here")
    monkeypatch.chdir(ROOT)  # the split files of experiments/ are named from here
    study = read_study(name)
    for variant, settings in configurations(name, scale).items():
        assert (settings["study"], settings["scale"], settings["variant"]) == (name, scale, variant)
        assert settings["data"]["name"] == dataset_of(name)
        check_data(settings)
    assert study.seeds and study.name == name and set(study.experiments) == {"cpu", "full"}


def with_groups(named: Mapping[str, Any]) -> dict[str, Any]:
    """What a row names, `method: dual` spelled out as the keys in which the methods of the CPU scale differ from it."""
    if named.get("method") != "dual":
        return dict(named)
    weights = {f"method.terms.{term}.weight": 1.0 for term in GENTLE}
    return {key: value for key, value in named.items() if key != "method"} | {"method.name": "dual"} | weights


@pytest.mark.parametrize("name, scale", SCALES)
def test_no_two_variants_are_the_same_run(name, scale):
    seen: dict[str, str] = {}
    for variant, settings in configurations(name, scale).items():
        same = seen.setdefault(repr(sorted(identity(settings).items(), key=lambda item: item[0])), variant)
        assert same == variant


@pytest.mark.parametrize("scale", ["cpu", "full"])
def test_an_ablation_differs_from_the_full_method_by_exactly_the_keys_it_names(scale):
    variants, composed = read_study("la_ablation").variants, configurations("la_ablation", scale)
    full = identity(composed["full"])
    for variant, named in variants.items():
        expected = {key: value for key, value in with_groups(named).items() if full[key] != value}
        expected |= {alias: value for key, value in expected.items() for alias in ALIASES.get(key, ())}
        assert differences(composed[variant], composed["full"]) == expected, variant
        assert expected or variant == "full"


def test_an_ablation_changes_one_thing():
    """Derived from the rows' names, not from the file."""
    composed = configurations("la_ablation", "cpu")
    without = {key.removeprefix("without_"): c for key, c in composed.items() if key.startswith("without_")}
    assert set(without) == set(DualNetwork.TERMS)
    for term, settings in without.items():
        assert differences(settings, composed["full"]) == {f"method.terms.{term}.enabled": False}
    alone = {key.removeprefix("supervised_"): c for key, c in composed.items() if key.startswith("supervised_")}
    assert set(alone) == set(DualNetwork.TERMS) - {"supervised_ce", "supervised_dice"}
    for term, settings in alone.items():
        assert differences(settings, composed["supervised"]) == {f"method.terms.{term}.enabled": True}
    switched_off = {f"method.terms.{term}.enabled": False for term in alone}
    assert differences(composed["supervised"], composed["full"]) == switched_off
    assert composed["full"]["method"]["keep_fraction"] == 0.8
    assert differences(composed["keep_fraction_0.2"], composed["full"]) == {"method.keep_fraction": 0.2}
    released = {"objective": "released", "method.objective": "released", "method.name": "dual"}
    full_weights = {f"method.terms.{term}.weight": 1.0 for term in GENTLE}
    assert differences(composed["released"], composed["full"]) == released | full_weights
    assert {composed["full"]["method"]["terms"][term]["weight"] for term in GENTLE} == {0.1}


# method.md, section 5
@pytest.mark.parametrize(
    "name, patch, stride, labels, iterations, schedule, augmented",
    [
        ("la_main", [112, 112, 80], [18, 18, 4], (8, 16), 6000, "step_decay", False),
        ("pancreas_main", [96, 96, 96], [16, 16, 16], (6, 12), 6000, "step_decay", False),
        ("brats_main", [96, 96, 96], [64, 64, 64], (25, 50), 30000, "polynomial_decay", True),
    ],
)
def test_full_scale_is_the_protocol(name, patch, stride, labels, iterations, schedule, augmented):
    composed = configurations(name, "full")
    for count in labels:
        settings = composed[f"dual_described_{count}"]
        data, optimizer, schedule_of = settings["data"], settings["optimizer"], settings["lr_schedule"]
        assert (data["patch_size"], data["stride"], data["labeled"], data["downsample"]) == (patch, stride, count, 1)
        assert (data["held_out_validation"], data["held_out_test"]) == (0, 0)
        assert settings["batch"] == {"labeled": 2, "unlabeled": 2} and settings["base_channels"] == 16
        assert settings["trainer"]["max_iterations"] == iterations
        assert (optimizer["lr"], optimizer["momentum"], optimizer["weight_decay"]) == (0.01, 0.9, 1e-4)
        assert schedule_of["_target_"] == f"dualseg.methods.schedules.{schedule}"
        if schedule == "polynomial_decay":
            assert schedule_of["power"] == 0.9
        else:
            assert [round(m * iterations) for m in schedule_of["milestones"]] == [2500, 5000]
            assert schedule_of["factor"] == 0.1
        assert (data["augmentation"] is not None) == augmented
        assert settings["method"]["gradient_clip_norm"] is None


@pytest.mark.parametrize("scale", ["cpu", "full"])
def test_what_was_measured_is_of_runs_that_the_studies_have(scale):
    measured = csv.DictReader(files("dualseg.studies").joinpath("timings.csv").read_text().splitlines())
    composed = configurations("la_main", scale) | configurations("la_mix", scale)
    kinds = {name: Job.of(settings, (), name).kind for name, settings in composed.items()}
    assert {row["kind"] for row in measured if row["scale"] == scale} <= set(kinds.values())
    assert kinds["dual_gentle_8"] == kinds["dual_described_8"] == "la-dual-described-resnet34-vnet"


@pytest.mark.parametrize("name", ["la_main", "la_label_count", "pancreas_main", "brats_main"])
def test_a_row_is_compared_with_the_supervised_one_of_as_many_labels(name):
    study, composed = read_study(name), configurations(name, "full")
    labels = {variant: settings["data"]["labeled"] for variant, settings in composed.items()}
    labels |= {row: labels[members[0]] for row, members in study.ensembles.items()}
    for variant, reference in study.against.items():
        assert labels[variant] == labels[reference] and composed[reference]["method"]["name"] == "supervised"
    assert {variant for variant, settings in composed.items() if settings["method"]["name"] != "supervised"} <= set(
        study.against
    )


# --- what does not describe a study


def test_an_unknown_study_is_refused_with_the_nearest():
    with pytest.raises(DualsegError, match=r"la_ablations: no such study .* la_ablation\?"):
        read_study("la_ablations")


def test_an_unknown_scale_is_refused():
    study = read_study("la_main")
    with pytest.raises(DualsegError, match=r"scale=huge: .*la_main has cpu, full"):
        study.arguments("dual_described_8", "huge")


SWEEP: dict[str, Any] = {"experiments": {"cpu": "la_cpu"}, "seeds": [0], "variants": {"one": {}, "two": {"seed": 1}}}


def test_a_variant_is_compared_with_several():
    content = {"experiments": {"cpu": "x"}, "seeds": [0], "variants": {"a": {}, "b": {}, "c": {}}}
    study = study_of("toy", {**content, "against": {"a": ["b", "c"], "b": "c"}})
    assert study.pairs == [("a", "b"), ("a", "c"), ("b", "c")]
    assert study_of("toy", study.definition()).pairs == study.pairs
    assert study_of("toy", {**content, "against": "c"}).pairs == [("a", "c"), ("b", "c")]
    with pytest.raises(DualsegError, match=r"sweep toy: bb is none"):
        study_of("toy", {**content, "against": {"a": ["c", "bb"]}})


@pytest.mark.parametrize(
    "reference",
    [
        {"against": "ones"},
        {"against": {"two": "ones"}},
        {"against": {"ones": "two"}},
        {"ensembles": {"pair": ["two", "ones"]}},
    ],
)
def test_a_reference_to_no_variant_is_refused_with_the_nearest(reference):
    with pytest.raises(DualsegError, match=r"sweep mine: ones is none .* one\?"):
        study_of("mine", {**SWEEP, **reference})


def test_an_ensemble_may_be_what_the_others_are_compared_with():
    study = study_of("mine", {**SWEEP, "ensembles": {"pair": ["one", "two"]}, "against": "pair"})
    assert study.rows == ("one", "two", "pair")
    assert study.against == {"one": "pair", "two": "pair"}


def test_each_row_may_have_a_reference_of_its_own():
    study = study_of("mine", {**SWEEP, "variants": {"one": {}, "two": {}, "three": {}}, "against": {"two": "three"}})
    assert study.against == {"two": "three"}


def test_notes_are_a_list():
    variants = {"one": {"weights_as": {"b": "a", "a.encoder": "a.encoder"}, "trainer.devices": [0, 1]}}
    words = study_of("mine", {**SWEEP, "variants": variants, "against": {}}).arguments("one", "cpu")
    assert {"weights_as={b:a,a.encoder:a.encoder}", "trainer.devices=[0,1]"} <= set(words)
    assert study_of("mine", {**SWEEP, "notes": ["one is\n odd."]}).notes == ("one is odd",)
    with pytest.raises(DualsegError, match=r"sweep mine: notes: .*list"):
        study_of("mine", {**SWEEP, "notes": "one is odd"})


@pytest.mark.parametrize(
    "content",
    ["", "study: mine", "study: mine\nsweep: {seeds: [0]}", "study: [", "study: mine\nsweep: 3", "[" * 10_000],
)
def test_a_file_that_describes_no_study_is_refused_by_name(tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(DualsegError, match=rf"{path}: describes no study .*see conf/sweep/la_main\.yaml"):
        read_study("mine", tmp_path)


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_noted_without_loss(name):
    study = read_study(name)
    assert study_of(name, json.loads(json.dumps(study.definition()))) == study


# --- experiments/


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_has_a_readme_and_reported_figures_with_their_sources(name):
    folder = ROOT / "experiments" / name
    assert (folder / "README.md").read_text().startswith(f"# {name}: ")
    with (folder / "reported.csv").open() as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    columns = ["dataset", "method", "labeled", "dice", "jaccard", "hd95", "asd", "source"]
    assert reader.fieldnames in (columns, [*columns, "variant"])
    for row in rows:
        assert None not in row and row["source"] and 0 < float(row["dice"]) < 100
        assert row["dataset"] == dataset_of(name)
