"""What the tests of whole commands and of the data share: small volumes, the real ones, a command called in-process."""

import gc
import json
import logging
import os
import pickle
import resource
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from io import TextIOBase
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
import yaml
from hydra._internal import defaults_list
from omegaconf import OmegaConf

from dualseg.data.left_atrium import case_list
from dualseg.data.phantom import Phantom

ROOT = Path(__file__).resolve().parents[1]
SHARED_LA = ROOT.parent / "shared" / "la2018"
SHAPE = (40, 36, 32)
LA_SHAPE = (36, 34, 32)

# Folders and files whose tests train, start processes or read many files: what `-m "not slow"` leaves out
SLOW = {
    "integration", "drill", "exporting", "studies", "preparation", "prediction", "test_averages", "test_bars",
    "test_checkpoints", "test_commands", "test_contrast", "test_damage", "test_datamodule", "test_deep_supervision",
    "test_defaults", "test_dicom_damage", "test_dicom_volumes", "test_dual_isbi", "test_dual_objective",
    "test_extra_terms", "test_folder", "test_gradient_audit", "test_guard", "test_habits", "test_left_atrium",
    "test_loading", "test_main", "test_memory", "test_metrics_segmentation", "test_networks", "test_no_waiting",
    "test_pancreas_brats", "test_phantom", "test_plans", "test_pool", "test_precision", "test_processes",
    "test_replaced", "test_run_folder", "test_run_report", "test_same_digits", "test_sampling", "test_settings",
    "test_signals", "test_sliding_window", "test_trainer", "test_trusted",
}  # fmt: skip

# The modules are there to stay: without this a twentieth of all time goes into looking for garbage among them.
gc.freeze()
gc.set_threshold(50_000, 20, 100)


def parse_once() -> None:
    """Every composition has Hydra parse some thirty files of conf/ anew, a fifth of its time: a text is parsed once."""
    original, parsed = OmegaConf.load, {}

    def load(file: Any) -> Any:
        if not isinstance(file, TextIOBase):
            return original(file)
        text = file.read()
        if text not in parsed:
            file.seek(0)
            parsed[text] = pickle.dumps(original(file))
        return pickle.loads(parsed[text])

    OmegaConf.load = load


def map_choices_where_asked() -> None:
    """For each file of conf/ Hydra maps all choices, which takes time; defaults with ${...} alone look into the map."""
    original = defaults_list._create_interpolation_map

    def create(overrides: Any, defaults: Sequence[Any], self_added: bool) -> Any:
        return original(overrides, defaults, self_added) if any(one.is_interpolation() for one in defaults) else None

    defaults_list._create_interpolation_map = create


parse_once()
map_choices_where_asked()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if SLOW & {item.path.stem, *item.path.relative_to(ROOT / "tests").parts[:-1]}:
            item.add_marker(pytest.mark.slow)
    # slow files first, so that no process ends minutes after the others (`make test` keeps this order)
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture
def files_of_at_most() -> Callable[[int], AbstractContextManager[None]]:
    """A block in which the kernel refuses files of more bytes, as it does on a full disk."""

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


@pytest.fixture
def largest_tensor() -> Callable[[Callable[[], object]], int]:
    """Bytes of the largest tensor that torch makes in a call."""
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            made = operation(*args, **(kwargs or {}))
            self.size = max(self.size, made.nbytes if isinstance(made, Tensor) else 0)
            return made

    def measure(act: Callable[[], object]) -> int:
        with Largest() as mode:
            act()
        return mode.size

    return measure


