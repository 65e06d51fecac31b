"""dualseg-check: every row of its table has a dataset with exactly that defect, and a clean one passes."""

import gzip
import json
import re
import shutil
from collections.abc import Callable
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pytest
from doc_toys import write_folder

import dualseg.check
import dualseg.evaluate
import dualseg.train
from dualseg.data import Folder, Phantom
from dualseg.data.h5 import shipped_list
from dualseg.data.left_atrium import case_list
from dualseg.data.problems import KINDS

LABELED, UNLABELED, TEST = "phantom_001", "phantom_003", "phantom_007"
Edit = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@pytest.fixture
def root(phantom: Phantom, tmp_path: Path) -> Path:
    """A copy of the phantom that a test may damage: 2 labeled, 4 unlabeled, 2 test volumes."""
    return Path(shutil.copytree(phantom.root, tmp_path / "phantom"))


@pytest.fixture
def check(command, tiny, tmp_path) -> Callable[[Path], Any]:
    """data root -> how dualseg-check ended."""
    return lambda root: command(dualseg.check.main, *tiny(root, tmp_path))


def write_h5(path: Path, seed: int) -> None:
    """Noise, and a corner of ones for its label."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as h5:
        h5["image"] = np.random.default_rng(seed).normal(size=(6, 5, 4)).astype(np.float32)
        h5["label"] = np.tri(6, 5, dtype=np.uint8)[..., None].repeat(4, axis=2)


def findings(outcome: Any) -> list[tuple[str, str, str]]:
    """(problem, split, case) of every line of the table."""
    heading, *rest = outcome.out.splitlines()
    lines = [*takewhile(lambda line: not re.match(r"\d+ problems?; ", line), rest)]  # notes come after
    starts = [heading.index(word) for word in ("problem", "split", "case", "what")]
    return [tuple(line[a:b].strip() for a, b in pairwise(starts)) for line in lines]


def edit(path: Path, change: Edit) -> None:
    """Write a NIfTI file anew with other voxels or another affine."""
    image = nib.load(path)
    array, affine = change(np.asarray(image.dataobj).copy(), image.affine.copy())
    header = nib.Nifti1Header()
    header.set_sform(affine, code=1)  # a qform would have to be invertible
    header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    nib.save(nib.Nifti1Image(array, None, header), path)


def poke(value: float) -> Edit:
    def change(array, affine):
        array[2, 3, 4] = value
        return array, affine

    return change


def mirrored(array, affine):
    """The same label at the same place in millimetres, its first axis running the other way."""
    turned = affine @ np.diag([-1.0, 1, 1, 1])
    turned[:3, 3] += affine[:3, 0] * (len(array) - 1)
    return array[::-1], turned


def upside_down(array, affine):
    """Two axes turned: the handedness stays."""
    return array, affine @ np.diag([1.0, -1, -1, 1])


def shifted(array, affine):
    affine[:3, 3] += affine[:3, 1] * 0.5  # half a voxel
    return array, affine


def transposed(array, affine):
    """Two axes exchanged in the affine alone: another handedness, and no axis turned back."""
    return array, affine[:, [1, 0, 2, 3]]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def header(path: Path, change: Callable[[nib.Nifti1Header], None]) -> None:
    """Change a header in place, without what nibabel corrects on writing."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    own = nib.Nifti1Header(raw[:348], check=False)
    change(own)
    path.write_bytes(gzip.compress(own.binaryblock + raw[348:], mtime=0))


def two_places(path: Path) -> None:
    """A qform 10 mm beside the sform."""

    def change(own):
        affine = own.get_sform()
        affine[0, 3] += 10
        own.set_qform(affine, code=1)

    header(path, change)


def nowhere(path: Path) -> None:
    def change(own):
        own["qform_code"] = own["sform_code"] = 0

    header(path, change)


def no_such_code(path: Path) -> None:
    header(path, lambda own: own.__setitem__("sform_code", 17))


def no_thickness(path: Path) -> None:
    header(path, lambda own: own["pixdim"].__setitem__(3, 0))


