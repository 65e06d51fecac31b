"""Half of the unlabeled scans do not show the organ: does the training drift, and does the guard hold it?

    python experiments/verdict/half_empty.py HIPPOCAMPUS WORK [--rows all half ...]

Hippocampus with 10 labels, validated on the 30 cases of ../hippocampus/design.json. Every second unlabeled scan is
emptied: its outermost slices, which show tissue beside the organ, are reflected over the whole grid. Only the ten
labels and those of the validation cases are opened. Rows are added to half_empty.csv beside this file as they finish;
what is there is not run again.

- all: the pool as it is.
- half: without the scans that the next rows empty.
- half_empty: every second one emptied.
- half_empty_unguarded: the same, method.guard=false.
- labels_only: the labels-only twin.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from rows import add, rows_of

from dualseg.data.nifti import write_nifti
from dualseg.training.curves import read_curves

HERE = Path(__file__).resolve().parent
DESIGN = json.loads((HERE.parent / "hippocampus" / "design.json").read_text())
LABELED = DESIGN["labeled"][:10]
POOL = sorted(DESIGN["labeled"][10:] + DESIGN["unlabeled"])
EMPTIED = POOL[1::2]
SLICES = 5  # of the first axis, at its right end; at least seven there are free of the organ in the ten labels
LENGTH = "trainer.max_iterations=1000"  # half of the study's
MIX = ("method=solo_mix", "networks=plain_unet")
ROWS = {  # row: (its folder, its words)
    "all": ("all", MIX),
    "half": ("half", MIX),
    "half_empty": ("half_empty", MIX),
    "half_empty_unguarded": ("half_empty", (*MIX, "method.guard=false")),
    "labels_only": ("all", (*MIX, "batch.unlabeled=0")),
}
SHARE = "pseudo_share/"  # curve: a class's share of the pseudo-labels over its share of the labels
COLUMNS = (
    "row", "unlabeled", "emptied", "dice", "anterior", "posterior", "hd95", "least_share", "most_share", "held",
    "words",
)  # fmt: skip
TABLE = HERE / "half_empty.csv"


def main() -> None:
    """Run what is not in the table yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hippocampus", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--rows", nargs="+", choices=[*ROWS], default=[*ROWS])
    given = parser.parse_args()
    for row in given.rows:
        if row not in {one["row"] for one in rows_of(TABLE)}:
            add(TABLE, COLUMNS, trained(given.hippocampus.resolve(), given.work.resolve(), row))


def write_set(source: Path, root: Path, kind: str) -> list[str]:
    """A dataset folder of links and emptied scans, with its split; the unlabeled cases."""
    pool = [case for case in POOL if kind != "half" or case not in EMPTIED]
    validation = DESIGN["validation"]
    for folder, cases in (("imagesTr", LABELED + validation), ("labelsTr", LABELED + validation), ("imagesUn", pool)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for case in cases:
            target = root / folder / f"{case}.nii.gz"
            kinds = (folder,) if folder != "imagesUn" else ("imagesTr", "imagesUn")
            origin = next(p for k in kinds if (p := source / k / target.name).is_file())
            if kind == "half_empty" and folder == "imagesUn" and case in EMPTIED:
                write_nifti(target, *emptied(origin))
            elif not target.exists():
                target.symlink_to(origin)
    described = json.loads((source / "dataset.json").read_text())
    kept = {key: described[key] for key in ("channel_names", "modality", "labels", "file_ending") if key in described}
    (root / "dataset.json").write_text(json.dumps(kept))
    roles = {"labeled": LABELED, "unlabeled": pool, "validation": validation}
    (root / "split.json").write_text(json.dumps(roles | {"median_spacing": DESIGN["median_spacing"]}))
    return pool


def emptied(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A scan's outermost slices, reflected over its grid, and its affine."""
    scan = nib.as_closest_canonical(nib.load(path))
    image = np.asarray(scan.dataobj)
    slab = image[-SLICES:]
    return np.pad(slab, ((len(image) - SLICES, 0), (0, 0), (0, 0)), mode="symmetric"), scan.affine


def trained(source: Path, work: Path, row: str) -> dict[str, object]:
    """The row of one training."""
    kind, words = ROWS[row]
    root, run = work / kind, work / "runs" / row
    pool = write_set(source, root, kind)
    words = ("experiment=hippocampus", *words, LENGTH, "evaluate_on=[validation]")
    words += ("trainer.accelerator=cpu", "trainer.threads=1")
    command = [sys.executable, "-m", "dualseg.train", f"data.root={root}", f"data.source.splits={root / 'split.json'}"]
    subprocess.run([*command, f"output={run.parent}", f"name={run.name}", *words], check=True)
    found = json.loads((run / "metrics.json").read_text())
    scores = found["validation"][found["record"]]
    curves = read_curves(run / "logs" / "curves.csv")
    shares = [value for _, name, value in curves if name.startswith(SHARE)]
    opened = [value for _, name, value in curves if name == "guard/open"]
    return {
        "row": row,
        "unlabeled": 0 if "batch.unlabeled=0" in words else len(pool),
        "emptied": len(EMPTIED) if kind == "half_empty" else 0,
        "dice": round(100 * scores["dice"], 2),
        **{name: round(100 * scores["classes"][name]["dice"], 2) for name in ("anterior", "posterior")},
        "hd95": round(scores["hd95"], 2),
        "least_share": round(min(shares), 3) if shares else "",
        "most_share": round(max(shares), 3) if shares else "",
        "held": opened.count(0.0) if opened else "",
        "words": " ".join(words),
    }


if __name__ == "__main__":
    main()
