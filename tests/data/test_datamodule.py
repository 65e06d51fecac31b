"""What is read, when, and on which grid; and that labels of unlabeled volumes are never opened."""

import itertools
import math
import shutil
import sys
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

from dualseg import train
from dualseg.data import LeftAtrium, Phantom, SemiSupervisedDataModule, SpatialAugmentation
from dualseg.data.left_atrium import case_list
from dualseg.data.problems import label_problems, whole_numbers
from dualseg.data.reading import VolumeReader
from dualseg.data.transforms import flips_and_rotations
from dualseg.data.volumes import Image, VolumeSource
from dualseg.errors import DualsegError


class Counted(VolumeSource):
    """Random volumes of three classes and two channels in memory; keeps a list of what is read."""

    name, class_names, channels = "counted", ("background", "one", "two"), 2
    train_cases = tuple("abcdefgh")
    test_cases = ("y", "z")

    def __init__(self, shape=(20, 18, 17)):
        self.shape = shape
        self.read = []

    def read_image(self, case):
        self.read.append(("image", case))
        array = np.random.default_rng(ord(case)).normal(size=(2, *self.shape)).astype(np.float32)
        return Image(array, np.diag([0.5, 1.0, 2.0, 1.0]))

    def read_label(self, case):
        self.read.append(("label", case))
        return np.random.default_rng(1000 + ord(case)).integers(0, 3, self.shape).astype(np.uint8)


def trainer(rank=0, world_size=1):
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(max_steps=8, global_step=0, global_rank=rank, world_size=world_size, strategy=strategy)


def module(source, patch=(16, 16, 16), **arguments):
    data = SemiSupervisedDataModule(source, patch, **{"labeled": 3, **arguments})
    data.trainer = trainer()
    return data


# --- what is read, and how often


def test_every_training_volume_is_read_exactly_once():
    source = Counted()
    data = module(source)
    assert source.read == [], "nothing is read before setup"
    for _ in range(2):
        data.setup("fit")
        for batch in data.train_dataloader():
            assert batch.image.shape == (4, 2, 16, 16, 16)
    assert sorted(source.read) == [("image", c) for c in "abcdefgh"] + [("label", c) for c in "abc"]


@pytest.mark.parametrize(
    ("arguments", "share", "on_gpu"),
    [
        ({}, 1.01, True),
        ({}, 0.99, False),
        ({"num_workers": 1}, 1.01, False),
        ({"augmentation": SpatialAugmentation()}, 1.01, True),
        ({"augmentation": flips_and_rotations()}, 1.01, False),
        ({"labeled_per_batch": 0}, 1.01, True),
    ],
)
def test_volumes_lie_on_the_gpu_where_they_take_a_quarter_of_it(arguments, share, on_gpu, monkeypatch):
    """`share`: of the memory that is needed for it. The GPU is made up, and what is moved there stays where it is."""
    data = module(Counted(), **arguments)
    data.setup("fit")
    size = sum(t.nbytes for pair in data.volumes.values() for t in pair if t is not None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(4 * size * share), 0))
    moved = []
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: moved.append(device) or tensor)
    device = torch.device("cuda", 3)
    volumes = data._volumes_on(device)
    assert volumes.keys() == data.volumes.keys() and (volumes is not data.volumes) == on_gpu
    assert {*moved} == ({device} if on_gpu else set())
    data.teardown("fit")
    assert data.volumes and bool(volumes) != on_gpu, "the GPU's copies go with the training"
    assert data._volumes_on(torch.device("cpu")) is data.volumes


def test_one_unlabeled_volume_fills_every_place_of_a_larger_batch():
    source = Counted()
    source.train_cases = tuple("abcd")
    data = module(source, unlabeled_per_batch=4)
    data.setup("fit")
    (image, _) = data.volumes["d"]
    known = set(image.flatten().tolist())
    for batch in data.train_dataloader():
        own = batch.unlabeled.image
        assert own.shape == (4, 2, 16, 16, 16) and set(own.flatten().tolist()) <= known
        assert len({patch.numpy().tobytes() for patch in own}) > 1, "places of their own"


