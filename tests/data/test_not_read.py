"""What lies in the folders of a dataset and is not read is named; what is obviously no scan is not."""

import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from folder_layouts import save, volume, write_decathlon, write_nnunet

from dualseg.data.folder import Folder
from dualseg.data.layouts import read_layout
from dualseg.data.not_read import is_document, unread
from dualseg.errors import DualsegError
from dualseg.files import files_below


def put(path: Path, content: bytes = b"\0\1") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def told(root: Path, **options: Path) -> list[str]:
    return list(read_layout(root, **options).not_read)


@pytest.mark.parametrize("write", [write_nnunet, write_decathlon])
def test_a_clean_folder_and_what_comes_with_it(tmp_path, write) -> None:
    root = write(tmp_path, 3, 1)
    for name in ("c00.json", "notes.TXT", "README", ".DS_Store", "._c01_0000.nii.gz", "Thumbs.db", ".hidden"):
        put(root / "imagesTr" / name, b"text\n")
    put(root / "labelsTr" / "sub" / "labels.csv", b"1,2\n")
    put(root / "scripts" / "convert.py", b"pass\n")
    assert told(root) == []


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("imagesTr/c08.mgz", "imagesTr: 1 file .mgz not read (c08.mgz)"),
        ("labelsTr/c00.png", "labelsTr: 1 file .png not read (c00.png)"),
        ("labelsTs/c00.nii.bz2", "labelsTs: 1 file .bz2 not read (c00.nii.bz2)"),
        ("imagesTs/IM0001", "imagesTs: 1 file without suffix not read (IM0001)"),
        ("imagesUn/.c09_0000.nii.gz", "imagesUn: 1 file (hidden) not read (.c09_0000.nii.gz)"),
        ("imagesTr/patient/c09_0000.nii.gz", "imagesTr/patient: is a folder, with 1 file"),
        ("imagesTr/patient/series/IM0001", "imagesTr/patient: is a folder, with 1 file"),
        ("imagesTr/c09_0000.nii.gz/readme.txt", "imagesTr/c09_0000.nii.gz: is a folder, with 0 files"),
        ("imagesVal/c09_0000.nii.gz", "imagesVal: is not read, and holds 1 file (c09_0000.nii.gz)"),
    ],
)
def test_each_folder_of_the_layout_tells(tmp_path, file, words) -> None:
    root = write_nnunet(tmp_path, 2, 1, test=1)
    for channel in range(2):
        save(root / "imagesUn" / f"u0_000{channel}.nii.gz", volume(7)[0][channel], volume(7)[2])
    assert told(root) == []
    put(root / file)
    (text,) = told(root)
    assert words in text and str(root) in text
    assert Folder(root, splits=tmp_path / "split.json").not_read == (text,)


def test_many_files_of_a_kind_are_one_sentence(tmp_path) -> None:
    root = write_nnunet(tmp_path / "set", 2, 1)
    for number in range(40):
        put(root / "imagesTr" / f"slice{number:02d}.dcm")
    put(tmp_path / "more" / "x.gipl")
    for channel in range(2):
        save(tmp_path / "more" / f"u0_000{channel}.nii.gz", volume(7)[0][channel], volume(7)[2])
    first, second = told(root, unlabeled=tmp_path / "more")
    assert "40 files .dcm not read (slice00.dcm, slice01.dcm, slice02.dcm, ...)" in first
    assert "more: 1 file .gipl not read (x.gipl)" in second


def test_labels_that_the_list_of_a_decathlon_leaves_out(tmp_path) -> None:
    root = write_decathlon(tmp_path, 3, 1)
    shutil.copy(root / "labelsTr" / "c00.nii.gz", root / "labelsTr" / "c03.nii.gz")
    (text,) = told(root)
    assert "labelsTr: 1 files not read (c03.nii.gz)" in text and "'training'" in text


def test_volumes_of_a_list_may_lie_in_folders_below(tmp_path) -> None:
    root = write_decathlon(tmp_path, 2, 0)
    description = json.loads((root / "dataset.json").read_text())
    for entry in description["training"]:
        for kind in ("image", "label"):
            old = root / entry[kind]
            entry[kind] = f"{old.parent.name}/{old.name[:3]}/{old.name}"
            (root / entry[kind]).parent.mkdir()
            old.rename(root / entry[kind])
    (root / "dataset.json").write_text(json.dumps(description))
    assert told(root) == [] and len(read_layout(root).training) == 2


