"""What `dualseg-prepare` takes."""

from dualseg.words import Word

KEYS = {
    "data": Word(
        "la: folders CASE/lgemri.nrrd + laendo.nrrd; pancreas: DICOM series + label00NN.nii.gz; brats: "
        "CASE_flair.nii.gz ... CASE_seg.nii.gz; anywhere below raw",
        required="la|pancreas|brats",
    ),
    "raw": Word("folder of the download; nothing in it is changed", required="DIR"),
    "out": Word("folder to train from (data.root); cases that are finished there are kept", required="DIR"),
    "crop": Word(
        "ground_truth: around the label, the usual protocol (default of la and pancreas); foreground: by intensity "
        "alone, as a new scan is cropped (default and only choice of brats)"
    ),
    "workers": Word("processes (default: one for each core; a CT takes 2 GB of memory in each)"),
    "modalities": Word("brats: channels, of [flair,t1,t1ce,t2]", "[flair]"),
    "regions": Word(
        "brats: true: necrotic core, edema and enhancing tumour are trained, and whole tumour, tumour core and "
        "enhancing tumour, their unions, scored",
        "false",
    ),
}
