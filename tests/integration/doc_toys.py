"""Toys for the commands of the documentation: data of every dataset, and words that make a training last a moment.

A new command gets its toys in `toy_words`, or a reason in `NOT_RUN`.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import h5py
import numpy as np
from documentation import ROOT
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from raw_files import ball, lps_affine, write_brats, write_la, write_nifti_label, write_series

import dualseg.train
from dualseg.configuration import conf_dir
from dualseg.data import Phantom
from dualseg.data.brats2019 import MODALITIES
from dualseg.data.h5 import shipped_list
from dualseg.data.left_atrium import case_list
from dualseg.data.nifti import write_nifti
from dualseg.studies.study import read_study
from dualseg.training.group import Ending

SHAPE = (16, 16, 16)
NOT_RUN = {  # what a command looks like -> why it is not run here
    r"source |pip install|-m venv": "installs",
    r"wandb ": "sends to a server",
    r"trainer=ddp": "tests/integration/test_ddp.py",
    r"launcher=joblib": "tests/integration/test_multirun.py",
    r"make (pancreas|brats)-main": "as la-main; what it trains: tests/studies/test_study.py",
    r"verdict-DATASET": "its scans: tests/prediction/test_results.py",
    r"data\.folds=5": "as with three folds",
    r"launcher=slurm": "a cluster: tests/studies/test_slurm.py, make test-slurm",
    r"docs/images/report\.py": "a browser",
    r"docs/reference\.py": "tests/integration/test_reference.py",
    r"-m build": "tests/integration/test_packaging.py",
    r"make (test|check)|-m pytest": "these tests themselves",
}
TRAINING = (
    "data.patch_size=[16,16,16]",
    "data.stride=[16,16,16]",
    "data.downsample=1",
    "trainer.max_iterations=2",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.threads=1",
    "trainer.progress_bar=false",
)
PHANTOM = (f"++data.source.shape={[*SHAPE]}".replace(" ", ""), "++data.source.test=2")


def why_not(words: list[str]) -> str | None:
    """Why a command is not run, None where it is."""
    line = " ".join(words)
    return next((reason for pattern, reason in NOT_RUN.items() if re.search(pattern, line)), None)


def write_data(folder: Path) -> None:
    """DIR of every dataset below `folder`, data/phantom, and scans to predict."""
    Phantom(folder / "data" / "phantom", test=2, shape=SHAPE)
    Phantom(folder / "mine", train=6, test=2, shape=SHAPE)
    write_folder(folder / "folder")
    write_folder(folder / "folder-and-more")
    write_raw(folder / "raw")
    scans = [*sorted((folder / "mine" / "images").iterdir())[:4]]
    for scan, place in zip(scans, ("scans/a", "first", "second", "more-scans/b"), strict=True):
        (folder / place).parent.mkdir(exist_ok=True)
        shutil.copy(scan, folder / f"{place}.nii.gz")
    brats = [case for split in ("train", "validation", "test") for case in shipped_list(f"brats2019_{split}")]
    lists = {
        "la/{}/mri_norm2.h5": [*case_list("train"), *case_list("test")],
        "pancreas/{}_norm.h5": [*shipped_list("pancreas_mcnet_train"), *shipped_list("pancreas_mcnet_test")],
        "brats/{}.h5": brats,
    }
    rng = np.random.default_rng(0)
    for pattern, cases in lists.items():
        for case in cases:
            path = folder / pattern.format(case)
            path.parent.mkdir(parents=True, exist_ok=True)
            label = np.zeros(SHAPE, np.uint8)
            label[4:11, 5:12, 3:9] = 1
            with h5py.File(path, "w") as h5:
                h5["image"] = (rng.normal(size=SHAPE) + 2 * label).astype(np.float32)
                h5["label"] = label


def write_folder(root: Path) -> None:
    """nnU-Net's raw layout, two channels: ten labeled cases, two unlabeled, and two more in a folder beside it."""
    rng = np.random.default_rng(1)
    affine = np.diag([1.0, 1.0, 2.5, 1.0])
    label = np.zeros(SHAPE, np.uint8)
    label[4:11, 5:12, 3:9] = 1
    for number in range(14):
        images = root / "imagesTr" if number < 12 else root.with_name(f"{root.name}-unlabeled")
        for channel in range(2):
            array = (rng.normal(size=SHAPE) + 2 * label).astype(np.float32)
            write_nifti(images / f"c{number:02d}_{channel:04d}.nii.gz", array, affine)
        if number < 10:
            write_nifti(root / "labelsTr" / f"c{number:02d}.nii.gz", label, affine)
    described = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "organ": 1}}
    (root / "dataset.json").write_text(json.dumps({**described, "file_ending": ".nii.gz", "numTraining": 10}))


