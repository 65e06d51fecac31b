"""What `dualseg-predict` takes."""

from dualseg.words import TRUST, Word

OUT_OF_MEMORY = "Give less memory=..., so that more lies on disk meanwhile, or another device=..."

KEYS = {
    "run": Word(
        "a run folder, wherever it lies, or the folder of a verdict's sweep: its recommended runs; given again, as for "
        "seeds or folds, all networks are one ensemble: the probabilities of each are brought to the scan's grid and "
        "averaged there",
        required="RUN_FOLDER",
    ),
    "input": Word(
        "files (NIfTI, NRRD, MetaImage, .img with .hdr), folders of them, folders of DICOM series; the dataset of the "
        "run is not needed",
        required="SCAN",
    ),
    "output": Word(
        "a new or empty folder: labels/, summary.csv, prediction.json; or that of the same command, which then goes on",
        required="DIR",
    ),
    "overlap": Word(
        "share of a window that its neighbour covers again, 0 to below 1; a protocol's evaluation has its own, dense "
        "stride",
        "0.5",
    ),
    "mirror": Word("true: average over the eight mirror images of each window, in eight times the time", "false"),
    "probabilities": Word("true: also write probabilities/, the mean of the networks", "false"),
    "uncertainty": Word("true: also write entropy/ and disagreement/", "false"),
    "report": Word("true: also write report.html, a page to look through the scans, the uncertain ones first", "false"),
    "keep_largest": Word(
        "classes, such as [liver,spleen], all or none, of which only the largest connected component is kept; of the "
        "runs that a verdict recommends by itself what it decided"
    ),
    "memory": Word(
        "of RAM, at most: what does not fit lies in unnamed files of output until the scan is done; same result", "8GiB"
    ),
    "device": Word("auto, cpu, cuda, cuda:N", "auto"),
    "identifiers": Word("true: outputs of DICOM series may be named after the patient and the folder", "false"),
    "trust": TRUST,
}
