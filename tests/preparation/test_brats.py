"""BraTS's folders -> what `BraTS2019` reads: whole tumour on FLAIR, or all modalities and exclusive classes."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from raw_files import BRATS_AFFINE, write_brats

from dualseg.data import BraTS2019, Image
from dualseg.data.brats2019 import MODALITIES, REGIONS, TUMOUR_CLASSES
from dualseg.data.reading import VolumeReader
from dualseg.errors import DualsegError
from dualseg.files import write_json
from dualseg.preparation.brats2019 import BraTS2019Preparation
from dualseg.preparation.writing import prepare_case

CASE = "BraTS19_TCIA02_370_1"
SHAPE = (60, 50, 40)
BRAIN = (slice(8, 51), slice(5, 44), slice(3, 33))
LANDMARK = (20, 31, 17)  # the middle of what is brightest


def volumes() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Four modalities with their own intensities, 0 outside the brain, and the labels 0, 1, 2, 4, nested."""
    rng = np.random.default_rng(0)
    modalities = {}
    for k, name in enumerate(MODALITIES):
        image = np.zeros(SHAPE)
        image[BRAIN] = rng.integers(200, 400, image[BRAIN].shape) * (k + 1)
        image[18:23, 29:34, 16:19] = 5000  # more voxels than are clipped
        modalities[name] = image
    label = np.zeros(SHAPE)
    label[15:35, 12:30, 8:25] = 2
    label[18:30, 15:26, 11:22] = 1
    label[20:26, 17:23, 13:18] = 4
    return modalities, label


def prepare(raw: Path, out: Path, modalities: tuple[str, ...] = ("flair",), regions: bool = False) -> Path:
    preparation = BraTS2019Preparation("foreground", modalities, regions)
    found = preparation.find(raw)
    assert not found.failed and [*found.cases] == [CASE]
    prepare_case(preparation, CASE, found.cases[CASE], out, None)
    write_json(out / "prepared.json", preparation.settings())
    return preparation.file(out, CASE)


def test_the_usual_form_is_the_whole_tumour_on_flair(tmp_path, written):
    modalities, label = volumes()
    write_brats(tmp_path / "raw" / "HGG", CASE, modalities, label)
    case = written(prepare(tmp_path / "raw", tmp_path / "out"))
    np.testing.assert_array_equal(case.label, (label[BRAIN] > 0).astype(np.uint8))
    box = modalities["flair"][BRAIN]
    clipped = np.minimum(box, np.percentile(box, 99.9))
    np.testing.assert_allclose(case.image, (clipped - clipped.mean()) / clipped.std(), atol=1e-4)
    assert case.record["crop"] == "foreground"


def test_only_the_brain_counts_for_mean_and_deviation(tmp_path, written):
    modalities, label = volumes()
    hole = (slice(15, 30),) * 3
    modalities["flair"][hole] = 0
    write_brats(tmp_path / "raw" / "LGG", CASE, modalities, label)
    case = written(prepare(tmp_path / "raw", tmp_path / "out"))
    box = np.minimum(modalities["flair"][BRAIN], np.percentile(modalities["flair"][BRAIN], 99.9))
    brain = box[box > 0]
    np.testing.assert_allclose(case.image, (box - brain.mean()) / brain.std(), atol=1e-4)
    assert case.image[10, 12, 15] == pytest.approx(-brain.mean() / brain.std(), abs=1e-4)


@pytest.mark.parametrize("axes", ["LPS", "RAS"])
def test_a_landmark_comes_out_at_its_millimetre(tmp_path, written, axes):
    modalities, label = volumes()
    write_brats(tmp_path / "raw" / "HGG", CASE, modalities, label)
    if axes == "RAS":
        for path in (tmp_path / "raw").rglob("*.nii.gz"):
            nib.save(nib.as_closest_canonical(nib.load(path)), path)
    case = written(prepare(tmp_path / "raw", tmp_path / "out"))
    # BraTS's first axis runs to the left, its second to the back from 239 mm
    i, j, k = LANDMARK
    np.testing.assert_allclose(case.centre_mm(case.image == case.image.max()), (-i, 239 - j, k))
    np.testing.assert_allclose(case.centre_mm(case.label == 1), nib.affines.apply_affine(BRATS_AFFINE, mean_of(label)))


def mean_of(label: np.ndarray) -> np.ndarray:
    return np.argwhere(label > 0).mean(axis=0)


