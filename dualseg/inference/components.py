"""Connected components of a label map."""

from collections.abc import Iterable

import numpy as np
from scipy import ndimage

_TOUCHING = np.ones((3, 3, 3), bool)  # by a face, an edge or a corner


def keep_largest(label: np.ndarray, classes: Iterable[int]) -> None:
    """Turn all but the largest connected component of each of `classes` to background, in place.

    Args:
        label: (W, H, D), integers. Components hang together by faces, edges or corners; of two as large, the first in
            the order of voxels stays.
    """
    regions = ndimage.find_objects(label)  # of class 1, of class 2, ... up to the last there is
    for value in classes:
        if value > len(regions) or regions[value - 1] is None:
            continue
        part = label[regions[value - 1]]
        components, count = ndimage.label(part == value, _TOUCHING)
        if count > 1:
            sizes = np.bincount(components.ravel())[1:]
            part[(components > 0) & (components != 1 + sizes.argmax())] = 0
