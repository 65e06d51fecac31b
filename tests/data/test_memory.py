"""What volumes take is worked out from their headers, and what is too large is neither read nor resampled."""

import json
import struct
from pathlib import Path
from types import SimpleNamespace

import h5py
import nibabel as nib
import numpy as np
import pytest
import torch
from folder_layouts import write_nnunet
from torch.nn import functional as F

import dualseg.data.folder
from dualseg.data import Folder, LeftAtrium, Phantom, SemiSupervisedDataModule
from dualseg.data.checking import check_dataset
from dualseg.data.formats import read_grid, read_volume
from dualseg.data.left_atrium import case_list
from dualseg.data.memory import BASE_BYTES, COPIES, MemoryCheck, size_of, size_problems
from dualseg.data.problems import VolumeError
from dualseg.data.reading import VolumeReader
from dualseg.data.splits import Split
from dualseg.data.volumes import Grid, Image, VolumeSource
from dualseg.errors import DualsegError
from dualseg.machine import MemoryLimit

GIB = 2**30
AMPLE = MemoryLimit(100 * GIB, "this machine offers 100 GiB", "data.memory")
ONE = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "box": 1}}


def limit(size: float) -> MemoryLimit:
    return MemoryLimit(int(size), f"data.memory={int(size)}B is given", "data.memory")


def spaced(path: Path, factor: float, unit: str = "mm") -> None:
    """Write a file anew whose header says edges `factor` times as long, or another unit."""
    image = nib.load(path)
    changed = nib.Nifti1Image(np.asarray(image.dataobj), image.affine @ np.diag([factor] * 3 + [1]))
    changed.header.set_xyzt_units(unit)
    nib.save(changed, path)


