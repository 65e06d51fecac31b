"""The split of a dataset folder, written to a JSON file on first use and read from it ever after."""

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dualseg.errors import DualsegError
from dualseg.files import read_json, sweep, write_json

NAME = "dualseg-split.json"
ROLES = ("labeled", "unlabeled", "validation", "test", "excluded")
WITH_LABEL = ("labeled", "validation", "test")
_SEED = 0  # of the order of the cases; the file is what counts


def place_of(root: Path, given: Path | None) -> Path:
    """The split file of the dataset in `root`.

    Args:
        root: folder of the dataset.
        given: the file that the user wants; None: in `root`. Where that cannot be written, it is in `own_folder`.

    Raises:
        DualsegError: `given` lies in a folder that does not exist, such as one that is named from elsewhere.
    """
    if given is not None:
        if not given.parent.is_dir():
            raise DualsegError(f"data.source.splits={given}: there is no folder {given.parent}; correct it or make it.")
        return given
    inside = root / NAME
    if inside.exists():
        return inside
    try:
        outside = own_folder() / f"{name_of(root)}.json"
    except DualsegError as error:
        if is_writable(root):
            return inside
        raise DualsegError(f"{inside}: cannot be written, and {error} Or give data.source.splits=FILE.") from error
    return inside if not outside.exists() and is_writable(root) else outside


def own_folder() -> Path:
    """The user's, found from any working directory: $XDG_DATA_HOME/dualseg, or else ~/.local/share/dualseg.

    Raises:
        DualsegError: the user has no home, as in a container of any user's number.
    """
    try:
        return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "dualseg"
    except RuntimeError:
        raise DualsegError(
            "there is no home folder; set HOME or XDG_DATA_HOME to a folder that can be written."
        ) from None


def name_of(root: Path) -> str:
    """What files of a dataset are called in `own_folder`."""
    digest = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:8]
    return f"{root.resolve().name}-{digest}"


def is_writable(folder: Path) -> bool:
    """New files can be made in a folder."""
    return os.access(folder, os.W_OK | os.X_OK)


