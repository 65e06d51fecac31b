"""nnU-Net itself on the cases of a split file, for a budget of iterations: its own plan, fold `all`, one command.

In an environment of its own, since nnunetv2 pulls torchvision, which a CPU build of torch does not fit:

    python3 -m venv /tmp/nnunet && /tmp/nnunet/bin/pip install torch torchvision "nnunetv2==2.8.*"
    /tmp/nnunet/bin/python experiments/beside_nnunet/run.py HIPPOCAMPUS experiments/hippocampus/final.json \
      --labeled 10 --iterations 5000 --threads 2 --work /tmp/nnunet-10

The first `--labeled` cases of the split train; all of its test list is predicted with mirroring, as nnU-Net does, and
scored by Dice. `result.json` in the work folder says how long planning and preprocessing, training and prediction took.
"""

import argparse
import json
import os
import time
from pathlib import Path
from statistics import mean, median

DATASET = 1
CONFIGURATION = "3d_fullres"
EPOCH = 50  # iterations
WORKERS = "nnUNet_n_proc_DA"  # that prepare batches, as nnU-Net is told


def write_raw(root: Path, raw: Path, training: list[str], test: list[str]) -> Path:
    """The cases as nnU-Net wants them, as links; returns the folder of the test images."""
    dataset = raw / f"Dataset{DATASET:03d}_budget"
    described = json.loads((root / "dataset.json").read_text())
    labels = {name: int(value) for name, value in described["labels"].items()}
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (dataset / folder).mkdir(parents=True, exist_ok=True)
    for case in training:
        _link(_image(root, case), dataset / "imagesTr" / f"{case}_0000.nii.gz")
        _link(root / "labelsTr" / f"{case}.nii.gz", dataset / "labelsTr" / f"{case}.nii.gz")
    for case in test:
        _link(_image(root, case), dataset / "imagesTs" / f"{case}_0000.nii.gz")
    (dataset / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": described["channel_names"],
                "labels": labels,
                "numTraining": len(training),
                "file_ending": ".nii.gz",
            }
        )
    )
    return dataset / "imagesTs"


def _image(root: Path, case: str) -> Path:
    """One channel, with or without nnU-Net's number in its name."""
    numbered = root / "imagesTr" / f"{case}_0000.nii.gz"
    return numbered if numbered.exists() else root / "imagesTr" / f"{case}.nii.gz"


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    target.symlink_to(source.resolve())


def trained(work: Path, iterations: int, threads: int):
    """A trainer that has run for so many iterations, with which its learning rate ends, and the seconds it took."""
    import torch
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    extract_fingerprints([DATASET], num_processes=1)
    plan_experiments([DATASET])
    preprocess([DATASET], configurations=[CONFIGURATION], num_processes=[1])
    folder = next(work.glob("preprocessed/Dataset*"))
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    described = json.loads((folder / "dataset.json").read_text())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    os.environ[WORKERS] = "0"  # batches are made in this process: no thread beside those that are counted
    torch.set_num_threads(threads)  # planning sets another number
    plans["continue_training"] = False  # nnunetv2 2.8 takes it from there
    trainer = nnUNetTrainer(plans, CONFIGURATION, "all", described, device)
    trainer.num_iterations_per_epoch = min(EPOCH, iterations)
    trainer.num_epochs = -(-iterations // trainer.num_iterations_per_epoch)
    trainer.num_val_iterations_per_epoch = 1  # what it measures there chooses nothing: the last weights count
    trainer.initialize()
    began = time.perf_counter()
    trainer.run_training()
    return trainer, time.perf_counter() - began


def predict(trainer, images: Path, out: Path) -> float:
    """Write the label maps of all test images; returns the seconds it took."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        use_mirroring=True, perform_everything_on_device=trainer.device.type == "cuda", device=trainer.device
    )
    trainer.set_deep_supervision_enabled(False)
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        trainer.dataset_json,
        "nnUNetTrainer",
        trainer.inference_allowed_mirroring_axes,
    )
    files = sorted(images.iterdir())
    targets = [str(out / file.name.removesuffix("_0000.nii.gz")) for file in files]
    out.mkdir(exist_ok=True)
    began = time.perf_counter()
    predictor.predict_from_files_sequential([[str(file)] for file in files], targets)
    return time.perf_counter() - began


def dice_of(root: Path, out: Path, test: list[str], labels: list[int]) -> list[list[float]]:
    """Dice of each test case and class; 1 where neither map has the class."""
    import nibabel as nib
    import numpy as np

    scores = []
    for case in test:
        truth = np.asarray(nib.load(root / "labelsTr" / f"{case}.nii.gz").dataobj)
        predicted = np.asarray(nib.load(out / f"{case}.nii.gz").dataobj)
        own = []
        for label in labels:
            a, b = truth == label, predicted == label
            size = int(a.sum() + b.sum())
            own.append(2 * int((a & b).sum()) / size if size else 1.0)
        scores.append(own)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of the dataset, in nnU-Net's raw layout")
    parser.add_argument("split", type=Path, help="split file of dualseg with a test list")
    parser.add_argument("--labeled", type=int, help="the first so many labeled cases; all without it")
    parser.add_argument("--iterations", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, required=True, help="a new folder")
    given = parser.parse_args()
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(given.work / name)  # read when nnunetv2 is imported
    os.environ |= {WORKERS: "1", "nnUNet_compile": "f", "OMP_NUM_THREADS": str(given.threads)}
    split = json.loads(given.split.read_text())
    training, test = split["labeled"][: given.labeled], split["test"]
    images = write_raw(given.root, given.work / "raw", training, test)

    import torch

    began = time.perf_counter()
    trainer, training_seconds = trained(given.work, given.iterations, given.threads)
    planning_seconds = time.perf_counter() - began - training_seconds
    prediction_seconds = predict(trainer, images, given.work / "predicted")
    classes = list(trainer.label_manager.foreground_labels)
    scores = dice_of(given.root, given.work / "predicted", test, classes)
    cases = [mean(own) for own in scores]
    result = {
        "labeled": len(training),
        "test": len(test),
        "dice": mean(cases),
        "median_dice": median(cases),
        "dice_of_classes": [mean(own) for own in zip(*scores, strict=True)],
        "iterations": given.iterations,
        "batch": trainer.configuration_manager.batch_size,
        "patch": list(trainer.configuration_manager.patch_size),
        "threads": given.threads,
        "hours": {
            "planning": planning_seconds / 3600,
            "training": training_seconds / 3600,
            "prediction": prediction_seconds / 3600,
        },
        "torch": torch.__version__,
        "device": str(trainer.device),
    }
    (given.work / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