def write_raw(raw: Path) -> None:
    """One case of each download, in its own form: a bright ball in a body."""
    shape, affine = (40, 36, 12), lps_affine((1.0, 1.0, 2.0), (-20, -18, 5))
    rng = np.random.default_rng(2)
    body = np.zeros(shape)
    body[4:36, 4:32, 1:11] = rng.integers(80, 120, (32, 28, 10))
    label = ball(shape, (18, 16, 6), 6, (1, 1, 2))
    write_la(raw / "la" / case_list("train")[0], body + 100 * label, 255 * label, affine)
    write_series(raw / "pancreas" / "dicom", np.where(body > 0, body, -1000), affine, "PANCREAS_0001")
    write_nifti_label(raw / "pancreas" / "label0001.nii.gz", label, affine, "LAS")
    modalities = dict.fromkeys(MODALITIES, body + 100 * label)
    write_brats(raw / "brats", shipped_list("brats2019_train")[0], modalities, 4 * label)


def dataset_of(words: list[str]) -> str:
    given = dict(word.partition("=")[::2] for word in words)
    found = next((given[key] for key in ("data", "experiment", "sweep") if key in given), "phantom")
    return found.partition("_")[0]


def toy_words(words: list[str], folder: Path) -> list[str]:
    """The words of a command after its name, with toys in place of what takes long or is not there.

    Raises:
        KeyError: a command that has no toys yet.
    """
    name, *rest = words
    shown_only = {"--help", "--cfg"} & set(rest)
    training = name in ("dualseg-train", "dualseg-audit", "dualseg-check", "dualseg-plan") and not shown_only
    dataset = dataset_of(rest)
    if any("DIR2" in word for word in rest):  # another dataset: the split file of the first one does not know its cases
        dataset = "folder-and-more"
    if name == "dualseg-prepare":  # each into a folder of its own, which holds one set of options
        out = folder / "prepared" / "-".join(re.findall(r"\w+", " ".join(rest)))
        own = {"raw": f"raw={folder / 'raw' / dataset}", "out": f"out={out}", "workers": "workers=1"}
        return [own.get(word.partition("=")[0], word) for word in rest]
    rest = [re.sub(r"\bDIR\b", "runs" if name == "dualseg-report" else str(folder / dataset), word) for word in rest]
    rest = [word.replace("DIR2", str(folder / f"{dataset}-unlabeled")) for word in rest]
    rest = [re.sub(r"iteration-\d{6}", "iteration-000002", word) for word in rest]
    if name in ("dualseg-evaluate", "dualseg-report", "dualseg-predict", "dualseg-export") or shown_only:
        return rest
    if not training:
        raise KeyError(f"{name}: give it toys in {__file__}")
    study = next((word.partition("=")[2] for word in rest if word.startswith("sweep=")), None)
    if "-m" in rest:  # of each key to sweep over, the first value
        rest = [word if "[" in word else word.partition(",")[0] for word in rest]
    toys = [*TRAINING, f"base_channels={8 if 'segresnet' in str(words) else 2}", "trainer.devices=1"]
    if dataset in ("phantom", "demo", "quick"):
        toys += PHANTOM
    if "basic_unet" in str(words):  # its InstanceNorm wants two voxels at the coarsest level
        toys.append("data.patch_size=[32,16,16]")
    if dataset == "brats":  # 85 volumes to evaluate
        toys.append("evaluate_on=[]")
    if study:
        variants = read_study(study).variants
        set_by_rows = {key for changes in variants.values() for key in changes}
        toys = [toy for toy in toys if toy.partition("=")[0] not in set_by_rows]
        given = {word.partition("=")[0] for word in rest}
        first = [f"variant={next(iter(variants))}", "seed=0", *(["data.fold=0"] if read_study(study).folds else [])]
        toys += [word for word in first if word.partition("=")[0] not in given]
    return [*rest, *toys]


def commands_of_make(words: list[str], folder: Path) -> list[list[str]]:
    """The commands of dualseg that a target of make gives."""
    shown = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    start, end = r"(?:^|\|\| +)\S*", r" *(?:;|\|\||$)"  # one line may run several of them
    lines = re.findall(rf"{start}(dualseg-\w+ [^;|\n]*?){end}", shown.replace("\\\n", " "), re.MULTILINE)
    return [line.replace('"', "").split() for line in lines]


def train_in_this_process(words: Sequence[str], processes: int, log: Path, stop: object) -> Ending:
    """In place of `run_group`, for the runs of a sweep: to start a process takes longer than these trainings do."""
    assert processes == 1 and "--config-dir" not in words
    of_the_sweep = Singleton.get_state()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", overrides=[*words])
        with log.open("w") as file, redirect_stdout(file), redirect_stderr(file):
            dualseg.train.train(config)
    Singleton.set_state(of_the_sweep)
    return Ending(0)
