"""Where the volumes of a dataset folder lie: nnU-Net's raw layout and the Medical Segmentation Decathlon's."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dualseg.data.formats import READ, one_file_each, stem_of
from dualseg.data.not_read import beside, other_folders, some
from dualseg.data.problems import Problem
from dualseg.errors import DualsegError
from dualseg.files import contents_of, read_json
from dualseg.names import check_printable

CHANNEL = re.compile(r"(.+)_(\d{4})")  # CASE_0000, CASE_0001, ...: one file a channel
EXAMPLE = '{"channel_names": {"0": "MRI"}, "labels": {"background": 0, "organ": 1}}'


@dataclass(frozen=True)
class Case:
    """Files of a case.

    Attributes:
        images: one file a channel, or one file for all; at least one, which may be missing where there are faults.
        label: None where there is no such file.
        faults: what is wrong with the files' names, in sentences that name a file; a case that has any cannot be read.
    """

    images: tuple[Path, ...]
    label: Path | None = None
    faults: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Layout:
    """What a dataset folder holds; only dataset.json has been opened.

    Attributes:
        name: of the dataset.
        class_names: of all K classes, background first.
        channel_names: of all C channels.
        training: name -> case of imagesTr, imagesUn and a second folder, with or without a label.
        test: name -> case of imagesTs that has a label in labelsTs.
        unscored: imagesTs/NAME -> case of imagesTs that has none.
        not_read: sentences that name what lies in these folders and is not read.
    """

    name: str
    class_names: tuple[str, ...]
    channel_names: tuple[str, ...]
    training: Mapping[str, Case]
    test: Mapping[str, Case]
    unscored: Mapping[str, Case]
    not_read: tuple[str, ...] = ()


def read_layout(root: Path, unlabeled: Path | None = None) -> Layout:
    """Find the cases of a dataset folder; files that do not fit the others are faults of their cases.

    Args:
        root: holds dataset.json, imagesTr and labelsTr.
        unlabeled: a second folder of unlabeled images, named as those of imagesTr.

    Raises:
        DualsegError: naming dataset.json or the folder that is missing or says nothing that can be used.
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
        images = _some_images(root / "imagesTr", channels, one_file)
        training = _with_labels(images, root / "imagesTr", root / "labelsTr")
    further = [root / "imagesUn"] if (root / "imagesUn").is_dir() else []
    if unlabeled is not None:
        further.append(_second_folder(root, unlabeled))
    for folder in further:
        training = _joined(training, _some_images(folder, channels, one_file))
    test_images = _images(root / "imagesTs", channels, one_file)
    all_test = _with_labels(test_images, root / "imagesTs", root / "labelsTs")
    test = {name: case for name, case in all_test.items() if case.label}
    # a folder of training cases may have the same names: these are of no role, and need none of their own
    unscored = {f"imagesTs/{name}": case for name, case in all_test.items() if not case.label}
    both = _joined(training, test)
    training, test = {n: both[n] for n in training}, {n: both[n] for n in test if n not in training}
    title = described.get("name")
    return Layout(
        title if isinstance(title, str) and title else root.resolve().name,
        _class_names(root / "dataset.json", described),
        channels,
        training,
        test,
        unscored,
        (
            *([] if one_file else _without_files(root, listed, training)),
            *_not_read(root, further, [*training.values(), *all_test.values()], listed if one_file else {}),
        ),
    )


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
    fix = f"; write, for example, {EXAMPLE}."
    if not isinstance(labels, dict) or not labels:
        raise DualsegError(f"{path}: 'labels' names no classes{fix}")
    for name, value in labels.items():
        if isinstance(value, list):
            raise DualsegError(f"{path}: 'labels' makes {name} a region of several values; give one value a class{fix}")
        if name == "ignore" or value == "ignore":
            raise DualsegError(f"{path}: 'labels' has an ignore label, which dualseg cannot train around; take it out.")
    if all(isinstance(value, str) for value in labels.values()):
        pairs = [(key, value) for key, value in labels.items()]
    else:
        pairs = [(str(value), key) for key, value in labels.items() if type(value) is int]
    return _in_order(path, "labels", pairs, len(labels), 2, fix)