def test_a_held_out_fold_is_read_as_neither_labeled_nor_unlabeled():
    source = Counted()
    data = module(source, labeled=4, fold=1, folds=2)
    data.setup("fit")
    assert data.cases_used["labeled"] == ["a", "c"] and data.cases_used["validation"] == ["b", "d"]
    assert {case for _, case in source.read} == {*"ac", *"efgh"}


def test_a_class_that_no_labeled_volume_has_is_named():
    source = Counted()
    source.read_label = lambda case: np.full(source.shape, 2 * (case == "d"), np.uint8)
    data = module(source)
    data.setup("fit")
    assert data.classes_without_label() == ["one", "two"]
    data = module(source, labeled=4)
    data.setup("fit")
    assert data.classes_without_label() == ["one"]


def test_a_supervised_run_reads_no_unlabeled_volume():
    source = Counted()
    data = module(source, labeled_per_batch=4, unlabeled_per_batch=0)
    data.setup("fit")
    assert {case for _, case in source.read} == {"a", "b", "c"}
    assert data.cases_used == {"labeled": [*"abc"], "unlabeled": [], "validation": [], "test": [*"yz"]}


def test_roles_are_listed_in_their_order():
    data = module(Counted(), held_out_validation=2, held_out_test=1)
    assert data.cases_used == {
        "labeled": [*"abc"], "unlabeled": [*"de"], "validation": [*"fg"], "test": ["h"],
    }  # fmt: skip


def test_a_volume_to_score_is_known_by_its_voxels_whatever_its_name():
    class Copied(Counted):
        def read_image(self, case):
            return super().read_image("e" if case == "z" else case)

    data = module(Copied(), downsample=2)
    data.setup("fit")
    seen = {image: f"{case} of x" for case, image in data.image_hashes().items()}
    assert [*data.image_hashes()] == [*"abcdefgh"] and len(seen) == 8
    with pytest.raises(DualsegError, match=r"z: .*same voxels as e of x"):
        data.check_evaluation(["test"], seen)
    data.check_evaluation(["test"])
    whole = module(Counted(), downsample=2)
    whole.setup("fit")
    whole.check_evaluation(["test"], seen)


def test_validation_volumes_are_kept_and_test_volumes_are_not():
    source = Counted()
    data = module(source, held_out_validation=2)
    data.setup("fit")
    source.read.clear()
    for _ in range(3):
        assert [volume.case for volume in data.val_dataloader()] == ["g", "h"]
    assert sorted(source.read) == [("image", "g"), ("image", "h"), ("label", "g"), ("label", "h")]
    source.read.clear()
    loader = data.test_dataloader()
    for _ in range(2):
        assert [volume.case for volume in loader] == ["y", "z"]
    assert sorted(source.read) == sorted(2 * [("image", "y"), ("image", "z"), ("label", "y"), ("label", "z")])


def test_evaluation_needs_no_training_volumes():
    source = Counted()
    data = module(source, held_out_validation=2)
    loader = data.val_dataloader()
    for _ in range(2):
        assert [volume.case for volume in loader] == ["g", "h"]
    assert source.read.count(("image", "g")) == 2, "not kept: an evaluation needs each once"
    assert {case for _, case in source.read} == {"g", "h"}


def test_evaluation_volumes_are_checked_before_a_run_and_only_those_asked_for():
    source = Counted()
    data = module(source, held_out_validation=1)
    data.setup("fit")
    source.read.clear()
    data.check_evaluation([])
    assert source.read == []
    data.check_evaluation(["test"])
    assert {case for _, case in source.read} == {"y", "z"}


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_ranks_share_evaluation_volumes_without_repeats(world_size):
    source = Counted()
    data = module(source, held_out_validation=4)
    seen = []
    for rank in range(world_size):
        data.trainer = trainer(rank, world_size)
        seen += [(volume.case, volume.case_index) for volume in data.val_dataloader()]
    assert sorted(seen) == [("e", 0), ("f", 1), ("g", 2), ("h", 3)]


