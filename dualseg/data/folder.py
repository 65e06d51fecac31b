"""A dataset in a folder, in nnU-Net's raw layout or the Medical Segmentation Decathlon's: no Python needed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dualseg.data.checking.content import offset_problem, wrapped_problem
from dualseg.data.checking.geometry import grid_problem, spacing_by_direction
from dualseg.data.formats import read_grid, read_volume
from dualseg.data.intensity import intensities, is_ct, kept_range, normalise
from dualseg.data.layouts import Case, read_layout
from dualseg.data.preprocessing import grid_of_spacing, resample, resample_to_spacing, to_ras
from dualseg.data.problems import Problem, VolumeError, label_problems, whole_numbers
from dualseg.data.progress import with_bar
from dualseg.data.split_file import SplitFile, is_spacing, place_of
from dualseg.data.volumes import Grid, Image, Reference, VolumeSource, label_dtype
from dualseg.errors import DualsegError


class Folder(VolumeSource):
    """Volumes of any spacing and orientation, several channels, K classes: docs/own-data.md.

    A volume is normalised, its axes are turned to right, anterior, superior, and it is resampled to one spacing: images
    trilinearly, labels for training to the nearest voxel. Metrics are computed on the volume's own voxels.

    Args:
        root: holds dataset.json, imagesTr, labelsTr and, if there are such, imagesUn, imagesTs and labelsTs. Training
            images without a label file are unlabeled. imagesTs is scored where labelsTs has labels, never trained on.
        unlabeled: a second folder of unlabeled images.
        spacing: mm towards right, anterior, superior; `median`: of the images that are trained on, from their headers;
            None: volumes keep their own.
        intensity: see `intensities`.
        splits: the split file; None: see `place_of`.
        fold: which of `folds` parts of the labeled cases is for validation; None: no part.
        folds: number of parts.

    Raises:
        DualsegError: the folder, the split file or an argument does not fit; on reading, a file that cannot be used.
    """

    scan_attributes = (*VolumeSource.scan_attributes, "spacing", "intensity")
    ct_channels: tuple[int, ...] = ()  # by their names, which no run folder has: there a window below 0 says it

    def __init__(
        self,
        root: str | Path,
        unlabeled: str | Path | None = None,
        spacing: str | Sequence[float] | None = "median",
        intensity: Any = "auto",
        splits: str | Path | None = None,
        fold: int | None = None,
        folds: int = 5,
    ) -> None:
        root = Path(root).expanduser()
        layout = read_layout(root, None if unlabeled is None else Path(unlabeled).expanduser())
        self.name = layout.name
        self.class_names = layout.class_names
        self.channel_names = layout.channel_names
        self.channels = len(layout.channel_names)
        self.intensity = intensities(intensity, layout.channel_names)
        self.ct_channels = tuple(k for k, name in enumerate(layout.channel_names) if is_ct(name))
        self._read_last: tuple[str, Reference] | None = None
        self._grids: dict[Path, Grid] = {}
        self._cases: dict[str, Case] = {**layout.training, **layout.test, **layout.unscored}
        labels = {name: case.label is not None for name, case in layout.training.items()}
        if not any(labels.values()):
            raise DualsegError(f"{root / 'labelsTr'}: holds no label of an image; a label is named CASE.nii.gz.")
        path = self.split_file = place_of(root, None if splits is None else Path(splits).expanduser())
        faulty = [name for name in (*layout.training, *layout.test) if self._cases[name].faults]
        split = SplitFile(path, labels, layout.test, faulty)
        self.train_cases, self.validation_cases = split.cases("labeled"), split.cases("validation")
        if fold is not None:
            self.train_cases, self.validation_cases = split.fold(fold, folds)
        self.unlabeled_cases, self.test_cases = split.cases("unlabeled"), split.cases("test")
        self.unscored_cases, self.not_read = tuple(layout.unscored), layout.not_read
        self._without_header: list[str] = []
        self.spacing = self._spacing(spacing, split)

    def check_scan_record(self) -> None:
        super().check_scan_record()
        if self.spacing is not None and not is_spacing(self.spacing):
            raise DualsegError("spacing is damaged: it is three edges in mm, or null.")
        self.intensity = intensities(self.intensity, [""] * self.channels)

    def check_cases(self) -> None:
        for case in self._without_header:  # the median spacing would be another one with it
            self.stored_grid(case, "image")
        for case in (*self.train_cases, *self.unlabeled_cases, *self.validation_cases, *self.test_cases):
            self._refuse_faults(case)

    def read_image(self, case: str) -> Image:
        return self.prepare_scan(self.read_stored(case))

    def read_stored(self, case: str) -> Image:
        self._refuse_faults(case)
        files = self._cases[case].images
        for path in files[1:]:  # by the headers, before a voxel is read
            if problem := grid_problem(self._grid(files[0]), self._grid(path)):
                raise VolumeError(problem.kind, f"{path}: beside {files[0].name} {problem.text}")
        parts = [read_volume(path) for path in files]
        array = parts[0][0] if len(files) == 1 else np.concatenate([array for array, _ in parts])
        if len(array) != self.channels:
            raise VolumeError(
                "channels",
                f"{self.where(case, 'image')} has {len(array)} channels, dataset.json names {self.channels}.",
            )
        return Image(array, parts[0][1])

    @property
    def display_window(self) -> tuple[float, float] | None:
        return kept_range(self.intensity[0])

    def scan_doubts(self, scan: Image) -> list[Problem]:
        found = []
        for number, (channel, how) in enumerate(zip(scan.array, self.intensity, strict=True)):
            low = (kept_range(how) or (-np.inf, np.inf))[0]
            if number not in self.ct_channels and not -np.inf < low < 0:
                continue
            problem = wrapped_problem(channel)
            if problem is None and low < 0:  # else the values were moved, and the window with them
                problem = offset_problem(channel)
            if problem:
                found.append(problem.in_channel(number, self.channels))
        return found

    def prepare_scan(self, scan: Image) -> Image:
        if len(scan.array) != self.channels:
            raise VolumeError(
                "channels", f"the scan has {len(scan.array)} channels, the networks take {self.channels}."
            )
        normalised = [normalise(c, how) for c, how in zip(scan.array, self.intensity, strict=True)]
        image = to_ras(Image(np.stack(normalised), scan.affine))
        return image if self.spacing is None else resample_to_spacing(image, self.spacing)

    def read_label(self, case: str) -> np.ndarray:
        label, affine = self._own_label(case)
        if self.spacing is None:
            return label
        self._read_last = case, Reference(label, affine)
        return resample(label, affine, grid_of_spacing(Grid(label.shape, affine), self.spacing), order=0)

    def read_reference(self, case: str) -> Reference | None:
        if self.spacing is None:
            return None
        last, self._read_last = self._read_last, None  # asked for after `read_label`, the file is read once
        return last[1] if last and last[0] == case else self._own_label(case)

    def stored_files(self, case: str, kind: Literal["image", "label"]) -> Sequence[Path]:
        return self._cases[case].images if kind == "image" else (self._path(case, kind),)

    def stored_grid(self, case: str, kind: Literal["image", "label"]) -> Grid:
        return self._grid(self._path(case, kind))

    def where(self, case: str, kind: str) -> str:
        return f"{self._path(case, kind)}: {kind}"

    def _grid(self, path: Path) -> Grid:
        """Of the header, which is read once."""
        if path not in self._grids:
            self._grids[path] = read_grid(path)
        return self._grids[path]

    def _path(self, case: str, kind: str) -> Path:
        files = self._cases[case]
        if kind == "image":
            return files.images[0]
        assert files.label is not None, "asked for the label of a case that has none"
        return files.label

    def _refuse_faults(self, case: str) -> None:
        """Raises: VolumeError where files of the case do not fit the others by their names."""
        if faults := self._cases[case].faults:
            raise VolumeError(faults[0].kind, " ".join(fault.text for fault in faults))

    def _own_label(self, case: str) -> Reference:
        """The label on its own voxels, turned to right, anterior, superior, with the affine of its image."""
        if not self._path(case, "image").is_file():
            self._refuse_faults(case)
        path, grid, own = self._path(case, "label"), self.stored_grid(case, "image"), self.stored_grid(case, "label")
        if own.channels != 1:
            raise VolumeError("shape", f"{path}: label has {own.channels} channels; a label map has one.")
        if problem := grid_problem(grid, own):
            raise VolumeError(problem.kind, f"{path}: label {problem.text}")
        label = whole_numbers(read_volume(path)[0][0])
        for found in label_problems(label, None, len(self.class_names)):
            raise VolumeError(found.kind, f"{path}: label {found.text}")
        turned = to_ras(Image(label[None].astype(label_dtype(len(self.class_names))), grid.affine))
        return Reference(turned.array[0], turned.affine)

    def _header_spacing(self, case: str) -> np.ndarray | None:
        """mm towards right, anterior, superior by the image's header; None where it cannot be read."""
        try:
            return spacing_by_direction(self.stored_grid(case, "image").affine)
        except DualsegError:
            return None

    def _spacing(self, given: Any, split: SplitFile) -> tuple[float, float, float] | None:
        if given is None:
            return None
        if given != "median":
            return given_spacing(given)
        if split.median_spacing is None:
            cases = [case for role in ("labeled", "unlabeled") for case in split.cases(role)]
            found = {case: self._header_spacing(case) for case in with_bar(cases, "Reading headers")}
            spacings = [edges for edges in found.values() if edges is not None]
            self._without_header = [case for case, edges in found.items() if edges is None]
            if not spacings:
                raise DualsegError(f"{self._path(cases[0], 'image')}: no image of the dataset has a header to read.")
            edges = np.median(spacings, axis=0)
            # headers hold float32: more digits say nothing
            median = (float(f"{edges[0]:.6g}"), float(f"{edges[1]:.6g}"), float(f"{edges[2]:.6g}"))
            if self._without_header:  # a training stops at `check_cases`, dualseg-check goes on to the others
                return median
            split.keep_median_spacing(median)
        return split.median_spacing


def given_spacing(given: Any) -> tuple[float, float, float]:
    """Raises: DualsegError unless these are three edges in mm."""
    edges = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else given
    if not is_spacing(edges):
        raise DualsegError(
            f"data.source.spacing={given}: give three edges in mm such as [1,1,2.5], median, or null for none."
        )
    return float(edges[0]), float(edges[1]), float(edges[2])
