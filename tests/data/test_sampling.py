"""The sample stream is a pure function of (seed, iteration, position in the global batch), however it is drawn."""

import hashlib
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from dualseg.data import SemiSupervisedDataModule, SpatialAugmentation, flips_and_rotations
from dualseg.data.patches import PatchDataset, collate
from dualseg.data.sampling import IterationBatchSampler, SampleKey, case_index, sample_seed
from dualseg.data.transforms import WholeVolumeCut
from dualseg.data.volumes import Image, VolumeSource
from dualseg.errors import DualsegError

pytestmark = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create 2 worker", "ignore:.*not resumable", "ignore:.*no `validation_step`"
)

LABELED, UNLABELED, ITERATIONS = 3, 5, 6
SHAPE, PATCH = (24, 20, 18), (16, 16, 16)


class Noise(VolumeSource):
    """Eight cases whose voxels are all different."""

    name, class_names, channels = "noise", ("background", "thing"), 1
    train_cases = tuple(f"case_{i}" for i in range(LABELED + UNLABELED))
    test_cases = ()

    def read_image(self, case):
        rng = np.random.default_rng(int(case[-1]))
        return Image(rng.normal(size=(1, *SHAPE)).astype(np.float32), np.eye(4))

    def read_label(self, case):
        return (self.read_image(case).array[0] > 0).astype(np.uint8)


def trainer(start=0, rank=0, world_size=1, iterations=ITERATIONS):
    """What the data module asks of a pl.Trainer."""
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(
        max_steps=iterations, global_step=start, global_rank=rank, world_size=world_size, strategy=strategy
    )


def module(seed=0, labeled=2, unlabeled=2, augmentation=(), num_workers=0, foreground=0.0):
    data = SemiSupervisedDataModule(
        Noise(),
        PATCH,
        labeled=LABELED,
        labeled_per_batch=labeled,
        unlabeled_per_batch=unlabeled,
        augmentation=augmentation,
        num_workers=num_workers,
        seed=seed,
        foreground=foreground,
    )
    data.setup("fit")
    return data


def batches(data, **asked):
    data.trainer = trainer(**asked)
    return list(data.train_dataloader())


def digest(batch):
    content = hashlib.sha256(repr((batch.case, batch.image.shape, batch.label.shape)).encode())
    content.update(batch.image.numpy().tobytes())
    content.update(batch.label.numpy().tobytes())
    return content.hexdigest()


def digests(data, **asked):
    return [digest(batch) for batch in batches(data, **asked)]


AUGMENTATIONS = {"crop alone": (), "flips and rotations": flips_and_rotations()}


@pytest.fixture(params=AUGMENTATIONS)
def augmentation(request):
    return AUGMENTATIONS[request.param]


STREAMS = {
    **{name: {"augmentation": augmentation} for name, augmentation in AUGMENTATIONS.items()},
    "strong, half of it around the foreground": {"augmentation": SpatialAugmentation(), "foreground": 0.5},
}


@pytest.fixture(params=STREAMS)
def stream(request):
    return STREAMS[request.param]


def test_a_batch_holds_labeled_samples_first_and_their_labels(augmentation):
    data = module(augmentation=augmentation)
    drawn = batches(data)
    assert len(drawn) == ITERATIONS
    for batch in drawn:
        assert batch.image.shape == (4, 1, *PATCH) and batch.image.dtype == torch.float32
        assert batch.label.shape == (2, *PATCH) and batch.label.dtype == torch.int64
        assert set(batch.case[:2]) <= set(data.split.labeled)
        assert set(batch.case[2:]) <= set(data.split.unlabeled)
        torch.testing.assert_close(batch.label, (batch.image[:2, 0] > 0).long())
        assert type(batch.image) is torch.Tensor


def test_a_supervised_batch_is_labeled_throughout():
    for batch in batches(module(labeled=4, unlabeled=0)):
        assert batch.image.shape[0] == batch.label.shape[0] == 4
        assert set(batch.case) <= set(Noise.train_cases[:LABELED])


def test_workers_do_not_change_the_stream(stream):
    alone = digests(module(**stream))
    assert digests(module(**stream, num_workers=2)) == alone
    assert len(set(alone)) == ITERATIONS


