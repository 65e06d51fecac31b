"""Which cases are labeled, unlabeled, held out for validation and for test."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dualseg.data.patients import patients
from dualseg.data.volumes import VolumeSource
from dualseg.errors import DualsegError
from dualseg.names import check_printable

# keys of `data`, and arguments of `split_cases`
COUNTS = ("labeled", "labeled_ratio", "held_out_validation", "held_out_test", "draw", "fold", "folds")


@dataclass(frozen=True)
class Split:
    """Case names of each role; disjoint. `validation` and `test` are the dataset's own unless cases were held out."""

    labeled: tuple[str, ...]
    unlabeled: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def split_cases(
    train_cases: Sequence[str],
    test_cases: Sequence[str],
    labeled: int | None = None,
    labeled_ratio: float | None = None,
    held_out_validation: int = 0,
    held_out_test: int = 0,
    draw: int = 0,
    fold: int | None = None,
    folds: int = 5,
    validation_cases: Sequence[str] = (),
    unlabeled_cases: Sequence[str] = (),
) -> Split:
    """Split a dataset's ordered training list; by default the first N of it are the labeled ones at N labels.

    Args:
        train_cases: in the order in which labels are granted.
        test_cases: the dataset's own test list, used where `held_out_test` is 0.
        labeled: number of labeled cases; None and no ratio: all of them.
        labeled_ratio: the same as a fraction of the cases that remain for training, rounded.
        held_out_validation: the last cases of what remains after `held_out_test` validate, in place of
            `validation_cases`.
        held_out_test: the last cases of `train_cases` are the test split.
        draw: which of the remaining cases are the labeled ones: 0, the first ones of the list (the field's); another
            number, as many drawn at random, the same at each call. Those of one draw are nested: 8 hold its 4.
        fold: cross-validation of what the labels teach: that one of `folds` parts of the labeled cases validates, in
            place of `validation_cases`, and the other parts are the labeled cases. None: all of them are.
        folds: number of those parts, of nearly equal size: the patient at position i belongs to part i mod folds. Cases
            whose names say that they are of one patient (`dualseg.data.patients`) stay together.
        validation_cases: the dataset's own validation list, used where `held_out_validation` is 0 and `fold` is None.
        unlabeled_cases: training cases beside `train_cases` that have no label.

    Raises:
        DualsegError: both or impossible counts; a case listed twice, in one list or in several; a name that is a path,
            or has a line break or another control character.
    """
    cases = list(train_cases)
    listed = [*train_cases, *unlabeled_cases, *validation_cases, *test_cases]
    check_printable("case", listed)
    paths = [case for case in listed if "/" in case or "\\" in case]
    if paths:  # files of a run are named after its cases
        raise DualsegError(
            f"{', '.join(paths[:5])}: the name of a case must hold no path separator; let the data source give other "
            "names, for example with _ in its place."
        )
    repeated = [case for case, count in Counter(listed).items() if count > 1]
    if repeated:
        raise DualsegError(
            f"{', '.join(repeated[:5])}: listed more than once among the training, validation and test cases; "
            "list each case once."
        )
    for key, count in (("data.held_out_test", held_out_test), ("data.held_out_validation", held_out_validation)):
        if not 0 <= count < max(len(cases), 1):
            raise DualsegError(
                f"{key}={count}: give 0 to {len(cases) - 1}; {len(cases)} training cases are there to hold out from."
            )
        if key == "data.held_out_test":
            test, cases = (cases[-count:], cases[:-count]) if count else (list(test_cases), cases)
        else:
            validation, cases = (cases[-count:], cases[:-count]) if count else (list(validation_cases), cases)
    if labeled is not None and labeled_ratio is not None:
        raise DualsegError("data.labeled and data.labeled_ratio are both given; keep one (the other null).")
    if labeled_ratio is not None:
        key, count = f"data.labeled_ratio={labeled_ratio}", round(labeled_ratio * (len(cases) + len(unlabeled_cases)))
    else:
        key, count = f"data.labeled={labeled}", len(cases) if labeled is None else labeled
    if not 1 <= count <= len(cases):
        kind = "training cases that have labels" if unlabeled_cases else "training cases"
        hint = " Those of the fold, validation and test are not among them." if count > len(cases) else ""
        raise DualsegError(
            f"{key}: leaves {count} labeled volumes of {len(cases)} {kind}; give between 1 and {len(cases)}.{hint}"
        )
    if not isinstance(draw, int) or draw < 0:
        raise DualsegError(f"data.draw={draw}: give 0 for the order of the list, or the number of a draw.")
    order = np.random.default_rng(draw).permutation(len(cases)).tolist() if draw else range(len(cases))
    labeled_cases = [cases[index] for index in order[:count]]
    others = [case for case in cases if case not in set(labeled_cases)]
    if fold is not None:
        own = _by_patient(labeled_cases)
        _check_fold(fold, folds, len(own), held_out_validation)
        held = {case for patient in own[fold::folds] for case in patient}
        validation = [case for case in labeled_cases if case in held]
        labeled_cases = [case for case in labeled_cases if case not in held]
    return Split(tuple(labeled_cases), (*others, *unlabeled_cases), tuple(validation), tuple(test))


def _by_patient(cases: Sequence[str]) -> list[list[str]]:
    """The cases of each patient, in the order of the first case of each."""
    found = {own[0]: own for own in patients(cases)}
    others = {case for own in found.values() for case in own[1:]}
    return [found.get(case, [case]) for case in cases if case not in others]


def _check_fold(fold: int, folds: int, labeled: int, held_out_validation: int) -> None:
    """Raises: DualsegError where `labeled` patients have no such part, or other cases are to validate as well."""
    if labeled < 2:
        raise DualsegError(f"data.fold={fold}: one labeled case cannot both train and validate; label a second one.")
    if type(folds) is not int or not 2 <= folds <= labeled:
        fix = "give 2" if labeled == 2 else f"give 2 to {labeled}"
        raise DualsegError(f"data.folds={folds}: {fix}, for there are {labeled} labeled cases or patients.")
    if type(fold) is not int or not 0 <= fold < folds:
        raise DualsegError(f"data.fold={fold}: give 0 to {folds - 1}, or null for none.")
    if held_out_validation:
        raise DualsegError(
            f"data.held_out_validation={held_out_validation}: data.fold={fold} says which cases validate; keep one."
        )


def split_source(source: VolumeSource, counts: Mapping[str, Any]) -> Split:
    """`split_cases` of a source's own lists.

    Args:
        source: the dataset.
        counts: the `data` of a configuration, or what else has `COUNTS`.

    Raises:
        DualsegError: see `split_cases`; a class with a line break or another control character in its name.
    """
    check_printable(f"{source.name}: class", [*source.class_names, *source.regions])
    return split_cases(
        source.train_cases,
        source.test_cases,
        validation_cases=source.validation_cases,
        unlabeled_cases=source.unlabeled_cases,
        **{name: counts[name] for name in COUNTS},
    )