class Outcome(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    def complains(self, *words: str) -> str:
        """Assert that the command failed with one message that holds all `words`, and give the message."""
        assert self.code == 2, self
        errors = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, self.err
        assert "Traceback" not in self.err + self.out
        assert self.err.rstrip().endswith(errors[0])
        for word in words:
            assert str(word) in errors[0], f"{word!r} is not in {errors[0]!r}"
        return errors[0]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Outcome]]:
    """Call an entry point's `main` in this process with the words of a command line."""
    # Hydra composes everything one more time to learn whether hydra.mode is given; here it never is
    monkeypatch.setattr("hydra._internal.hydra.Hydra.get_mode", lambda *_, **__: None)

    def call(main: Callable[[], None], *words: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", [f"dualseg-{main.__module__.rpartition('.')[2]}", *map(str, words)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        return Outcome(code, *capsys.readouterr())

    # Hydra's loggers hold on to the captured stdout, which is closed after the test
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    numbers = (signal.SIGINT, signal.SIGTERM)
    answers = [signal.getsignal(number) for number in numbers]
    with warnings.catch_warnings():
        yield call
    root.handlers[:] = handlers
    root.setLevel(level)
    left = [signal.signal(number, answer) for number, answer in zip(numbers, answers, strict=True)]
    assert left == answers, "a command must give its signals back, also when it fails"


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Phantom:
    """Six training and two test volumes of 40 x 36 x 32 voxels; shared by all tests, so never change its files."""
    return Phantom(tmp_path_factory.mktemp("phantom"), train=6, test=2, shape=SHAPE)


def phantom_words(root: Path) -> list[str]:
    """The `data` of a command line on a copy of `phantom`: two of six volumes labeled, patch 16 x 16 x 16."""
    sizes = [f"+data.source.{key}={value}" for key, value in (("train", 6), ("test", 2), ("shape", list(SHAPE)))]
    return [f"data.root={root}", *sizes, "data.patch_size=[16,16,16]", "data.stride=[16,16,16]", "data.labeled=2"]


TINY = (
    "base_channels=2",
    "trainer.max_iterations=2",
    "trainer.accelerator=cpu",
    "trainer.threads=1",
    "trainer.progress_bar=false",
    "evaluate_on=[]",
)


@pytest.fixture
def tiny() -> Callable[..., list[str]]:
    """(data root, output folder) -> words of a command line that trains two small networks two iterations long."""
    return lambda root, output: [*phantom_words(root), *TINY, f"output={output}"]


def write_la_case(root: Path, case: str, seed: int) -> Path:
    """One case in the layout of Left Atrium: noise with a brighter box, which is the label."""
    rng = np.random.default_rng(seed)
    label = np.zeros(LA_SHAPE, np.uint8)
    label[8:24, 6:28, 5 + seed % 4 : 24] = 1
    image = (rng.normal(size=LA_SHAPE) + 2 * label).astype(np.float32)
    path = root / case / "mri_norm2.h5"
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as h5:
        h5.create_dataset("image", data=image, compression="gzip", compression_opts=1)
        h5.create_dataset("label", data=label, compression="gzip")
    return path


@pytest.fixture
def small_la(tmp_path: Path) -> Path:
    """A folder like Left Atrium's with small volumes under the first six names of the training list."""
    root = tmp_path / "la"
    for seed, case in enumerate(case_list("train")[:6]):
        write_la_case(root, case, seed)
    return root


@pytest.fixture
def tiny_la() -> Callable[..., list[str]]:
    """As `tiny`, on `small_la`: two of six volumes labeled."""
    data = ("data=la", "data.held_out_test=74", "data.patch_size=[16,16,16]", "data.stride=[16,16,16]")
    return lambda root, output: [*data, f"data.root={root}", "data.labeled=2", *TINY, f"output={output}"]


@pytest.fixture(scope="session")
def la_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real Left Atrium volumes, at least the first three of the training list; see the marker `data`."""
    if given := os.environ.get("DUALSEG_LA_ROOT"):
        return Path(given)
    unpack = SHARED_LA / "unpack.py"
    if not unpack.is_file():
        reason = f"no real Left Atrium volumes: DUALSEG_LA_ROOT is not set and {unpack} is not there"
        if SHARED_LA.exists() and os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    root = tmp_path_factory.mktemp("la")
    subprocess.run([sys.executable, str(unpack), str(root), "--cases", "3", "--parts", "1"], check=True, timeout=120)
    return root


@pytest.fixture(autouse=True, scope="session")
def interrupts_are_heard():
    """A shell starts background jobs with Ctrl-C ignored; the tests of Ctrl-C need Python's own handler."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def write_study_run(
    folder: Path,
    dice: Mapping[str, Sequence[float]],
    *,
    variant: str = "full",
    seed: int = 0,
    changes: Mapping[str, Any] | None = None,
    manifest: Mapping[str, Any] | None = None,
    classes: Sequence[str] = ("atrium",),
    first_case: int = 0,
    split: str = "test",
) -> Path:
    """A finished run as `dualseg-train` leaves it, without checkpoint and slices.

    Args:
        dice: network -> Dice of each test case, and of each class where there are several, a class 0.1 below the last.
        changes: "a.b" -> other value in config.yaml; "max_iterations" counts for metrics.json too.
        manifest: other entries of manifest.json.
        first_case: number of the first case.
        split: of the cases.
    """
    config: dict[str, Any] = {
        "data": {"name": "la", "root": "/data/la", "labeled": 8, "labeled_ratio": None},
        "networks": {
            n: {"architecture": architecture} for n, architecture in (("a", "resnet34"), ("b", "vnet")) if n in dice
        },
        "batch": {"labeled": 2, "unlabeled": 2},
        "method": {"name": "dual", "keep_fraction": 0.8},
        "objective": "described",
        "trainer": {"max_iterations": 2000},
        "inference": {"distance_unit": "voxel"},
        **{"study": None, "scale": "cpu", "variant": variant, "seed": seed, "output": "runs", "name": None},
    }
    for key, value in (changes or {}).items():
        *parents, last = key.split(".")
        node = config
        for parent in parents:
            node = node[parent]
        node[last] = value
    rows, summary = [], {}
    for network, values in dice.items():
        scores = [
            [d - 0.1 * k, (d - 0.1 * k) / (2 - d + 0.1 * k), 20 * (1 - d), 5 * (1 - d)]
            for d in values
            for k in range(len(classes))
        ]
        names = [(f"case{first_case + i:02d}", c) for i in range(len(values)) for c in classes]
        rows += [
            f"{case},{split},{network},{c},{','.join(f'{x:.6f}' for x in own)},"
            for (case, c), own in zip(names, scores, strict=True)
        ]
        mean = np.mean(scores, axis=0).tolist()
        summary[network] = dict(zip(("dice", "jaccard", "hd95", "asd"), mean, strict=True))
    facts = {
        "dualseg": "0.1.0",
        "versions": {"torch": "2.13.0"},
        "git": {"revision": "0123abc", "dirty": False},
        "hardware": {"cpu": "CPU", "cores": 2, "threads": 1, "gpu": None},
        "data": {"dataset": "la", "fingerprint": "f00d", "labeled": config["data"]["labeled"], "unlabeled": 52},
        "command": f"dualseg-train seed={seed}",
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": 400.5,
        "resumed": [],
        **(manifest or {}),
    }
    (folder / "logs").mkdir(parents=True)
    curve = "iteration,name,value\n10,time/seconds_per_iteration,0.1\n10,lr,0.01\n20,time/seconds_per_iteration,0.3\n"
    (folder / "logs" / "curves.csv").write_text(curve)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "manifest.json").write_text(json.dumps(facts))
    (folder / "cases.csv").write_text("\n".join(["case,split,network,class,dice,jaccard,hd95,asd,empty", *rows]) + "\n")
    metrics = {"status": "finished", "iterations": config["trainer"]["max_iterations"], split: summary}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


@pytest.fixture
def study_run() -> Callable[..., Path]:
    """`write_study_run`."""
    return write_study_run
