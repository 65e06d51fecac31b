"""DICOM series -> volumes: found by what the files say, whatever they and their folders are called.

`headers` reads one file's header, `stacks` says whether slices lie on a regular grid, `series` groups slices into
volumes, `search` looks through a folder, `pixels` reads a volume. What cannot be a volume is refused by the name of a
file; what belongs to none is counted by kind. Names and dates of patients are not read.
"""

from dualseg.data.dicom.headers import damage_of
from dualseg.data.dicom.pixels import read_series
from dualseg.data.dicom.search import SeriesFound, find_series, left_out_line
from dualseg.data.dicom.series import Series

__all__ = ["Series", "SeriesFound", "damage_of", "find_series", "left_out_line", "read_series"]
