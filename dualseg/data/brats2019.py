"""BraTS-2019, whole tumour on FLAIR, as prepared for SSL4MIS: <root>/<case>.h5."""

from pathlib import Path

import numpy as np

from dualseg.data.cropping import Box, cropped
from dualseg.data.h5 import Crop, H5Source, shipped_list
from dualseg.data.preprocessing import resample_to_spacing, to_lps
from dualseg.data.volumes import Image
from dualseg.errors import DualsegError

PERCENTILE = 99.9  # of the brain's box, above which intensities are clipped
MODALITIES = ("flair", "t1", "t1ce", "t2")
TUMOUR_CLASSES = ("background", "necrotic_core", "edema", "enhancing_tumour")  # labels 0, 1, 2, 4 of BraTS as 0..3
REGIONS = {"whole_tumour": (1, 2, 3), "tumour_core": (1, 3), "enhancing_tumour": (3,)}


class BraTS2019(H5Source):
    """250 training, 25 validation and 60 test volumes, 1 mm isotropic, cropped and normalised (method.md section 5).

    One channel, FLAIR; one foreground class, the whole tumour. The lists are those of SSL4MIS. A folder that
    dualseg-prepare made with other modalities or with regions=true says so, and the source has those channels and
    classes; the regions are then unions of the classes.

    Args:
        root: folder of the files, `data` in the public archive.

    Raises:
        DualsegError: `root` is missing.
    """

    name = "brats"
    class_names: tuple[str, ...] = ("background", "whole_tumour")
    file = "{case}.h5"
    spacing = 1.0
    crop: Crop = "foreground"

    def __init__(self, root: str | Path) -> None:
        super().__init__(root)
        self.channel_names = tuple(self.record.get("modalities", ["flair"]))
        self.channels = len(self.channel_names)
        if self.record.get("regions"):
            self.class_names, self.regions = TUMOUR_CLASSES, REGIONS
        self.train_cases = shipped_list("brats2019_train")
        self.validation_cases = shipped_list("brats2019_validation")
        self.test_cases = shipped_list("brats2019_test")

    def prepare_scan(self, scan: Image) -> Image:
        """The protocol, which needs no label. The scan is skull-stripped, as BraTS is: 0 outside the brain."""
        image = to_lps(scan)
        # resampled last: its rounding makes some of the zeros around the brain a little more
        brain = normalised(cropped(image, foreground(image)))
        return resample_to_spacing(brain, (self.spacing,) * 3)


def foreground(image: Image) -> Box:
    """The brain's box: the voxels that are not 0 in some channel of (C, W, H, D)."""
    return Box.around((image.array != 0).any(axis=0))


def normalised(image: Image) -> Image:
    """Each channel clipped at its 99.9th percentile, then mean 0 and deviation 1 of its voxels > 0, applied to all.

    Raises:
        DualsegError: a channel has no voxel > 0.
    """
    array = np.empty(image.array.shape, np.float32)
    for channel, scaled in zip(image.array, array, strict=True):
        # floats of Python: NumPy's own would make float64 arrays of the channel
        np.minimum(channel, float(np.percentile(channel, PERCENTILE)), out=scaled)
        brain = scaled[scaled > 0]
        mean, deviation = (float(of(dtype=np.float64)) for of in (brain.mean, brain.std)) if brain.size else (0.0, 0.0)
        if not deviation:
            raise DualsegError("BraTS scan: a channel has no brain: skull-stripped MR, 0 outside the brain, is needed.")
        scaled -= mean
        scaled /= deviation
    return Image(array, image.affine)
