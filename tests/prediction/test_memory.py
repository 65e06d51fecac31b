"""What a scan is foreseen to take: enough for preparing it, and for its copy on a page."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from predict_toys import Threshold

from dualseg.data import BraTS2019, LeftAtrium, PancreasCT, Phantom
from dualseg.data.folder import Folder
from dualseg.data.reading import VolumeReader
from dualseg.data.volumes import Grid, Image, VolumeSource
from dualseg.errors import DualsegError
from dualseg.inference import SlidingWindow
from dualseg.inference.predictor import SCAN_COPIES, Member, Predictor
from dualseg.reporting.viewer.display import display_copy

SHAPE = (48, 40, 20)


def body(spacing: tuple[float, float, float]) -> Image:
    """A ball of noise in air."""
    places = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    inside = sum(place**2 for place in places) < 1
    noise = np.random.default_rng(0).normal(100, 30, SHAPE)
    return Image(np.where(inside, noise, -1000).astype(np.float32)[None], np.diag([-spacing[0], *spacing[1:], 1]))


def folder(*spacing: float) -> VolumeSource:
    names = ["background", "bright", "dark"]
    return Folder.for_scans(
        {"class_names": names, "channels": 1, "spacing": list(spacing) or None, "intensity": ["zscore"]}
    )


def peak(act: Callable[[], object]) -> int:
    """Bytes that it takes beside what is there before."""
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("source", "spacing", "larger"),
    [
        (folder(1, 1, 1), (1, 1, 4), 4),
        (folder(2, 3, 2), (4, 3, 1), 1),  # finer along one axis, coarser along another
        (folder(1, 1, 1), (0.5, 0.5, 1), 0.25),
        (folder(), (1, 1, 4), 1),
        (LeftAtrium.for_scans({}), (0.625, 0.625, 2.5), 4),
        (PancreasCT.for_scans({}), (1, 1, 4), 4),
        (BraTS2019.for_scans({}), (1, 1, 4), 4),
        (BraTS2019.for_scans({}), (1, 1, 1), 1),
        (Phantom.for_scans({}), (1, 1, 4), 1),
    ],
)
def test_preparing_takes_what_is_foreseen(source: VolumeSource, spacing, larger: float) -> None:
    scan = body(spacing)
    foreseen = source.prepared_voxels(Grid(SHAPE, scan.affine))
    assert foreseen == pytest.approx(larger * np.prod(SHAPE), rel=0.01)
    prepared: list[Image] = []
    taken = peak(lambda: prepared.append(VolumeReader(source).prepare_scan(scan, "scan")))
    assert prepared[0].array[0].size <= 1.03 * foreseen  # axes are rounded to whole voxels
    small = 200_000  # of objects, and not of voxels
    assert scan.array.nbytes + taken < SCAN_COPIES * max(foreseen * 4, scan.array.nbytes) + small


def test_a_scan_that_preparing_makes_too_large_is_refused_before(tmp_path: Path) -> None:
    source = folder(1, 1, 1)
    calls: list[str] = []

    def prepare(scan: Image, where: str) -> Image:
        calls.append(where)
        return VolumeReader(source).prepare_scan(scan, where)

    window = SlidingWindow((16, 16, 16), (8, 8, 8))
    member = Member(prepare, source.prepared_voxels, {"n": Threshold(1, 3)}, window)
    predictor = Predictor([member], 3, torch.device("cpu"))
    thick, thin = body((1, 1, 4)), body((1, 1, 1))
    assert predictor.needs(thick) - predictor.needs(thin) == SCAN_COPIES * 3 * thin.array.nbytes
    with pytest.raises(DualsegError, match=r"thick\.nii: 48 x 40 x 20 voxels, 0\.154 million .*take .*memory=\.\.\."):
        predictor(thick, "thick.nii", predictor.needs(thick) - 1, tmp_path)
    assert not calls
    assert predictor(thick, "thick.nii", predictor.needs(thick), tmp_path).label.shape == SHAPE
    assert predictor(thin, "thin.nii", predictor.needs(thick) - 1, tmp_path).label.shape == SHAPE
    assert calls == ["thick.nii", "thin.nii"]


@pytest.mark.parametrize("limit", [10_000_000, 40_000])
def test_the_copy_for_a_page_takes_less_than_preparing_did(limit: int) -> None:
    scan = body((1, 1, 1))
    label = np.asfortranarray((scan.array[0] > 110).astype(np.uint8))
    entropy = np.asfortranarray(np.random.default_rng(1).random(SHAPE, np.float32))
    taken = peak(lambda: display_copy(scan, label, entropy, limit))
    assert scan.array.nbytes + taken < SCAN_COPIES * scan.array.nbytes + 100_000
