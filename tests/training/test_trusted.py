"""A run folder from somebody else: whatever its files name, no command runs it unless the user names it as well."""

import pickle
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

import dualseg.evaluate
import dualseg.export
import dualseg.predict
import dualseg.report
import dualseg.train
from dualseg import __version__
from dualseg.configuration import conf_dir
from dualseg.data import Phantom
from dualseg.errors import DualsegError
from dualseg.files import read_json, write_json
from dualseg.methods.base import CHECKPOINT_FORMAT
from dualseg.networks import VNet
from dualseg.runs.folder import RunFolder
from dualseg.training.evaluation_settings import places_to_write
from dualseg.training.preprocessing import scan_source
from dualseg.training.settings import resolve
from dualseg.training.trusted import Trust, targets, to_trust

OWN = """
from dualseg.data import Phantom
from dualseg.networks import VNet


class Mine(Phantom):
    pass


class Net(VNet):
    def __init__(self, inner, **settings):
        super().__init__(**settings)
        assert inner == {"norms": [3.0, None]}


def make(**settings):
    return VNet(**settings)
"""


class Trap:
    """Unpickled, it writes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return Path.touch, (self.canary,)


@pytest.fixture(scope="module")
def recorded(phantom: Phantom) -> dict[str, Any]:
    """The configuration of a run of one small V-Net on `phantom`."""
    sizes = ["+data.source.train=6", "+data.source.test=2", "+data.source.shape=[40,36,32]", "data.labeled=2"]
    patches = ["data.patch_size=[16,16,16]", "data.stride=[16,16,16]", "base_channels=2", "method=supervised"]
    tiny = ["trainer.accelerator=cpu", "trainer.threads=1", "trainer.progress_bar=false"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return resolve(compose("train", [f"data.root={phantom.root}", *sizes, *patches, *tiny]))


@pytest.fixture
def run(tmp_path: Path, recorded: dict[str, Any]) -> RunFolder:
    """That run, as if it had been trained."""
    folder = RunFolder(tmp_path / "run")
    folder.checkpoints.mkdir(parents=True)
    folder.config_file.write_text(yaml.safe_dump(recorded))
    write_json(folder.preprocessing_file, Phantom.for_scans({}).scan_record())
    torch.manual_seed(0)
    state = {f"networks.a.{key}": value for key, value in VNet(1, 2, base_channels=2).state_dict().items()}
    content = {"state_dict": state, "dualseg": {"format": CHECKPOINT_FORMAT, "version": __version__}}
    torch.save(content, folder.checkpoints / "iteration-000001.ckpt")
    return folder


@pytest.fixture
def change(run: RunFolder) -> Callable[..., None]:
    """Write other values into the run's config.yaml, "a.b": value."""

    def write(**values: Any) -> None:
        config = run.config()
        for key, value in values.items():
            *parents, last = key.split(".")
            node = config
            for parent in parents:
                node = node[parent]
            node[last] = value
        run.config_file.write_text(yaml.safe_dump(config))

    return write


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=(36, 34, 33)).astype(np.float32), np.eye(4)), path)
    return path


