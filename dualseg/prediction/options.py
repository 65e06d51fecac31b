"""What `dualseg-predict` can be asked for. No torch here: a mistake must answer at once."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dualseg.errors import DualsegError
from dualseg.machine import bytes_of

OUT_OF_MEMORY = "Give less memory=..., so that more lies on disk meanwhile, or another device=..."


@dataclass(frozen=True)
class PredictionOptions:
    """What the command line asks for, read by `dualseg.command.grammar`; --help and docs/reference.md say the same.

    Attributes:
        run: a run folder, wherever it lies, or the folder of a verdict's sweep: its recommended runs; given again, as
            for seeds or folds, all networks are one ensemble: the probabilities of each are brought to the scan's grid
            and averaged there
        input: files (NIfTI, NRRD, MetaImage, .img with .hdr), folders of them, folders of DICOM series; the dataset of
            the run is not needed
        output: a new or empty folder: labels/, summary.csv, prediction.json; or that of the same command, which then
            goes on
        overlap: share of a window that its neighbour covers again, 0 to below 1; a protocol's evaluation has its own,
            dense stride
        mirror: true: average over the eight mirror images of each window, in eight times the time
        probabilities: true: also write probabilities/, the mean of the networks
        uncertainty: true: also write entropy/ and disagreement/
        report: true: also write report.html, a page to look through the scans, the uncertain ones first
        keep_largest: classes, such as [liver,spleen], all or none, of which only the largest connected component is
            kept; of the runs that a verdict recommends by itself what it decided
        memory: of RAM, at most: what does not fit lies in unnamed files of output until the scan is done; same result
        device: auto, cpu, cuda, cuda:N
        identifiers: true: outputs of DICOM series may be named after the patient and the folder
        trust: a network or dataset of your own that the run folder names, such as my_networks.MyNet; given again for
            each. Those of dualseg, MONAI and torch need none. Its module is run: for a folder from somebody else, give
            it only where you know that code

    Raises:
        DualsegError: an impossible value.
    """

    run: tuple[str, ...] = field(metadata={"value": "RUN_FOLDER", "again": True})
    input: tuple[str, ...] = field(metadata={"value": "SCAN", "again": True, "positional": True})
    output: Path = field(metadata={"value": "DIR"})
    overlap: float = 0.5
    mirror: bool = False
    probabilities: bool = False
    uncertainty: bool = False
    report: bool = False
    keep_largest: tuple[str, ...] | None = None
    memory: str = "8GiB"
    device: str = "auto"
    identifiers: bool = False
    trust: tuple[str, ...] = field(default=(), metadata={"again": True})

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise DualsegError(f"overlap={self.overlap:g}: give a number from 0 to below 1.")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise DualsegError(f"device={self.device}: give auto, cpu, cuda or cuda:N.")
        bytes_of("memory", self.memory)

    @property
    def memory_limit(self) -> int:
        """`memory` in bytes."""
        return bytes_of("memory", self.memory)


def classes_to_clean(keep_largest: Sequence[str], class_names: Sequence[str]) -> list[int]:
    """Numbers of the classes that `keep_largest` names, of `none` none.

    Raises:
        DualsegError: a name that is no foreground class.
    """
    foreground = list(class_names[1:])
    if tuple(keep_largest) == ("none",):
        return []
    if tuple(keep_largest) == ("all",):
        return list(range(1, len(class_names)))
    for name in keep_largest:
        if name not in foreground:
            raise DualsegError(f"keep_largest={name}: no such class; choose from {', '.join(foreground)}, all or none.")
    return [1 + foreground.index(name) for name in keep_largest]