@pytest.mark.parametrize("rank", [0, 4])
def test_more_ranks_than_evaluation_volumes_are_refused_on_every_rank(rank):
    data = module(Counted(), held_out_validation=4)
    data.trainer = trainer(rank, 5)
    with pytest.raises(DualsegError, match=r"trainer\.devices: 5 processes .*4 volumes .* dualseg-evaluate"):
        data.val_dataloader()


def test_no_evaluation_cases_give_no_loader():
    assert module(Counted()).val_dataloader() == []


def test_a_setup_that_failed_can_be_repeated():
    class Unlucky(Counted):
        def read_image(self, case):
            if case == "e" and ("image", "e") not in self.read:
                self.read.append(("image", "e"))
                raise DualsegError("e: not yet there")
            return super().read_image(case)

    data = module(Unlucky())
    with pytest.raises(DualsegError, match="not yet there"):
        data.setup("fit")
    data.setup("fit")
    assert sorted(data.volumes) == list("abcdefgh")


def test_the_fingerprint_is_of_what_was_read_and_nothing_else():
    def fingerprint(source, **arguments):
        data = module(source, **arguments)
        data.setup("fit")
        return data.fingerprint()

    class OtherLabel(Counted):
        other = "a"

        def read_label(self, case):
            label = super().read_label(case)
            return 2 - label if case == self.other else label

    same = fingerprint(Counted())
    assert fingerprint(Counted()) == same
    assert fingerprint(OtherLabel()) != same
    unread = OtherLabel()
    unread.other = "h"
    assert fingerprint(unread) == same
    assert fingerprint(Counted(), labeled=4) != same


def test_the_fingerprint_of_what_is_evaluated_covers_images_labels_and_spacings():
    def fingerprint(source, stages=("validation", "test")):
        data = module(source, held_out_validation=2)
        data.setup("fit")
        return data.check_evaluation(stages)

    class Other(Counted):
        image, label, spacing = None, None, None

        def read_image(self, case):
            array, affine = super().read_image(case)
            return Image(array + (case == self.image), affine * 2 if case == self.spacing else affine)

        def read_label(self, case):
            return 2 - super().read_label(case) if case == self.label else super().read_label(case)

    same = fingerprint(Counted())
    assert list(same) == ["validation", "test"] and fingerprint(Other()) == same
    assert fingerprint(Counted(), ["test"]) == {"test": same["test"]}
    for case, stage in (("h", "validation"), ("z", "test")):
        for what in ("image", "label", "spacing"):
            source = Other()
            setattr(source, what, case)
            changed = fingerprint(source)
            assert [name for name in same if changed[name] != same[name]] == [stage]
    empty = module(Counted())
    empty.setup("fit")
    assert list(empty.check_evaluation(["validation", "test"])) == ["test"], "a stage without cases has none"


# --- the grids


def bins(size, factor):
    """Half-open ranges of voxels that each coarse voxel covers; a voxel that two share counts for both."""
    count = max(1, round(size / factor))
    return [(math.floor(i * size / count), math.ceil((i + 1) * size / count)) for i in range(count)]


@pytest.mark.parametrize("factor", [1.5, 2, 3, 4.2])
def test_down_sampled_images_are_the_means_and_labels_the_majority(factor):
    source = Counted()
    image, label = VolumeReader(source, factor).read_pair("a")
    whole, classes = source.read_image("a").array.astype(np.float64), source.read_label("a")
    ranges = [bins(size, factor) for size in source.shape]
    assert image.shape == (2, *map(len, ranges)) and label.shape == image.shape[1:]
    assert image.dtype == torch.float32 and label.dtype == torch.uint8
    for place in itertools.product(*(range(len(r)) for r in ranges)):
        block = tuple(slice(*ranges[axis][i]) for axis, i in enumerate(place))
        np.testing.assert_allclose(
            image[(slice(None), *place)], whole[(slice(None), *block)].mean((1, 2, 3)), atol=1e-5
        )
        counts = [(classes[block] == k).sum() for k in range(3)]
        assert label[place] == counts.index(max(counts)), (place, counts)  # index: the lower class where even


