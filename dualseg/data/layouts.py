"""Where the volumes of a dataset folder lie: nnU-Net's raw layout and the Medical Segmentation Decathlon's."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualseg.errors import DualsegError
from dualseg.files import read_json

SUFFIX = re.compile(r"\.nii(\.gz)?$")
CHANNEL = re.compile(r"(.+)_(\d{4})")  # CASE_0000, CASE_0001, ...: one file a channel
EXAMPLE = '{"channel_names": {"0": "MRI"}, "labels": {"background": 0, "organ": 1}}'


@dataclass(frozen=True)
class Case:
    """Files of a case. `images`: one file a channel, or one file for all. `label`: None where there is no such file."""

    images: tuple[Path, ...]
    label: Path | None


@dataclass(frozen=True)
class Layout:
    """What a dataset folder holds; only dataset.json has been opened.

    Attributes:
        name: of the dataset.
        class_names: of all K classes, background first.
        channel_names: of all C channels.
        training: name -> case of imagesTr, imagesUn and a second folder, with or without a label.
        test: name -> case of imagesTs that has a label in labelsTs.
    """

    name: str
    class_names: tuple[str, ...]
    channel_names: tuple[str, ...]
    training: Mapping[str, Case]
    test: Mapping[str, Case]


def read_layout(root: Path, unlabeled: Path | None = None) -> Layout:
    """Find the cases of a dataset folder.

    Args:
        root: holds dataset.json, imagesTr and labelsTr.
        unlabeled: a second folder of unlabeled images, named as those of imagesTr.

    Raises:
        DualsegError: naming the file or folder that is missing or does not fit the others.
    """
    if not root.is_dir():
        raise DualsegError(f"data.root={root}: no such folder; give the one that holds dataset.json and imagesTr.")
    described = _read_description(root / "dataset.json")
    channels = _channel_names(root / "dataset.json", described)
    if not (root / "imagesTr").is_dir():
        raise DualsegError(f"{root / 'imagesTr'}: no such folder; put the training images there or check data.root.")
    listed = _training_list(root, described)
    # nnU-Net's own dataset.json has had such a list as well, of names without the channel
    one_file = any(image.is_file() for image in listed) or not any(map(CHANNEL.fullmatch, _files(root / "imagesTr")))
    if one_file and listed:
        training = _listed_cases(root, listed)
    else:
        images = _images(root / "imagesTr", channels, one_file)
        labels = _files(root / "labelsTr")
        for name, path in labels.items():
            if name not in images:
                raise DualsegError(f"{path}: has no image in {root / 'imagesTr'}; a label is named CASE.nii.gz.")
        training = {name: Case(files, labels.get(name)) for name, files in images.items()}
    test_labels = _files(root / "labelsTs")
    test_images = _images(root / "imagesTs", channels, one_file) if test_labels else {}
    for name, path in test_labels.items():
        if name not in test_images:
            raise DualsegError(f"{path}: has no image in {root / 'imagesTs'}; a label is named CASE.nii.gz.")
    test = {name: Case(test_images[name], path) for name, path in test_labels.items()}
    further = [root / "imagesUn"] if (root / "imagesUn").is_dir() else []
    if unlabeled is not None:
        further.append(_second_folder(root, unlabeled))
    for folder in further:
        found = {name: Case(files, None) for name, files in _images(folder, channels, one_file).items()}
        _refuse_twins(found, training)
        training = {**training, **found}
    _refuse_twins(test, training)
    title = described.get("name")
    name = title if isinstance(title, str) and title else root.resolve().name
    return Layout(name, _class_names(root / "dataset.json", described), channels, training, test)


def _read_description(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DualsegError(f"{path}: missing; it says which channels and classes there are, for example {EXAMPLE}.")
    described = read_json(path)
    if not isinstance(described, dict):
        raise DualsegError(f"{path}: holds no mapping; write, for example, {EXAMPLE}.")
    return described


def _class_names(path: Path, described: Mapping[str, Any]) -> tuple[str, ...]:
    """`labels`, both {"0": "background", "1": "organ"} and nnU-Net's later {"background": 0, "organ": 1}."""
    labels = described.get("labels")
    mend = f"; write, for example, {EXAMPLE}."
    if not isinstance(labels, dict) or not labels:
        raise DualsegError(f"{path}: 'labels' names no classes{mend}")
    for name, value in labels.items():
        if isinstance(value, list):
            raise DualsegError(
                f"{path}: 'labels' makes {name} a region of several values; give one value a class{mend}"
            )
        if name == "ignore" or value == "ignore":
            raise DualsegError(f"{path}: 'labels' has an ignore label, which dualseg cannot train around; take it out.")
    if all(isinstance(value, str) for value in labels.values()):
        pairs = [(key, value) for key, value in labels.items()]
    else:
        pairs = [(str(value), key) for key, value in labels.items() if type(value) is int]
    return _in_order(path, "labels", pairs, len(labels), 2, mend)


