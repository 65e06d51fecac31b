"""What two dark test cases do to the means of a study: python experiments/two_cases.py la_seed [folder of the volumes]

Prints, in Dice %, those two cases and the mean over the others for each row at CPU scale (its record network, mean over
seeds) from cases.csv, and with the folder the mean intensity of every image that was tested, darkest first.
"""

import sys
from pathlib import Path

import h5py
import pandas as pd

from dualseg.studies.tidy import StudyTables

DARK = ["OIRDLE32TXZX942FVZMM", "RSZY41MT2FGDKHWWL5L2"]

study = Path(__file__).parent / sys.argv[1]
cases = StudyTables.read(study).cases_of_record().astype({"dice": float})
cases = cases[(cases["scale"] == "cpu") & (cases["split"] == "test")]
table = 100 * cases.pivot_table(index="variant", columns="case", values="dice")
others = table.drop(columns=DARK).mean(axis=1).rename("mean of the others")
print(table[DARK].join(others).round(1).to_string())
if len(sys.argv) > 2:
    means = {}
    for case in table.columns:
        with h5py.File(Path(sys.argv[2]) / case / "mri_norm2.h5") as file:
            means[case] = file["image"][:].mean()
    print(pd.Series(means, name="mean intensity").sort_values().round(2).to_string())
