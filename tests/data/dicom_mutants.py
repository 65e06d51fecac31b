"""Random damage to DICOM series, and a judge: of each, the right volumes or an error that names a file.

`mutant` writes series into a folder and changes their files by a seed; `judge` reads the folder as prediction does.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from dicom_toys import edit, strip_header, write_volume
from pydicom.uid import generate_uid

from dualseg.data.volumes import Image
from dualseg.errors import DualsegError
from dualseg.prediction.inputs import find_scans

RAS_OF_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass
class Truth:
    """A volume as it was written, and the files of its slices.

    Attributes:
        affine: RAS+.
        lost: indices of slices that were taken out.
        harmed: something is wrong with it that must be noticed.
        changed: what was done.
    """

    array: np.ndarray
    affine: np.ndarray
    files: list[Path]
    lost: set[int] = field(default_factory=set)
    harmed: bool = False
    changed: list[str] = field(default_factory=list)

    def allowed(self) -> list[Image]:
        """Slices at the ends are not missed, for nothing tells of them."""
        kept = [k for k in range(len(self.files)) if k not in self.lost]
        if self.harmed or len(kept) < 2 or kept != list(range(kept[0], kept[-1] + 1)):
            return []
        affine = self.affine.copy()
        affine[:3, 3] += kept[0] * affine[:3, 2]
        return [Image(self.array[:, :, kept], affine)]


# --- what leaves a volume as it is


def rename(truth: Truth, rng: np.random.Generator) -> None:
    names = rng.permutation([path.name for path in truth.files])
    for number, path in enumerate(truth.files):
        path.rename(path.with_name(f"{number}.tmp"))
    truth.files = [
        path.with_name(f"{number}.tmp").rename(path.with_name(str(name)))
        for number, (path, name) in enumerate(zip(truth.files, names, strict=True))
    ]


def repeat(truth: Truth, rng: np.random.Generator) -> None:
    path = truth.files[rng.integers(len(truth.files))]
    path.with_name(f"again-{path.name}").write_bytes(path.read_bytes())
    if rng.random() < 0.5:
        edit(path.with_name(f"again-{path.name}"), SOPInstanceUID=generate_uid(), InstanceNumber=999)


def renumber(truth: Truth, rng: np.random.Generator) -> None:
    for path, number in zip(truth.files, rng.permutation(len(truth.files)), strict=True):
        edit(path, InstanceNumber=int(number))


def bare(truth: Truth, rng: np.random.Generator) -> None:
    for path in rng.choice(np.array(truth.files), 3, replace=False):
        strip_header(path, implicit=bool(rng.random() < 0.5))


def jitter(truth: Truth, rng: np.random.Generator) -> None:
    for path in truth.files:
        dataset = pydicom.dcmread(path, force=True)
        if "TransferSyntaxUID" in dataset.file_meta:
            turned = [f"{float(x) + rng.normal() * 1e-6:.9f}" for x in dataset.ImageOrientationPatient]
            edit(path, ImageOrientationPatient=turned)


def wrong_thickness(truth: Truth, rng: np.random.Generator) -> None:
    edit(truth.files[rng.integers(len(truth.files))], SliceThickness="17", WindowCenter="3")


def acquisitions(truth: Truth, rng: np.random.Generator) -> None:
    for k, path in enumerate(truth.files):
        edit(path, AcquisitionNumber=1 + k // 3)


# --- what takes slices out


def drop(truth: Truth, rng: np.random.Generator) -> None:
    for k in rng.choice(len(truth.files), rng.integers(1, 4), replace=False):
        truth.files[k].unlink(missing_ok=True)
        truth.lost.add(int(k))


# --- what must be noticed


def change_one(**elements: object) -> Callable[[Truth, np.random.Generator], None]:
    def change(truth: Truth, rng: np.random.Generator) -> None:
        edit(truth.files[rng.integers(len(truth.files))], **elements)
        truth.harmed = True

    change.__name__ = "change " + ", ".join(f"{key}={value}" for key, value in elements.items())
    return change


def other_pixels(truth: Truth, rng: np.random.Generator) -> None:
    path = truth.files[rng.integers(len(truth.files))]
    copy = path.with_name(f"other-{path.name}")
    copy.write_bytes(path.read_bytes())
    edit(copy, PixelData=bytes(len(pydicom.dcmread(path).PixelData)))
    truth.harmed = True


def move(truth: Truth, rng: np.random.Generator) -> None:
    path = truth.files[rng.integers(len(truth.files))]
    position = np.array(pydicom.dcmread(path).ImagePositionPatient, float)
    edit(path, ImagePositionPatient=[f"{x:.5f}" for x in position + rng.choice([-1, 1], 3) * rng.uniform(0.5, 9, 3)])
    truth.harmed = True


def break_off(truth: Truth, rng: np.random.Generator) -> None:
    path = truth.files[rng.integers(len(truth.files))]
    content = path.read_bytes()
    path.write_bytes(content[: rng.integers(len(content) - 2)])
    truth.harmed = True


def every_second(truth: Truth, rng: np.random.Generator) -> None:
    """By an element that says that slices belong apart."""
    element = str(rng.choice(["FrameOfReferenceUID", "StudyInstanceUID", "PatientID", "EchoTime", "AcquisitionNumber"]))
    for k, path in enumerate(truth.files):
        edit(path, **{element: f"{1 + 9 * (k % 2)}"})
    truth.harmed = True


def tilt(truth: Truth, rng: np.random.Generator) -> None:
    for k, path in enumerate(truth.files):
        position = np.array(pydicom.dcmread(path).ImagePositionPatient, float)
        down = np.array(pydicom.dcmread(path).ImageOrientationPatient, float)[3:]
        edit(path, ImagePositionPatient=[f"{x:.5f}" for x in position + 0.4 * k * down])
    truth.harmed = True


NEUTRAL = (rename, repeat, renumber, jitter, wrong_thickness, acquisitions, bare)
HARMFUL = (
    *(drop, other_pixels, move, break_off, every_second, tilt),
    change_one(FrameOfReferenceUID="1.9"),
    change_one(StudyInstanceUID="1.9"),
    change_one(StudyInstanceUID=None),
    change_one(PatientID="else"),
    change_one(ImagePositionPatient=None),
    change_one(ImagePositionPatient=["nan", "0", "0"]),
    change_one(ImageOrientationPatient=["1", "0", "0", "0", "0.9", "0"]),
    change_one(ImageOrientationPatient=["0"] * 6),
    change_one(ImageOrientationPatient=["0.99", "0", "0.141067", "0", "1", "0"]),
    change_one(PixelSpacing=["0", "1"]),
    change_one(PixelSpacing=["3", "3"]),
    change_one(PixelSpacing=None),
    change_one(PixelRepresentation=0),
    change_one(RescaleIntercept=None),
    change_one(RescaleSlope="0"),
    change_one(Rows=3, PixelData=bytes(36)),
    change_one(NumberOfFrames=2),
    change_one(PhotometricInterpretation="MONOCHROME1"),
    change_one(EchoTime="90"),
    change_one(SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1"),
)


def mutant(folder: Path, seed: int) -> list[Truth]:
    """Two series of 9 slices; none to three changes to the first."""
    rng = np.random.default_rng(seed)
    truths = [_write(folder / name, rng, number) for number, name in enumerate(("a", "b"))]
    changes = list(rng.choice(np.array(NEUTRAL, object), rng.integers(0, 3), replace=False))
    if rng.random() < 0.75:  # a slice that is repeated may be changed and do no harm
        changes = [change for change in changes if change is not repeat] + [HARMFUL[rng.integers(len(HARMFUL))]]
    last = [bare, drop, break_off]  # after these not every file can be edited
    for change in sorted(changes, key=lambda change: last.index(change) if change in last else -1):
        change(truths[0], rng)
        truths[0].changed.append(change.__name__)
    return truths


def _write(folder: Path, rng: np.random.Generator, number: int) -> Truth:
    array = rng.integers(-900, 1500, (6, 5, 9)).astype(float)
    turn = np.linalg.qr(np.eye(3) + 0.2 * rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([1.0, 1.0, rng.choice([0.625, 1.25, 3.0])])
    affine[:3, 3] = rng.uniform(-90, 90, 3)
    digits = 1 if rng.random() < 0.5 and affine[:3, 2] @ affine[:3, 2] > 1 else 6
    uid = generate_uid()

    def elements(k: int) -> dict[str, object]:
        position = [f"{x:.{digits}f}" for x in (affine @ [0, 0, k, 1])[:3]]
        own = {"SeriesInstanceUID": uid, "StudyInstanceUID": "1.2", "FrameOfReferenceUID": "1.5"}
        return {"intercept": -1024.0, "slope": 1.0 + k % 2, "ImagePositionPatient": position, **own}

    array[:, :, 1::2] = array[:, :, 1::2] // 2 * 2  # what a slope of 2 can say
    return Truth(array, RAS_OF_LPS @ affine, write_volume(folder, array, affine, elements))


def judge(folder: Path, truths: list[Truth]) -> str:
    """What is wrong with the answer to a mutant; empty: nothing is."""
    read: list[Image] = []
    refused = 0
    try:
        for scan in find_scans([folder], 1).scans:
            try:
                read.append(scan.read(1).image)
            except DualsegError as error:
                refused += 1
                if str(folder) not in str(error):
                    return f"names no file: {error}"
    except DualsegError as error:
        refused += 1
        if str(folder) not in str(error):
            return f"names no folder: {error}"
    right = [image for truth in truths for image in truth.allowed()]
    for image in read:
        if not any(_same(image, one) for one in right):
            return f"a wrong volume of {image.array.shape}"
    if len(read) < len(right) and not refused:
        return "a volume is lost without a word"
    whole = [truth for truth in truths if not truth.lost and not truth.harmed]
    if len(whole) == len(truths) and len(read) != len(truths):
        return "a good volume is refused"
    if any(truth.harmed for truth in truths) and not refused:
        return "harm is not noticed"
    return ""


def _same(image: Image, right: Image) -> bool:
    return image.array.shape[1:] == right.array.shape and bool(
        np.allclose(image.array[0], right.array, atol=0.51) and np.allclose(image.affine, right.affine, atol=0.12)
    )
