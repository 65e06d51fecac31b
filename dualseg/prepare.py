"""`dualseg-prepare data=la|pancreas|brats raw=DIR out=DIR`: from what one downloads to what training reads."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dualseg.command.start import run_with_arguments
from dualseg.errors import DualsegError
from dualseg.signals import resumable

if TYPE_CHECKING:
    from dualseg.preparation.case_loop import Outcome

USAGE = "dualseg-prepare data=la|pancreas|brats raw=DIR out=DIR [key=value ...]"
NOTE = "A case that fails does not stop the others; the exit code is then 2, and the same command goes on where it was."

OUT_OF_MEMORY = "Lower workers=..., and give the same command again; finished cases are kept."


@dataclass(frozen=True)
class PreparationOptions:
    """What the command line asks for, read by `dualseg.command.grammar`; --help and docs/reference.md say the same.

    Attributes:
        data: la: folders CASE/lgemri.nrrd + laendo.nrrd; pancreas: DICOM series + label00NN.nii.gz; brats:
            CASE_flair.nii.gz ... CASE_seg.nii.gz; anywhere below raw
        raw: folder of the download; nothing in it is changed
        out: folder to train from (data.root); cases that are finished there are kept
        crop: ground_truth: around the label, the usual protocol (default of la and pancreas); foreground: by intensity
            alone, as a new scan is cropped (default and only choice of brats)
        workers: processes (default: one for each core; a CT takes 2 GB of memory in each)
        modalities: brats: channels, of [flair,t1,t1ce,t2]
        regions: brats: true: necrotic core, edema and enhancing tumour are trained, and whole tumour, tumour core and
            enhancing tumour, their unions, scored

    Raises:
        DualsegError: an impossible value.
    """

    data: str = field(metadata={"value": "la|pancreas|brats"})
    raw: Path = field(metadata={"value": "DIR"})
    out: Path = field(metadata={"value": "DIR"})
    crop: str | None = None
    workers: int | None = None
    modalities: tuple[str, ...] = ("flair",)
    regions: bool = False

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise DualsegError(f"workers={self.workers}: give a number of processes, 1 or more.")


def prepare(options: PreparationOptions) -> "Outcome":
    """Prepare a dataset, write and print the summary.

    Raises:
        DualsegError: whatever the user can fix, before the first case; or, after all others, cases have failed.
    """
    from dualseg.data.dicom import left_out_line
    from dualseg.preparation.case_loop import prepare_dataset
    from dualseg.preparation.datasets import preparation_of
    from dualseg.preparation.summary import write_summary

    preparation = preparation_of(options.data, options.crop, options.modalities, options.regions)
    out = options.out
    with resumable("What is prepared is kept: give the same command again to go on."):
        outcome = prepare_dataset(preparation, options.raw, out, options.workers or _cores())
    if outcome.finished:
        print(write_summary(out / "summary.csv", preparation, out, outcome.finished))
    kept = f", {outcome.kept} of them before" if outcome.kept else ""
    print(f"Prepared: {len(outcome.finished)} cases in {out}{kept}; crop={preparation.crop}")
    if outcome.unlisted:
        print(f"Left out: {outcome.unlisted} cases that are in no list of data={preparation.source.name}")
    if outcome.left_out:
        print(left_out_line(outcome.left_out))
    if outcome.not_in_download:
        names = ", ".join(outcome.not_in_download)
        print(f"Not there: {names}, which today's public download lacks; training from {out} leaves them out")
    _complain(outcome, options)
    return outcome


def _complain(outcome: "Outcome", options: PreparationOptions) -> None:
    for problem in outcome.problems:
        print(problem)
    complaints = []
    if outcome.problems:
        complaints.append(f"{len(outcome.problems)} files cannot be read, see above.")
    if outcome.failed:
        complaints.append(f"{_some(list(outcome.failed))} failed, see above.")
    if outcome.missing:
        complaints.append(f"{_some(outcome.missing)} of the lists are not below raw={options.raw}.")
    if complaints:
        complaints.append("All others are prepared; fix these, and give the same command again.")
        raise DualsegError(" ".join(complaints))


def _some(cases: list[str]) -> str:
    names = ", ".join(cases[:5]) + (", ..." if len(cases) > 5 else "")
    return f"{len(cases)} case{'s' * (len(cases) > 1)} ({names})"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> None:
    """Console script."""
    run_with_arguments(prepare, PreparationOptions, USAGE, note=NOTE, out_of_memory=OUT_OF_MEMORY)


if __name__ == "__main__":
    main()