def test_full_size_is_left_as_it_is():
    source = Counted()
    image, label = VolumeReader(source).read_pair("a")
    np.testing.assert_array_equal(image, source.read_image("a").array)
    np.testing.assert_array_equal(label, source.read_label("a"))
    torch.testing.assert_close(VolumeReader(source).read_image("a"), image, rtol=0, atol=0)


def test_down_sampling_by_a_divisor_keeps_the_mean():
    source = Counted((20, 16, 12))
    coarse = VolumeReader(source, 4).read_image("b")
    assert coarse.shape == (2, 5, 4, 3)
    np.testing.assert_allclose(coarse.mean((1, 2, 3)), source.read_image("b").array.mean((1, 2, 3)), atol=1e-5)


def test_evaluation_keeps_the_labels_own_grid_and_spacing():
    source = Counted()
    volume = VolumeReader(source, 3).read_evaluation("y", 7)
    assert volume.image.shape == (2, 7, 6, 6)
    np.testing.assert_array_equal(volume.label, source.read_label("y"))
    assert (volume.case, volume.case_index, volume.spacing) == ("y", 7, (0.5, 1.0, 2.0))
    torch.testing.assert_close(volume.image, VolumeReader(source, 3).read_image("y"), rtol=0, atol=0)


def test_spacing_of_an_oblique_affine_is_the_length_of_its_columns():
    class Oblique(Counted):
        def read_image(self, case):
            turn = np.array([[0.6, -0.8, 0, 0], [0.8, 0.6, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
            affine = turn @ np.diag([-0.7, 1.1, 2.5, 1])
            return Image(super().read_image(case).array, affine)

    assert VolumeReader(Oblique()).read_evaluation("a", 0).spacing == pytest.approx((0.7, 1.1, 2.5))


# --- what is refused


@pytest.mark.parametrize("patch", [(0, 16, 16), (-16, 16, 16), (16, 16), (16.0, 16, 16)])
def test_patches_that_are_none_are_refused(patch):
    with pytest.raises(DualsegError, match=r"data\.patch_size=.*three whole numbers.*\[112,112,80\]"):
        module(Counted(), patch)


def test_a_patch_may_have_any_sides():
    """Networks pad by themselves."""
    assert module(Counted(), (17, 12, 5)).patch_size == (17, 12, 5)


@pytest.mark.parametrize("labeled, unlabeled", [(0, 0), (2, -1), (-1, 2)])
def test_impossible_batches_are_refused(labeled, unlabeled):
    with pytest.raises(DualsegError, match=rf"batch\.labeled={labeled}, batch\.unlabeled={unlabeled}"):
        module(Counted(), labeled_per_batch=labeled, unlabeled_per_batch=unlabeled)


def test_a_method_that_needs_unlabeled_volumes_and_gets_none_is_refused():
    with pytest.raises(DualsegError, match=r"data\.labeled=8: .*no unlabeled.* 2 per .*method=supervised"):
        module(Counted(), labeled=None)
    module(Counted(), labeled=None, unlabeled_per_batch=0)


def test_down_sampling_below_one_is_refused():
    with pytest.raises(DualsegError, match=r"data\.downsample=0\.5: give 1"):
        module(Counted(), downsample=0.5)


def faulty(image=None, label=None):
    class Faulty(Counted):
        def read_image(self, case):
            good = super().read_image(case)
            return good if image is None else Image(image(good.array), good.affine)

        def read_label(self, case):
            return super().read_label(case) if label is None else label(super().read_label(case))

    return VolumeReader(Faulty())


def poke(value):
    def change(array):
        array = array.astype(np.float64 if isinstance(value, float) else np.int64)
        array[(0,) * array.ndim] = value
        return array

    return change


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"image": poke(np.nan)}, "image holds 1 NaN or infinite voxels; repair"),
        ({"image": poke(np.inf)}, "image holds 1 NaN or infinite voxels"),
        ({"image": lambda a: a[:1]}, r"image has shape \(1, 20, 18, 17\); expected \(2, W, H, D\)"),
        ({"image": lambda a: a[0]}, r"image has shape \(20, 18, 17\); expected \(2, W, H, D\)"),
        ({"label": lambda a: a[1:]}, r"label has shape \(19, 18, 17\), its image \(20, 18, 17\)"),
        ({"label": poke(3)}, r"label holds the values 0, 1, 2, 3; expected whole numbers 0\.\.2"),
        ({"label": poke(-1)}, r"label holds the values -1, 0, 1, 2; expected"),
        ({"label": poke(259)}, r"label holds the values 0, 1, 2, 259; expected"),
        ({"label": poke(0.5)}, r"label holds the values 0, 0\.5, 1, 2; expected"),
        ({"label": poke(1.002)}, r"label holds the values 0, 1, 1\.002, 2; expected"),
        ({"label": poke(1000001)}, r"label holds the values 0, 1, 2, 1000001; expected"),
        ({"label": poke(np.inf)}, r"label holds the values 0, 1, 2, inf; expected"),
        ({"label": poke(np.nan)}, r"label holds the values 0, 1, 2, nan; expected"),
    ],
)
def test_volumes_that_cannot_be_right_are_refused_by_name(changes, message):
    for read in (lambda r: r.read_pair("c"), lambda r: r.read_evaluation("c", 0)):
        with pytest.raises(DualsegError, match=f"counted case c: {message}"):
            read(faulty(**changes))


