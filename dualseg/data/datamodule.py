"""Volumes -> batches: labeled and unlabeled patches mixed, iteration by iteration."""

from collections.abc import Collection, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from monai.transforms import MapTransform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dualseg.data.batch import Batch
from dualseg.data.checks import check_batch, check_patch_size
from dualseg.data.reading import EvaluationVolume, Fingerprint, VolumeReader
from dualseg.data.sampling import IterationBatchSampler, SampleKey, case_index, sample_seed
from dualseg.data.splits import COUNTS, Split, split_source
from dualseg.data.transforms import plain_tensors, training_transform
from dualseg.data.volumes import VolumeSource
from dualseg.errors import DualsegError

LABELED, UNLABELED = 0, 1  # the two sample streams


class PatchDataset(Dataset[dict[str, Any]]):
    """One random patch per `SampleKey`, a pure function of (seed, key).

    Args:
        volumes: case -> (image (C, w, h, d), label (w, h, d) or None), in memory.
        split: which cases feed which stream.
        labeled, unlabeled: size of the halves of the global batch.
    """

    def __init__(
        self,
        volumes: dict[str, tuple[Tensor, Tensor | None]],
        split: Split,
        labeled: int,
        unlabeled: int,
        patch_size: Sequence[int],
        augmentation: Sequence[MapTransform],
        seed: int,
    ) -> None:
        self.volumes = volumes
        self.split = split
        self.labeled, self.unlabeled = labeled, unlabeled
        self.transform = training_transform(patch_size, augmentation)
        self.seed = seed

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        if key.position < self.labeled:
            draw = key.iteration * self.labeled + key.position
            case = self.split.labeled[case_index(self.seed, LABELED, draw, len(self.split.labeled))]
        else:
            draw = key.iteration * self.unlabeled + key.position - self.labeled
            case = self.split.unlabeled[case_index(self.seed, UNLABELED, draw, len(self.split.unlabeled))]
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
    return Batch(image, label, [sample["case"] for sample in samples])


def _check_shares(processes: int, volumes: int) -> None:
    if processes > volumes:  # on every rank alike: with an empty share the others would wait for ever
        raise DualsegError(
            f"trainer.devices: {processes} processes for {volumes} volumes to evaluate; use fewer, or evaluate_on=[] "
            "and trainer.validate_every=null, and dualseg-evaluate afterwards."
        )


class EvaluationDataset(Dataset[EvaluationVolume]):
    """Whole volumes with their labels, read one at a time; kept in memory where they come again (`cache`)."""

    def __init__(self, reader: VolumeReader, cases: Sequence[str], cache: bool) -> None:
        self.reader, self.cases = reader, cases
        self.cache: dict[int, EvaluationVolume] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> EvaluationVolume:
        if self.cache is not None and index in self.cache:
            return self.cache[index]
        volume = self.reader.read_evaluation(self.cases[index], index)
        if self.cache is not None:
            self.cache[index] = volume
        return volume


