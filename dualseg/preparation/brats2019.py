"""BraTS-2019's folders: CASE_flair.nii.gz, CASE_t1.nii.gz, ..., CASE_seg.nii.gz in HGG and LGG, anywhere below raw."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dualseg.data import brats2019 as dataset
from dualseg.data.cropping import cropped
from dualseg.data.h5 import Crop, shipped_list
from dualseg.data.nifti import read_nifti
from dualseg.data.preprocessing import to_lps
from dualseg.data.volumes import Image
from dualseg.errors import DualsegError
from dualseg.files import files_below
from dualseg.preparation.base import Found, Preparation, Volume, check_pair, check_values, cut, once

LABELS = (0, 1, 2, 4)  # background, necrotic core, edema, enhancing tumour
_NAME = re.compile(r"(.+)_(flair|t1|t1ce|t2|seg)(?i:\.nii(\.gz)?)")


@dataclass(frozen=True)
class BraTS2019Preparation(Preparation):
    """The usual protocol crops to the brain, which needs no label.

    Attributes:
        modalities: the channels, in their order.
        regions: keep the exclusive classes 0..3, of which the nested regions are unions; else 1 is the whole tumour.
    """

    modalities: tuple[str, ...] = ("flair",)
    regions: bool = False
    source = dataset.BraTS2019
    crops: ClassVar[Sequence[Crop]] = ("foreground",)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "modalities": list(self.modalities), "regions": self.regions}

    @property
    def class_names(self) -> tuple[str, ...]:
        return dataset.TUMOUR_CLASSES if self.regions else self.source.class_names

    def listed(self) -> tuple[str, ...]:
        return tuple(case for part in ("train", "validation", "test") for case in shipped_list(f"brats2019_{part}"))

    def find(self, raw: Path) -> Found:
        found = Found()
        files: dict[str, dict[str, list[Path]]] = {}
        for path in files_below(raw):
            if match := _NAME.fullmatch(path.name):
                files.setdefault(match[2], {}).setdefault(match[1], []).append(path)
        wanted = (*self.modalities, "seg")
        by_kind = {kind: once(files.get(kind, {}), found.failed) for kind in wanted}
        for case in dict.fromkeys(case for kind in by_kind.values() for case in kind):
            missing = [f"{case}_{kind}.nii.gz" for kind in wanted if case not in by_kind[kind]]
            if missing and case not in found.failed:
                found.failed[case] = f"{', '.join(missing)}: not below {raw}; download the case again."
            elif not missing:
                found.cases[case] = {kind: by_kind[kind][case] for kind in wanted}
        return found

    def read(self, case: str, files: Mapping[str, Any]) -> Volume:
        channels = [_one_channel(files[modality]) for modality in self.modalities]
        first = channels[0]
        for modality, channel in zip(self.modalities, channels, strict=True):
            _check_grid(channel, first, files[modality])
        image = Image(np.concatenate([channel.array for channel in channels]), first.affine)
        label = _one_channel(files["seg"])
        check_pair(image, label.array[0], files["seg"])
        _check_grid(label, first, files["seg"])
        check_values(label.array, LABELS, files["seg"])
        classes = np.searchsorted(LABELS, label.array[0]).astype(np.uint8)
        return Volume(image, classes if self.regions else (classes > 0).astype(np.uint8))

    def prepare(self, case: str, raw: Volume) -> Volume:
        box = dataset.foreground(raw.image)
        return Volume(dataset.normalised(cropped(raw.image, box)), cut(raw.label, box))


def _one_channel(path: Path) -> Image:
    array, affine = read_nifti(path)
    if len(array) != 1:
        raise DualsegError(f"{path}: holds {len(array)} volumes, one is expected; download the case again.")
    return to_lps(Image(array, affine))


def _check_grid(image: Image, first: Image, path: Path) -> None:
    if image.array.shape[1:] != first.array.shape[1:] or not np.allclose(image.affine, first.affine, atol=1e-2):
        raise DualsegError(f"{path}: is on another grid than the first modality; download the case again.")
