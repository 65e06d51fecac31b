"""BraTS-2019, whole tumour on FLAIR, as prepared for SSL4MIS: <root>/<case>.h5."""

from pathlib import Path

from dualseg.data.h5 import H5Source, shipped_list


class BraTS2019(H5Source):
    """250 training, 25 validation and 60 test volumes, 1 mm isotropic, cropped and normalised (method.md section 5).

    One channel, FLAIR; one foreground class, the whole tumour. The lists are those of SSL4MIS.

    Args:
        root: folder of the files, `data` in the public archive.

    Raises:
        DualsegError: `root` is missing.
    """

    name = "brats"
    class_names = ("background", "whole_tumour")
    file = "{case}.h5"
    spacing = 1.0

    def __init__(self, root: str | Path) -> None:
        super().__init__(root)
        self.train_cases = shipped_list("brats2019_train")
        self.validation_cases = shipped_list("brats2019_validation")
        self.test_cases = shipped_list("brats2019_test")