def test_values_that_are_almost_whole_numbers_are_those_numbers():
    scaled = faulty(label=lambda label: (label * np.float32(0.99999994)).astype(np.float32))
    assert torch.equal(scaled.read_pair("c")[1], faulty().read_pair("c")[1])
    assert np.array_equal(whole_numbers(np.array([0.9995, 1.0004, 0.5])), [1, 1, 0.5])


def test_of_many_values_those_that_do_not_fit_are_told():
    text = label_problems(np.append(np.arange(12.0), 3.5).reshape(1, 1, -1), None, 12)[0].text
    assert text.startswith("holds the values 3.5; expected whole numbers 0..11")


# --- labels of unlabeled volumes are never opened

OPENED: list[str] | None = None


def _audit(event, arguments):
    if OPENED is not None and event == "open":
        OPENED.append(str(arguments[0]))


@pytest.fixture
def opened():
    """Paths of the files that Python opens from now on; CPython's audit hook sees every way of opening one."""
    global OPENED
    if not hasattr(sys, "_dualseg_audit"):  # a hook stays for the life of the process
        sys.addaudithook(_audit)
        sys._dualseg_audit = True
    OPENED = []
    yield OPENED
    OPENED = None


@pytest.fixture
def h5_reads(monkeypatch):
    """(file, name) of every object that is taken out of an HDF5 file, by whatever call."""
    reads = []
    make = h5py.Dataset.__init__

    def note(self, *arguments, **options):
        make(self, *arguments, **options)
        reads.append((self.file.filename, self.name.strip("/")))

    monkeypatch.setattr(h5py.Dataset, "__init__", note)
    return reads


def test_the_trace_sees_files_and_keys(small_la, opened, h5_reads, phantom):
    """So that the tests below can fail."""
    label = phantom.root / "labels" / "phantom_005.nii.gz"
    phantom.read_label("phantom_005")
    assert str(label) in opened
    path = small_la / case_list("train")[0] / "mri_norm2.h5"
    for take in (lambda h5: h5["label"], lambda h5: h5.get("label"), lambda h5: list(h5.values())):
        h5_reads.clear()
        with h5py.File(path) as h5:
            take(h5)
        assert (str(path), "label") in h5_reads


