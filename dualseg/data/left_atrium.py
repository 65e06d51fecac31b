"""Left Atrium (2018 Atrial Segmentation Challenge) in the layout of UA-MT: <root>/<case>/mri_norm2.h5."""

from pathlib import Path

from dualseg.data.h5 import H5Source, shipped_list


def case_list(name: str) -> tuple[str, ...]:
    """The official case names in their official order; `name` is train or test."""
    return shipped_list(f"left_atrium_{name}")


class LeftAtrium(H5Source):
    """80 training and 20 test volumes, 0.625 mm isotropic, already cropped and normalised (method.md section 5).

    Args:
        root: folder of the case folders.

    Raises:
        DualsegError: `root` is missing.
    """

    name = "la"
    class_names = ("background", "atrium")
    file = "{case}/mri_norm2.h5"
    spacing = 0.625

    def __init__(self, root: str | Path) -> None:
        super().__init__(root)
        self.train_cases = case_list("train")
        self.test_cases = case_list("test")

    def mend_of_missing(self, case: str) -> str:
        alone = ", or give data.held_out_test=20 if you have the 80 training volumes alone"
        return f"Put the file there or check data.root{alone if case in self.test_cases else ''}."