def _channel_names(path: Path, described: Mapping[str, Any]) -> tuple[str, ...]:
    """`channel_names`, or what it was called before, `modality`: {"0": "MRI"}."""
    key = "channel_names" if "channel_names" in described else "modality"
    channels = described.get(key)
    mend = f"; write, for example, {EXAMPLE}."
    if not isinstance(channels, dict):
        raise DualsegError(f"{path}: has neither 'channel_names' nor 'modality', which name the channels{mend}")
    return _in_order(path, key, [(number, str(name)) for number, name in channels.items()], len(channels), 1, mend)


def _in_order(
    path: Path, key: str, pairs: Iterable[tuple[str, str]], count: int, least: int, mend: str
) -> tuple[str, ...]:
    """The names of (number, name) pairs by number, which must run from 0 without a gap."""
    by_number = {int(number): name for number, name in pairs if number.isdecimal()}
    if len(by_number) != count or count < least or sorted(by_number) != list(range(count)):
        raise DualsegError(f"{path}: '{key}' must number at least {least} from 0 without a gap{mend}")
    names = tuple(by_number[number] for number in range(count))
    if key == "labels" and len(set(names)) < count:
        raise DualsegError(f"{path}: 'labels' has one name for two classes; give each its own.")
    return names


def _training_list(root: Path, described: Mapping[str, Any]) -> dict[Path, Path]:
    """Image -> label of the Decathlon's `training` list; empty where there is none."""
    entries = described.get("training") or []
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("image"), str) and isinstance(entry.get("label"), str)
        for entry in entries
    ):
        mend = 'write {"image": "./imagesTr/CASE.nii.gz", "label": "./labelsTr/CASE.nii.gz"}'
        raise DualsegError(f"{root / 'dataset.json'}: 'training' has an entry without image and label; {mend}.")
    return {root / entry["image"]: root / entry["label"] for entry in entries}


def _listed_cases(root: Path, listed: Mapping[Path, Path]) -> dict[str, Case]:
    """The Decathlon's training list, and the images of imagesTr beside it, which count as unlabeled."""
    training: dict[str, Case] = {}
    for image, label in listed.items():
        if not image.is_file():
            raise DualsegError(f"{image}: missing, but dataset.json lists it for training; put it there.")
        if image.resolve().is_relative_to((root / "imagesTs").resolve()):
            raise DualsegError(f"{image}: lies in imagesTs, which is never trained on, but dataset.json lists it.")
        found = {_stem(image): Case((image,), label if label.is_file() else None)}
        _refuse_twins(found, training)
        training.update(found)
    taken = {image.resolve() for image in listed}
    others = {n: Case((path,), None) for n, path in _files(root / "imagesTr").items() if path.resolve() not in taken}
    _refuse_twins(others, training)
    return {**training, **others}


def _second_folder(root: Path, folder: Path) -> Path:
    if not folder.is_dir():
        raise DualsegError(f"data.source.unlabeled={folder}: no such folder; give one of images, or null.")
    if folder.resolve().is_relative_to((root / "imagesTs").resolve()):
        raise DualsegError(f"data.source.unlabeled={folder}: imagesTs is never trained on; give another folder.")
    return folder


def _refuse_twins(found: Mapping[str, Case], earlier: Mapping[str, Case]) -> None:
    for name, case in found.items():
        if name in earlier:
            twin = earlier[name].images[0]
            raise DualsegError(f"{case.images[0]}: is case {name}, as {twin} is; give one of them another name.")


def _images(folder: Path, channels: tuple[str, ...], one_file: bool) -> dict[str, tuple[Path, ...]]:
    """Case -> its files, one a channel unless `one_file`."""
    files = _files(folder)
    if not files:
        raise DualsegError(f"{folder}: holds no .nii.gz or .nii file; put the images there.")
    if one_file:
        return {name: (path,) for name, path in files.items()}
    cases: dict[str, dict[int, Path]] = {}
    for stem, path in files.items():
        match = CHANNEL.fullmatch(stem)
        if match is None:
            raise DualsegError(
                f"{path}: the name does not end in a channel number, as other files' do; name it {stem}_0000.nii.gz."
            )
        cases.setdefault(match[1], {})[int(match[2])] = path
    for name, own in cases.items():
        if sorted(own) != list(range(len(channels))):
            there = ", ".join(f"{number:04d}" for number in sorted(own))
            wanted = ", ".join(f"{number:04d}" for number in range(len(channels)))
            raise DualsegError(
                f"{folder / name}: has the channels {there}, dataset.json names {wanted} ({', '.join(channels)}); "
                "complete the files or correct channel_names."
            )
    return {name: tuple(own[number] for number in sorted(own)) for name, own in sorted(cases.items())}


def _files(folder: Path) -> dict[str, Path]:
    """Name without suffix -> NIfTI file; none where the folder is missing. macOS leaves hidden twins beside files."""
    if not folder.is_dir():
        return {}
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if SUFFIX.search(path.name) and not path.name.startswith("."):
            if _stem(path) in found:
                raise DualsegError(f"{path}: is the same case as {found[_stem(path)].name} beside it; remove one.")
            found[_stem(path)] = path
    return found


def _stem(path: Path) -> str:
    return SUFFIX.sub("", path.name)