class SemiSupervisedDataModule(pl.LightningDataModule):
    """Mixes labeled and unlabeled patches into every batch; validation and test give whole volumes.

    All training volumes are read, checked and hashed once, before the first iteration, and then stay in memory.
    Labels of unlabeled cases are never opened. The trainer's `max_steps` is the length of the run.

    Args:
        source: the dataset.
        patch_size: training patch, voxels of the (down-sampled) grid, multiples of 16.
        labeled, labeled_ratio, held_out_validation, held_out_test: see `split_cases`.
        labeled_per_batch, unlabeled_per_batch: halves of the global batch, over all ranks together.
        downsample: see `VolumeReader`.
        augmentation: MONAI dictionary transforms on "image" and "label", applied before the random crop.
        num_workers: processes that prepare batches; the stream does not depend on it.
        seed: of the sample stream.

    Raises:
        DualsegError: impossible patch, split or batch; unreadable or invalid volumes (in `setup`).
    """

    def __init__(
        self,
        source: VolumeSource,
        patch_size: Sequence[int],
        labeled: int | None = None,
        labeled_ratio: float | None = None,
        held_out_validation: int = 0,
        held_out_test: int = 0,
        labeled_per_batch: int = 2,
        unlabeled_per_batch: int = 2,
        downsample: float = 1.0,
        augmentation: Sequence[MapTransform] = (),
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_patch_size(patch_size)
        self.source = source
        self.patch_size = tuple(patch_size)
        self.labeled_per_batch, self.unlabeled_per_batch = labeled_per_batch, unlabeled_per_batch
        self.augmentation = list(augmentation)
        self.num_workers = num_workers
        self.seed = seed
        self.reader = VolumeReader(source, downsample)
        counts = (labeled, labeled_ratio, held_out_validation, held_out_test)
        source.check_cases()
        self.split = split_source(source, dict(zip(COUNTS, counts, strict=True)))
        check_batch(labeled_per_batch, unlabeled_per_batch, self.split)
        self.volumes: dict[str, tuple[Tensor, Tensor | None]] = {}
        self._validation: EvaluationDataset | None = None

    @property
    def cases_used(self) -> dict[str, int]:
        """Number of cases of each role that this run reads."""
        return {
            "labeled": len(self.split.labeled),
            "unlabeled": len(self.split.unlabeled) if self.unlabeled_per_batch else 0,
            "validation": len(self.split.validation),
            "test": len(self.split.test),
        }

    def setup(self, stage: str) -> None:
        if stage != "fit" or self.volumes:
            return
        unlabeled = self.split.unlabeled if self.unlabeled_per_batch else ()
        volumes: dict[str, tuple[Tensor, Tensor | None]] = {}
        for case in tqdm([*self.split.labeled, *unlabeled], desc="Reading volumes", leave=False, disable=None):
            labeled = len(volumes) < len(self.split.labeled)
            volumes[case] = self.reader.read_pair(case) if labeled else (self.reader.read_image(case), None)
        self.volumes = volumes
        self._validation = EvaluationDataset(self.reader, self.split.validation, cache=True)

    def check_evaluation(self, stages: Collection[str]) -> dict[str, str]:
        """Read the volumes of `stages` (validation, test) once: a bad one is better found before a run than after it.

        Returns:
            stage -> hash of its images, labels and spacings, for each stage that has cases.

        Raises:
            DualsegError: as on evaluating them.
        """
        datasets = {
            "validation": self._validation,
            "test": EvaluationDataset(self.reader, self.split.test, cache=False),
        }
        hashes = {}
        for stage in stages:
            dataset = datasets[stage]
            assert dataset is not None, "setup comes first"
            digest = Fingerprint()
            for index in tqdm(range(len(dataset)), desc=f"Checking {stage} volumes", leave=False, disable=None):
                volume = dataset[index]
                digest.add(volume.case, volume.image, volume.label, torch.tensor(volume.spacing))
            if len(dataset):
                hashes[stage] = digest.hexdigest()
        return hashes

    def check_processes(self, processes: int, stages: Collection[str] = ()) -> None:
        """Every batch, and the volumes of `stages`, can be dealt out to so many processes: known before a run starts.

        Raises:
            DualsegError: they cannot.
        """
        for key, size in (("labeled", self.labeled_per_batch), ("unlabeled", self.unlabeled_per_batch)):
            if size % processes:
                raise DualsegError(
                    f"batch.{key}={size} cannot be dealt out evenly to {processes} processes; make it a multiple."
                )
        for stage in stages:
            cases = getattr(self.split, stage)
            if cases:  # without any, nothing is evaluated
                _check_shares(processes, len(cases))

    def fingerprint(self) -> str:
        """Hash of the training data that was read; after `setup("fit")`."""
        digest = Fingerprint()
        for case in sorted(self.volumes):
            digest.add(case, *self.volumes[case])
        return digest.hexdigest()

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        if self.trainer is None or self.trainer.max_steps < 1:
            raise DualsegError("trainer.max_iterations (pl.Trainer(max_steps=...)): the length of a run is not given.")
        world_size = self.trainer.world_size
        self.check_processes(world_size)
        # the loops are restored before the loaders are built: a resumed run goes on with the next iteration's batch
        sampler = IterationBatchSampler(
            self.labeled_per_batch,
            self.unlabeled_per_batch,
            start=self.trainer.global_step,
            stop=self.trainer.max_steps,
            rank=self.trainer.global_rank,
            world_size=world_size,
        )
        dataset = PatchDataset(
            self.volumes,
            self.split,
            self.labeled_per_batch,
            self.unlabeled_per_batch,
            self.patch_size,
            self.augmentation,
            self.seed,
        )
        return DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=self.num_workers,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
        )

    def val_dataloader(self) -> DataLoader[EvaluationVolume] | list[Any]:
        if self._validation is None:
            self._validation = EvaluationDataset(self.reader, self.split.validation, cache=True)
        return self._evaluation_loader(self._validation)

    def test_dataloader(self) -> DataLoader[EvaluationVolume] | list[Any]:
        return self._evaluation_loader(EvaluationDataset(self.reader, self.split.test, cache=False))

    def _evaluation_loader(self, dataset: EvaluationDataset) -> DataLoader[EvaluationVolume] | list[Any]:
        if not len(dataset):
            return []
        trainer = self.trainer
        assert trainer is not None
        _check_shares(trainer.world_size, len(dataset))
        # every volume once over all ranks: a DistributedSampler would repeat some to even the shares out
        share = range(trainer.global_rank, len(dataset), trainer.world_size)
        return DataLoader(dataset, sampler=list(share), batch_size=None)