def test_the_parts_of_a_volume_are_not_told_of(tmp_path) -> None:
    image = sitk.GetImageFromArray(np.ones((4, 5, 6), np.int16))
    sitk.WriteImage(image, tmp_path / "a.mhd", useCompression=True)
    sitk.WriteImage(image, tmp_path / "b.nhdr")
    (tmp_path / "a.zraw").rename(tmp_path / "other.zraw")
    text = (tmp_path / "a.mhd").read_text().replace("a.zraw", "other.zraw")
    (tmp_path / "a.mhd").write_text(text)
    nib.save(nib.Nifti1Pair(np.ones((4, 5, 6), np.int16), np.eye(4)), tmp_path / "c.img")
    put(tmp_path / "lost.raw")
    volumes = [tmp_path / name for name in ("a.mhd", "b.nhdr", "c.img")]
    assert [path.name for path in unread(sorted(tmp_path.iterdir()), volumes)] == ["lost.raw"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", b"\0", True),
        ("LICENSE", "© somebody\n".encode() * 200, True),
        ("empty", b"", True),
        ("IM0001", bytes(128) + b"DICM", False),
        ("a.mgz", b"text", False),
        ("a.b.001", b"text", False),
    ],
)
def test_what_is_obviously_no_scan(tmp_path, name, content, expected) -> None:
    assert is_document(put(tmp_path / name, content)) is expected


def test_cases_in_several_formats_and_in_capitals(tmp_path) -> None:
    """The same volumes as in .nii.gz; a case that is there in two formats is a fault."""
    root = write_nnunet(tmp_path / "set", 2, 1)
    other = Path(shutil.copytree(root, tmp_path / "other"))
    for path, suffix in (
        ("imagesTr/c00_0000", "nrrd"),
        ("imagesTr/c00_0001", "MHA"),
        ("labelsTr/c00", "nrrd"),
        ("imagesTr/c01_0000", "img"),
        ("imagesTr/c01_0001", "NII.GZ"),
        ("labelsTr/c01", "mhd"),
        ("imagesTr/c02_0000", "NRRD"),
        ("imagesTr/c02_0001", "hdr"),
    ):
        old, new = other / f"{path}.nii.gz", other / f"{path}.{suffix}"
        lower = new.with_name(new.name.lower())
        if suffix == "NII.GZ":
            shutil.copy(old, new)
        else:
            sitk.WriteImage(sitk.ReadImage(old), lower, useCompression=suffix != "hdr")
            if suffix.isupper():
                lower.rename(new)
        old.unlink()
    first, second = (Folder(folder, spacing=None) for folder in (root, other))
    assert second.not_read == () and {*second.train_cases} == {"c00", "c01"} and second.unlabeled_cases == ("c02",)
    for case in ("c00", "c01", "c02"):
        np.testing.assert_array_equal(first.read_image(case).array, second.read_image(case).array)
        np.testing.assert_allclose(first.read_image(case).affine, second.read_image(case).affine, atol=1e-4)
    for case in ("c00", "c01"):
        np.testing.assert_array_equal(first.read_label(case), second.read_label(case))
    shutil.copy(root / "labelsTr" / "c00.nii.gz", other / "labelsTr")
    ((name, faults),) = [(name, case.faults) for name, case in read_layout(other).training.items() if case.faults]
    assert name == "c00" and faults[0].kind == "duplicate"


def test_a_link_to_nothing_is_a_case_that_cannot_be_read(tmp_path) -> None:
    """As in a clone of DataLad before `get`."""
    root = write_nnunet(tmp_path, 2, 0)
    image = root / "imagesTr" / "c01_0000.nii.gz"
    image.unlink()
    image.symlink_to(tmp_path / "annex" / "object.nii.gz")
    source = Folder(root, spacing=None)
    with pytest.raises(DualsegError, match=r"is a link to .*object"):
        source.read_image("c01")


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path, monkeypatch) -> None:
    (tmp_path / "closed").mkdir()
    put(tmp_path / "a.nii.gz")
    real = os.scandir

    def closed(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(DualsegError, match=r"closed: .*listed \(Permission denied\)"):
        list(files_below(tmp_path))


def test_folders_of_the_system_are_no_folders_of_scans(tmp_path) -> None:
    root = write_nnunet(tmp_path, 2, 0)
    for name in ("lost+found", "$RECYCLE.BIN", ".Trash-0"):
        put(root / name / "x.nii.gz")
    assert told(root) == [] and not [path for path in files_below(root) if path.name == "x.nii.gz"]