def _channel_names(path: Path, described: Mapping[str, Any]) -> tuple[str, ...]:
    """`channel_names`, or what it was called before, `modality`: {"0": "MRI"}."""
    key = "channel_names" if "channel_names" in described else "modality"
    channels = described.get(key)
    fix = f"; write, for example, {EXAMPLE}."
    if not isinstance(channels, dict):
        raise DualsegError(f"{path}: has neither 'channel_names' nor 'modality', which name the channels{fix}")
    return _in_order(path, key, [(number, str(name)) for number, name in channels.items()], len(channels), 1, fix)


def _in_order(
    path: Path, key: str, pairs: Iterable[tuple[str, str]], count: int, least: int, fix: str
) -> tuple[str, ...]:
    """The names of (number, name) pairs by number, which must run from 0 without a gap."""
    by_number = {int(number): name for number, name in pairs if number.isdecimal()}
    if len(by_number) != count or count < least or sorted(by_number) != list(range(count)):
        raise DualsegError(f"{path}: '{key}' must number at least {least} from 0 without a gap{fix}")
    names = tuple(by_number[number] for number in range(count))
    check_printable(f"{path}: '{key}':", names)
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
        fix = 'write {"image": "./imagesTr/CASE.nii.gz", "label": "./labelsTr/CASE.nii.gz"}'
        raise DualsegError(f"{root / 'dataset.json'}: 'training' has an entry without image and label; {fix}.")
    return {root / entry["image"]: root / entry["label"] for entry in entries}


def _listed_cases(root: Path, listed: Mapping[Path, Path]) -> dict[str, Case]:
    """The Decathlon's training list, and the images of imagesTr beside it, which count as unlabeled."""
    training: dict[str, Case] = {}
    for image, label in listed.items():
        if image.resolve().is_relative_to((root / "imagesTs").resolve()):
            raise DualsegError(f"{image}: lies in imagesTs, which is never trained on, but dataset.json lists it.")
        missing = "missing, but dataset.json lists it for training; put it there, or take the entry out of 'training'."
        faults = tuple(Problem("unreadable", f"{p}: {missing}") for p in (image, label) if not p.is_file())
        training = _joined(training, {stem_of(image.name): Case((image,), label if label.is_file() else None, faults)})
    taken = {image.resolve() for image in listed}
    beside = [path for paths in _files(root / "imagesTr").values() for path in paths if path.resolve() not in taken]
    for path in beside:
        training = _joined(training, {stem_of(path.name): Case((path,))})
    return training


def _second_folder(root: Path, folder: Path) -> Path:
    if not folder.is_dir():
        raise DualsegError(f"data.source.unlabeled={folder}: no such folder; give one of images, or null.")
    if folder.resolve().is_relative_to((root / "imagesTs").resolve()):
        raise DualsegError(f"data.source.unlabeled={folder}: imagesTs is never trained on; give another folder.")
    return folder


def _joined(earlier: Mapping[str, Case], found: Mapping[str, Case]) -> dict[str, Case]:
    """Both; a case of `found` with the name of an earlier one is a fault of that one."""
    joined = dict(earlier)
    for name, case in found.items():
        if name not in joined:
            joined[name] = case
            continue
        twin = joined[name]
        text = f"{case.images[0]}: is case {name}, as {twin.images[0]} is; give one of them another name"
        text += " (to exclude the case would leave out both)."
        joined[name] = replace(twin, faults=(*twin.faults, *case.faults, Problem("duplicate", text)))
    return joined


def _some_images(folder: Path, channels: tuple[str, ...], one_file: bool) -> dict[str, Case]:
    """`_images` of a folder that must have some."""
    images = _images(folder, channels, one_file)
    if not images:
        raise DualsegError(f"{folder}: holds no {READ}; put the images there.")
    return images


