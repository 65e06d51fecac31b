"""NIH Pancreas-CT as prepared for MC-Net and MCF: <root>/image0001_norm.h5, the number being that of PANCREAS_0001."""

from collections.abc import Sequence
from pathlib import Path

from dualseg.data.h5 import H5Source, shipped_list
from dualseg.errors import DualsegError

SPLITS = ("mcf_fold0", "mcnet")
NOT_IN_DOWNLOAD = ("image0025", "image0070")  # withdrawn from the public download, which has 80 of the 82 cases


class PancreasCT(H5Source):
    """62 training and 20 test volumes, 1 mm isotropic, already cropped and normalised (method.md section 5).

    Two public splits share 3 of their 20 test cases, so figures compare on the same one only:

    - mcf_fold0: fold 0 of MCF (CVPR 2023), which the release of arXiv:2509.13084 uses; cases 1-62 train, 63-82 test.
    - mcnet: the lists of MC-Net, and of most works that quote its figures.

    Args:
        root: folder of the files, `Pancreas_h5` in the public archives.
        split: `mcf_fold0` or `mcnet`.
        exclude: cases to leave out of the lists, whose order stays; image0025 and image0070 are not in today's public
            download.

    Raises:
        DualsegError: `root` is missing, no such split, or `exclude` is no list of its cases.
    """

    name = "pancreas"
    class_names = ("background", "pancreas")
    file = "{case}_norm.h5"
    spacing = 1.0

    def __init__(self, root: str | Path, split: str = "mcf_fold0", exclude: Sequence[str] = ()) -> None:
        if split not in SPLITS:
            raise DualsegError(f"data.source.split={split}: choose from {', '.join(SPLITS)}.")
        super().__init__(root)
        train, test = shipped_list(f"pancreas_{split}_train"), shipped_list(f"pancreas_{split}_test")
        if isinstance(exclude, str) or not isinstance(exclude, Sequence) or not {*exclude} <= {*train, *test}:
            raise DualsegError(
                f"data.source.exclude={exclude}: give a list of cases of this dataset, such as "
                f"[{','.join(NOT_IN_DOWNLOAD)}]."
            )
        self._exclude = tuple(exclude)
        self.train_cases = tuple(case for case in train if case not in exclude)
        self.test_cases = tuple(case for case in test if case not in exclude)

    def mend_of_missing(self, case: str) -> str:
        if case not in NOT_IN_DOWNLOAD:
            return super().mend_of_missing(case)
        names = ",".join(dict.fromkeys([*self._exclude, *NOT_IN_DOWNLOAD]))
        return f"It is not in today's public download: put it there, or give data.source.exclude=[{names}]."
