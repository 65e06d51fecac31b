"""Shares of classes in patches that are cut anywhere, against a loop over every place of the patch."""

import numpy as np
import pytest
import torch

from dualseg.data.class_shares import class_shares


def by_hand(label, patch, classes):
    """Mean over all places of the patch in the volume, filled up with background where it is smaller."""
    before = [max(p - n, 0) // 2 for n, p in zip(label.shape, patch, strict=True)]
    after = [max(p - n, 0) - b for n, p, b in zip(label.shape, patch, before, strict=True)]
    padded = np.pad(label, list(zip(before, after, strict=True)))
    counts, places = np.zeros(classes), 0
    for x, y, z in np.ndindex(*(n - p + 1 for n, p in zip(padded.shape, patch, strict=True))):
        cut = padded[x : x + patch[0], y : y + patch[1], z : z + patch[2]]
        counts += np.bincount(cut.ravel(), minlength=classes) / cut.size
        places += 1
    return counts / places


@pytest.mark.parametrize("patch", [(3, 4, 2), (9, 3, 5), (7, 6, 5), (20, 20, 20), (1, 1, 1)])
def test_by_hand(patch):
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 3, shape, dtype=np.uint8) for shape in ((7, 6, 5), (10, 4, 9))]
    labels[0][:, :3] = 0  # uneven, so that the border counts
    found = class_shares([torch.from_numpy(label) for label in labels], patch, 4)
    np.testing.assert_allclose(found.numpy(), np.mean([by_hand(x, patch, 4) for x in labels], axis=0), rtol=1e-5)
    assert found[3] == 0


def test_without_labels_there_are_none():
    assert class_shares([], (4, 4, 4), 3).tolist() == [0, 0, 0]
