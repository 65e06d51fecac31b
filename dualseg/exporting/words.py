"""What `dualseg-export` takes."""

from dualseg.words import TRUST, Word

FORMATS = ("onnx", "bundle")

KEYS = {
    "run": Word("a run folder, wherever it lies; the dataset of the run is not needed", required="RUN_FOLDER"),
    "format": Word(
        "onnx: NETWORK.onnx and NETWORK.json of each network, checked against PyTorch; bundle: a MONAI Bundle, which "
        "predicts scans on a machine that has MONAI alone; of runs of data=folder, brats and phantom, since what la "
        "and pancreas do to a scan takes more than MONAI",
        required="|".join(FORMATS),
    ),
    "output": Word("a new or empty folder", required="DIR"),
    "trust": TRUST,
}
