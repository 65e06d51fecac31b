"""Do the scans that dualseg-predict says to look at have the lower Dice? On the test cases of a run of data=la.

    python benchmarks/review_flags.py RUN_FOLDER

The cases are written as NIfTI, as they lie in the dataset, and predicted as new scans: cropped once more, by intensity.
"""

import csv
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

from dualseg.data.nifti import write_nifti
from dualseg.data.splits import split_source
from dualseg.metrics.functional import scores
from dualseg.prediction.review import DISAGREEMENT
from dualseg.runs.folder import RunFolder
from dualseg.training.trusted import Trust

TO_LEFT_AND_POSTERIOR = np.diag([-1.0, -1.0, 1.0, 1.0])  # the axes of the dataset's files


def main() -> None:
    run = RunFolder.existing(Path(sys.argv[1]))
    data = run.config()["data"]
    source = Trust().source(data["source"], f"{run.config_file}: data.source")
    split = split_source(source, data)
    with tempfile.TemporaryDirectory() as name:
        scans, out = Path(name) / "scans", Path(name) / "out"
        for case in split.test:
            image = source.read_image(case)
            write_nifti(scans / f"{case}.nii.gz", image.array[0], TO_LEFT_AND_POSTERIOR @ image.affine)
        words = [f"run={run.path}", f"input={scans}", f"output={out}"]
        subprocess.run([sys.executable, "-m", "dualseg.predict", *words], check=True, stdout=subprocess.DEVNULL)
        with (out / "summary.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        dice = {}
        for row in rows:
            label = np.asarray(nib.load(out / "labels" / f"{row['scan']}.nii.gz").dataobj)
            dice[row["scan"]] = scores(label == 1, source.read_label(row["scan"]) == 1).dice
    for row in sorted(rows, key=lambda row: dice[row["scan"]]):
        print(
            f"{row['scan']} Dice {dice[row['scan']]:.2f} disagree on {row['disagreement_foreground']}: {row['look_at']}"
        )
    for what, flagged in (("flagged", True), ("not flagged", False)):
        own = [dice[row["scan"]] for row in rows if bool(row["look_at"]) == flagged]
        told = f": Dice {min(own):.2f} to {max(own):.2f}, mean {np.mean(own):.2f}" if own else ""
        print(f"{len(own)} of {len(rows)} {what}{told}")
    disagree = sum(float(row["disagreement_foreground"]) > DISAGREEMENT for row in rows)
    print(f"{disagree} disagree on more than {DISAGREEMENT:.0%}")


if __name__ == "__main__":
    main()
