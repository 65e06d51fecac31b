"""Training volumes -> patches -> batches."""

from collections.abc import Sequence
from typing import Any

import torch
from monai.transforms import MapTransform
from torch import Tensor
from torch.utils.data import Dataset

from dualseg.data.batch import Batch
from dualseg.data.loading import shared
from dualseg.data.sampling import SampleKey, case_index, sample_seed
from dualseg.data.transforms import plain_tensors, training_transform

LABELED, UNLABELED = 0, 1  # streams of cases


class PatchDataset(Dataset[dict[str, Any]]):
    """One random patch per `SampleKey`, a pure function of (seed, key).

    Args:
        volumes: case -> (image (C, w, h, d), label (w, h, d) or None), in memory.
        labeled_cases, unlabeled_cases: which cases feed which stream.
        labeled, unlabeled: size of the halves of the global batch.
    """

    def __init__(
        self,
        volumes: dict[str, tuple[Tensor, Tensor | None]],
        labeled_cases: Sequence[str],
        unlabeled_cases: Sequence[str],
        labeled: int,
        unlabeled: int,
        patch_size: Sequence[int],
        augmentation: Sequence[MapTransform],
        seed: int,
    ) -> None:
        self.volumes = volumes
        self.labeled_cases, self.unlabeled_cases = labeled_cases, unlabeled_cases
        self.labeled, self.unlabeled = labeled, unlabeled
        self.transform = training_transform(patch_size, augmentation)
        self.seed = seed

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        if key.position < self.labeled:
            draw = key.iteration * self.labeled + key.position
            case = self.labeled_cases[case_index(self.seed, LABELED, draw, len(self.labeled_cases))]
        else:
            draw = key.iteration * self.unlabeled + key.position - self.labeled
            case = self.unlabeled_cases[case_index(self.seed, UNLABELED, draw, len(self.unlabeled_cases))]
        image, label = self.volumes[case]
        sample = {"image": image} if label is None else {"image": image, "label": label[None]}
        self.transform.set_random_state(seed=sample_seed(self.seed, key))
        with plain_tensors():
            patch = self.transform(sample)
        result: dict[str, Any] = {"case": case, "image": patch["image"].contiguous()}
        if label is not None:
            result["label"] = patch["label"][0].long()
        return result


def collate(samples: list[dict[str, Any]]) -> Batch:
    """Patches, labeled ones first, as one batch."""
    image = torch.stack([sample["image"] for sample in samples])
    labels = [sample["label"] for sample in samples if "label" in sample]
    label = torch.stack(labels) if labels else torch.empty(0, *image.shape[2:], dtype=torch.int64)
    return shared(Batch(image, label, [sample["case"] for sample in samples]))
