"""What makes a volume doubtful and yet can be trained on: dualseg-check lists it, the other commands warn of it."""

from collections.abc import Callable, Iterable
from typing import Literal

from dualseg.data.checking.content import flat_problem
from dualseg.data.checking.geometry import shear_problem
from dualseg.data.checking.header import header_problems
from dualseg.data.problems import Kind, Problem, image_problems
from dualseg.data.volumes import Image, VolumeSource

MOST = 5  # warnings of one kind


def read_doubting(
    source: VolumeSource, case: str, look: Callable[[Image], None] | None = None
) -> tuple[Image, list[Problem]]:
    """An image as `read_image` gives it, and what is doubtful about it; the texts begin with the file.

    Args:
        source: the dataset.
        case: of it.
        look: is called with the scan before `prepare_scan`, or with the image where the source has no such scan.

    Raises:
        DualsegError: as `read_image`.
    """
    stored = source.read_stored(case)
    image = source.read_image(case) if stored is None else source.prepare_scan(stored)
    found = [] if stored is None else scan_doubts(source, stored)
    if look is not None:
        look(image if stored is None else stored)
    if not image_problems(image.array, source.channels) and not any(problem.kind == "constant" for problem in found):
        found += _flat(image, "" if stored is None else "once prepared ")
    where = source.where(case, "image")
    return image, [*file_doubts(source, case, "image"), *(Problem(p.kind, f"{where} {p.text}") for p in found)]


def file_doubts(source: VolumeSource, case: str, part: Literal["image", "label"]) -> list[Problem]:
    """What is doubtful in the headers of a case's image or label; the texts begin with the file.

    Raises:
        DualsegError: as `stored_grid`.
    """
    grid = source.stored_grid(case, part)
    sheared = None if grid is None else shear_problem(grid)
    found = [Problem(sheared.kind, f"{source.where(case, part)} {sheared.text}")] if sheared else []
    for path in source.stored_files(case, part):
        found += [Problem(problem.kind, f"{path}: {part} {problem.text}") for problem in header_problems(path)]
    return found


def scan_doubts(source: VolumeSource, scan: Image) -> list[Problem]:
    """What is doubtful in the voxels of a scan before `prepare_scan`."""
    return [*_flat(scan), *source.scan_doubts(scan)]


def warnings(doubts: Iterable[Problem]) -> list[str]:
    """One line a doubt, of each kind the first few."""
    by_kind: dict[Kind, list[str]] = {}
    for doubt in dict.fromkeys(doubts):
        by_kind.setdefault(doubt.kind, []).append(doubt.text)
    lines = []
    for kind, texts in by_kind.items():
        lines += texts[:MOST]
        if len(texts) > MOST:
            lines.append(f"{kind}: the same of {len(texts) - MOST} more; dualseg-check lists them all.")
    return lines


def _flat(image: Image, when: str = "") -> list[Problem]:
    found = [(number, flat_problem(channel)) for number, channel in enumerate(image.array)]
    told = [problem.in_channel(number, len(image.array)) for number, problem in found if problem]
    return [Problem(problem.kind, f"{when}{problem.text}") for problem in told]
