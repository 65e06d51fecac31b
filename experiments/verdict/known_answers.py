"""Does the verdict say what is known? Synthetic sets in which unlabeled scans help, change nothing, or hurt.

    python experiments/verdict/known_answers.py WORK [--answers help hurt] [--repetitions 10]

Each repetition makes a dataset of its own below WORK (an empty folder, or that of an earlier start), in nnU-Net's
layout, and runs `dualseg-train -m sweep=verdict` with two folds on it, with a small network. Rows are added to
known_answers.csv beside this file as they finish; what is there is not run again.

A scan shows one large bright body, which is labeled, among small ones that are as bright, on a smooth ground, under a
bias field and noise.

- help: 8 labeled and 48 unlabeled scans of this kind; 4 labels train.
- nothing: 60 labeled and 48 unlabeled ones; 30 labels train.
- hurt: 24 labeled ones, of which 12 train, and 36 unlabeled ones of another contrast and shape: dark tubes.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rows import add, rows_of
from scipy import ndimage

from dualseg.data.nifti import write_nifti

SHAPE = (24, 24, 16)


class Known(NamedTuple):
    """A kind of dataset of which the answer is known."""

    answer: str  # of verdict.json
    labeled: int
    unlabeled: int
    same: bool  # the unlabeled scans are of the labeled ones' kind
    iterations: int


KNOWN = {
    "help": Known("help", 8, 48, True, 1000),
    "nothing": Known("not shown", 60, 48, True, 1500),
    "hurt": Known("hurt", 24, 36, False, 300),
}
WORDS = (
    "data.folds=2",
    "trainer.accelerator=cpu",
    "trainer.threads=1",
    "base_channels=4",
    "batch.labeled=2",
    "data.patch_size=[24,24,16]",
    "data.stride=[12,12,8]",
)
COLUMNS = (
    "known", "repetition", "answer", "right", "mean", "low", "high", "p", "cases", "fewest_labels",
    "against_supervised", "recommended", "seconds", "words",
)  # fmt: skip
TABLE = Path(__file__).with_name("known_answers.csv")


def body(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A scan of the labeled kind, and its label."""
    surface = outside(rng.uniform(-1, 1, 3) * (4, 4, 2.4), rng.uniform([4.5, 4.5, 3], [7, 7, 4.5]))
    label = surface + 0.2 * smooth(rng, 2) < 0
    image = 0.3 * smooth(rng, rng.uniform(1.5, 4))
    for _ in range(rng.integers(6, 10)):
        small = outside(rng.uniform(-0.5, 0.5, 3) * SHAPE, rng.uniform(1.5, 2.6, 3)) < 0
        image[small & ~label] += rng.uniform(1.2, 2.0)
    image[label] += rng.uniform(1.2, 2.0)
    return scanned(rng, image), label


def tubes(rng: np.random.Generator) -> np.ndarray:
    """A scan of another kind."""
    image = 0.3 * smooth(rng, rng.uniform(1.5, 4))
    for _ in range(rng.integers(2, 5)):
        position = positions(rng.uniform(-1, 1, 3) * SHAPE / np.array(3))
        direction = rng.standard_normal(3)
        along = np.tensordot(direction / np.linalg.norm(direction), position, 1)
        image[(position**2).sum(0) - along**2 < rng.uniform(1.5, 4) ** 2] -= rng.uniform(1.2, 2.0)
    return scanned(rng, image)


def scanned(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """With a bias field and noise; mean 0, deviation 1."""
    image = image * np.exp(0.2 * smooth(rng, 6))
    image += 0.3 * rng.uniform(0.5, 1.5) * rng.standard_normal(SHAPE)
    return ((image - image.mean()) / image.std()).astype(np.float32)


def smooth(rng: np.random.Generator, sigma: float) -> np.ndarray:
    """A random field of deviation 1."""
    field = ndimage.gaussian_filter(rng.standard_normal(SHAPE), sigma, mode="wrap")
    return field / field.std()


def positions(centre: np.ndarray) -> np.ndarray:
    """(3, W, H, D): of each voxel from `centre`, which is seen from the middle of the scan."""
    grid = np.indices(SHAPE) - (np.array(SHAPE)[:, None, None, None] - 1) / 2
    return grid - np.asarray(centre)[:, None, None, None]


def outside(centre: np.ndarray, semi_axes: np.ndarray) -> np.ndarray:
    """Of an ellipsoid: below 0 inside, above 0 outside."""
    return np.sqrt(((positions(centre) / semi_axes[:, None, None, None]) ** 2).sum(0)) - 1


def write_set(root: Path, name: str, repetition: int) -> None:
    """A dataset in nnU-Net's layout: the scans without a label are unlabeled."""
    known = KNOWN[name]
    for index in range(known.labeled + known.unlabeled):
        rng = np.random.default_rng([[*KNOWN].index(name), repetition, index])
        labeled = index < known.labeled
        image, label = body(rng) if labeled or known.same else (tubes(rng), None)
        write_nifti(root / "imagesTr" / f"case{index:03d}_0000.nii.gz", image, np.eye(4))
        if labeled:
            write_nifti(root / "labelsTr" / f"case{index:03d}.nii.gz", label.astype(np.uint8), np.eye(4))
    described = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "body": 1},
        "numTraining": known.labeled,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(described))


def main() -> None:
    """Run what is not in the table yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--answers", nargs="+", choices=[*KNOWN], default=[*KNOWN])
    parser.add_argument("--repetitions", type=int, default=10)
    given = parser.parse_args()
    for repetition in range(given.repetitions):
        for name in given.answers:
            there = {(row["known"], row["repetition"]) for row in rows_of(TABLE)}
            if (name, str(repetition)) not in there:
                add(TABLE, COLUMNS, judged(given.work, name, repetition))


def judged(work: Path, name: str, repetition: int) -> dict[str, object]:
    """The row of one verdict."""
    folder = f"{name}{repetition}"
    root, runs, begun = work / folder, work / "runs", time.perf_counter()
    if not (root / "dataset.json").is_file():
        write_set(root, name, repetition)
    words = [*WORDS, f"trainer.max_iterations={KNOWN[name].iterations}"]
    command = [sys.executable, "-m", "dualseg.train", "-m", "sweep=verdict", "data=folder", f"data.root={root}"]
    subprocess.run([*command, f"output={runs}", *words], check=True)
    found = json.loads((runs / "sweeps" / f"verdict-{folder}" / "verdict.json").read_text())
    return {
        "known": name,
        "repetition": repetition,
        **{key: found[key] for key in ("answer", "cases", "recommended")},
        "right": "yes" if found["answer"] == KNOWN[name].answer else "no",
        **{key: round(found["dice"][key], 3) for key in ("mean", "low", "high")},
        "p": round(found["p"], 5),
        "fewest_labels": found["labels"][0],
        "against_supervised": round(found["supervised"]["mean"], 3),
        "seconds": round(time.perf_counter() - begun),
        "words": " ".join(words),
    }


if __name__ == "__main__":
    main()
