"""Left Atrium (2018 Atrial Segmentation Challenge) in the layout of UA-MT: <root>/<case>/mri_norm2.h5."""

from pathlib import Path

from dualseg.arguments import switch
from dualseg.data.cropping import Box, cropped, largest_above, otsu
from dualseg.data.h5 import H5Source, shipped_list
from dualseg.data.preprocessing import resample_to_spacing, to_lps, z_score
from dualseg.data.volumes import Image

PATCH = (112, 112, 80)


def case_list(name: str) -> tuple[str, ...]:
    """The official case names in their official order; `name` is train or test."""
    return shipped_list(f"left_atrium_{name}")


class LeftAtrium(H5Source):
    """80 training and 20 test volumes, 0.625 mm isotropic, already cropped and normalised (method.md section 5).

    The files were normalised before their crop, so that scans with bright surroundings are dark as a whole: their
    deviations within the crop are 0.4 to 1.6.

    Args:
        root: folder of the case folders.
        normalize_crop: normalise each volume again as it is, after its crop. The field's protocol does not.

    Raises:
        DualsegError: `root` is missing, or `normalize_crop` is neither true nor false.
    """

    name = "la"
    class_names = ("background", "atrium")
    file = "{case}/mri_norm2.h5"
    spacing = 0.625
    scan_attributes = (*H5Source.scan_attributes, "normalize_crop")
    normalize_crop: bool = False  # of runs that are older than the choice

    def __init__(self, root: str | Path, normalize_crop: bool = False) -> None:
        super().__init__(root)
        switch("data.source.normalize_crop", normalize_crop)
        self.normalize_crop = normalize_crop
        self.train_cases = case_list("train")
        self.test_cases = case_list("test")

    def read_image(self, case: str) -> Image:
        image = super().read_image(case)
        return normalised(image) if self.normalize_crop else image

    def check_scan_record(self) -> None:
        super().check_scan_record()
        switch("normalize_crop", self.normalize_crop)

    def fix_of_missing(self, case: str) -> str:
        alone = ", or give data.held_out_test=20 if you have the 80 training volumes alone"
        return f"Put the file there or check data.root{alone if case in self.test_cases else ''}."

    def prepare_scan(self, scan: Image) -> Image:
        """The protocol's z-score of the whole volume, cropped in x and y to the body, all slices kept."""
        image = normalised(resample_to_spacing(to_lps(scan), (self.spacing,) * 3))
        crop = cropped(image, foreground(image))
        return normalised(crop) if self.normalize_crop else crop


def normalised(image: Image) -> Image:
    """Mean 0 and deviation 1 over the whole volume (1, W, H, D)."""
    return Image(z_score(image.array[0])[None], image.affine)


def foreground(image: Image) -> Box:
    """The body's box in x and y, widened to the patch, and all slices: the largest piece above Otsu's threshold."""
    channel = image.array[0]
    box = Box.around(largest_above(channel, otsu(channel))).widened(channel.shape, PATCH, [(0, 0)] * 3)
    return Box((*box.start[:2], 0), (*box.stop[:2], channel.shape[2]))
