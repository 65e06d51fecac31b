"""Which cases a dataset folder has, in both layouts, and what is said about folders that do not fit."""

import json
import shutil

import pytest
from folder_layouts import NEW, OLD, save, volume, write_decathlon, write_nnunet

from dualseg.data.layouts import read_layout
from dualseg.errors import DualsegError


def describe(root, **changes):
    """Change dataset.json; None takes a key away."""
    described = {**json.loads((root / "dataset.json").read_text()), **changes}
    (root / "dataset.json").write_text(json.dumps({k: v for k, v in described.items() if v is not None}))


def fails(root, *words, unlabeled=None):
    with pytest.raises(DualsegError) as caught:
        read_layout(root, unlabeled)
    for word in words:
        assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize("described", [OLD, NEW], ids=["modality", "channel_names"])
def test_nnunet(tmp_path, described):
    layout = read_layout(write_nnunet(tmp_path / "Dataset007_Liver", 3, 2, test=1, description=described))
    assert layout.name == "Dataset007_Liver"
    assert layout.class_names == ("background", "liver", "tumour") and layout.channel_names == ("T1", "T2")
    assert {name: case.label is not None for name, case in layout.training.items()} == {
        **dict.fromkeys(["c00", "c01", "c02"], True),
        **dict.fromkeys(["c03", "c04"], False),
    }
    assert [path.name for path in layout.training["c03"].images] == ["c03_0000.nii.gz", "c03_0001.nii.gz"]
    assert {*layout.test} == {"c05"} and layout.test["c05"].label.parent.name == "labelsTs"


def test_decathlon(tmp_path):
    root = write_decathlon(tmp_path, 3, 2)
    layout = read_layout(root)
    assert layout.name == "Livers" and layout.class_names == ("background", "liver", "tumour")
    assert [name for name, case in layout.training.items() if case.label] == ["c00", "c01", "c02"]
    assert [name for name, case in layout.training.items() if not case.label] == ["c03", "c04"], "nothing of imagesTs"
    assert layout.training["c00"].images == (root / "imagesTr" / "c00.nii.gz",) and not layout.test
    (root / "labelsTr" / "c01.nii.gz").unlink()
    assert read_layout(root).training["c01"].label is None


def test_the_list_of_an_early_nnunet_folder_names_no_files(tmp_path):
    entries = [{"image": "./imagesTr/c00.nii.gz", "label": "./labelsTr/c00.nii.gz"}]
    root = write_nnunet(tmp_path, 2, 0, description={**OLD, "training": entries})
    layout = read_layout(root)
    assert len(layout.training["c00"].images) == 2 and not layout.not_read
    entries += [{"image": f"./imagesTr/c{n:02d}.nii.gz", "label": f"./labelsTr/c{n:02d}.nii.gz"} for n in (1, 8, 9)]
    describe(root, training=entries)
    layout = read_layout(root)
    assert {*layout.training} == {"c00", "c01"}
    (text,) = layout.not_read
    assert "dataset.json" in text and "2 cases" in text and "(c08.nii.gz, c09.nii.gz)" in text


def test_plain_names_need_no_list(tmp_path):
    root = write_decathlon(tmp_path, 3, 2)
    describe(root, training=None)
    assert [name for name, case in read_layout(root).training.items() if case.label] == ["c00", "c01", "c02"]


def test_cases_numbered_with_four_digits_are_no_channels_where_they_are_listed(tmp_path):
    root = write_decathlon(tmp_path, 1, 0)
    for kind in ("imagesTr", "labelsTr"):
        (root / kind / "c00.nii.gz").rename(root / kind / "case_0001.nii.gz")
    describe(root, training=[{"image": "imagesTr/case_0001.nii.gz", "label": "labelsTr/case_0001.nii.gz"}])
    assert {*read_layout(root).training} == {"case_0001"}