def other_edges(path: Path) -> None:
    """The sform alone counts, and pixdim is left as a new header has it."""

    def change(own):
        own["qform_code"] = 0
        own["pixdim"][1:4] = 1

    header(path, change)


def sheared(array, affine):
    affine[:3, 1] += 0.2 * affine[:3, 0]
    return array, affine


def far_off(array, affine):
    """One voxel as an unset float has it: finite, and what a z-score leaves of the others is one value."""
    array[2, 3, 4] = 3e38
    return array, affine


def mirror_image_of_test(path: Path) -> None:
    """The voxels of a test volume, mirrored left-right and of another range, under this volume's header."""
    other = nib.load(str(path).replace(UNLABELED, TEST)).get_fdata()
    edit(path, lambda a, affine: ((3 * other[::-1] + 100).astype(np.float32), affine))


def vast(path: Path) -> None:
    """32767 voxels along each axis, says the header, as much as NIfTI-1 can."""
    header(path, lambda own: own["dim"].__setitem__(slice(1, 4), 32767))


IMAGE, LABEL = "images/{}.nii.gz", "labels/{}.nii.gz"
OF_FILES = (truncate, two_places, no_such_code, nowhere, no_thickness, other_edges, vast, mirror_image_of_test)
DEFECTS: list[tuple[str, str, str, Edit | Callable[[Path], None] | str]] = [
    # problem, file, case, how it is made (a string: the case whose file takes its place)
    ("unreadable", IMAGE, UNLABELED, truncate),
    ("unreadable", LABEL, TEST, truncate),
    ("channels", IMAGE, UNLABELED, lambda a, affine: (np.stack([a, a], axis=-1), affine)),
    ("shape", LABEL, LABELED, lambda a, affine: (a[:-1], affine)),
    ("shape", IMAGE, UNLABELED, lambda a, affine: (a[0], affine)),
    ("NaN", IMAGE, UNLABELED, poke(np.nan)),
    ("NaN", IMAGE, TEST, poke(-np.inf)),
    ("affine", LABEL, LABELED, shifted),
    ("affine", LABEL, TEST, lambda a, affine: (a, np.diag([0.0, 1, 1, 1]))),
    ("flip", LABEL, LABELED, mirrored),
    ("flip", LABEL, TEST, upside_down),
    ("flip", LABEL, TEST, transposed),
    ("qform/sform", IMAGE, UNLABELED, two_places),
    ("qform/sform", LABEL, TEST, two_places),
    ("qform/sform", IMAGE, UNLABELED, no_such_code),
    ("no orientation", IMAGE, UNLABELED, nowhere),
    ("pixdim", IMAGE, UNLABELED, no_thickness),
    ("pixdim", LABEL, LABELED, other_edges),
    ("shear", IMAGE, UNLABELED, sheared),
    ("constant", IMAGE, UNLABELED, lambda a, affine: (0 * a + 7, affine)),
    ("constant", IMAGE, LABELED, far_off),
    ("label values", LABEL, TEST, poke(2)),
    ("spacing", IMAGE, UNLABELED, lambda a, affine: (a, affine @ np.diag([1, 1, 2.5, 1]))),
    ("memory", IMAGE, LABELED, vast),
    ("duplicate", IMAGE, LABELED, TEST),
    ("unlabeled duplicate", IMAGE, UNLABELED, TEST),
    ("near duplicate", IMAGE, UNLABELED, mirror_image_of_test),
]


@pytest.mark.parametrize(
    "kind, file, case, defect", DEFECTS, ids=[f"{d[0]} {d[1][:5]} {i}" for i, d in enumerate(DEFECTS)]
)
def test_a_defect_is_one_row(kind, file, case, defect, root, check):
    path = root / file.format(case)
    if isinstance(defect, str):  # other bytes and another header, the same voxels
        affine, voxels = nib.load(path).affine, np.asarray(nib.load(root / file.format(defect)).dataobj)
        nib.save(nib.Nifti1Image(voxels, affine), path)
    elif defect in OF_FILES:
        defect(path)
    else:
        edit(path, defect)
    outcome = check(root)
    assert outcome.code == 1, outcome
    role = {LABELED: "labeled", UNLABELED: "unlabeled", TEST: "test"}[case]
    assert findings(outcome) == [(kind, role, case)], outcome.out
    assert str(path) in outcome.out


def test_every_row_of_the_table_has_a_defect():
    of_their_own = {"CT values", "empty label", "lost class", "not read"}  # tests, below
    assert {defect[0] for defect in DEFECTS} | of_their_own == set(KINDS)


def test_a_clean_dataset_passes(phantom, check):
    outcome = check(phantom.root)
    assert outcome.code == 0, outcome
    said = "Nothing is wrong: 8 volumes (2 labeled, 4 unlabeled, 2 test) and 4 labels were checked.\n"
    assert outcome.out == said


def test_all_that_is_wrong_is_told_at_once(root, check):
    truncate(root / IMAGE.format("phantom_000"))
    edit(root / LABEL.format("phantom_000"), lambda a, affine: (0 * a, affine))
    edit(root / LABEL.format(LABELED), poke(7))
    edit(root / IMAGE.format(TEST), poke(np.nan))
    outcome = check(root)
    assert outcome.code == 1
    assert findings(outcome) == [
        ("unreadable", "labeled", "phantom_000"),
        ("NaN", "test", TEST),
        ("label values", "labeled", LABELED),
    ]
    table, note = outcome.out.splitlines()[-2:]
    assert table.startswith("3 problems; 8 volumes (2 labeled") and "1 of 4 labels marks " in note


def test_patients_without_a_lesion_are_no_problem_unless_nobody_has_one(root, check):
    for case in ("phantom_000", TEST):
        edit(root / LABEL.format(case), lambda a, affine: (0 * a, affine))
    outcome = check(root)
    assert outcome.code == 0, outcome
    assert "2 of 4 labels mark " in outcome.out and "foreground: phantom_000, " in outcome.out
    for path in root.glob(LABEL.format("*")):
        edit(path, lambda a, affine: (0 * a, affine))
    outcome = check(root)
    assert outcome.code == 1 and [kind for kind, *_ in findings(outcome)] == ["empty label"] * 4, outcome


def test_labels_of_unlabeled_volumes_are_not_opened_and_every_file_is_read_once(root, check, monkeypatch):
    for case in ("phantom_002", "phantom_003", "phantom_004", "phantom_005"):
        (root / LABEL.format(case)).write_text("no NIfTI")
    read: list[tuple[str, str]] = []
    for name in ("read_image", "read_label"):
        real = getattr(Phantom, name)
        monkeypatch.setattr(Phantom, name, lambda s, c, n=name, r=real: (read.append((n, c)), r(s, c))[1])
    assert check(root).code == 0
    labeled = ["phantom_000", "phantom_001", "phantom_006", "phantom_007"]
    everything = [("read_image", f"phantom_00{k}") for k in range(8)] + [("read_label", case) for case in labeled]
    assert sorted(read) == sorted(everything)


def test_what_cannot_be_checked_is_a_mistake_of_the_words(command, tmp_path):
    words = ["data=la", f"data.root={tmp_path / 'nowhere'}"]
    command(dualseg.check.main, *words).complains("data.root", "no such folder")
    command(dualseg.check.main, "data.labeled=99", f"data.root={tmp_path}/p").complains("data.labeled=99")
    command(dualseg.check.main, "-m", "seed=0,1").complains("-m", "one configuration")


def test_left_atrium_files(small_la, command):
    """HDF5 has no affine: shapes, values and content are what can be compared."""
    words = ["data=la", f"data.root={small_la}", "data.labeled=2"]
    six = case_list("train")[:6]
    missing = command(dualseg.check.main, *words)
    assert missing.code == 1 and {kind for kind, *_ in findings(missing)} == {"unreadable"}
    assert len(findings(missing)) == 94, "one row for each listed case that has no file"
    for seed, case in enumerate([*case_list("train"), *case_list("test")]):
        if case not in six:
            write_h5(small_la / case / "mri_norm2.h5", seed)
    assert command(dualseg.check.main, *words).code == 0
    with h5py.File(small_la / six[0] / "mri_norm2.h5", "a") as h5:
        h5["label"][0, 0, 0] = 9
    with h5py.File(small_la / six[1] / "mri_norm2.h5", "a") as h5:
        label = h5["label"][()][:, :-1]
        del h5["label"]
        h5["label"] = label
    with h5py.File(small_la / six[2] / "mri_norm2.h5", "a") as h5:
        h5["image"][3, 3, 3] = np.nan
        h5["label"][()] = 77  # unlabeled
    outcome = command(dualseg.check.main, *words)
    assert findings(outcome) == [
        ("shape", "labeled", six[1]), ("NaN", "unlabeled", six[2]), ("label values", "labeled", six[0])
    ]  # fmt: skip


