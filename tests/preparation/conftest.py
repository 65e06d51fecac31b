"""What the tests of dualseg-prepare share."""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # raw_files


class Written(NamedTuple):
    """A prepared case as it lies on disk. `affine`: voxel -> mm (RAS+), of its record."""

    image: np.ndarray
    label: np.ndarray
    record: dict[str, Any]

    @property
    def affine(self) -> np.ndarray:
        return np.array(self.record["prepared"]["affine"])

    def centre_mm(self, mask: np.ndarray) -> np.ndarray:
        """Where the mean of a mask of the prepared grid lies."""
        return (self.affine @ [*np.argwhere(mask).mean(axis=0), 1])[:3]


@pytest.fixture
def written() -> Callable[[Path], Written]:
    def read(path: Path) -> Written:
        with h5py.File(path) as h5:
            assert sorted(h5) == ["image", "label"]
            image, label = h5["image"][()], h5["label"][()]
        assert image.dtype == np.float32 and label.dtype == np.uint8
        return Written(image, label, json.loads(path.with_suffix(".json").read_text()))

    return read


@pytest.fixture
def contents() -> Callable[[Path], dict[str, str]]:
    """Every file of a folder with the hash of its bytes and its time of change."""
    return lambda folder: {
        str(p.relative_to(folder)): f"{hashlib.sha256(p.read_bytes()).hexdigest()} {p.stat().st_mtime_ns}"
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }
