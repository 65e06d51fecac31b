"""From files to checked tensors, down-sampled if asked: what training and evaluation see of a volume."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dualseg.data.checking.content import content_hash
from dualseg.data.checking.doubts import file_doubts, read_doubting
from dualseg.data.checking.lost import lost_classes, lost_note, lost_pieces
from dualseg.data.problems import Problem, VolumeError, image_problems, label_problems, whole_numbers
from dualseg.data.volumes import Image, VolumeSource, label_dtype
from dualseg.errors import DualsegError


class EvaluationVolume(NamedTuple):
    """One volume to segment and score on its own grid.

    Attributes:
        image: (C, w, h, d) float32, down-sampled as in training.
        label: (W, H, D), of `label_dtype`, on the volume's own grid: the same orientation and field of view.
        spacing: millimetres per voxel of the own grid.
        case_index: place of the case in its split.
    """

    case: str
    case_index: int
    image: Tensor
    label: Tensor
    spacing: tuple[float, float, float]


class VolumeReader:
    """Reads and checks the volumes of a source.

    Attributes:
        doubts: what was read and is doubtful, in the order of reading; each is there once. The texts name the file.
        pieces: labeled case -> `lost_pieces` of its label, where its grid changed.
        memory_key: what a user sets of memory: `MemoryLimit.key`.

    Args:
        source: the dataset.
        downsample: factor >= 1 by which every axis shrinks; 1 keeps the volume as it is.

    Raises:
        DualsegError: `downsample` below 1; on reading, whatever is wrong with the volume, naming the case.
    """

    def __init__(self, source: VolumeSource, downsample: float = 1.0) -> None:
        if downsample < 1:
            raise DualsegError(f"data.downsample={downsample}: give 1 (full size) or more.")
        self.source = source
        self.downsample = downsample
        self.doubts: dict[Problem, None] = {}
        self.memory_key = "data.memory"
        self.pieces: dict[str, dict[int, tuple[int, int]]] = {}

    def read_image(self, case: str) -> Tensor:
        """(C, w, h, d) float32 for training; the label file is not touched."""
        with self._enough_memory(case):
            return self._shrink(torch.from_numpy(self._image(case).array))

    def read_pair(self, case: str) -> tuple[Tensor, Tensor]:
        """`read_image` and the label (w, h, d), of `label_dtype`, on the same, down-sampled grid."""
        with self._enough_memory(case):
            return self._read_pair(case)

    def _read_pair(self, case: str) -> tuple[Tensor, Tensor]:
        image = self._image(case)
        stored = seen = self._label(case, image)
        if (reference := self.source.read_reference(case)) is not None:
            stored = self._checked_label(case, reference.array, None)
        seen = self.shrink_label(seen)
        if stored.shape != seen.shape:
            lost = lost_classes(stored.numpy(), seen.numpy(), self.source.class_names)
            self._doubt(Problem(p.kind, f"{self.source.where(case, 'label')} of {case} {p.text}") for p in lost)
            self.pieces[case] = lost_pieces(stored.numpy(), seen.numpy())
        return self._shrink(torch.from_numpy(image.array)), seen

    def read_evaluation(self, case: str, index: int) -> EvaluationVolume:
        """The image as networks see it, with the label on the volume's own grid."""
        with self._enough_memory(case):
            return self._read_evaluation(case, index)

    def _read_evaluation(self, case: str, index: int) -> EvaluationVolume:
        image = self._image(case)
        reference = self.source.read_reference(case)
        if reference is None:
            label, affine = self._label(case, image), image.affine
        else:
            label, affine = self._checked_label(case, reference.array, None), reference.affine
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        shrunk = self._shrink(torch.from_numpy(image.array))
        return EvaluationVolume(case, index, shrunk, label, (float(spacing[0]), float(spacing[1]), float(spacing[2])))

    def prepare_scan(self, scan: Image, where: str) -> Image:
        """A scan that is not of the dataset as the networks see it; the affine is that of the down-sampled voxels.

        Args:
            scan: (C, W, H, D) float32 on its own grid.
            where: what messages call it.
        """
        prepared = self._checked(self.source.prepare_scan(scan), f"{where}: prepared, it")
        shrunk = self._shrink(torch.from_numpy(prepared.array)).numpy()
        # a coarse voxel covers `factor` fine ones, so that its centre lies in the middle of theirs
        factor = np.array(prepared.array.shape[1:]) / shrunk.shape[1:]
        to_fine = np.diag([*factor, 1.0])
        to_fine[:3, 3] = (factor - 1) / 2
        return Image(shrunk, prepared.affine @ to_fine)

    @contextmanager
    def _enough_memory(self, case: str) -> Iterator[None]:
        """Raises: DualsegError in place of what tells that memory does not suffice for reading the case."""
        try:
            yield
        except MemoryError as error:
            # an evaluation has its run's sizes
            fix = "Raise data.downsample or use fewer cases" if self.memory_key == "data.memory" else "Leave it out"
            raise DualsegError(
                f"{self.source.where(case, 'image')}: out of memory on reading it ({error}). {fix}; with less in "
                f"{self.memory_key}=... than there is, that is foreseen."
            ) from error

    def lost_notes(self) -> list[str]:
        """What is left of the separate pieces of each class in the labels that were read for training."""
        return lost_note(self.pieces.values(), self.source.class_names)

    def _image(self, case: str) -> Image:
        image, doubts = read_doubting(self.source, case)
        self._doubt(doubts)
        return self._checked(image, self.source.where(case, "image"))

    def _doubt(self, problems: Iterable[Problem]) -> None:
        self.doubts.update(dict.fromkeys(problems))

    def _checked(self, image: Image, where: str) -> Image:
        image = image._replace(array=image.array.astype(np.float32, copy=False))  # a source of yours may give another
        for problem in image_problems(image.array, self.source.channels):
            raise VolumeError(problem.kind, f"{where} {problem.text}")
        return image

    def _label(self, case: str, image: Image) -> Tensor:
        return self._checked_label(case, self.source.read_label(case), image.array.shape[1:])

    def _checked_label(self, case: str, label: np.ndarray, image_shape: tuple[int, ...] | None) -> Tensor:
        where = self.source.where(case, "label")
        self._doubt(file_doubts(self.source, case, "label"))
        label = whole_numbers(label)
        for problem in label_problems(label, image_shape, len(self.source.class_names)):
            raise VolumeError(problem.kind, f"{where} {problem.text}")
        return torch.from_numpy(label.astype(label_dtype(len(self.source.class_names)), copy=False))

    def _shrink(self, volume: Tensor) -> Tensor:
        """(C, W, H, D) -> (C, w, h, d), by averaging over the voxels that each coarse voxel covers."""
        if self.downsample == 1:
            return volume
        size = [max(1, round(s / self.downsample)) for s in volume.shape[1:]]
        return F.interpolate(volume[None], size=size, mode="area")[0]

    def shrink_label(self, label: Tensor) -> Tensor:
        """(W, H, D) -> (w, h, d): the class that covers most of each coarse voxel; the lower one where two are even."""
        if self.downsample == 1:
            return label
        # One class at a time: the shares of 300 at once would take 3600 bytes a voxel.
        shares = (self._shrink((label == value)[None].float())[0] for value in range(len(self.source.class_names)))
        largest = next(shares)
        winner = torch.zeros_like(largest, dtype=label.dtype)
        for value, share in enumerate(shares, start=1):
            winner.masked_fill_(share > largest, value)
            torch.maximum(largest, share, out=largest)
        return winner


class Fingerprint:
    """Hash of the content that a run reads, volume by volume: names, images, and the labels that it may use."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=16)

    def add(self, case: str, *content: Tensor | None) -> None:
        """One volume; None stands for a label that may not be used."""
        self._digest.update(case.encode())
        for tensor in content:
            if tensor is not None:
                self._digest.update(str(tuple(tensor.shape)).encode())
                self._digest.update(tensor.contiguous().numpy().data)

    def add_evaluated(self, volume: EvaluationVolume) -> None:
        """One volume to score, with its label and spacing."""
        self.add(volume.case, volume.image, volume.label, torch.tensor(volume.spacing))

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def refuse_seen(volume: EvaluationVolume, seen: Mapping[str, str]) -> None:
    """A volume to score is none that the networks were trained on, whatever it was called there.

    Args:
        volume: on the CPU.
        seen: `content_hash` of each image that they were trained on -> what messages call it.

    Raises:
        DualsegError: it is.
    """
    known = seen.get(content_hash(volume.image.numpy())) if seen else None
    if known is not None:
        raise DualsegError(
            f"{volume.case}: is to be scored, but has the same voxels as {known}, which the networks were trained on; "
            "leave one of the two out."
        )