def test_neither_other_random_numbers_nor_earlier_draws_change_the_stream(stream):
    data = module(**stream)
    first = digests(data)
    pl.seed_everything(99, verbose=False)
    dataset = data.train_dataloader().dataset
    dataset[SampleKey(3, 1)]
    assert digests(data) == first
    backwards = [collate([dataset[SampleKey(i, p)] for p in range(4)]) for i in reversed(range(ITERATIONS))]
    assert [digest(batch) for batch in reversed(backwards)] == first


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ranks_partition_the_batch_of_one_process(stream, num_workers):
    def build():
        return module(labeled=4, unlabeled=2, **stream, num_workers=num_workers)

    whole = batches(build())
    shares = [batches(build(), rank=rank, world_size=2) for rank in range(2)]
    for batch, first, second in zip(whole, *shares, strict=True):
        for share in (first, second):
            assert share.image.shape[0] == 3 and share.label.shape[0] == 2
        for key in ("image", "label"):
            labeled = torch.stack([getattr(first, key)[:2], getattr(second, key)[:2]], dim=1).flatten(0, 1)
            torch.testing.assert_close(labeled, getattr(batch, key)[:4], rtol=0, atol=0)
        unlabeled = torch.cat([first.image[2:], second.image[2:]])
        torch.testing.assert_close(unlabeled, batch.image[4:], rtol=0, atol=0)
        assert sorted(first.case + second.case) == sorted(batch.case)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_samplers_of_all_ranks_deal_out_every_position_once(world_size):
    samplers = [IterationBatchSampler(8, 4, 0, 3, rank, world_size) for rank in range(world_size)]
    for iteration, shares in enumerate(zip(*samplers, strict=True)):
        keys = [key for share in shares for key in share]
        assert sorted(keys) == [SampleKey(iteration, position) for position in range(12)]
        for share in shares:
            assert [key.position < 8 for key in share] == [True] * (8 // world_size) + [False] * (4 // world_size)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_stream_goes_on_where_it_stopped(stream, num_workers):
    data = module(**stream, num_workers=num_workers)
    whole = digests(data)
    assert digests(module(**stream, num_workers=num_workers), start=4) == whole[4:]
    assert digests(data, start=ITERATIONS) == []
    # the loader's length stays the whole run's, from which Lightning takes off what is done
    data.trainer = trainer(start=4)
    assert len(data.train_dataloader()) == ITERATIONS


def test_a_longer_run_begins_with_the_same_batches():
    assert digests(module(), iterations=2 * ITERATIONS)[:ITERATIONS] == digests(module())


class Recorder(pl.LightningModule):
    """Keeps the digests of the batches that training sees; one optimizer step each."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.trainer.global_step, digest(batch)))
        return (self.weight * batch.image.mean()).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def record(stop, tmp_path, resume=None):
    recorder = Recorder()
    fit = pl.Trainer(
        max_steps=stop,
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
    )

    class SaveAtThree(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 3 and resume is None:
                trainer.save_checkpoint(tmp_path / "three.ckpt")

    fit.callbacks.append(SaveAtThree())
    fit.fit(recorder, module(), ckpt_path=resume)
    return recorder.seen


def test_a_trainer_resumed_in_the_middle_sees_the_rest_of_the_stream(tmp_path):
    whole = record(ITERATIONS, tmp_path)
    assert whole == list(enumerate(digests(module())))
    assert record(ITERATIONS, tmp_path, resume=tmp_path / "three.ckpt") == whole[3:]


def test_seeds_differ():
    one, other = batches(module(seed=0), iterations=20), batches(module(seed=1), iterations=20)
    assert not {digest(batch) for batch in one} & {digest(batch) for batch in other}
    assert [b.case for b in one] != [b.case for b in other]


def test_every_case_comes_once_before_any_comes_again():
    data = module(labeled=2, unlabeled=3)
    drawn = batches(data, iterations=30)
    streams = (
        [case for batch in drawn for case in batch.case[:2]],
        [case for batch in drawn for case in batch.case[2:]],
    )
    for stream, cases in zip(streams, (data.split.labeled, data.split.unlabeled), strict=True):
        passes = [tuple(stream[i : i + len(cases)]) for i in range(0, len(stream) - len(cases) + 1, len(cases))]
        assert len(passes) > 10
        assert all(sorted(one) == sorted(cases) for one in passes)
        assert len(set(passes)) > 3, "each pass is shuffled anew"


def test_the_two_streams_are_shuffled_independently():
    orders = [[case_index(5, stream, draw, 50) for draw in range(50)] for stream in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(50))
    assert orders[0] != orders[1]


def test_no_two_samples_share_a_seed():
    keys = [SampleKey(iteration, position) for iteration in range(200) for position in range(4)]
    seeds = {sample_seed(seed, key) for seed in range(3) for key in keys}
    # 2,400 draws of 32 bits: a collision has probability 0.0007, and the draws are fixed
    assert len(seeds) == 3 * len(keys)


@pytest.mark.parametrize("key", ["labeled", "unlabeled"])
def test_a_batch_that_ranks_cannot_share_evenly_is_refused(key):
    data = module(**{"labeled": 2, "unlabeled": 2, key: 3})
    with pytest.raises(DualsegError, match=rf"batch\.{key}=3 .*evenly to 2 processes"):
        batches(data, world_size=2)


def test_a_run_without_a_length_is_refused():
    with pytest.raises(DualsegError, match=r"trainer\.max_iterations"):
        batches(module(), iterations=-1)


# One volume whose image says where each voxel came from, and whose label follows from the image.
CODED_SHAPE = (20, 22, 26)
OBLONG = (16, 16, 32)


def follows(image):
    """A label that any misplacement of image against label breaks: a pattern without symmetry."""
    return torch.where(image > 0, (image.long() * 2654435761 >> 7) % 3, 0)


def coded_samples(augmentation, patch_size, count):
    image = torch.arange(1, 1 + int(np.prod(CODED_SHAPE)), dtype=torch.float32).reshape(1, *CODED_SHAPE)
    volumes = {"coded": (image, follows(image[0]).to(torch.uint8))}
    dataset = PatchDataset(volumes, ("coded",), (), 1, 0, WholeVolumeCut(patch_size, augmentation), seed=3)
    return [dataset[SampleKey(iteration, 0)] for iteration in range(count)]


def origins(sample):
    """Where the voxels of a patch without padding came from: (3, w, h, d) indices."""
    return torch.stack(torch.unravel_index(sample["image"][0].long() - 1, CODED_SHAPE))


def test_image_and_label_stay_together_and_patches_keep_their_shape(augmentation):
    for sample in coded_samples(augmentation, OBLONG, 40):
        assert sample["image"].shape == (1, *OBLONG) and sample["label"].shape == OBLONG
        assert torch.equal(sample["label"], follows(sample["image"][0]))
        assert (sample["image"] > 0).any()


def test_smaller_volumes_are_padded_with_zeros_centred():
    for sample in coded_samples((), OBLONG, 3):
        inside = (sample["image"][0] > 0).any(0).any(0)
        assert inside.tolist() == [False] * 3 + [True] * 26 + [False] * 3


def test_crops_are_uniform_over_all_origins():
    samples = coded_samples((), PATCH, 800)
    codes = [int(sample["image"][0, 0, 0, 0]) - 1 for sample in samples]
    corners = torch.from_numpy(np.stack(np.unravel_index(codes, CODED_SHAPE), axis=1))
    for axis, size in enumerate(CODED_SHAPE):
        counts = torch.bincount(corners[:, axis], minlength=size - 15).double()
        assert len(counts) == size - 15
        expected = len(samples) / len(counts)
        # chi-squared with at most 10 degrees of freedom is below 29.6 with probability 0.999
        assert ((counts - expected) ** 2 / expected).sum() < 29.6


def test_flips_and_rotations_make_every_in_plane_orientation_and_no_other():
    """Eight symmetries of the plane times two directions of the third axis."""
    seen = set()
    for sample in coded_samples(flips_and_rotations(), PATCH, 150):
        place = origins(sample)
        steps = []
        for axis in range(3):
            difference = place.diff(dim=axis + 1).flatten(1)
            assert (difference == difference[:, :1]).all(), "a patch is a rigid piece of the volume"
            steps.append(tuple(difference[:, 0].tolist()))
        seen.add(tuple(steps))
    first, second, third = (1, 0, 0), (0, 1, 0), (0, 0, 1)
    expected = {
        tuple(tuple(s * v for v in axis) for s, axis in zip(signs, axes, strict=True))
        for axes in ((first, second, third), (second, first, third))
        for signs in itertools.product((1, -1), repeat=3)
    }
    assert seen == expected


def test_without_augmentation_nothing_is_turned():
    for sample in coded_samples((), PATCH, 20):
        place = origins(sample)
        for axis in range(3):
            assert (place[axis].diff(dim=axis) == 1).all()