@pytest.mark.parametrize("data, lists", [("pancreas", ("pancreas_mcf_fold0_",)), ("brats", ("brats2019_",))])
def test_the_other_benchmarks(data, lists, tmp_path, command):
    splits = ("train", "validation", "test") if data == "brats" else ("train", "test")
    cases = [case for split in splits for case in shipped_list(f"{lists[0]}{split}")]
    suffix = "" if data == "brats" else "_norm"
    for seed, case in enumerate(cases):
        write_h5(tmp_path / f"{case}{suffix}.h5", seed)
    words = [f"data={data}", f"data.root={tmp_path}", "data.labeled=5"]
    assert command(dualseg.check.main, *words).code == 0
    shutil.copy(tmp_path / f"{cases[-1]}{suffix}.h5", tmp_path / f"{cases[20]}{suffix}.h5")
    outcome = command(dualseg.check.main, *words)
    assert outcome.code == 1 and findings(outcome) == [("unlabeled duplicate", "unlabeled", cases[20])]


@pytest.mark.parametrize(
    "kind, file, role, defect",
    [
        ("unreadable", "imagesTr/{}_0001.nii.gz", "unlabeled", truncate),
        ("unreadable", "imagesTr/{}_0000.nii.gz", "labeled", lambda path: path.write_text("no header")),
        ("channels", "imagesTr/{}_0001.nii.gz", "unlabeled", lambda a, affine: (np.stack([a, a], axis=-1), affine)),
        ("shape", "labelsTr/{}.nii.gz", "labeled", lambda a, affine: (a[:-1], affine)),
        ("NaN", "imagesTr/{}_0001.nii.gz", "labeled", poke(np.nan)),
        ("affine", "labelsTr/{}.nii.gz", "validation", shifted),
        ("affine", "imagesTr/{}_0001.nii.gz", "labeled", shifted),  # channels on two grids
        ("flip", "labelsTr/{}.nii.gz", "labeled", mirrored),
        ("qform/sform", "imagesTr/{}_0001.nii.gz", "labeled", two_places),  # each channel's file is looked at
        ("pixdim", "labelsTr/{}.nii.gz", "validation", other_edges),
        ("label values", "labelsTr/{}.nii.gz", "validation", poke(2)),
        ("spacing", "imagesTr/{}_000[01].nii.gz", "unlabeled", lambda a, affine: (a, affine @ np.diag([1, 1, 2.5, 1]))),
        ("unlabeled duplicate", "imagesTr/{}_000[01].nii.gz", "unlabeled", "validation"),
        ("duplicate", "imagesTr/{}_000[01].nii.gz", "labeled", "validation"),
    ],
)
def test_a_folder_of_nnunets(kind, file, role, defect, tmp_path, command):
    root = tmp_path / "lab"
    write_folder(root)
    words = ["data=folder", f"data.root={root}", "data.source.fold=0"]
    clean = command(dualseg.check.main, *words)
    assert clean.code == 0 and "12 volumes (8 labeled, 2 unlabeled, 2 validation) and 10 labels" in clean.out, clean
    split = json.loads((root / "dualseg-split.json").read_text())
    (root / "dualseg-split.json").unlink()  # as on the first look at a new dataset
    validation = split["labeled"][::5]
    cases = {"labeled": split["labeled"][1], "unlabeled": split["unlabeled"][0], "validation": validation[0]}
    case = cases[role]
    for path in root.glob(file.format(case)):
        if isinstance(defect, str):
            shutil.copy(Path(str(path).replace(case, cases[defect])), path)
        elif defect in OF_FILES or ("imagesTr" in file and kind == "unreadable"):
            defect(path)
        else:
            edit(path, defect)
    outcome = command(dualseg.check.main, *words)
    assert outcome.code == 1, outcome
    assert findings(outcome) == [(kind, role, case)], outcome.out


def test_files_of_a_folder_that_do_not_fit_one_another_are_rows_too(tmp_path, command):
    """All at once, beside what is wrong inside the other files, and without a split that would outlive them."""
    root = tmp_path / "lab"
    write_folder(root)
    images, labels = root / "imagesTr", root / "labelsTr"
    (images / "c00_0001.nii.gz").unlink()
    shutil.copy(images / "c01_0001.nii.gz", images / "c01_0002.nii.gz")
    (images / "c02_0001.nii.gz").rename(images / "c02.nii.gz")
    nib.save(nib.load(images / "c03_0000.nii.gz"), images / "c03_0000.nii")
    (labels / "c04.nii.gz").rename(labels / "c4.nii.gz")
    (root / "labelsTs").mkdir()
    shutil.copy(labels / "c05.nii.gz", root / "labelsTs" / "t0.nii.gz")
    edit(labels / "c00.nii.gz", poke(7))  # a label is read where one of its image's channels is missing
    truncate(images / "c11_0000.nii.gz")
    (labels / "c12.mgz").write_bytes(b"of another program")
    outcome = command(dualseg.check.main, "data=folder", f"data.root={root}")
    assert outcome.code == 1, outcome
    assert sorted(findings(outcome)) == sorted(
        [
            ("unreadable", "labeled", "c4"),  # without an image
            ("unreadable", "unlabeled", "c11"),
            ("unreadable", "test", "t0"),
            ("channels", "labeled", "c00"),
            ("channels", "labeled", "c01"),
            ("channels", "labeled", "c02"),
            ("label values", "labeled", "c00"),
            ("duplicate", "labeled", "c03"),
            ("not read", "-", "-"),
        ]
    )  # the order is that of a random split
    assert "c04" not in outcome.out, "its image alone is in order: it is unlabeled"
    assert not (root / "dualseg-split.json").exists()


def test_copies_of_test_images_that_have_no_label(tmp_path, command):
    """imagesTs is looked at for its voxels alone; what is wrong with it stops no training."""
    root = tmp_path / "lab"
    write_folder(root)
    (root / "imagesTs").mkdir()
    for channel in range(2):
        names = [("c02", "t0"), ("c10", "t1"), ("c05", "c05"), ("c11", "t2")]  # one has its name from imagesTr, too
        for source, name in names:
            end = f"_000{channel}.nii.gz"
            shutil.copy(root / "imagesTr" / f"{source}{end}", root / "imagesTs" / f"{name}{end}")
    (root / "imagesTs" / "t2_0001.nii.gz").unlink()
    outcome = command(dualseg.check.main, "data=folder", f"data.root={root}")
    assert outcome.code == 1, outcome
    assert sorted(findings(outcome)) == [
        ("channels", "unscored", "imagesTs/t2"),
        ("duplicate", "labeled", "c02"),
        ("duplicate", "labeled", "c05"),
        ("unlabeled duplicate", "unlabeled", "c10"),
    ]
    assert "16 volumes (10 labeled, 2 unlabeled, 4 unscored) and 10 labels" in outcome.out
    assert "imagesTs/t0" in outcome.out and "labelsTs" not in outcome.out
    Folder(root).check_cases()
    assert "imagesTs" not in (root / "dualseg-split.json").read_text()


CT = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}}