def test_unlabeled_images_in_folders_of_their_own(tmp_path):
    root = write_nnunet(tmp_path / "set", 2, 0)
    for folder, case in ((root / "imagesUn", "u0"), (tmp_path / "more", "u1")):
        for channel in range(2):
            save(folder / f"{case}_000{channel}.nii.gz", volume(7)[0][channel], volume(7)[2])
    assert {*read_layout(root).training} == {"c00", "c01", "u0"}
    training = read_layout(root, tmp_path / "more").training
    assert {*training} == {"c00", "c01", "u0", "u1"} and training["u0"].label is training["u1"].label is None


def test_images_of_the_test_set_are_never_trained_on(tmp_path):
    root = write_decathlon(tmp_path, 2, 0)
    fails(root, "imagesTs is never trained on", "data.source.unlabeled", unlabeled=root / "imagesTs")
    shortcut = tmp_path / "shortcut"
    shortcut.symlink_to(root / "imagesTs")
    fails(root, "imagesTs is never trained on", unlabeled=shortcut)
    entries = [{"image": f"imagesT{k}", "label": "labelsTr/c00.nii.gz"} for k in ("r/c00.nii.gz", "s/t99.nii.gz")]
    describe(root, training=entries)
    fails(root, "t99.nii.gz", "never trained on")


@pytest.mark.parametrize(
    "labels, words",
    [
        (None, "names no classes"),
        ([], "names no classes"),
        ({"background": 0, "whole": [1, 2]}, "whole a region"),
        ({"background": 0, "a": 1, "ignore": 2}, "ignore label"),
        ({"0": "background", "1": "ignore"}, "ignore label"),
        ({"background": 0, "a": 2}, "without a gap"),
        ({"background": 0}, "at least 2"),
        ({"0": "background", "1": 1}, "without a gap"),
        ({"0": "background", "1": "a", "2": "a"}, "one name for two classes"),
        ({"background": 0, "a": 1, "b": 1}, "without a gap"),
        ({"background": 0, "a\nb": 1}, "U+000A"),
        ({"0": "background", "1": "a\u202eb"}, "U+202E"),
        ({"background": 0, "": 1}, "'labels'"),
    ],
)
def test_labels_that_make_no_classes(tmp_path, labels, words):
    root = write_nnunet(tmp_path, 1, 0)
    describe(root, labels=labels)
    fails(root, str(root / "dataset.json"), words)


def test_a_folder_that_does_not_fit(tmp_path):
    fails(tmp_path / "nowhere", "data.root", "no such folder")
    fails(tmp_path, "dataset.json", "missing", '"channel_names"')
    root = write_nnunet(tmp_path / "set", 2, 1)

    def broken(change, *words):
        copy = shutil.copytree(root, tmp_path / f"broken{len(list(tmp_path.iterdir()))}")
        change(copy)
        fails(copy, *words)

    broken(lambda r: (r / "dataset.json").write_text("{"), "dataset.json", "cannot be read")
    broken(lambda r: (r / "dataset.json").write_text("[]"), "dataset.json", "no mapping")
    broken(lambda r: describe(r, channel_names=None), "neither 'channel_names' nor 'modality'")
    broken(lambda r: describe(r, channel_names={"0": "T1", "2": "T2"}), "channel_names", "without a gap")
    broken(lambda r: describe(r, channel_names={"0": "T1\n", "1": "T2"}), "channel_names", "U+000A")
    broken(lambda r: describe(r, training=["c00"]), "'training' has an entry")
    broken(lambda r: shutil.rmtree(r / "imagesTr"), "imagesTr: no such folder")
    broken(lambda r: [p.unlink() for p in (r / "imagesTr").iterdir()], "imagesTr: holds no .nii.gz")
    fails(root, "data.source.unlabeled", "no such folder", unlabeled=tmp_path / "nowhere")


def faults(root):
    """(case, kind, text) of the faulty cases, training before test."""
    layout = read_layout(root)
    cases = [*layout.training.items(), *layout.test.items()]
    return [(name, fault.kind, fault.text) for name, case in cases for fault in case.faults]