def dimensions(path: Path, *sizes: int) -> None:
    """Let the header of a .nii file say other sizes, and leave the voxels."""
    raw = bytearray(path.read_bytes())
    struct.pack_into(f"<{1 + len(sizes)}h", raw, 40, len(sizes), *sizes)
    path.write_bytes(raw)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four labeled and two unlabeled images of one channel."""
    return write_nnunet(tmp_path / "set", 4, 2, channels=1, description=ONE)


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """Names of the files whose voxels are read."""
    names: list[str] = []

    def reading(path):
        names.append(Path(path).name)
        return read_volume(path)

    monkeypatch.setattr(dualseg.data.folder, "read_volume", reading)
    return names


@pytest.mark.parametrize(("factor", "unit"), [(30, "mm"), (1, "meter")])
@pytest.mark.parametrize("case", ["c01", "c05"])  # labeled, unlabeled
def test_a_header_of_another_scale_is_named_before_anything_is_resampled(root, read, factor, unit, case):
    image = root / "imagesTr" / f"{case}_0000.nii.gz"
    spaced(image, factor, unit)
    if (label := root / "labelsTr" / f"{case}.nii.gz").exists():
        spaced(label, factor, unit)
    source = Folder(root)
    split = Split(source.train_cases, source.unlabeled_cases, (), ())
    found = [finding for finding in check_dataset(source, split, limit=AMPLE).found if "was not read" in finding.text]
    assert [(finding.kind, finding.case) for finding in found] == [("spacing", case)]
    voxels = source.prepared_voxels(read_grid(image))
    edges = " x ".join(f"{edge:.4g}" for edge in read_grid(image).spacing)
    for word in (str(image), f"{edges} mm", f"{voxels:,} voxels", "GiB" if unit == "mm" else "TiB"):
        assert word in found[0].text
    assert ("metres" in found[0].text) == (unit == "meter")
    assert not any(case in name for name in read) and len(read) == 9 - (case == "c01"), "all others are read"

    read.clear()
    with pytest.raises(VolumeError, match=rf"{image}.*header") as error:
        SemiSupervisedDataModule(source, (16, 16, 16), labeled=4).setup("fit")
    assert error.value.kind == "spacing" and not read


def test_what_is_large_among_its_like_is_no_mistake(root):
    """Thick slices, or images of one spacing that another target makes larger, are only measured against the limit."""
    sizes = {case: size_of(Folder(root, spacing=[0.1, 0.1, 0.1]), case) for case in ("c00", "c01", "c02")}
    assert all(size.voxels > 1000 * size.stored for size in sizes.values())
    assert size_problems(sizes, AMPLE) == {}
    least = min(size.reading_bytes for size in sizes.values())
    assert size_problems(sizes, limit(least - 1)).keys() == sizes.keys()
    assert size_problems({"c00": sizes["c00"]}, limit(sizes["c00"].reading_bytes)) == {}
    spaced(root / "imagesTr" / "c01_0000.nii.gz", 3)  # 27 times
    sizes = {case: size_of(Folder(root, spacing=[1, 1.2, 2.4]), case) for case in ("c00", "c01", "c02")}
    assert size_problems(sizes, AMPLE) == {}


@pytest.mark.parametrize("which", ["imagesTr/c01_0000.nii", "labelsTr/c01.nii"])
def test_a_small_file_may_say_any_size(tmp_path, which):
    root = write_nnunet(tmp_path, 3, 0, channels=1, description=ONE)
    for path in root.rglob("*.nii.gz"):
        nib.save(nib.load(path), path.with_suffix(""))
        path.unlink()
    (root / "dataset.json").write_text(json.dumps({**ONE, "file_ending": ".nii"}))
    dimensions(root / which, 32767, 32767, 32767)
    source = Folder(root, spacing=None)
    split = Split(source.train_cases, (), (), ())
    (finding,) = check_dataset(source, split).found
    assert finding.case == "c01" and str(root / which) in finding.text and "32767" in finding.text
    assert finding.kind == ("memory" if "images" in which else "shape")
    with pytest.raises(VolumeError, match=rf"{root / which}.*32767"):
        SemiSupervisedDataModule(source, (16, 16, 16), unlabeled_per_batch=0).setup("fit")


@pytest.mark.parametrize("sizes", [(32767, 32767, 32767), (2000, 2000, 2000, 32767)])
def test_a_file_that_no_machine_can_hold_is_not_read(tmp_path, sizes):
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), path)
    dimensions(path, *sizes)
    with pytest.raises(VolumeError, match=r"a\.nii.*TiB.*this machine offers") as error:
        read_volume(path)
    assert error.value.kind == "memory"


def test_the_volumes_that_stay_are_summed(root, read):
    source = Folder(root, spacing=[1, 1, 2])
    data = SemiSupervisedDataModule(source, (16, 16, 16), labeled=2, held_out_validation=1)
    data.check_memory(AMPLE, stages=["validation"], segmenting=lambda *sizes: 0)
    foreseen = data._memory.held - BASE_BYTES
    reading = max(size_of(source, case).reading_bytes for case in ("c00", "c01", "c02", "c03", "c04", "c05"))
    assert not read
    data.setup("fit")
    data.check_evaluation(["validation"])
    kept = sum(tensor.nbytes for pair in data.volumes.values() for tensor in pair if tensor is not None)
    kept += sum(v.image.nbytes + v.label.nbytes for v in data._validation.cache.values())
    assert len(data._validation.cache) == 1 and foreseen == pytest.approx(kept, rel=0.03)

    needed = BASE_BYTES + foreseen + reading
    check = {"stages": ["validation"], "segmenting": lambda *sizes: 0}
    data.check_memory(limit(needed), **check)
    read.clear()
    with pytest.raises(DualsegError, match=r"^data\.memory: .*") as error:
        data.check_memory(limit(needed - 1), **check)
    text = str(error.value)
    largest = max(data.volumes, key=lambda case: source.prepared_voxels(source.stored_grid(case, "image")))
    for word in (f"{largest}_0000.nii.gz", "data.downsample", "data.source.spacing", "data.memory=1GiB"):
        assert word in text, text
    with pytest.raises(DualsegError, match="in 2 processes"):
        data.check_memory(limit(2 * needed - 1), **check, processes=2)
    data.check_memory(limit(2 * needed), **check, processes=2)
    assert not read


def test_smaller_volumes_take_less(root):
    source = Folder(root, spacing=[1, 1, 2])
    whole, half = (MemoryCheck(source, AMPLE, downsample) for downsample in (1, 2))
    for memory in (whole, half):
        memory.foresee(source.train_cases, source.unlabeled_cases)
    assert half.held - BASE_BYTES == pytest.approx((whole.held - BASE_BYTES) / 8, rel=0.01)


@pytest.mark.parametrize(("downsample", "shape"), [(1.7, (11, 7, 5)), (2, (8, 6, 4)), (1.1, (9, 8, 3))])
def test_a_label_shrinks_to_the_class_that_covers_most(downsample, shape):
    """By all shares at once; the lower class where two are even."""
    label = torch.from_numpy(np.random.default_rng(0).integers(0, 3, shape) * 2)
    names = [f"class{k}" for k in range(6)]
    reader = VolumeReader(SimpleNamespace(class_names=names), downsample)
    size = [max(1, round(n / downsample)) for n in shape]
    shares = F.interpolate(F.one_hot(label, 6).movedim(-1, 0)[None].float(), size, mode="area")[0]
    shrunk = reader.shrink_label(label)
    assert shrunk.dtype == label.dtype and torch.equal(shrunk, shares.argmax(dim=0))
    largest = shares.max(dim=0).values
    assert downsample != 2 or ((shares == largest).sum(dim=0) > 1).any(), "some are even"


def test_a_label_of_many_classes_shrinks_in_little_memory(largest_tensor):
    label = torch.from_numpy(np.random.default_rng(0).integers(0, 300, (24, 24, 24)).astype(np.int16))
    reader = VolumeReader(SimpleNamespace(class_names=list(range(300))), 2)
    assert largest_tensor(lambda: reader.shrink_label(label)) <= 4 * label.numel()


def test_the_estimate_of_shrinking_does_not_grow_with_classes(root):
    few = Folder(root, spacing=[1, 1, 2])
    many = Folder(root, spacing=[1, 1, 2])
    many.class_names = tuple(map(str, range(200)))
    reading = []
    for source in (few, many):
        memory = MemoryCheck(source, AMPLE, 2)
        memory.foresee(source.train_cases)
        reading.append(memory._reading())
    size = max((size_of(few, case) for case in few.train_cases), key=lambda size: size.voxels)
    assert reading[0] == reading[1] == pytest.approx(size.reading_bytes + 11 * size.voxels, abs=1)


def test_an_evaluation_is_foreseen_beside_what_stays(root, read):
    source = Folder(root, spacing=[1, 1, 2])
    data = SemiSupervisedDataModule(source, (16, 16, 16), labeled=2, held_out_test=1)
    asked: list[tuple[int, float, float]] = []

    def segmenting(*sizes):
        asked.append(sizes)
        return 7 * GIB

    (case,) = data.split.test
    with pytest.raises(DualsegError, match=rf"{case}_0000\.nii\.gz.*evaluate.*memory=.* is given") as error:
        data.check_memory(limit(7 * GIB), stages=["test"], segmenting=segmenting)
    grid = source.stored_grid(case, "image")
    assert asked == [(1, source.prepared_voxels(grid), np.prod(grid.shape))] and "data.memory=8GiB" in str(error.value)
    data.check_memory(limit(8 * GIB), stages=["test"], segmenting=segmenting)
    data.check_memory(limit(7 * GIB), stages=[], segmenting=segmenting)
    assert not read


def test_headers_are_read_once_and_those_of_labels_that_are_not_used_never(root, monkeypatch):
    opened: list[str] = []

    def reading(path):
        opened.append(Path(path).name)
        return read_grid(path)

    monkeypatch.setattr(dualseg.data.folder, "read_grid", reading)
    data = SemiSupervisedDataModule(Folder(root), (16, 16, 16), labeled=2)
    data.check_memory(AMPLE)
    assert sorted(opened) == [f"c{n:02d}_0000.nii.gz" for n in range(6)]
    data.setup("fit")
    assert sorted(opened[6:]) == sorted(f"{case}.nii.gz" for case in data.split.labeled)


class Silent(VolumeSource):
    """Knows the size of a volume once it is read."""

    name, class_names, channels = "silent", ("background", "one"), 1
    train_cases, test_cases = tuple("abcdef"), ("y",)

    def __init__(self):
        self.read = []

    def read_image(self, case):
        self.read.append(case)
        return Image(np.zeros((1, 64, 64, 64), np.float32), np.eye(4))

    def read_label(self, case):
        return np.zeros((64, 64, 64), np.uint8)


def test_without_headers_volumes_are_counted_as_they_are_read():
    source = Silent()
    data = SemiSupervisedDataModule(source, (16, 16, 16), labeled=1)
    data.check_memory(limit(BASE_BYTES + 3.5 * 2**20))
    with pytest.raises(DualsegError, match=r"^data\.memory: "):
        data.setup("fit")
    assert source.read == ["a", "b", "c", "d"]

    data = SemiSupervisedDataModule(source, (16, 16, 16), labeled=1)
    data.check_memory(limit(2 * GIB), stages=["test"], segmenting=lambda channels, seen, own: int(seen + own) * 5000)
    data.setup("fit")
    with pytest.raises(DualsegError, match=r"silent case y: .*memory"):
        data.check_evaluation(["test"])


def test_the_benchmarks_files_say_their_size(small_la):
    source = LeftAtrium(small_la)
    case = case_list("train")[0]
    grid = source.stored_grid(case, "image")
    image = source.read_image(case)
    assert grid.shape == image.array.shape[1:] and source.prepared_voxels(grid) == image.array.size
    np.testing.assert_array_equal(grid.affine, image.affine)
    path = small_la / case / "mri_norm2.h5"
    with h5py.File(path, "a") as h5:
        del h5["image"]
        h5.create_dataset("image", (20000, 20000, 20000), np.float32, chunks=(100, 100, 100))  # takes no room
    memory = MemoryCheck(source, AMPLE)
    with pytest.raises(VolumeError, match=rf"{path}.*20000 x 20000 x 20000"):
        memory.foresee([case])
    with pytest.raises(VolumeError, match=rf"{path}.*20000 x 20000 x 20000"):
        source.read_image(case)


def test_out_of_memory_names_the_volume(phantom: Phantom, monkeypatch):
    def hungry(self, case):
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr(Phantom, "read_image", hungry)
    data = SemiSupervisedDataModule(phantom, (16, 16, 16), labeled=1)
    with pytest.raises(DualsegError, match=r"phantom_000.*out of memory.*9 GiB.*data\.downsample"):
        data.setup("fit")
    (first, *_) = check_dataset(phantom, data.split).found
    assert first.kind == "memory" and "phantom_000" in first.text


def test_an_evaluation_advises_what_it_accepts(root, monkeypatch):
    source = Folder(root, spacing=[1, 1, 2])
    data = SemiSupervisedDataModule(source, (16, 16, 16), labeled=2, held_out_test=1)
    check = {"training": False, "stages": ["test"], "segmenting": lambda *sizes: 0}
    data.check_memory(MemoryLimit(GIB, "memory=1GiB is given", "memory"), **check)
    (case,) = data.split.test
    with pytest.raises(DualsegError, match=rf"^memory: .*{case}_0000\.nii\.gz.*[^.]memory=1GiB") as short:
        data.check_memory(MemoryLimit(BASE_BYTES, "memory=768MiB is given", "memory"), **check)

    def hungry(self, case):
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr(Folder, "read_stored", hungry)
    with pytest.raises(DualsegError, match=rf"{case}_0000\.nii\.gz.*9 GiB.*[^.]memory=") as out:
        data.reader.read_evaluation(case, 0)
    for error in (short, out):
        assert "data." not in str(error.value).replace(str(root), "")


def test_without_training_validation_volumes_are_not_kept(root):
    data = SemiSupervisedDataModule(Folder(root, spacing=[1, 1, 2]), (16, 16, 16), labeled=2, held_out_validation=2)
    data.check_memory(AMPLE, training=False, stages=["validation"], segmenting=lambda *sizes: 0)
    assert data._memory.held == BASE_BYTES and data._validation is None
    with pytest.raises(DualsegError, match="to evaluate it"):
        data.check_memory(AMPLE, training=False, stages=["validation"], segmenting=lambda *sizes: 200 * GIB)


def test_copies_count_all_channels():
    grid = Grid((10, 10, 10), np.eye(4), channels=3)

    class Source(Silent):
        def stored_grid(self, case, kind):
            return grid

    size = size_of(Source(), "a")
    assert (size.stored, size.voxels, size.prepared_bytes) == (1000, 1000, 12000)
    assert size.reading_bytes == COPIES * 12000