@pytest.fixture
def commands(command: Callable, run: RunFolder, scan: Path, tmp_path: Path) -> Callable:
    """The commands that build from a run folder, with further words: name -> how it ended."""
    words = {
        dualseg.predict.main: [f"input={scan}"],
        dualseg.evaluate.main: [],
        dualseg.export.main: ["format=bundle"],
    }

    def call(*further: str, of: str = "") -> dict[str, Any]:
        return {
            main.__module__: command(main, f"run={run.path}", f"output={tmp_path / main.__module__}", *own, *further)
            for main, own in words.items()
            if of in main.__module__
        }

    return call


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that every payload of `PAYLOADS` would make, and what they need for it."""
    path = tmp_path / "canary"
    place = tmp_path / "place"
    place.mkdir()
    (place / "trap.pkl").write_bytes(pickle.dumps(Trap(path)))
    touch = f"from pathlib import Path\nPath({str(path)!r}).touch()\n"
    (place / "evil_by_import.py").write_text(f"{touch}\n\ndef call(**settings): pass\n\n\nclass Net: pass\n")
    (place / "hubconf.py").write_text(f"{touch}\n\ndef model(**settings): pass\n")
    (place / "mine_to_trust.py").write_text(OWN)
    monkeypatch.syspath_prepend(place)
    monkeypatch.chdir(place)
    yield path
    for name in ("evil_by_import", "hubconf", "mine_to_trust"):
        sys.modules.pop(name, None)


def payload(target: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": target, **arguments}


CODE = "__import__('pathlib').Path('../canary').touch()"
TOUCH = ["touch", "../canary"]
# what makes a canary where Hydra instantiates it
LIVE = [
    payload("sympy.sympify", a=CODE),
    payload("torch.load", f="trap.pkl", weights_only=False),
    payload("torch.nn.init.torch.load", f="trap.pkl", weights_only=False),
    payload("monai.networks.utils.torch.load", f="trap.pkl", weights_only=False),
    payload("pandas.read_pickle", filepath_or_buffer="trap.pkl"),
    payload("numpy.load", file="trap.pkl", allow_pickle=True),
    payload("hydra.utils.get_method", path="evil_by_import.call"),
    payload("torch.hub.load", repo_or_dir=".", model="model", source="local", trust_repo=True),
    payload("evil_by_import.Net"),
    payload("functools.partial", _args_=[payload("pandas.read_pickle", filepath_or_buffer="trap.pkl")]),
    payload("dualseg.networks.TappedNetwork", network=payload("sympy.sympify", a=CODE)),
    payload("dualseg.networks.VNet", dropout=[{"deep": [payload("torch.load", f="trap.pkl", weights_only=False)]}]),
    payload("monai.networks.nets.UNet", act=["prelu", {"init": payload("evil_by_import.Net")}]),
]
# what Hydra's version may refuse, or what makes no file
OTHERS = [
    payload("os.system", command="touch ../canary"),
    payload("dualseg.processes.os.system", command="touch ../canary"),
    payload("importlib.import_module", name="evil_by_import"),
    payload("subprocess.Popen", args=TOUCH),
    payload("builtins.eval", _args_=[CODE]),
    payload("builtins.exec", _args_=[CODE]),
    payload("hydra.utils.instantiate", config=payload("sympy.sympify", a=CODE)),
    payload("hydra.utils.call", config=payload("sympy.sympify", a=CODE), _recursive_=False),
    payload("dualseg.training.assembly.instantiate", config=payload("sympy.sympify", a=CODE), _recursive_=False),
    payload("nibabel.load", filename="scan.nii.gz"),
    payload("monai.bundle.load", name="x"),
    payload("monai.bundle.config_parser.ConfigParser", config={"x": f"${CODE}"}),
    payload("dualseg.processes.os.getcwd"),
    payload("dualseg.train.main"),
    payload("antigravity.geohash", latitude=0),
    payload("torch.nn.Embedding.from_pretrained", embeddings=[[1.0]]),
    payload("torch.nn.functional.relu"),
    payload("torch.nn.modules"),
    payload("torch.nn.modules.module.Module.__init__"),
    payload("torch.optim.SGD", lr=1),
    payload("dualseg.networks.vnet.nn.Conv3d", kernel_size=3),
    payload("torch.ao.nn.quantized.Linear"),
    payload("torch.nn.Conv3d", _partial_=True, kernel_size=3),
    payload("torch.nn.Conv3d", _args_=[1, 2, 3]),
]
# classes that may be built, with an argument by which they load a file or the network
LOADING = [
    payload("monai.networks.nets.DenseNet121", spatial_dims=3, out_channels=2, pretrained=True),
    payload("monai.networks.nets.HoVerNet", pretrained_url="file:///trap.pkl"),
    payload("monai.networks.nets.HoVerNet", pretrained_url="trap.pkl"),
    payload("monai.networks.nets.EfficientNetBN", model_name="efficientnet-b0", spatial_dims=2),  # true by default
    payload("monai.networks.nets.Transchex"),
    payload("monai.networks.nets.cell_sam_wrapper.CellSamWrapper"),
    payload("monai.networks.nets.TorchVisionFCModel", weights="DEFAULT"),
    payload("monai.networks.nets.UNet", act=["prelu", {"pretrained": "trap.pkl"}]),
    payload("monai.networks.nets.UNet", norm="../../trap.pkl"),
    payload("dualseg.networks.monai_network", network="SENet154", pretrained=True),
    payload("dualseg.networks.monai_network", network="torch"),
    payload("dualseg.networks.monai_network", network="resnet50", pretrained="trap.pkl"),
    payload("dualseg.networks.monai_network", network=["SegResNet"]),
]


MALFORMED = [
    ({"networks": [payload("os.system", command="touch ../canary")]}, "networks"),
    ({"networks": {}}, "networks"),
    ({"networks": {"../../x": payload("dualseg.networks.VNet")}}, "networks"),
    ({"networks": {"a/b": payload("dualseg.networks.VNet")}}, "networks"),
    ({"networks": {"a\n": payload("dualseg.networks.VNet")}}, "networks"),
    ({"networks": {"$x": payload("dualseg.networks.VNet")}}, "networks"),
    ({"networks.a": "os.system"}, "networks.a"),
    ({"networks.a": {"architecture": "vnet"}}, "networks.a"),
    ({"networks.a": {"_target_": ["os.system"]}}, "networks.a"),
    ({"networks.a": {"_target_": "${oc.env:TARGET}"}}, "networks.a"),
    ({"networks.a": {"_target_": "os.system('touch ../canary')"}}, "networks.a"),
    ({"networks.a": payload("dualseg.networks.VNet", base_channels="${oc.env:CHANNELS}")}, "networks.a"),
    ({"networks.a": payload("dualseg.networks.NoSuchNet")}, "networks.a"),
    ({"networks.a": payload("dualseg.networks.VNet", no_such_argument=1)}, "networks.a"),
    (
        {"networks.a": payload("torch.nn.parallel.DistributedDataParallel", module=payload("torch.nn.ReLU"))},
        "networks.a",
    ),
    ({"data.source": ["x"]}, "data.source"),
    ({"data.source": "dualseg.data.Phantom"}, "data.source"),
    ({"data": None}, "data.source"),
]


def named(given: dict[str, Any]) -> str:
    return f"{given['_target_']}({','.join(key for key in given if key != '_target_')})"


def refused(outcomes: dict[str, Any], *words: str) -> None:
    assert len(outcomes) == 3
    for outcome in outcomes.values():
        outcome.complains(*words)


@pytest.mark.filterwarnings("ignore:Using '_target_. functools.partial' is deprecated")
@pytest.mark.parametrize("given", LIVE, ids=named)
def test_the_payloads_are_real(given: dict[str, Any], canary: Path) -> None:
    with suppress(Exception):  # after the deed
        instantiate(given)
    assert canary.exists()


@pytest.mark.parametrize("given", [*LIVE, *OTHERS, *LOADING], ids=named)
def test_nothing_that_networks_name_is_called(given, canary, change, commands, run, monkeypatch) -> None:
    monkeypatch.setattr("socket.socket.connect", pytest.fail)
    change(**{"networks.a": {"architecture": "vnet", **given}})
    *_, innermost = targets([given])
    refused(commands(), str(run.config_file), f"trust={innermost}")
    change(**{"networks.a": payload("dualseg.networks.VNet", base_channels=2, dropout=[{"deep": given}])})
    (nested,) = commands(of="predict").values()
    nested.complains(str(run.config_file), f"trust={innermost}")
    assert not canary.exists()
    assert not {"evil_by_import", "antigravity"} & {*sys.modules}


@pytest.mark.parametrize("given", [*LIVE, *OTHERS, payload("dualseg.networks.VNet")], ids=named)
def test_nothing_that_the_dataset_names_is_called(given, canary, change, commands, run, recorded) -> None:
    *_, innermost = targets([given])
    change(**{"data.source": given})
    refused(commands(), str(run.config_file), "trust=")
    change(**{"data.source": {**recorded["data"]["source"], "train": given}})
    told = commands(of="evaluate")  # the others need its class alone
    told["dualseg.evaluate"].complains(str(run.config_file), f"trust={innermost}")
    assert not canary.exists()
    assert not {"evil_by_import", "antigravity"} & {*sys.modules}


def test_a_tag_of_yaml_calls_nothing(canary, commands, run) -> None:
    run.config_file.write_text("networks: !!python/object/apply:os.system ['touch ../canary']\n")
    refused(commands(), f"{run.config_file}: cannot be read")
    assert not canary.exists()


@pytest.mark.parametrize(("values", "word"), MALFORMED, ids=lambda value: str(value)[:60])
def test_a_configuration_that_no_run_writes(values, word, canary, change, commands, run, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("TARGET", "os.getcwd")
    monkeypatch.setenv("CHANNELS", "2")
    before = sorted(tmp_path.rglob("*"))
    change(**values)
    refused(commands(), str(run.config_file), word)
    assert sorted(tmp_path.rglob("*")) == before


def test_all_that_must_be_trusted_is_named_at_once(change, commands) -> None:
    change(**{"networks.a": payload("my.Net", norm=payload("my.Norm")), "data.source": payload("my.Data", root="x")})
    refused(commands("trust=my.Norm"), "trust=my.Data trust=my.Net to")


@pytest.mark.parametrize("word", ["trust=", "trust=a b", "trust=my/net.py", "trust=x.${y}"])
def test_a_trust_that_is_no_name(word, commands) -> None:
    refused(commands(word), word)


def test_one_s_own_classes_are_built_after_one_word_each(canary, change, commands, recorded, tmp_path) -> None:
    """An evaluation builds no augmentation, optimizer or logger, whatever is recorded of them."""
    own = {"data.source": {**recorded["data"]["source"], "_target_": "mine_to_trust.Mine"}}
    own["networks.a"] = {**recorded["networks"]["a"], "_target_": "mine_to_trust.Net", "inner": {"norms": [3.0, None]}}
    unused = dict.fromkeys(("data.augmentation", "optimizer", "lr_schedule", "logger", "method.extra"), LIVE[0])
    change(**own, **unused)
    words = to_trust({"data": {"source": own["data.source"]}, "networks": {"a": own["networks.a"]}})
    assert words == ["trust=mine_to_trust.Mine", "trust=mine_to_trust.Net"]
    outcomes = commands(*words)
    assert [outcome.code for outcome in outcomes.values()] == [0, 0, 0], outcomes
    assert {row["dice"] for row in read_json(tmp_path / "dualseg.evaluate" / "metrics.json")["test"].values()}
    change(**{"networks.a": {**recorded["networks"]["a"], "_target_": "mine_to_trust.make"}})
    (tmp_path / "dualseg.predict").rename(tmp_path / "before")
    again = commands(words[0], "trust=mine_to_trust.make", of="predict")["dualseg.predict"]
    assert again.code == 0, again.err
    assert not canary.exists()


def test_training_needs_no_word_and_builds_nothing_of_a_folder_that_is_there(
    canary, change, command, run, phantom, tmp_path, recorded
) -> None:
    change(**{"networks.a": LIVE[0], "data.source": LIVE[1], "optimizer": LIVE[2]})
    write_json(run.manifest_file, {"dualseg": __version__})
    words = [f"data.root={phantom.root}", f"output={tmp_path}", "name=run"]
    command(dualseg.train.main, *words).complains("another configuration (", "overwrite=true")
    assert not canary.exists()


def test_reports_build_nothing(canary, change, command, run, study_run, tmp_path) -> None:
    path = study_run(tmp_path / "hostile", {"a": [0.8, 0.9]})
    config = yaml.safe_load((path / "config.yaml").read_text())
    config["networks"]["a"] |= LIVE[0]
    config |= {"data": {**config["data"], "source": LIVE[1]}, "method": {**config["method"], **LIVE[2]}}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    job = {"run": "hostile", "words": ["x=1"], "label": "x", "kind": "x", "iterations": 1, "seed": 0, "variant": "full"}
    definition = {"experiments": {"cpu": LIVE[0]}, "seeds": [0], "variants": {"full": LIVE[1]}}
    sweep = {"name": "x-cpu", "study": "x", "scale": "cpu", "definition": definition, "jobs": [job]}
    write_json(tmp_path / "sweeps" / "x-cpu" / "sweep.json", sweep)
    runs = ["--runs", str(tmp_path)]
    for words in (
        ["run", str(path)],
        ["study", str(path), "--output", "out"],
        ["study", "x", *runs, "--output", "out"],
        ["status", "x", *runs],
    ):
        outcome = command(dualseg.report.main, *words)
        assert outcome.code == 0, outcome.err
    assert not canary.exists()


@pytest.mark.parametrize("channels", [512, 10**9])
def test_a_network_that_is_far_larger_than_its_checkpoint_is_refused(channels, change, commands, run) -> None:
    change(**{"networks.a": payload("dualseg.networks.VNet", base_channels=channels)})
    refused(commands(), f"{run.config_file}: networks.a")


def test_buffers_count_as_parameters_do() -> None:
    norm = payload("torch.nn.BatchNorm3d", num_features=10**8, affine=False)
    with pytest.raises(DualsegError, match=r"networks\.a.* more than 2\d\d MB"):
        Trust().network(payload("dualseg.networks.VNet", base_channels=2, norm=norm), "networks.a", 10**6)


FOLDER = {"class_names": ["background", "organ"], "channels": 2, "spacing": [1, 1, 2], "intensity": ["zscore", [0, 9]]}


@pytest.mark.parametrize(
    ("source", "record", "word"),
    [
        ("Folder", {"class_names": "organ"}, "class_names"),
        ("Folder", {"class_names": ["background"]}, "class_names"),
        ("Folder", {"class_names": ["background", 1]}, "class_names"),
        ("Folder", {"class_names": ["organ", "organ"]}, "class_names"),
        ("Folder", {"class_names": ["background", "a\nb"]}, "U+000A"),
        ("Folder", {"class_names": ["background", "a\u202eb"]}, "U+202E"),
        ("Folder", {"class_names": ["background", "a\x1b[31m"]}, "U+001B"),
        ("Folder", {"class_names": ["background", " "]}, "class_names"),
        ("Folder", {"channels": "2"}, "channels"),
        ("Folder", {"channels": True}, "channels"),
        ("Folder", {"channels": 10**9}, "channels"),
        ("Folder", {"channels": 0}, "channels"),
        ("Folder", {"spacing": "median"}, "spacing"),
        ("Folder", {"spacing": [1, 1]}, "spacing"),
        ("Folder", {"spacing": [1, 1, 0]}, "spacing"),
        ("Folder", {"spacing": [1, 1, float("inf")]}, "spacing"),
        ("Folder", {"spacing": {"x": 1}}, "spacing"),
        ("Folder", {"intensity": "open"}, "intensity"),
        ("Folder", {"intensity": ["zscore"]}, "intensity"),
        ("Folder", {"intensity": ["zscore", [9, 0]]}, "intensity"),
        ("Folder", {"intensity": ["zscore", {"a": 1}]}, "intensity"),
        ("LeftAtrium", {"crop": "everything"}, "crop"),
        ("LeftAtrium", {"crop": ["foreground"]}, "crop"),
    ],
    ids=str,
)
def test_a_record_of_preprocessing_with_impossible_values(source, record, word, change, run) -> None:
    change(**{"data.source": payload(f"dualseg.data.{source}", root="/nowhere")})
    write_json(run.preprocessing_file, FOLDER)
    assert scan_source(run, Trust()).channels == 2
    write_json(run.preprocessing_file, {**FOLDER, **record})
    with pytest.raises(DualsegError, match=rf"(?s){run.preprocessing_file}: .*{re.escape(word)}"):
        scan_source(run, Trust())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", "zero"), ("seed", [0]), ("data.patch_size", 32), ("data.patch_size", [32, 32]),
        ("data.patch_size", [32, 32, 33]), ("data.downsample", "x"), ("data.downsample", 0.5),
        ("inference.batch_size", 0), ("trainer.channels_last", "off"), ("inference", None), ("trainer", []),
    ],
)  # fmt: skip
def test_a_key_that_prediction_reads_with_an_impossible_value(key, value, change, run) -> None:
    change(**{key: value})
    with pytest.raises(DualsegError, match=f"{run.config_file}: .*{key}"):
        scan_source(run, Trust())


@pytest.mark.parametrize("name", ["dualseg.data.VolumeSource", "dualseg.data.h5.H5Source"])
def test_a_dataset_s_base_is_no_dataset(name, change, run) -> None:
    change(**{"data.source": payload(name, root="x")})
    write_json(run.preprocessing_file, {"class_names": ["background", "organ"], "channels": 1})
    with suppress(DualsegError):  # and nothing else
        assert scan_source(run, Trust()).channels == 1


def test_a_few_lines_that_unfold_into_a_billion_values(run) -> None:
    lines = ["x0: &x0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]" for n in range(1, 10)]
    run.config_file.write_text("\n".join(lines))
    with pytest.raises(DualsegError, match=f"{run.config_file}: holds more than"):
        run.config()
    run.config_file.write_text("x: &x {y: *x}")
    with pytest.raises(DualsegError, match=f"{run.config_file}: holds more than"):
        run.config()


@pytest.mark.parametrize("text", ["[" * 100_000, "- " * 100_000, "? " * 100_000, "{a: " * 100_000])
def test_lists_and_mappings_in_one_another_without_end(run, text) -> None:
    """libyaml's loader would end the process with a segmentation fault."""
    run.config_file.write_text(text)
    with pytest.raises(DualsegError, match=f"{run.config_file}: cannot be read .*100 lists"):
        run.config()


