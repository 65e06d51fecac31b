"""What a scan is foreseen to take: enough for preparing it, and for its copy on a page."""

import gzip
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from dicom_toys import write_series
from predict_toys import Rising, Threshold, save

from dualseg.data import BraTS2019, LeftAtrium, PancreasCT, Phantom
from dualseg.data.folder import Folder
from dualseg.data.memory import COPIES
from dualseg.data.reading import VolumeReader
from dualseg.data.volumes import Grid, Image, VolumeSource
from dualseg.data.voxels import read_voxels
from dualseg.errors import DualsegError
from dualseg.inference import SlidingWindow
from dualseg.inference.bars import bar_bytes
from dualseg.inference.predictor import Member, Predictor
from dualseg.prediction import scans
from dualseg.prediction.viewer.display import display_copy

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
    assert scan.array.nbytes + taken < COPIES * max(foreseen * 4, scan.array.nbytes) + small


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
    needed, less = (predictor.needs(Grid(SHAPE, scan.affine)) for scan in (thick, thin))
    bars = [bar_bytes(window, 3, scale * thin.array.size) for scale in (4, 1)]
    assert needed - less == COPIES * 3 * thin.array.nbytes + bars[0] - bars[1]
    with pytest.raises(
        DualsegError, match=r"thick\.nii: 48 x 40 x 20 voxels, 0\.154 million .*1 x 1 x 4 mm, .*memory=\.\.\."
    ):
        predictor(thick, "thick.nii", needed - 1, tmp_path)
    assert not calls
    assert predictor(thick, "thick.nii", needed, tmp_path).label.shape == SHAPE
    assert predictor(thin, "thin.nii", needed - 1, tmp_path).label.shape == SHAPE
    assert calls == ["thick.nii", "thin.nii"]


def test_many_classes_take_more() -> None:
    """At the least: logits and probabilities of the windows of a pass, a bar and MONAI's sum of it; or one slice."""

    def needs(classes: int, shape: tuple[int, int, int], patch: int = 16, networks: int = 1) -> int:
        window = SlidingWindow((patch, patch, patch), (8, 8, 8), batch_size=4)
        member = Member(nothing, lambda grid: 32**3, {f"n{k}": Threshold(1, 3) for k in range(networks)}, window)
        return Predictor([member], classes, torch.device("cpu")).needs(Grid(shape, np.eye(4)))

    def nothing(scan: Image, where: str) -> Image:
        raise AssertionError

    windows = 2 * 4 * 300 * 4 * 16**3 + 2 * 4 * 300 * 16 * 16 * 32
    assert needs(300, (32, 32, 32)) - needs(2, (32, 32, 32)) > 0.75 * windows
    assert needs(2, (32, 32, 32)) - needs(2, (32, 32, 32), patch=8) < 10**7, "feature maps, not scores"
    thin = needs(300, (64, 512, 1)) - needs(2, (64, 512, 1))
    assert thin > 3 * 4 * 300 * 64 * 512 - 10**7
    assert needs(300, (64, 512, 1), networks=2) - needs(300, (64, 512, 1)) == 3 * 4 * 300 * 64 * 512


@pytest.mark.parametrize("kind", ["NIfTI", "compressed", "metres", "DICOM"])
def test_a_scan_that_is_too_large_is_refused_by_its_header(predict, tmp_path: Path, monkeypatch, kind: str) -> None:
    """Not a voxel of it is read; the other scan is predicted."""
    large = tmp_path / "in" / "large"
    voxels = np.zeros((32, 30, 28), np.int16)
    if kind == "DICOM":
        write_series(large)
        for path in large.iterdir():
            dataset = pydicom.dcmread(path)
            dataset.PixelSpacing = [160, 190]
            dataset.save_as(path)
        where, taken = str(large), "190 x 160 x 2.5 mm"
    else:
        path = large / ("scan.nii.gz" if kind == "compressed" else "scan.nii")
        save(path, voxels, np.diag([2.0, 2, 2, 1]))
        if kind == "metres":
            image = nib.load(path)
            image.header.set_xyzt_units("meter")
            nib.save(nib.Nifti1Image(voxels, None, image.header), path)
        else:
            raw = bytearray(gzip.decompress(path.read_bytes()) if kind == "compressed" else path.read_bytes())
            struct.pack_into("<3h", raw, 42, 1200, 1200, 1200)
            path.write_bytes(gzip.compress(raw) if kind == "compressed" else raw)
        where, taken = str(path), "1200 x 1200 x 1200" if kind != "metres" else "metres"
    save(tmp_path / "in" / "small.nii", voxels, np.diag([2.0, 2, 2, 1]))
    monkeypatch.setattr(Rising, "prepared_voxels", lambda self, grid: grid.voxels_of((2, 2, 2)))
    read: list[str] = []
    monkeypatch.setattr(scans, "read_voxels", lambda stored: read.append(str(stored.path)) or read_voxels(stored))
    monkeypatch.setattr(scans, "read_series", lambda series: pytest.fail("the series was read"))
    outcome = predict(f"input={tmp_path / 'in'}", "memory=2GiB")
    outcome.complains("1 of 2 scans failed")
    (said,) = [line for line in outcome.err.splitlines() if "failed. " in line]
    for word in (where, taken, "GiB", "memory=", *(["header"] if kind in ("metres", "DICOM") else [])):
        assert word in said, said
    assert read == [str(tmp_path / "in" / "small.nii")]
    assert (tmp_path / "out" / "labels" / "small.nii.gz").is_file()


@pytest.mark.parametrize("limit", [10_000_000, 40_000])
def test_the_copy_for_a_page_takes_less_than_preparing_did(limit: int) -> None:
    scan = body((1, 1, 1))
    label = np.asfortranarray((scan.array[0] > 110).astype(np.uint8))
    entropy = np.asfortranarray(np.random.default_rng(1).random(SHAPE, np.float32))
    taken = peak(lambda: display_copy(scan, label, entropy, limit))
    assert scan.array.nbytes + taken < COPIES * scan.array.nbytes + 100_000
