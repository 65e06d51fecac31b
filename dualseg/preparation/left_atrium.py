"""The Left Atrium challenge's folders: CASE/lgemri.nrrd and CASE/laendo.nrrd (0 and 255), in any folder below raw."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from dualseg.data import left_atrium as dataset
from dualseg.data.cropping import Box, cropped
from dualseg.data.formats import read_volume
from dualseg.data.preprocessing import to_lps
from dualseg.data.volumes import Image
from dualseg.errors import DualsegError
from dualseg.files import files_below
from dualseg.preparation.base import Found, Preparation, Volume, check_pair, check_values, cut, once

IMAGE, LABEL = "lgemri.nrrd", "laendo.nrrd"
MARGIN = (10, 20)  # voxels a side, drawn at random below the second


class LeftAtriumPreparation(Preparation):
    source = dataset.LeftAtrium

    def listed(self) -> tuple[str, ...]:
        return dataset.case_list("train") + dataset.case_list("test")

    def find(self, raw: Path) -> Found:
        found = Found()
        images: dict[str, list[Path]] = {}
        for path in files_below(raw):
            if path.name == IMAGE:
                images.setdefault(path.parent.name, []).append(path)
        for case, image in once(images, found.failed).items():
            label = image.with_name(LABEL)
            if label.is_file():
                found.cases[case] = {"image": image, "label": label}
            else:
                found.failed[case] = f"{label}: missing beside {IMAGE}; download the case again."
        return found

    def read(self, case: str, files: Mapping[str, Any]) -> Volume:
        array, affine = read_volume(files["image"])
        label, label_affine = read_volume(files["label"])
        for path, own in ((files["image"], array), (files["label"], label)):
            if len(own) != 1:
                raise DualsegError(f"{path}: has {len(own)} channels; a volume of one is needed.")
        check_values(label, (0, 255), files["label"])
        image = to_lps(Image(array, affine))
        if nib.aff2axcodes(label_affine) != nib.aff2axcodes(affine):
            raise DualsegError(f"{files['label']}: its axes are not those of {IMAGE}; download the case again.")
        # voxel lies on voxel, whatever origin and size the label's header gives
        turned = to_lps(Image((label == 255).astype(np.uint8), affine)).array[0]
        check_pair(image, turned, files["label"])
        return Volume(image, turned)

    def prepare(self, case: str, raw: Volume) -> Volume:
        image = dataset.normalised(raw.image)
        box = dataset.foreground(image) if self.crop == "foreground" else _around(raw.label, case)
        return Volume(cropped(image, box), cut(raw.label, box))


def _around(label: np.ndarray, case: str) -> Box:
    """The atrium's box in x and y, widened to the patch, plus a random margin a side, the same each time for a case."""
    draw = np.random.default_rng(list(case.encode()))
    margins = [(int(a), int(b)) for a, b in draw.integers(*MARGIN, size=(2, 2))]
    box = Box.around(label > 0).widened(label.shape, dataset.PATCH, [*margins, (0, 0)])
    return Box((*box.start[:2], 0), (*box.stop[:2], label.shape[2]))
