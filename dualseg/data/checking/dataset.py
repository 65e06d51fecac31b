"""One walk over a dataset: each image, and each label that the split lets be opened, is read once."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from dualseg.data.checking.content import content_hash, mirror_ratios, mirrored_cases
from dualseg.data.checking.doubts import file_doubts, read_doubting
from dualseg.data.checking.geometry import grid_problem, spacing_by_direction
from dualseg.data.checking.look import Look, look_at
from dualseg.data.checking.lost import lost_classes, lost_note, lost_pieces
from dualseg.data.checking.near import Near, near_duplicates
from dualseg.data.checking.pool import Unlike, first, unlike_notes, unlike_scans
from dualseg.data.memory import Size, size_of, size_problems
from dualseg.data.patients import patients
from dualseg.data.problems import (
    KINDS,
    Kind,
    Problem,
    VolumeError,
    image_problems,
    is_invertible,
    label_problems,
    whole_numbers,
)
from dualseg.data.progress import with_bar
from dualseg.data.splits import Split
from dualseg.data.volumes import Grid, Image, VolumeSource, label_dtype
from dualseg.errors import DualsegError
from dualseg.machine import MemoryLimit

ROLES = ("labeled", "unlabeled", "validation", "unscored", "test")
WITHOUT_LABEL = ("unlabeled", "unscored")
TRAINED_ON = ("labeled", "unlabeled")
SPACING_FACTOR = (
    1.5  # a header that lost its spacing says 1 mm; scanners' own protocols differ by less in one direction
)
SPACING_SPREADS = 5.0  # robust standard deviations, where the dataset's spacings do differ
LEAST_SPACINGS = 4  # volumes, below which there is no telling what is usual

_Part = Literal["image", "label"]
_T = TypeVar("_T")


class Finding(NamedTuple):
    """One thing that is wrong: which row of the table, in which case of which split, in words that name the file."""

    kind: Kind
    role: str
    case: str
    text: str


@dataclass
class Findings:
    """What is wrong, in the order of `KINDS`, and how much was read.

    Attributes:
        images: role -> number of images.
        labels: number of labels that were opened.
        notes: what is worth knowing and nothing wrong, in sentences.
        pool: the unlabeled scans beside the labeled ones, the most unlike first.
    """

    found: list[Finding] = field(default_factory=list)
    images: dict[str, int] = field(default_factory=dict)
    labels: int = 0
    notes: list[str] = field(default_factory=list)
    pool: list[Unlike] = field(default_factory=list)


def check_dataset(
    source: VolumeSource,
    split: Split,
    downsample: float = 1.0,
    limit: MemoryLimit | None = None,
    pictures: bool = False,
) -> Findings:
    """Read the volumes of a split, and the source's unscored ones, once and say everything that is wrong with them.

    A volume that cannot be read is a finding and stops nothing; one that its header makes too large is a finding and
    not read, nor is its label. Labels of unlabeled cases are never opened.

    Args:
        source: the dataset.
        split: of it.
        downsample: as training shrinks volumes, see `VolumeReader`.
        limit: what one volume may take of memory; None: what this machine offers.
        pictures: keep slices of labeled and unlabeled scans in `Findings.pool`, at most 50 kB of each.
    """
    walk = _Walk(source, downsample, pictures)
    cases_of = {role: source.unscored_cases if role == "unscored" else getattr(split, role) for role in ROLES}
    cases = [(case, role) for role in ROLES for case in cases_of[role]]
    walk.foresee([case for case, _ in cases], limit or MemoryLimit.of("data.memory"))
    for case, role in with_bar(cases, "Checking volumes"):
        walk.visit(case, role)
    walk.compare()
    walk.found += [Finding("not read", "-", "-", text) for text in source.not_read]
    walk.found.sort(key=lambda finding: KINDS.index(finding.kind))  # stable: within a kind as they were found
    images = {role: len(cases) for role, cases in cases_of.items() if cases}
    return Findings(walk.found, images, walk.labels, walk.notes(), walk.pool)


class _Walk:
    """What is found, and what is kept of each volume to compare it with the others: never its voxels."""

    def __init__(self, source: VolumeSource, downsample: float, pictures: bool) -> None:
        self.source = source
        self.downsample = downsample
        self.pictures = pictures
        self.found: list[Finding] = []
        self.roles: dict[str, str] = {}
        self.hashes: dict[str, list[str]] = {}  # content -> cases
        self.spacings: dict[str, np.ndarray] = {}
        self.labels = 0  # that were asked for
        self.marking = 0  # labels with a voxel of foreground
        self.empty: list[str] = []  # cases whose label has none: healthy patients, perhaps
        self.mirrors: dict[str, np.ndarray] = {}
        self.pieces: list[dict[int, tuple[int, int]]] = []  # `lost_pieces` of each label
        self.too_large: dict[str, Problem] = {}
        self.looks: dict[str, Look] = {}
        self.pool: list[Unlike] = []
        self.copies: list[Near] = []  # of labeled scans, among the unlabeled ones

    def foresee(self, cases: Sequence[str], limit: MemoryLimit) -> None:
        """What is too large, by the headers of all cases."""
        sizes: dict[str, Size] = {}
        for case in with_bar(cases, "Reading headers"):
            with suppress(Exception):  # `visit` says what is wrong with it
                size = size_of(self.source, case)
                if size is not None:
                    sizes[case] = size
        self.too_large = size_problems(sizes, limit)

    def visit(self, case: str, role: str) -> None:
        self.roles[case] = role
        if problem := self.too_large.get(case):
            self._say(problem.kind, case, "image", f"{problem.text} It was not read.")
            self._doubt(case, self._read(case, "image", lambda: file_doubts(self.source, case, "image")) or [])
            return
        image, doubts = self._read(
            case, "image", lambda: read_doubting(self.source, case, lambda scan: self._look(case, scan))
        ) or (None, [])
        grid = self._read(case, "image", lambda: self.source.stored_grid(case, "image")) if image else None
        self._doubt(case, doubts)
        if image is not None:
            for problem in image_problems(image.array, self.source.channels):
                self._say(problem.kind, case, "image", problem.text)
            self.hashes.setdefault(content_hash(image.array), []).append(case)
            affine = image.affine if grid is None else grid.affine
            if is_invertible(affine):
                self.spacings[case] = spacing_by_direction(affine)
            else:
                self._say("affine", case, "image", f"has an affine that is not invertible ({affine.tolist()}).")
        if role not in WITHOUT_LABEL:
            self._visit_label(case, image, grid)

    def _look(self, case: str, scan: Image) -> None:
        if not image_problems(scan.array, self.source.channels) and is_invertible(scan.affine):
            self.looks[case] = look_at(scan, self.pictures and self.roles[case] in TRAINED_ON)

    def _visit_label(self, case: str, image: Image | None, image_grid: Grid | None) -> None:
        self.labels += 1
        label = self._read(case, "label", lambda: whole_numbers(self.source.read_label(case)))
        if label is None:
            return
        label_grid = self._read(case, "label", lambda: self.source.stored_grid(case, "label")) if image_grid else None
        self._doubt(case, self._read(case, "label", lambda: file_doubts(self.source, case, "label")) or [])
        misplaced = grid_problem(image_grid, label_grid) if image_grid and label_grid else None
        if misplaced:
            self._say(misplaced.kind, case, "label", misplaced.text)
        problems = label_problems(label, image.array.shape[1:] if image else None, len(self.source.class_names))
        for problem in problems:
            if not (misplaced and misplaced.kind == problem.kind):
                self._say(problem.kind, case, "label", problem.text)
        stored = label if problems else self._compare_with_stored(case, label)
        if not np.any(stored):
            self.empty.append(case)
        else:
            self.marking += 1
        if not problems and image is not None and not image_problems(image.array, self.source.channels):
            self.mirrors[case] = mirror_ratios(image.array, label)

    def _compare_with_stored(self, case: str, label: np.ndarray) -> np.ndarray:
        """Say what resampling a label for training loses; returns the label as its file has it."""
        names = self.source.class_names
        label = label.astype(label_dtype(len(names)), copy=False)
        reference = self._read(case, "label", lambda: self.source.read_reference(case))
        stored = label if reference is None else reference.array.astype(label.dtype, copy=False)
        if self.roles[case] != "labeled":
            return stored
        if self.downsample != 1:
            from torch import from_numpy

            from dualseg.data.reading import VolumeReader

            label = VolumeReader(self.source, self.downsample).shrink_label(from_numpy(label)).numpy()
        if label.shape != stored.shape:
            for problem in lost_classes(stored, label, names):
                self._say(problem.kind, case, "label", problem.text)
            self.pieces.append(lost_pieces(stored, label))
        return stored

    def notes(self) -> list[str]:
        """What resampling leaves of the separate pieces of each class; how the pool differs from the labeled scans."""
        said = lost_note(self.pieces, self.source.class_names)
        if self.empty and self.marking:
            mark = "marks" if len(self.empty) == 1 else "mark"
            said.append(
                f"{len(self.empty)} of {self.labels} labels {mark} no voxel as foreground: {first(self.empty)}."
            )
        said += unlike_notes(self.pool, len(self._seen("labeled")))
        if self.copies:
            pairs = [f"{near.case} as {near.other}" for near in self.copies]
            what = "scan shows" if len(pairs) == 1 else "scans show"
            said.append(f"{len(pairs)} unlabeled {what} the same image as a labeled one: {first(pairs)}.")
        if pairs := self._patients_on_both_sides():
            what = "1 patient seems" if len(pairs) == 1 else f"{len(pairs)} patients seem"
            said.append(f"By the names, {what} to be both trained on and held out: {first(pairs)}.")
        return said

    def _seen(self, *roles: str) -> list[str]:
        """The cases of these roles that there is a look of."""
        return [case for case in self.looks if self.roles[case] in roles]

    def _patients_on_both_sides(self) -> list[str]:
        said = []
        for cases in patients(self.roles):
            trained, held = ([c for c in cases if (self.roles[c] in TRAINED_ON) == side] for side in (True, False))
            # where the test images are numbered anew, one name stands for two patients
            differing = [(a, b) for a in trained for b in held if a.rpartition("/")[2] != b.rpartition("/")[2]]
            said += [f"{a} ({self.roles[a]}) and {b} ({self.roles[b]})" for a, b in differing[:1]]
        return said

    def compare(self) -> None:
        """What only shows beside the other volumes."""
        for case, (axis, times) in mirrored_cases(self.mirrors).items():
            if not any(finding.kind == "flip" and finding.case == case for finding in self.found):
                better = f"fits its image {times:.1f} times better mirrored along axis {axis}"
                self._say("flip", case, "label", f"{better}, unlike the other labels; look at it.")
        if not self.marking:  # nothing could be learned
            for case in self.empty:
                self._say("empty label", case, "label", "marks no voxel as foreground, as no other label does.")
        self._compare_spacings()
        for cases in self.hashes.values():
            self._tell_duplicates(cases)
        self._tell_near_duplicates()
        self.pool = unlike_scans(self.looks, self._seen("labeled"), self._seen("unlabeled"))

    def _compare_spacings(self) -> None:
        if len(self.spacings) < LEAST_SPACINGS:
            return
        logs = np.log(np.array([*self.spacings.values()]))
        usual = np.median(logs, axis=0)
        spread = 1.4826 * np.median(np.abs(logs - usual), axis=0)  # the standard deviation, of a normal distribution
        limit = np.maximum(np.log(SPACING_FACTOR), SPACING_SPREADS * spread)
        for case, own in zip(self.spacings, logs, strict=True):
            if (np.abs(own - usual) > limit).any():
                mm, others = (" x ".join(f"{edge:.3g}" for edge in np.exp(edges)) for edges in (own, usual))
                self._say("spacing", case, "image", f"has voxels of {mm} mm; the median is {others} mm.")

    def _tell_duplicates(self, cases: list[str]) -> None:
        # beside the test volume, then the unscored or validation volume, if there is one among them
        first, *others = sorted(cases, key=lambda case: -ROLES.index(self.roles[case]))
        for case in others:
            leak = self.roles[case] == "unlabeled" and self.roles[first] in ("test", "unscored", "validation")
            kind: Kind = "unlabeled duplicate" if leak else "duplicate"
            self._say(
                kind, case, "image", f"has the same voxels as the {self.roles[first]} case {first}; leave one out."
            )

    def _tell_near_duplicates(self) -> None:
        """Of held-out scans a finding, as for the same voxels; of labeled ones in the pool a note: nothing leaks."""
        same = {case: cases[0] for cases in self.hashes.values() for case in cases}
        found: dict[str, Near] = {}  # of each case, beside the test volume, if there is one among several
        for number, role in enumerate(ROLES):
            for near in near_duplicates(self.looks, self._seen(role), self._seen(*ROLES[number + 1 :])):
                if self.roles[near.other] == "unlabeled":
                    near = near._replace(case=near.other, other=near.case)
                last = found.get(near.case)
                if same.get(near.case) != same.get(near.other) and (
                    last is None or self._rank(near) > self._rank(last)
                ):
                    found[near.case] = near
        self.copies = [near for near in found.values() if self.roles[near.other] == "labeled"]
        for near in found.values():
            if self.roles[near.other] != "labeled":
                how = f", mirrored {near.how}" if near.how else ""
                other = f"the {self.roles[near.other]} case {near.other} (correlation {near.correlation:.2f}{how})"
                self._say("near duplicate", near.case, "image", f"shows the same as {other}; leave one out.")

    def _rank(self, near: Near) -> tuple[int, float]:
        return ROLES.index(self.roles[near.other]), near.correlation

    def _read(self, case: str, part: _Part, read: Callable[[], _T]) -> _T | None:
        try:
            return read()
        except DualsegError as error:
            kind = error.kind if isinstance(error, VolumeError) else "unreadable"
            finding = Finding(kind, self.roles[case], case, str(error))
            if finding not in self.found:  # image and label may be in one file
                self.found.append(finding)
        except MemoryError as error:
            self._say("memory", case, part, f"takes more memory than there is ({error}).")
        except Exception as error:  # a source of yours may let anything through; the other files are still to be read
            self._say("unreadable", case, part, f"cannot be read ({type(error).__name__}: {error}).")
        return None

    def _doubt(self, case: str, doubts: Sequence[Problem]) -> None:
        self.found += [Finding(kind, self.roles[case], case, text) for kind, text in doubts]

    def _say(self, kind: Kind, case: str, part: _Part, text: str) -> None:
        self.found.append(Finding(kind, self.roles[case], case, f"{self.source.where(case, part)} {text}"))
