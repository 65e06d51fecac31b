"""What resampling a label loses, against resampling each piece alone."""

import json

import numpy as np
import pytest
from folder_layouts import save
from scipy import ndimage

from dualseg.data import Folder
from dualseg.data.checking import check_dataset, findings_table
from dualseg.data.checking.doubts import MOST, warnings
from dualseg.data.checking.lost import lost_classes, lost_pieces
from dualseg.data.preprocessing import grid_of_spacing, resample
from dualseg.data.problems import Problem
from dualseg.data.reading import VolumeReader
from dualseg.data.splits import Split
from dualseg.data.volumes import Grid

NAMES = ("background", "organ", "lesion")


@pytest.mark.parametrize("spacing", [(2, 2, 2), (3.3, 1, 2.1), (0.7, 2.6, 1), (1, 1, 1), (0.5, 0.5, 0.5)])
def test_pieces_and_classes_against_each_alone(spacing):
    rng = np.random.default_rng(1)
    stored = np.zeros((30, 28, 26), np.uint8)
    pieces = []
    for x in range(2, 28, 5):
        for y in range(2, 26, 5):
            for z in range(2, 24, 5):  # apart by more than a coarse voxel
                width, height = rng.integers(1, 3, 2)
                box = (slice(x, x + width), slice(y, y + height), slice(z, z + 1))
                pieces.append((int(rng.integers(1, 3)), box))
    for value, box in pieces:
        stored[box] = value
    grid = Grid(stored.shape, np.eye(4))
    target = grid_of_spacing(grid, spacing)
    seen = resample(stored, grid.affine, target, order=0)
    expected = {1: [0, 0], 2: [0, 0]}
    for value, box in pieces:
        alone = np.zeros_like(stored)
        alone[box] = value
        expected[value][0] += not resample(alone, grid.affine, target, order=0).any()
        expected[value][1] += 1
    found = lost_pieces(stored, seen)
    if max(spacing) <= 1:
        assert found == {} and not any(lost for lost, _ in expected.values())
    else:
        assert found == {value: tuple(counts) for value, counts in expected.items()}
        assert 0 < sum(lost for lost, _ in found.values()) < len(pieces)
    assert lost_classes(stored, seen, NAMES) == []
    (problem,) = lost_classes(np.where(stored == 2, stored, 0), np.zeros_like(seen), NAMES)
    assert f"{(stored == 2).sum()} voxels of lesion" in problem.text


@pytest.fixture
def root(tmp_path):
    """Two cases at 0.5 mm; in the first the lesion is 2 x 2 x 1 voxels, in the second it is large, with a stray one."""
    rng = np.random.default_rng(0)
    for case in ("a", "b"):
        label = np.zeros((48, 48, 40), np.uint8)
        label[8:40, 8:40, 8:32] = 1
        label[21:23, 21:23, 19] = 2
        if case == "b":
            label[26:36, 26:36, 16:30] = 2
        image = label * 50 + rng.normal(0, 9, label.shape)
        save(tmp_path / "imagesTr" / f"{case}_0000.nii.gz", image.astype(np.float32), np.diag([0.5, 0.5, 0.5, 1]))
        save(tmp_path / "labelsTr" / f"{case}.nii.gz", label, np.diag([0.5, 0.5, 0.5, 1]))
    described = {"channel_names": {"0": "MRI"}, "labels": {name: value for value, name in enumerate(NAMES)}}
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    return tmp_path


@pytest.mark.parametrize("spacing, downsample", [([2, 2, 2], 1), (None, 4), ([1.0, 1.0, 1.0], 2)])
def test_check_and_training_name_the_lost_class(root, spacing, downsample, monkeypatch):
    source = Folder(root, spacing=spacing)
    opened = []
    real = Folder._own_label
    monkeypatch.setattr(Folder, "_own_label", lambda self, case: (opened.append(case), real(self, case))[1])
    split = Split(("a", "b"), (), (), ())
    findings = check_dataset(source, split, downsample)
    assert sorted(opened) == ["a", "b"], "each file is read once"
    (found,) = findings.found
    assert (found.kind, found.case) == ("lost class", "a") and "4 voxels of lesion" in found.text
    assert str(root / "labelsTr" / "a.nii.gz") in found.text
    (note,) = findings.notes
    assert "2 of 3 " in note and "pieces of lesion" in note and "2 of 2 labels" in note
    assert findings_table(findings).endswith(note)
    opened.clear()
    reader = VolumeReader(source, downsample)
    for case in ("a", "b"):
        reader.read_pair(case)
    assert sorted(opened) == ["a", "b"]
    ((kind, text),) = reader.doubts
    assert kind == "lost class" and "of a " in text and "4 voxels of lesion" in text
    reader.read_pair("a")
    assert len(reader.doubts) == 1
    assert reader.lost_notes() == [note], "training warns of what the check notes"


def test_nothing_is_said_of_what_stays(root):
    findings = check_dataset(Folder(root, spacing=None), Split(("a", "b"), (), (), ()))
    assert not findings.found and not findings.notes
    findings = check_dataset(Folder(root, spacing=[2, 2, 2]), Split(("b",), (), (), ("a",)))
    assert not findings.found, "scores are computed on the voxels of the file"


def test_an_empty_label_is_one_that_is_empty_in_its_file(root):
    path = root / "labelsTr" / "a.nii.gz"
    label = np.zeros((48, 48, 40), np.uint8)
    label[21:23, 21:23, 19] = 2
    save(path, label, np.diag([0.5, 0.5, 0.5, 1]))
    split = Split(("b",), (), (), ("a",))
    seen = check_dataset(Folder(root, spacing=[2, 2, 2]), split)
    assert not seen.found and not [note for note in seen.notes if "marks no voxel" in note]
    save(path, 0 * label, np.diag([0.5, 0.5, 0.5, 1]))
    seen = check_dataset(Folder(root, spacing=[2, 2, 2]), split)
    assert not seen.found
    assert [note for note in seen.notes if note.startswith("1 of 2 labels marks ") and note.endswith("foreground: a.")]


def test_of_many_warnings_of_one_kind_some_are_shown():
    doubts = [Problem("constant", f"{k} is flat") for k in range(MOST + 3)] + [Problem("shear", "leans")]
    lines = warnings([*doubts, doubts[0]])
    assert lines[:MOST] == [f"{k} is flat" for k in range(MOST)] and lines[MOST + 1 :] == ["leans"]
    assert "constant" in lines[MOST] and "3 more" in lines[MOST]


def test_pieces_hang_together_by_corners():
    stored = np.zeros((8, 8, 8), np.uint8)
    stored[1, 1, 1] = stored[2, 2, 2] = 1
    seen = ndimage.zoom(stored, 0.5, order=0)
    assert lost_pieces(stored, 0 * seen) == {1: (1, 1)}