@pytest.mark.parametrize(
    "change, case, kind, words",
    [
        (lambda r: (r / "imagesTr" / "c01_0001.nii.gz").unlink(), "c01", "channels", "0000, 0001 (T1, T2)"),
        (lambda r: save(r / "imagesTr" / "c01_0002.nii.gz", *volume(0)[1:]), "c01", "channels", "0000, 0001, 0002,"),
        (lambda r: save(r / "imagesTr" / "x.nii.gz", *volume(0)[1:]), "x", "channels", "name it x_0000.nii.gz"),
        (
            lambda r: (r / "imagesTr" / "c00_0000.nii").touch(),
            "c00",
            "duplicate",
            "c00_0000.nii.gz: is the same case as",
        ),
        (lambda r: (r / "labelsTr" / "c00.nii").touch(), "c00", "duplicate", "c00.nii.gz: is the same case as c00.nii"),
        (
            lambda r: save(r / "labelsTr" / "c9.nii.gz", *volume(0)[1:]),
            "c9",
            "unreadable",
            "c9.nii.gz: has no image in",
        ),
        (lambda r: save(r / "labelsTs" / "x.nii.gz", *volume(0)[1:]), "x", "unreadable", "x.nii.gz: has no image in"),
    ],
)
def test_files_that_do_not_fit_the_others_are_faults_of_their_case(tmp_path, change, case, kind, words):
    root = write_nnunet(tmp_path, 2, 1)
    assert faults(root) == []
    change(root)
    ((name, found, text),) = faults(root)
    assert (name, found) == (case, kind) and words in text and str(root) in text


def test_every_faulty_case_is_kept(tmp_path):
    root = write_nnunet(tmp_path / "set", 3, 1, test=1)
    (root / "imagesTr" / "c01_0001.nii.gz").rename(root / "imagesTr" / "c01.nii.gz")
    (root / "labelsTr" / "c02.nii.gz").rename(root / "labelsTr" / "c2.nii.gz")
    for channel in range(2):
        shutil.copy(root / "imagesTr" / f"c03_000{channel}.nii.gz", root / "imagesTs")
        save(root / "imagesUn" / f"c00_000{channel}.nii.gz", volume(7)[0][channel], volume(7)[2])
    shutil.copy(root / "labelsTr" / "c00.nii.gz", root / "labelsTs" / "c03.nii.gz")
    found = faults(root)
    assert [(name, kind) for name, kind, _ in found] == [
        ("c00", "duplicate"),  # of imagesUn
        ("c01", "channels"),  # a name without a number
        ("c01", "channels"),  # and so a number that is not there
        ("c03", "duplicate"),  # of imagesTs
        ("c2", "unreadable"),
    ]
    assert "c00_0000.nii.gz: is case c00, as" in found[0][2] and "imagesTs" in found[3][2]
    layout = read_layout(root)
    assert {*layout.training} == {"c00", "c01", "c02", "c03", "c2"} and {*layout.test} == {"c04"}
    assert layout.training["c02"].label is None and layout.training["c2"].label


def test_faults_of_a_decathlon(tmp_path):
    root = write_decathlon(tmp_path, 3, 1)
    (root / "imagesTr" / "c01.nii.gz").unlink()
    (root / "labelsTr" / "c02.nii.gz").rename(root / "labelsTr" / "c2.nii.gz")
    shutil.copy(root / "imagesTr" / "c03.nii.gz", root / "imagesTr" / "c00.nii")
    found = faults(root)
    assert [(name, kind) for name, kind, _ in found] == [
        ("c00", "duplicate"), ("c01", "unreadable"), ("c02", "unreadable")
    ]  # fmt: skip
    assert "imagesTr/c01.nii.gz: missing, but dataset.json lists it" in found[1][2]
    assert "labelsTr/c02.nii.gz: missing, but dataset.json lists it" in found[2][2], "it would train as unlabeled"
