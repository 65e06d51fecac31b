"""Volumes -> batches: labeled and unlabeled patches mixed, iteration by iteration."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from monai.transforms import MapTransform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dualseg.arguments import fraction, sizes
from dualseg.data.batch import Batch
from dualseg.data.checking.content import content_hash
from dualseg.data.checks import check_batch
from dualseg.data.class_shares import class_shares, classes_in_one_piece
from dualseg.data.foreground import ForegroundSampling
from dualseg.data.loading import BatchLoader, check_shared_memory
from dualseg.data.memory import MemoryCheck
from dualseg.data.patches import PatchDataset, collate
from dualseg.data.reading import EvaluationVolume, Fingerprint, VolumeReader, refuse_seen
from dualseg.data.sampling import IterationBatchSampler
from dualseg.data.spatial import SpatialAugmentation, SpatialCut
from dualseg.data.splits import COUNTS, split_source
from dualseg.data.transforms import WholeVolumeCut
from dualseg.data.volumes import VolumeSource
from dualseg.errors import DualsegError
from dualseg.machine import MemoryLimit

GPU_SHARE = 0.25  # of the free memory of a GPU that the training volumes may take


def _check_shares(processes: int, volumes: int) -> None:
    if processes > volumes:  # on every rank alike: with an empty share the others would wait for ever
        raise DualsegError(
            f"trainer.devices: {processes} processes for {volumes} volumes to evaluate; use fewer, or evaluate_on=[] "
            "and trainer.validate_every=null, and dualseg-evaluate afterwards."
        )


class EvaluationDataset(Dataset[EvaluationVolume]):
    """Whole volumes with their labels, read one at a time; kept in memory where they come again (`cache`)."""

    def __init__(
        self, reader: VolumeReader, cases: Sequence[str], cache: bool, memory: MemoryCheck | None = None
    ) -> None:
        self.reader, self.cases = reader, cases
        self.memory = memory
        self.cache: dict[int, EvaluationVolume] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> EvaluationVolume:
        if self.cache is not None and index in self.cache:
            return self.cache[index]
        volume = self.reader.read_evaluation(self.cases[index], index)
        if self.memory is not None:
            image, label = volume.image, volume.label
            self.memory.was_read(volume.case, len(image), image[0].numel(), label.numel())
            if self.cache is not None:
                self.memory.was_kept(volume.case, image.nbytes + label.nbytes)
        if self.cache is not None:
            self.cache[index] = volume
        return volume


class SemiSupervisedDataModule(pl.LightningDataModule):
    """Mixes labeled and unlabeled patches into every batch; validation and test give whole volumes.

    All training volumes are read, checked and hashed once, before the first iteration, and then stay in memory; whether
    they fit is worked out from their headers, before that.
    Labels of unlabeled cases are never opened. The trainer's `max_steps` is the length of the run.

    Args:
        source: the dataset.
        patch_size: training patch, voxels of the (down-sampled) grid.
        labeled, labeled_ratio, held_out_validation, held_out_test, draw, fold, folds: see `split_cases`.
        labeled_per_batch, unlabeled_per_batch: halves of the global batch, over all ranks together. Without labeled
            patches the images of the labeled cases are unlabeled ones, and no label is read.
        downsample: see `VolumeReader`.
        augmentation: rotation, scaling and mirroring of each patch, or MONAI dictionary transforms on "image" and
            "label", applied to the whole volume before the random crop.
        num_workers: processes that prepare batches; which patches they are does not depend on it. With 0, and a GPU on
            which the volumes take no more than a quarter of the free memory, patches are cut there.
        seed: of the sample stream.
        foreground: share of the labeled patches that are cut around a voxel of the foreground, of a class drawn first;
            the others are cut anywhere.

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
        draw: int = 0,
        fold: int | None = None,
        folds: int = 5,
        labeled_per_batch: int = 2,
        unlabeled_per_batch: int = 2,
        downsample: float = 1.0,
        augmentation: SpatialAugmentation | Sequence[MapTransform] = (),
        num_workers: int = 0,
        seed: int = 0,
        foreground: float = 0.0,
    ) -> None:
        super().__init__()
        sizes("data.patch_size", patch_size)
        fraction("data.foreground", foreground)
        self.source = source
        self.patch_size = tuple(patch_size)
        self.labeled_per_batch, self.unlabeled_per_batch = labeled_per_batch, unlabeled_per_batch
        self.augmentation = augmentation
        self.foreground = foreground
        self.num_workers = num_workers
        self.seed = seed
        self.reader = VolumeReader(source, downsample)
        counts = (labeled, labeled_ratio, held_out_validation, held_out_test, draw, fold, folds)
        source.check_cases()
        self.split = split_source(source, dict(zip(COUNTS, counts, strict=True)))
        check_batch(labeled_per_batch, unlabeled_per_batch, self.split)
        self.volumes: dict[str, tuple[Tensor, Tensor | None]] = {}
        self.cuts_on_gpu = False
        self._on_gpu: dict[str, tuple[Tensor, Tensor | None]] = {}
        self._validation: EvaluationDataset | None = None
        self._memory: MemoryCheck | None = None
        self._foreground: ForegroundSampling | None = None

    @property
    def augmentation_note(self) -> str | None:
        """What the user should know of how patches are augmented; None: nothing."""
        if isinstance(self.augmentation, SpatialAugmentation):
            return self.augmentation.note(self.source.class_names)
        return None

    @property
    def cases_used(self) -> dict[str, list[str]]:
        """Role -> the cases that this run reads in it, in their order."""
        return {
            "labeled": list(self._labeled),
            "unlabeled": list(self._unlabeled),
            "validation": list(self.split.validation),
            "test": list(self.split.test),
        }

    def check_memory(
        self,
        limit: MemoryLimit,
        training: bool = True,
        stages: Collection[str] = (),
        segmenting: Callable[[int, float, float], int] | None = None,
        processes: int = 1,
    ) -> None:
        """Work out from headers what a run takes of RAM; where it is not called, `setup` does it for training alone.

        A volume whose source knows no header is counted once it is read.

        Args:
            limit: how much there is.
            training: the training and validation volumes stay in memory.
            stages: validation, test: which are evaluated.
            segmenting, processes: see `MemoryCheck`.

        Raises:
            DualsegError: a header cannot be read, or something takes more than the limit.
        """
        self.reader.memory_key = limit.key
        self._memory = MemoryCheck(self.source, limit, self.reader.downsample, segmenting, processes)
        if training:
            self._memory.check_batch(self.patch_size, self.labeled_per_batch, self.unlabeled_per_batch)
        validation = self.split.validation if "validation" in stages else ()
        self._memory.foresee(
            self._labeled if training else (),
            self._unlabeled if training else (),
            validation if training else (),
            (*(() if training else validation), *(self.split.test if "test" in stages else ())),
        )

    @property
    def _labeled(self) -> tuple[str, ...]:
        """The cases that are read with their labels."""
        return self.split.labeled if self.labeled_per_batch else ()

    @property
    def _unlabeled(self) -> tuple[str, ...]:
        """The cases whose images alone are read; without labels in a batch, those of the labeled cases too."""
        cases = self.split.unlabeled if self.labeled_per_batch else (*self.split.labeled, *self.split.unlabeled)
        return cases if self.unlabeled_per_batch else ()

    def setup(self, stage: str) -> None:
        if stage != "fit" or self.volumes:
            return
        if self._memory is None:
            self.check_memory(MemoryLimit.of("data.memory"))
        assert self._memory is not None
        volumes: dict[str, tuple[Tensor, Tensor | None]] = {}
        for case in tqdm([*self._labeled, *self._unlabeled], desc="Reading volumes", leave=False, disable=None):
            labeled = len(volumes) < len(self._labeled)
            volumes[case] = self.reader.read_pair(case) if labeled else (self.reader.read_image(case), None)
            self._memory.was_kept(case, sum(tensor.nbytes for tensor in volumes[case] if tensor is not None))
        self.volumes = volumes
        if self.foreground:
            labels = {case: label for case, (_, label) in volumes.items() if label is not None}
            self._foreground = ForegroundSampling(labels, self.foreground)
        self._validation = EvaluationDataset(self.reader, self.split.validation, cache=True, memory=self._memory)

    def check_evaluation(self, stages: Collection[str], seen: Mapping[str, str] | None = None) -> dict[str, str]:
        """Read the volumes of `stages` (validation, test) once: a bad one is better found before a run than after it.

        Args:
            stages: after `setup("fit")`.
            seen: see `refuse_seen`.

        Returns:
            stage -> hash of its images, labels and spacings, for each stage that has cases.

        Raises:
            DualsegError: as on evaluating them, or one of them was trained on.
        """
        datasets = {
            "validation": self._validation,
            "test": self._read_once(self.split.test),
        }
        hashes = {}
        for stage in stages:
            dataset = datasets[stage]
            assert dataset is not None, "setup comes first"
            digest = Fingerprint()
            for index in tqdm(range(len(dataset)), desc=f"Checking {stage} volumes", leave=False, disable=None):
                volume = dataset[index]
                refuse_seen(volume, seen or {})
                digest.add_evaluated(volume)
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

    def check_shared_memory(self, share: float = 1.0) -> None:
        """The batches that `num_workers` prepare ahead find room in shared memory: known before a run starts.

        Args:
            share: of every batch that this machine trains with.

        Raises:
            DualsegError: they do not.
        """
        patches = self.labeled_per_batch + self.unlabeled_per_batch
        values = 4 * patches * self.source.channels + 8 * self.labeled_per_batch  # bytes: float32, int64
        check_shared_memory(self.num_workers, math.ceil(share * values * math.prod(self.patch_size)))

    def fingerprint(self) -> str:
        """Hash of the training data that was read; after `setup("fit")`."""
        digest = Fingerprint()
        for case in sorted(self.volumes):
            digest.add(case, *self.volumes[case])
        return digest.hexdigest()

    def class_shares(self) -> Tensor:
        """(K,) share of each class in labeled patches that are cut anywhere; after `setup("fit")`."""
        return class_shares(self._labels(), self.patch_size, len(self.source.class_names))

    def classes_in_one_piece(self) -> tuple[int, ...]:
        """Numbers of the foreground classes that are in one piece in the labeled volumes; after `setup("fit")`."""
        return classes_in_one_piece(self._labels(), len(self.source.class_names))

    def classes_without_label(self) -> list[str]:
        """Foreground classes of which no labeled volume has a voxel; after `setup("fit")`. None without labels."""
        labels = self._labels()
        found = {value for label in labels for value in label.unique().tolist()}
        return [name for value, name in enumerate(self.source.class_names) if value and labels and value not in found]

    def _labels(self) -> list[Tensor]:
        return [label for _, label in self.volumes.values() if label is not None]

    def image_hashes(self) -> dict[str, str]:
        """Training case -> hash of its image, by which it is known under any name; after `setup("fit")`."""
        return {case: content_hash(image.numpy()) for case, (image, _) in self.volumes.items()}

    def train_dataloader(self) -> DataLoader[Batch]:
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
        device = self.trainer.strategy.root_device
        volumes = self._volumes_on(device)
        self.cuts_on_gpu = volumes is not self.volumes
        dataset = PatchDataset(
            volumes,
            self._labeled,
            self._unlabeled,
            self.labeled_per_batch,
            self.unlabeled_per_batch,
            self._cut(),
            self.seed,
            self._foreground,
        )
        return BatchLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=self.num_workers,
            pin_memory=device.type == "cuda" and not self.cuts_on_gpu,
        )

    def _volumes_on(self, device: torch.device) -> dict[str, tuple[Tensor, Tensor | None]]:
        """The volumes where patches are cut: on a GPU, if they fit and nothing is asked for that runs on the CPU.

        Else the GPU would wait for one core to cut patches and for their way to it. The patches are the same: plain and
        mirrored ones bit by bit, rotated and scaled ones but for rounding.
        """
        of_monai = self.augmentation and not isinstance(self.augmentation, SpatialAugmentation)
        if device.type != "cuda" or self.num_workers or of_monai:
            return self.volumes
        size = sum(tensor.nbytes for pair in self.volumes.values() for tensor in pair if tensor is not None)
        if size > GPU_SHARE * torch.cuda.mem_get_info(device)[0]:
            return self.volumes
        self._on_gpu = {
            case: (image.to(device), None if label is None else label.to(device))
            for case, (image, label) in self.volumes.items()
        }
        return self._on_gpu

    def teardown(self, stage: str) -> None:
        self._on_gpu.clear()  # the loop keeps its loader, and with it what patches are cut of

    def _cut(self) -> WholeVolumeCut | SpatialCut:
        if isinstance(self.augmentation, SpatialAugmentation):
            return SpatialCut(self.patch_size, self.augmentation.axes_for(self.source.class_names))
        return WholeVolumeCut(self.patch_size, self.augmentation)

    def val_dataloader(self) -> DataLoader[EvaluationVolume] | list[Any]:
        return self._evaluation_loader(self._validation or self._read_once(self.split.validation))  # no training

    def test_dataloader(self) -> DataLoader[EvaluationVolume] | list[Any]:
        return self._evaluation_loader(self._read_once(self.split.test))

    def _read_once(self, cases: Sequence[str]) -> EvaluationDataset:
        return EvaluationDataset(self.reader, cases, cache=False, memory=self._memory)

    def _evaluation_loader(self, dataset: EvaluationDataset) -> DataLoader[EvaluationVolume] | list[Any]:
        if not len(dataset):
            return []
        trainer = self.trainer
        assert trainer is not None
        _check_shares(trainer.world_size, len(dataset))
        # every volume once over all ranks: a DistributedSampler would repeat some to even the shares out
        share = range(trainer.global_rank, len(dataset), trainer.world_size)
        return DataLoader(dataset, sampler=list(share), batch_size=None)