class SplitFile:
    """Which case has which role, in the order in which labels are granted; folds; and the median spacing.

    Written where it is missing: labeled cases in random order, so that the first N are a fair sample. From then on only
    folds and a spacing that were not asked for before are added. It may be edited or written by hand.

    A dataset with faulty cases can be checked but not trained on: nothing is written, and roles are those of the file
    as far as they fit.

    Args:
        path: the file.
        cases: case -> whether it has a label file, of all that can be trained on.
        test: cases of the dataset's own test split.
        faulty: those of all cases whose files are missing or named wrongly; excluded ones do not count.

    Raises:
        DualsegError: naming the file, if it cannot be read or written, or does not fit the cases that are there.
    """

    def __init__(
        self, path: Path, cases: Mapping[str, bool], test: Collection[str], faulty: Collection[str] = ()
    ) -> None:
        self.path = path
        has_label = {**cases, **dict.fromkeys(test, True)}
        if path.exists():
            self._content = read_json(path)
            self._check_form()
            self._kept = {*faulty} <= {*self.cases("excluded")}
            if self._kept:
                self._check_cases(has_label, test)
            else:
                self._make_fit(has_label, test)
            return
        order = [str(case) for case in np.random.default_rng(_SEED).permutation(sorted(cases))]
        self._content = {
            "labeled": [case for case in order if cases[case]],
            "unlabeled": [case for case in order if not cases[case]],
            "test": sorted(test),
        }
        self._kept = not faulty
        if self._kept:
            self._write()
            print(f"The split was written to {path} and is read from there from now on.", file=sys.stderr)

    def cases(self, role: str) -> tuple[str, ...]:
        """The cases of one of `ROLES`, in their order."""
        return tuple(self._content.get(role, ()))

    def fold(self, fold: int, folds: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Labeled cases without, and of, one of `folds` parts of nearly equal size.

        Raises:
            DualsegError: no such part, fewer labeled cases than parts, or parts in the file that do not part them.
        """
        labeled = self.cases("labeled")
        if type(folds) is not int or not 2 <= folds <= len(labeled):
            fix = f"give 2 to {len(labeled)}, the number of labeled cases" if len(labeled) > 1 else "leave fold at null"
            raise DualsegError(f"data.source.folds={folds}: {fix}.")
        if type(fold) is not int or not 0 <= fold < folds:
            raise DualsegError(f"data.source.fold={fold}: give 0 to {folds - 1}, or null for none.")
        if self.cases("validation"):
            raise DualsegError(
                f"data.source.fold={fold}: a fold is for validation, but {self.path} lists validation cases; keep one."
            )
        parts = self._content.setdefault("folds", {})
        if str(folds) not in parts:
            parts[str(folds)] = [list(labeled[start::folds]) for start in range(folds)]
            self._write()
        own = parts[str(folds)]
        listed = [case for part in own for case in part]
        if len(own) != folds or sorted(listed) != sorted(labeled) or not all(own):
            raise DualsegError(
                f"{self.path}: its {folds} folds do not part the labeled cases; list each once, or delete them."
            )
        held = set(own[fold])
        return tuple(case for case in labeled if case not in held), tuple(own[fold])

    @property
    def median_spacing(self) -> tuple[float, float, float] | None:
        """What `keep_median_spacing` was given; None: nothing yet."""
        spacing = self._content.get("median_spacing")
        return None if spacing is None else (spacing[0], spacing[1], spacing[2])

    def keep_median_spacing(self, spacing: tuple[float, float, float]) -> None:
        """Write mm towards right, anterior, superior."""
        self._content["median_spacing"] = list(spacing)
        self._write()

    def _write(self) -> None:
        if not self._kept:
            return
        sweep(self.path.parent, self.path.name)
        try:
            write_json(self.path, self._content)
        except DualsegError as error:
            raise DualsegError(f"{error} Or give data.source.splits=FILE, a copy or a new file elsewhere.") from error

    def _check_form(self) -> None:
        known = (*ROLES, "folds", "median_spacing")
        content: Any = self._content
        if not isinstance(content, dict) or not {*content} <= {*known}:
            raise DualsegError(
                f"{self.path}: is no split; it is a mapping of {', '.join(known)}. Correct or delete it."
            )
        for role in ROLES:
            if not _is_list_of_names(content.get(role, [])):
                raise DualsegError(f"{self.path}: '{role}' is no list of case names; correct it.")
        parts = content.get("folds", {})
        if not isinstance(parts, dict) or not all(
            isinstance(own, list) and all(map(_is_list_of_names, own)) for own in parts.values()
        ):
            raise DualsegError(
                f"{self.path}: 'folds' is no mapping of 5 to five lists of case names; correct or delete it."
            )
        spacing = content.get("median_spacing")
        if spacing is not None and not is_spacing(spacing):
            raise DualsegError(f"{self.path}: 'median_spacing' is not three positive numbers; correct or delete it.")

    def _check_cases(self, has_label: Mapping[str, bool], test: Collection[str]) -> None:
        fix = "correct it, or delete it for a new split"
        for role in ROLES:
            for case in self.cases(role):
                if case not in has_label and role != "excluded":
                    raise DualsegError(f"{self.path}: lists {case}, which the dataset does not have (any more); {fix}.")
                if role in WITH_LABEL and not has_label[case]:
                    raise DualsegError(f"{self.path}: {case} is {role} but has no label file; {fix}.")
                if case in test and role not in ("test", "excluded"):
                    raise DualsegError(f"{self.path}: {case} is of imagesTs, which is never trained on; {fix}.")
        listed = Counter(case for role in ROLES for case in self.cases(role))
        if twice := [case for case, times in listed.items() if times > 1]:
            raise DualsegError(f"{self.path}: lists {twice[0]} more than once; give each case one role.")
        new = sorted({*has_label} - {*listed})
        if new:
            raise DualsegError(
                f"{self.path}: lacks {len(new)} cases that the dataset has ({', '.join(new[:3])}); add each to one of "
                f"{', '.join(ROLES)}, or delete the file for a new split."
            )

    def _make_fit(self, has_label: Mapping[str, bool], test: Collection[str]) -> None:
        """Give each case one role: that of the file where it fits, else that which its files tell."""
        left = dict(has_label)
        fitting: dict[str, list[str]] = {role: [] for role in ROLES}
        unopened = ("excluded", "unlabeled")  # first: where the file contradicts itself no label is opened
        for role in (*unopened, *(role for role in ROLES if role not in unopened)):
            for case in self.cases(role):
                fits = role in ("test", "excluded") or case not in test
                fits &= role not in WITH_LABEL or has_label.get(case, False)
                if fits and left.pop(case, None) is not None:
                    fitting[role].append(case)
        for case, own in left.items():
            fitting["test" if case in test else "labeled" if own else "unlabeled"].append(case)
        if any(tuple(fitting[role]) != self.cases(role) for role in ROLES):
            self._content.pop("folds", None)  # they part other cases
        self._content |= fitting


def is_spacing(value: Any) -> bool:
    """Three positive numbers."""
    return (
        isinstance(value, list | tuple)
        and len(value) == 3
        and all(type(edge) in (int, float) and 0 < edge < float("inf") for edge in value)
    )


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
