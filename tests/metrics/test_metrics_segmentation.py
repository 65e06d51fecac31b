import pickle

import numpy as np
import pytest
import torch
from medpy.metric import binary

from dualseg.metrics.segmentation import SegmentationScores

NAMES = ["liver", "tumour"]
SPACING = (0.7, 1.0, 2.5)


def labels(case):
    """Prediction and reference of one case, classes 0..2; in case 3 nothing of class 2 is predicted."""
    rng = np.random.default_rng(100 + case)
    reference = torch.from_numpy(rng.integers(0, 3, size=(7 + case, 8, 9)))
    prediction = torch.where(torch.from_numpy(rng.random(reference.shape) < 0.7), reference, 0)
    return (prediction.clamp(max=1) if case == 3 else prediction), reference


def scored(cases, unit="voxel"):
    metric = SegmentationScores(NAMES, unit)
    for case in cases:
        metric.update(*labels(case), SPACING, case)
    return metric


@pytest.mark.parametrize("unit", ["voxel", "mm"])
def test_means_equal_medpy(unit):
    summary = scored([0, 1, 2], unit).compute()
    spacing = SPACING if unit == "mm" else None
    table = np.empty((3, 2, 4))
    for case in range(3):
        for k in (1, 2):
            p, r = ((volume == k).numpy() for volume in labels(case))
            distances = [metric(p, r, spacing) for metric in (binary.hd95, binary.asd)]
            table[case, k - 1] = [binary.dc(p, r), binary.jc(p, r), *distances]
    metrics = ["dice", "jaccard", "hd95", "asd"]
    assert list(summary.mean) == metrics
    assert list(summary.mean.values()) == pytest.approx(table.mean(axis=(0, 1)), rel=1e-12)
    assert list(summary.classes) == NAMES
    for k, name in enumerate(NAMES):
        assert list(summary.classes[name]) == metrics
        assert list(summary.classes[name].values()) == pytest.approx(table[:, k].mean(axis=0), rel=1e-12)
    assert [row[:2] for row in summary.rows] == [(case, name) for case in range(3) for name in NAMES]
    for row, expected in zip(summary.rows, table.reshape(6, 4), strict=True):
        assert row.scores[:4] == pytest.approx(expected, rel=1e-12)
        assert row.scores.empty == ""


def test_empty_masks_are_marked_in_the_rows():
    rows = {row[:2]: row.scores for row in scored([3]).compute().rows}
    assert rows[3, "liver"].empty == ""
    assert rows[3, "tumour"].empty == "prediction"
    assert rows[3, "tumour"].hd95 == pytest.approx(np.linalg.norm([10, 8, 9]))  # class 2 fills the volume of case 3


def test_order_of_cases_and_repeats_change_nothing():
    assert scored([4, 0, 3, 1, 2, 0]).compute() == scored(range(5)).compute()


def test_one_index_for_two_cases_is_refused():
    metric = scored([0])
    metric.update(*labels(1), None, 0)
    with pytest.raises(ValueError, match=r"case 0 .*scored twice"):
        metric.compute()


def test_update_after_compute_counts_and_reset_forgets():
    metric = scored([0])
    first = metric.compute()
    metric.update(*labels(1), None, 1)
    assert metric.compute() == scored([0, 1]).compute() != first
    metric.reset()
    with pytest.raises(ValueError, match="no case was scored"), pytest.warns(UserWarning):
        metric.compute()


@pytest.mark.parametrize("cast", [torch.nn.Module.half, lambda m: m.to(torch.bfloat16), lambda m: m.to(torch.float32)])
def test_scores_stay_float64_in_a_module_of_lower_precision(cast):
    holder = torch.nn.ModuleList([scored([0, 1])])
    cast(holder)
    holder[0].update(*labels(2), None, 2)
    assert holder[0].compute() == scored([0, 1, 2]).compute()


def test_wrong_use_is_refused():
    with pytest.raises(ValueError, match="class_names"):
        SegmentationScores([])
    with pytest.raises(ValueError, match="class_names"):
        SegmentationScores(["a", "a"])
    with pytest.raises(ValueError, match="'cm'"):
        SegmentationScores(NAMES, "cm")
    with pytest.raises(ValueError, match="case 7 has no spacing"):
        SegmentationScores(NAMES, "mm").update(*labels(0), None, 7)


def evaluate_share(rank, folder, shares):
    """Score this rank's cases and leave the gathered summary, and what the state held, in `folder`."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=len(shares))
    summaries = []
    for share in (shares, shares[::-1], [[], [5]]):
        metric = scored(share[rank])
        summaries.append(metric.compute())
        assert len(metric.case_bits) == len(share[rank])  # the gathered state is given back
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(summaries))
    torch.distributed.destroy_process_group()


def test_two_ranks_equal_one_process(tmp_path):
    # Unequal shares, case 2 in both of them as a sampler's padding would; then a rank without any case.
    torch.multiprocessing.spawn(evaluate_share, (tmp_path, [[4, 2], [1, 3, 0, 2]]), nprocs=2)
    everything, five = scored(range(5)).compute(), scored([5]).compute()
    for rank in range(2):
        assert pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()) == [everything, everything, five]


def test_regions_are_scored_as_the_unions_of_their_classes() -> None:
    rng = np.random.default_rng(5)
    prediction, reference = rng.integers(0, 4, (2, 9, 8, 7))
    regions = {"whole": (1, 2, 3), "core": (1, 3), "inner": (3,)}
    metric = SegmentationScores(["a", "b", "c"], regions=regions)
    metric.update(torch.from_numpy(prediction), torch.from_numpy(reference), None, case=0)
    summary = metric.compute()
    assert [*summary.classes] == [row.class_name for row in summary.rows] == [*regions]
    for row, labels in zip(summary.rows, regions.values(), strict=True):
        masks = np.isin(prediction, labels), np.isin(reference, labels)
        expected = [metric(*masks) for metric in (binary.dc, binary.jc, binary.hd95, binary.asd)]
        np.testing.assert_allclose(row.scores[:4], expected)


@pytest.mark.parametrize("labels", [(), (0, 1), (4,)])
def test_a_region_of_no_classes_is_refused(labels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"regions .*whole.* labels 1\.\.3"):
        SegmentationScores(["a", "b", "c"], regions={"whole": labels})