def _images(folder: Path, channels: tuple[str, ...], one_file: bool) -> dict[str, Case]:
    """The cases of a folder, none with a label, of one file a channel unless `one_file`."""
    if one_file:
        return {name: Case(tuple(paths[:1]), faults=_twins(paths)) for name, paths in _files(folder).items()}
    cases: dict[str, Case] = {}
    numbers: dict[str, list[int]] = {}
    for stem, paths in _files(folder).items():
        match = CHANNEL.fullmatch(stem)
        name, faults = stem, _twins(paths)
        if match:
            name = match[1]
            numbers.setdefault(name, []).append(int(match[2]))
        else:
            text = f"{paths[0]}: the name does not end in a channel number, as other files' do; "
            wanted_name = f"{stem}_0000{paths[0].name[len(stem) :]}"
            text += "remove it" if (folder / wanted_name).exists() else f"name it {wanted_name}"
            faults += (Problem("channels", f"{text}."),)
        earlier = cases.get(name, Case(()))
        cases[name] = Case((*earlier.images, paths[0]), faults=(*earlier.faults, *faults))
    wanted = [*range(len(channels))]
    for name, own in numbers.items():
        if own != wanted:  # files are in the order of their names, and so of their numbers
            there, needed = (", ".join(f"{number:04d}" for number in some) for some in (own, wanted))
            text = f"{folder / name}: has the channels {there}, dataset.json names {needed} ({', '.join(channels)}); "
            problem = Problem("channels", f"{text}complete the files or correct channel_names.")
            cases[name] = replace(cases[name], faults=(*cases[name].faults, problem))
    return cases


def _with_labels(images: Mapping[str, Case], image_folder: Path, label_folder: Path) -> dict[str, Case]:
    """The cases with the labels of a folder; a label without an image is a case too, which cannot be read."""
    cases = dict(images)
    image_files = _files(image_folder)
    for name, paths in _files(label_folder).items():
        text = f"{paths[0]}: has no image in {image_folder}; a label is named CASE.nii.gz."
        if name in image_files:  # whose last four digits were read as its channel
            image = image_files[name][0]
            wanted = f"{name}_0000{image.name[len(name) :]}"
            text = f"{image}: the last digits are its channel's number; name it {wanted}."
        case = cases.get(name) or Case((image_folder / paths[0].name,), faults=(Problem("unreadable", text),))
        cases[name] = replace(case, label=paths[0], faults=(*case.faults, *_twins(paths)))
    return cases


def _twins(paths: list[Path]) -> tuple[Problem, ...]:
    """What is wrong with files that differ in their suffix alone."""
    first, *others = paths
    return tuple(
        Problem("duplicate", f"{path}: is the same case as {first.name} beside it; remove one.") for path in others
    )


def _files(folder: Path) -> dict[str, list[Path]]:
    """Name without suffix -> its files, one unless the names are at fault; none where the folder is missing.

    Hidden ones, such as macOS leaves beside files, are left out.
    """
    found: dict[str, list[Path]] = {}
    if not folder.is_dir():
        return found
    visible = [path for path in contents_of(folder) if not path.name.startswith(".") and not path.is_dir()]
    for path in one_file_each(visible):
        found.setdefault(stem_of(path.name), []).append(path)
    return found


def _without_files(root: Path, listed: Iterable[Path], cases: Mapping[str, Case]) -> list[str]:
    """A sentence on the entries of nnU-Net's own list, names without the channel, that no file belongs to."""
    without = [path for path in listed if stem_of(path.name) not in cases]
    if not without:
        return []
    count = f"{len(without)} case{'' if len(without) == 1 else 's'}"
    fix = "put CASE_0000 and so on into imagesTr, or take the entries out"
    return [f"{root / 'dataset.json'}: 'training' lists {count} without a file ({some(without)}); {fix}."]


def _not_read(
    root: Path, further: Sequence[Path], cases: Iterable[Case], listed: Mapping[Path, Path]
) -> tuple[str, ...]:
    """What `Layout.not_read` is. `listed`: image -> label of the list that says what is read; empty: none does."""
    folders = [*(root / name for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs")), *further]
    used = {path for case in cases for path in (*case.images, case.label) if path is not None}
    volumes = {folder: [path for paths in _files(folder).values() for path in paths] for folder in folders}
    told = [text for folder, own in volumes.items() for text in beside(folder, used.union(own))]
    labels = {label.resolve() for label in listed.values()}
    if listed and (unused := [path for path in volumes[root / "labelsTr"] if path.resolve() not in labels]):
        told.append(
            f"{root / 'labelsTr'}: {len(unused)} files not read ({some(unused)}), for no entry of 'training' in "
            "dataset.json names them; add entries, or move them elsewhere."
        )
    return (*told, *other_folders(root, [folder.resolve() for folder in folders]))
