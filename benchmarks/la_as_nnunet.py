"""Left Atrium in the layout of nnU-Net: the same volumes through data=folder, to be trained on as data=la does.

    python benchmarks/la_as_nnunet.py LA_ROOT OUT
    dualseg-train experiment=la_cpu data.root=LA_ROOT data.labeled=8 name=la
    dualseg-train experiment=la_cpu data=folder data.root=OUT data.labeled=8 name=own \
      recipe=none data.source.spacing=null data.source.intensity=null

Both runs have the same batches, and so the same weights and scores. Both lines may end in the same further words.
"""

import sys
from pathlib import Path

import numpy as np

from dualseg.data import LeftAtrium
from dualseg.data.nifti import write_nifti
from dualseg.data.split_file import NAME
from dualseg.files import write_json


def convert(root: Path, out: Path) -> None:
    """Write the training cases of `root` to `out`, and a split in their official order."""
    source = LeftAtrium(root)
    for case in source.train_cases:
        image = source.read_image(case)
        write_nifti(out / "imagesTr" / f"{case}_0000.nii.gz", image.array[0], image.affine)
        write_nifti(out / "labelsTr" / f"{case}.nii.gz", source.read_label(case).astype(np.uint8), image.affine)
    write_json(out / "dataset.json", {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "atrium": 1}})
    write_json(out / NAME, {"labeled": source.train_cases})


if __name__ == "__main__":
    convert(*map(Path, sys.argv[1:]))
