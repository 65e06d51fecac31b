"""Training volumes -> patches -> batches."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dualseg.data.batch import Batch
from dualseg.data.foreground import ForegroundSampling
from dualseg.data.loading import shared
from dualseg.data.sampling import SampleKey, case_index, foreground_generator, sample_seed
from dualseg.data.spatial import SpatialCut
from dualseg.data.transforms import WholeVolumeCut

LABELED, UNLABELED = 0, 1  # streams of cases


class PatchDataset(Dataset[dict[str, Any]]):
    """One random patch per `SampleKey`, a pure function of (seed, key).

    Args:
        volumes: case -> (image (C, w, h, d), label (w, h, d) or None), in memory.
        labeled_cases, unlabeled_cases: which cases feed which stream.
        labeled, unlabeled: size of the halves of the global batch.
        cut: makes a patch of a volume.
        seed: of the run.
        foreground: which labeled patches are cut around what; None: all are cut anywhere, as unlabeled ones are.
    """

    def __init__(
        self,
        volumes: dict[str, tuple[Tensor, Tensor | None]],
        labeled_cases: Sequence[str],
        unlabeled_cases: Sequence[str],
        labeled: int,
        unlabeled: int,
        cut: WholeVolumeCut | SpatialCut,
        seed: int,
        foreground: ForegroundSampling | None = None,
    ) -> None:
        self.volumes = volumes
        self.labeled_cases, self.unlabeled_cases = labeled_cases, unlabeled_cases
        self.labeled, self.unlabeled = labeled, unlabeled
        self.cut = cut
        self.seed = seed
        self.foreground = foreground

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        if key.position < self.labeled:
            draw = key.iteration * self.labeled + key.position
            case = self.labeled_cases[case_index(self.seed, LABELED, draw, len(self.labeled_cases))]
        else:
            draw = key.iteration * self.unlabeled + key.position - self.labeled
            case = self.unlabeled_cases[case_index(self.seed, UNLABELED, draw, len(self.unlabeled_cases))]
        image, label = self.volumes[case]
        voxel = None
        if self.foreground is not None and label is not None:
            voxel = self.foreground.draw(case, foreground_generator(self.seed, key))
        image, label = self.cut(image, label, voxel, sample_seed(self.seed, key))
        result: dict[str, Any] = {"case": case, "image": image.contiguous()}
        if label is not None:
            result["label"] = label.long()
        return result


def collate(samples: list[dict[str, Any]]) -> Batch:
    """Patches, labeled ones first, as one batch."""
    image = torch.stack([sample["image"] for sample in samples])
    labels = [sample["label"] for sample in samples if "label" in sample]
    label = torch.stack(labels) if labels else torch.empty(0, *image.shape[2:], dtype=torch.int64)
    return shared(Batch(image, label, [sample["case"] for sample in samples]))
