"""Does the verdict say what is known? Synthetic sets in which unlabeled scans help, change nothing, or hurt.

    python experiments/verdict/known_answers.py WORK [--answers help hurt] [--repetitions 10] [--words key=value ...]

Each repetition makes a dataset of its own below WORK, in nnU-Net's layout, and runs `dualseg-train -m sweep=verdict`
on it with small networks. Rows are added to known_answers.csv beside this file as they finish; what is there is not run
again.

- help: 8 labeled and 24 unlabeled scans of one distribution; two folds, so that 4 labels train.
- nothing: 60 labeled and 24 unlabeled ones of one distribution; 30 labels train.
- hurt: as help, but the pool has another contrast and shape: dark for bright, and turned upside down.

All scans are noisy, so that labels alone leave something to be gained.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from rows import add, rows_of

from dualseg.data.nifti import write_nifti
from dualseg.data.phantom import make_phantom

SHAPE = (24, 24, 16)
NOISE = 0.7  # deviation of what is added to every scan, whose own is 1: without it labels alone are as good
LABELED = {"help": 8, "nothing": 60, "hurt": 8}
UNLABELED = 24
WORDS = (
    "data.folds=2",
    "trainer.max_iterations=500",
    "trainer.accelerator=cpu",
    "trainer.threads=1",
    "trainer.checkpoint_every=500",
    "base_channels=4",
    "batch.labeled=2",
    "data.patch_size=[24,24,16]",
    "data.stride=[12,12,8]",
)
COLUMNS = (
    "known", "repetition", "answer", "mean", "low", "high", "p", "cases", "fewest_labels", "against_supervised",
    "recommended", "seconds", "words",
)  # fmt: skip
TABLE = Path(__file__).with_name("known_answers.csv")


def write_set(root: Path, known: str, repetition: int) -> None:
    """A dataset in nnU-Net's layout: the scans without a label are unlabeled."""
    seed = 1000 * (1 + [*LABELED].index(known)) + repetition
    for index in range(LABELED[known] + UNLABELED):
        image, label, affine = make_phantom(seed, index, SHAPE)
        noise = np.random.default_rng([seed, index, 1]).standard_normal(image.shape, np.float32)
        image += NOISE * noise
        labeled = index < LABELED[known]
        if known == "hurt" and not labeled:
            image = -image[:, :, ::-1]
        write_nifti(root / "imagesTr" / f"case{index:03d}_0000.nii.gz", np.ascontiguousarray(image), affine)
        if labeled:
            write_nifti(root / "labelsTr" / f"case{index:03d}.nii.gz", label, affine)
    described = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "chamber": 1},
        "numTraining": LABELED[known],
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(described))


def main() -> None:
    """Run what is not in the table yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--answers", nargs="+", choices=[*LABELED], default=[*LABELED])
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--words", nargs="+", default=[], help="further words of dualseg-train")
    given = parser.parse_args()
    for repetition in range(given.repetitions):
        for known in given.answers:
            there = {(row["known"], row["repetition"]) for row in rows_of(TABLE)}
            if (known, str(repetition)) not in there:
                add(TABLE, COLUMNS, judged(given.work, known, repetition, [*WORDS, *given.words]))


def judged(work: Path, known: str, repetition: int, words: list[str]) -> dict[str, object]:
    """The row of one verdict."""
    name = f"{known}{repetition}"
    root, runs, begun = work / name, work / "runs", time.perf_counter()
    if not (root / "dataset.json").is_file():
        write_set(root, known, repetition)
    command = [sys.executable, "-m", "dualseg.train", "-m", "sweep=verdict", "data=folder", f"data.root={root}"]
    subprocess.run([*command, f"output={runs}", *words], check=True)
    found = json.loads((runs / "sweeps" / f"verdict-{name}" / "verdict.json").read_text())
    return {
        "known": known,
        "repetition": repetition,
        **{key: found[key] for key in ("answer", "cases", "recommended")},
        **{key: round(found["dice"][key], 3) for key in ("mean", "low", "high")},
        "p": round(found["p"], 5),
        "fewest_labels": found["labels"][0],
        "against_supervised": round(found["supervised"]["mean"], 3),
        "seconds": round(time.perf_counter() - begun),
        "words": " ".join(words),
    }


if __name__ == "__main__":
    main()