def test_a_recorded_dataset_writes_nowhere_but_where_the_command_line_says(tmp_path):
    """A run folder says where its dataset lies, and datasets write what is missing of them."""
    new, planted = tmp_path / "new", tmp_path / "new" / ".12345678.tmp.important"
    new.mkdir()
    planted.write_text("mine")
    phantom = {"_target_": "dualseg.data.Phantom", "root": str(new), "train": 1, "test": 1, "shape": [16, 16, 16]}
    with pytest.raises(DualsegError, match=r"data\.root=DIR"):
        Trust().source(phantom, "x")
    assert [*new.iterdir()] == [planted]
    folder = tmp_path / "own"
    for number in range(2):
        for kind, suffix in (("imagesTr", "_0000"), ("labelsTr", "")):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            nib.save(
                nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)), folder / kind / f"c{number}{suffix}.nii.gz"
            )
    write_json(folder / "dataset.json", {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "organ": 1}})
    split = tmp_path / "else" / "app.json"
    split.parent.mkdir()
    source = {"_target_": "dualseg.data.Folder", "root": str(folder), "splits": str(split), "spacing": None}
    with pytest.raises(DualsegError, match=str(split)):
        Trust().source(source, "x")
    assert not [*split.parent.iterdir()]
    Trust(writable=[split]).source(source, "x")
    before = split.read_text()
    with pytest.raises(DualsegError, match=str(split)):
        Trust(writable=[folder]).source({**source, "fold": 0, "folds": 2}, "x")
    assert split.read_text() == before
    assert Trust(writable=[new]).source(phantom, "x").train_cases
    assert Trust().source(phantom, "x").train_cases, "complete, it writes nothing"


def test_places_to_write_are_those_of_the_command_line(tmp_path):
    assert places_to_write({"trainer.accelerator": "cpu"}, {"root": str(tmp_path), "splits": "none.json"}) == []
    places = places_to_write({"data.root": str(tmp_path), "data.source.splits": "mine.json"}, {})
    assert tmp_path in places and Path("mine.json") in places and tmp_path / "dualseg-split.json" in places