def test_training_opens_no_label_of_an_unlabeled_nifti_case(phantom, opened):
    data = module(Phantom(phantom.root, train=6, test=2, shape=(40, 36, 32)), labeled=2, held_out_validation=1)
    data.setup("fit")
    data.check_evaluation(["validation", "test"])
    for batch in data.train_dataloader():
        assert len(batch.label) == 2
    list(data.val_dataloader()), list(data.test_dataloader())
    labels = {path.rpartition("/")[2] for path in opened if "/labels/" in path}
    images = {path.rpartition("/")[2] for path in opened if "/images/" in path}
    assert images == {f"phantom_00{i}.nii.gz" for i in range(8)}
    assert labels == {f"phantom_00{i}.nii.gz" for i in (0, 1, 5, 6, 7)}


def test_training_takes_no_label_of_an_unlabeled_case_out_of_its_h5_file(small_la, h5_reads):
    data = module(LeftAtrium(small_la), labeled=2, held_out_test=74)
    data.setup("fit")
    for batch in data.train_dataloader():
        assert len(batch.label) == 2
    cases = case_list("train")[:6]
    taken = {(path.split("/")[-2], key) for path, key in h5_reads}
    assert taken == {(case, "image") for case in cases} | {(case, "label") for case in cases[:2]}


def test_a_prediction_reads_the_image_alone(small_la, h5_reads, phantom, opened):
    VolumeReader(LeftAtrium(small_la)).read_image(case_list("train")[5])
    assert {key for _, key in h5_reads} == {"image"}
    VolumeReader(phantom).read_image("phantom_005")
    assert not [path for path in opened if "/labels/" in path]


def weights_after_three_iterations(command, words, output):
    ended = command(train.main, *words, "trainer.max_iterations=3")
    assert ended.code == 0, ended.err
    (checkpoint,) = output.glob("*/checkpoints/iteration-000003.ckpt")
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[key], other[key]) for key in one)


def test_poisoned_labels_of_unlabeled_nifti_cases_change_nothing(command, tiny, phantom, tmp_path):
    def weights(name, poison):
        root = tmp_path / name
        shutil.copytree(phantom.root, root)
        poison(root / "labels")
        return weights_after_three_iterations(command, tiny(root, tmp_path / f"{name}-runs"), tmp_path / f"{name}-runs")

    def garbage(labels):
        for case in range(2, 6):
            (labels / f"phantom_00{case}.nii.gz").write_bytes(b"no label at all")

    def another_labeled_one(labels):
        shutil.copy(labels / "phantom_004.nii.gz", labels / "phantom_000.nii.gz")

    clean = weights("clean", lambda labels: None)
    assert same(weights("garbage", garbage), clean)
    assert not same(weights("changed", another_labeled_one), clean), "labels of labeled cases must matter"


def test_poisoned_labels_in_unlabeled_h5_files_change_nothing(command, tiny_la, small_la, tmp_path):
    poisons = iter(
        [
            lambda h5, label: h5.create_dataset("label", data=np.full(label.shape, 7, np.uint8)),
            lambda h5, label: h5.create_dataset("label", data=np.full(label.shape, np.nan, np.float32)),
            lambda h5, label: h5.create_dataset("label", data=1 - label[1:]),
            lambda h5, label: None,
        ]
    )

    def weights(name):
        output = tmp_path / name
        return weights_after_three_iterations(command, tiny_la(small_la, output), output)

    clean = weights("clean")
    for case, poison in zip(case_list("train")[2:6], poisons, strict=True):
        with h5py.File(small_la / case / "mri_norm2.h5", "a") as h5:
            label = h5["label"][()]
            del h5["label"]
            poison(h5, label)
    assert same(weights("poisoned"), clean)
    with h5py.File(small_la / case_list("train")[0] / "mri_norm2.h5", "a") as h5:
        h5["label"][...] = 1 - h5["label"][()]
    assert not same(weights("changed"), clean), "labels of labeled cases must matter"


def test_images_of_another_type_become_float32():
    reader = faulty(image=lambda a: a.astype(np.float64))
    assert reader.read_image("a").dtype == torch.float32
    assert reader.read_evaluation("a", 0).image.dtype == torch.float32