def write_ct(root: Path, added: int) -> None:
    """Three scans in HU + `added`, one in four of which is unlabeled."""
    rng = np.random.default_rng(0)
    for index in range(4):
        label = np.zeros((32, 32, 24), np.uint8)
        label[10:20, 9 + index : 22, 6:16] = 1
        body = np.where(np.pad(np.ones((24, 24, 24), bool), ((4, 4), (4, 4), (0, 0))), 40 + 30.0 * label, -1000)
        array = (body + rng.normal(0, 8, label.shape)).clip(-1024).astype(np.int16) + added
        for folder, name, values in (("imagesTr", f"c{index}_0000", array), ("labelsTr", f"c{index}", label)):
            if folder == "imagesTr" or index < 3:
                (root / folder).mkdir(parents=True, exist_ok=True)
                nib.save(nib.Nifti1Image(values.astype(np.int16), np.eye(4)), root / folder / f"{name}.nii.gz")
    (root / "dataset.json").write_text(json.dumps(CT))


def test_ct_that_is_not_in_hounsfield_units(tmp_path, command):
    """By the channel's name or by the window; a window that was moved with the values is right."""
    for added in (0, 1024):
        write_ct(tmp_path / str(added), added)

    def check(added, intensity):
        words = ["data=folder", f"data.root={tmp_path / str(added)}", f"data.source.intensity={intensity}"]
        return command(dualseg.check.main, *words)

    for intensity in ("[-160,240]", "zscore", "null"):
        assert check(0, intensity).code == 0
        outcome = check(1024, intensity)
        found = {(kind, case) for kind, _, case in findings(outcome)}
        assert found == {("CT values", f"c{k}") for k in range(4)}
    assert check(1024, "[864,1264]").code == 0
    named = {**CT, "channel_names": {"0": "T1"}}
    (tmp_path / "1024" / "dataset.json").write_text(json.dumps(named))
    assert check(1024, "zscore").code == 0
    assert {kind for kind, *_ in findings(check(1024, "[-160,240]"))} == {"CT values"}
    assert "constant" in {kind for kind, *_ in findings(check(1024, "[3000,4000]"))}, "all is clipped"


def test_training_goes_on_and_says_what_is_doubtful(root, tiny, tmp_path, command):
    """One line each, before the first iteration; files that a run does not read are not looked at."""
    two_places(root / IMAGE.format(UNLABELED))
    edit(root / LABEL.format(LABELED), sheared)
    edit(root / IMAGE.format(LABELED), sheared)
    edit(root / IMAGE.format(TEST), lambda a, affine: (0 * a + 7, affine))
    (root / LABEL.format(UNLABELED)).write_text("no NIfTI")
    words = [*tiny(root, tmp_path), "method=supervised", "networks=vnet", "base_channels=2", "evaluate_on=[test]"]
    outcome = command(dualseg.train.main, *words, "name=run", "batch.unlabeled=1")
    assert outcome.code == 0, outcome.err
    lines = [line.split(": ")[1] for line in outcome.err.splitlines() if line.startswith(f"warning: {root}")]
    places = [IMAGE.format(LABELED), LABEL.format(LABELED), IMAGE.format(UNLABELED), IMAGE.format(TEST)]
    assert sorted(set(lines)) == sorted(str(root / place) for place in places) and len(lines) == 4
    outcome = command(dualseg.evaluate.main, f"run={tmp_path / 'run'}")
    assert outcome.code == 0, outcome.err
    assert [line.split(": ")[1] for line in outcome.err.splitlines() if "in every voxel" in line] == [
        str(root / IMAGE.format(TEST))
    ]


def test_values_too_large_to_be_normalised(tmp_path, command):
    """A z-score of -3e38 and 3e38 is infinite: told with the file, where the file itself holds no NaN."""
    root = tmp_path / "lab"
    write_folder(root)
    (path,) = root.glob("imagesTr/c02_0000.nii.gz")
    edit(path, lambda a, affine: (np.where(np.indices(a.shape)[0] > 3, -3e38, 3e38).astype(np.float32), affine))
    outcome = command(dualseg.check.main, "data=folder", f"data.root={root}")
    assert [(kind, case) for kind, _, case in findings(outcome)] == [("NaN", "c02"), ("constant", "c02")]
    assert str(path) in outcome.out
    words = ["data.patch_size=[16,16,16]", "data.stride=[16,16,16]", f"output={tmp_path / 'runs'}"]
    command(dualseg.train.main, "data=folder", f"data.root={root}", *words).complains(path, "NaN or infinite", "3e38")
