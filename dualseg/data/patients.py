"""Scans of one patient, as far as the names of cases tell."""

import re
from collections.abc import Iterable

MOST_SCANS = 10  # of a patient; more names that begin alike are a site or a series, numbered through

_NUMBERED = (
    "t|tp|v|s|mr|ct|fu|"
    "(?:time|timepoint|ses|session|visit|scan|series|frame|phase|run|acq|exam|day|week|month|year|followup)[-_]?"
)
_WORD = rf"(?:(?:{_NUMBERED})\d{{1,3}}|[a-z]|pre|post|baseline|followup|fu|ed|es|left|right|lh|rh)"
_NUMBER = r"\d{1,2}"
# an identifier whose last part has a digit; then what says which visit, series or side it is
_NAME = re.compile(
    rf"(?P<patient>(?:.*?[-_. ])??[^-_. ]*\d[^-_. ]*?)(?:[-_. ]{_WORD})*(?:[-_. ]{_NUMBER})?(?:[-_. ]{_WORD})*",
    re.IGNORECASE,
)


def patients(cases: Iterable[str]) -> list[list[str]]:
    """The cases that seem to be of one patient, for each patient with several.

    `p012_t1` and `p012_t2`, `LA_0007_a` and `LA_0007_b`, `patient12` and `patient12-2` are; running numbers, such as
    those of `hippocampus_001` and `hippocampus_011`, say nothing.
    """
    found: dict[str, list[str]] = {}
    for case in cases:
        name = case.rpartition("/")[2]
        match = _NAME.fullmatch(name)
        found.setdefault((match["patient"] if match else name).lower(), []).append(case)
    if len(found) == 1:  # what all names begin with is the dataset's
        return []
    return [own for own in found.values() if 1 < len(own) <= MOST_SCANS]