def test_all_modalities_and_exclusive_classes_with_their_regions(tmp_path, written):
    modalities, label = volumes()
    write_brats(tmp_path / "raw" / "HGG", CASE, modalities, label)
    case = written(prepare(tmp_path / "raw", tmp_path / "out", MODALITIES, regions=True))
    assert case.image.shape == (4, 43, 39, 30)
    for channel, name in zip(case.image, MODALITIES, strict=True):
        box = np.minimum(modalities[name][BRAIN], np.percentile(modalities[name][BRAIN], 99.9))
        np.testing.assert_allclose(channel, (box - box.mean()) / box.std(), atol=1e-4)
    for ours, theirs in enumerate((0, 1, 2, 4)):
        np.testing.assert_array_equal(case.label == ours, label[BRAIN] == theirs)
    # BraTS's own definitions of the regions, by its labels
    for name, labels in {"whole_tumour": (1, 2, 4), "tumour_core": (1, 4), "enhancing_tumour": (4,)}.items():
        np.testing.assert_array_equal(np.isin(case.label, REGIONS[name]), np.isin(label[BRAIN], labels))
    source = BraTS2019(tmp_path / "out")
    assert (source.channels, source.class_names, dict(source.regions)) == (4, TUMOUR_CLASSES, REGIONS)
    image, read = VolumeReader(source).read_pair(CASE)
    assert image.shape == (4, 43, 39, 30) and read.max() == 3
    volume = VolumeReader(source).read_evaluation(CASE, 0)
    np.testing.assert_array_equal(volume.label, case.label)
    # a run records the classes, so that a scan can be prepared without the dataset
    again = BraTS2019.for_scans(source.scan_record())
    assert (again.channels, again.class_names) == (4, TUMOUR_CLASSES)


def test_a_scan_is_prepared_as_the_dataset_is(tmp_path, written):
    modalities, label = volumes()
    write_brats(tmp_path / "raw" / "HGG", CASE, modalities, label)
    case = written(prepare(tmp_path / "raw", tmp_path / "out"))
    scan = Image(modalities["flair"][None].astype(np.float32), BRATS_AFFINE)
    prepared = BraTS2019.for_scans({}).prepare_scan(scan)
    np.testing.assert_array_equal(prepared.array[0], case.image)
    np.testing.assert_allclose(prepared.affine, case.affine)


def test_a_scan_without_a_brain_is_refused():
    with pytest.raises(DualsegError, match="skull-stripped"):
        BraTS2019.for_scans({}).prepare_scan(Image(np.zeros((1, 8, 8, 8), np.float32), np.eye(4)))


# --- bad input


def lose(folder: Path) -> str:
    (folder / f"{CASE}_t1ce.nii.gz").unlink()
    return f"{CASE}_t1ce.nii.gz: not below"


def double(folder: Path) -> str:
    (folder / "copy").mkdir()
    (folder / "copy" / f"{CASE}_t1.nii.gz").write_bytes((folder / f"{CASE}_t1.nii.gz").read_bytes())
    return "found more than once"


@pytest.mark.parametrize("damage", [lose, double])
def test_a_case_that_cannot_be_is_known_before_reading(tmp_path, damage):
    write_brats(tmp_path / "HGG", CASE, *volumes())
    message = damage(tmp_path / "HGG" / CASE)
    found = BraTS2019Preparation("foreground", MODALITIES).find(tmp_path)
    assert not found.cases and message in found.failed[CASE]
    other = BraTS2019Preparation("foreground").find(tmp_path)  # FLAIR alone is all that is asked for
    assert [*other.cases] == [CASE] and not other.failed


def other_values(folder: Path) -> str:
    return change(folder, "seg", lambda a: np.where(a == 4, 3, a), BRATS_AFFINE, "_seg.*values 0, 1, 2, 3; expected 0,")


def other_grid(folder: Path) -> str:
    return change(folder, "t2", lambda a: a, np.diag([-1.0, -1, 2, 1]), "_t2.*another grid than the first modality")


def other_shape(folder: Path) -> str:
    return change(folder, "seg", lambda a: a[1:], BRATS_AFFINE, "_seg.*shape")


def no_tumour(folder: Path) -> str:
    return change(folder, "seg", lambda a: a * 0, BRATS_AFFINE, "_seg.*the label is empty")


def four_d(folder: Path) -> str:
    return change(folder, "flair", lambda a: np.stack([a, a], -1), BRATS_AFFINE, "_flair.*holds 2 volumes")


def no_affine(folder: Path) -> str:
    path = folder / f"{CASE}_flair.nii.gz"
    image = nib.load(path)
    image.header.set_sform(np.diag([0.0, 0, 0, 1]), code=1)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), path)
    return "_flair.*affine is not invertible"


def truncated(folder: Path) -> str:
    path = folder / f"{CASE}_flair.nii.gz"
    path.write_bytes(path.read_bytes()[:-100])
    return "_flair.*cannot be read as NIfTI"


def change(folder: Path, kind: str, edit, affine: np.ndarray, message: str) -> str:
    path = folder / f"{CASE}_{kind}.nii.gz"
    nib.save(nib.Nifti1Image(edit(np.asarray(nib.load(path).dataobj)).astype(np.int16), affine), path)
    return message


@pytest.mark.parametrize("damage", [other_values, other_grid, other_shape, no_tumour, four_d, no_affine, truncated])
def test_a_bad_case_names_its_file_and_leaves_nothing(tmp_path, damage):
    write_brats(tmp_path / "raw" / "HGG", CASE, *volumes())
    message = damage(tmp_path / "raw" / "HGG" / CASE)
    with pytest.raises(DualsegError, match=message):
        prepare(tmp_path / "raw", tmp_path / "out", MODALITIES)
    assert not (tmp_path / "out").exists()
