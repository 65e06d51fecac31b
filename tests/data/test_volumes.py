"""A source without its dataset: what a run folder records of it is enough to prepare a scan."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from dualseg.data import BraTS2019, Image, LeftAtrium, PancreasCT, Phantom, VolumeSource
from dualseg.errors import DualsegError


class Scaled(VolumeSource):
    """Its classes and its factor are arguments; its constructor needs files."""

    name = "scaled"
    channels = 1
    scan_attributes = (*VolumeSource.scan_attributes, "factor", "window")

    def __init__(self, classes: Sequence[str], factor: float) -> None:
        self.class_names = tuple(classes)
        self.factor, self.window = factor, {"low": -1.0}
        self.train_cases = self.test_cases = ()

    def read_image(self, case: str) -> Image:
        raise AssertionError

    def read_label(self, case: str) -> np.ndarray:
        raise AssertionError

    def prepare_scan(self, scan: Image) -> Image:
        return Image(self.factor * scan.array, scan.affine)


def test_the_record_survives_json_and_prepares_alike() -> None:
    source = Scaled(["background", "liver"], 2.5)
    record = json.loads(json.dumps(source.scan_record()))
    again = Scaled.for_scans(record)
    assert again.class_names == ("background", "liver") and again.channels == 1 and again.window == {"low": -1.0}
    scan = Image(np.ones((1, 4, 4, 4), np.float32), np.eye(4))
    np.testing.assert_array_equal(again.prepare_scan(scan).array, source.prepare_scan(scan).array)


def test_what_is_not_recorded_is_said() -> None:
    with pytest.raises(DualsegError, match=r"Scaled.*factor.*preprocessing\.json"):
        Scaled.for_scans({"class_names": ["background", "liver"], "window": {}})


@pytest.mark.parametrize("kind", [LeftAtrium, PancreasCT, BraTS2019, Phantom])
def test_the_datasets_of_the_house_need_no_files(kind: type[VolumeSource]) -> None:
    """Nor a record, where a run is older than it."""
    source = kind.for_scans({})
    assert source.channels == 1 and source.class_names[0] == "background"


class Named(Scaled):
    """Its classes are a property."""

    @property
    def class_names(self) -> tuple[str, ...]:
        return ("background", "liver")

    def __init__(self) -> None:
        self.factor, self.window = 2.0, {}


@dataclass(frozen=True)
class Frozen(Scaled):
    class_names: tuple[str, ...] = ("background", "liver")
    factor: float = 2.0
    window: str = "wide"


@pytest.mark.parametrize("kind", [Named, Frozen])
def test_attributes_that_cannot_be_set_must_say_what_the_run_knows(kind: type[VolumeSource]) -> None:
    source = kind()
    record = json.loads(json.dumps(source.scan_record()))
    source.prepare_as(record)
    assert source.scan_record() == kind().scan_record()
    with pytest.raises(DualsegError, match=rf"{kind.__name__}: class_names.*spleen.*liver"):
        source.prepare_as({**record, "class_names": ["background", "spleen"]})
