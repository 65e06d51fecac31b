"""The metrics of a set of cases, gathered over the ranks of a distributed evaluation."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat
from torchmetrics.utilities.distributed import gather_all_tensors

from dualseg.metrics.functional import Empty, Scores, label_scores

METRICS = ("dice", "jaccard", "hd95", "asd")

_EMPTY: tuple[Empty, ...] = ("", "prediction", "reference", "both")
_COLUMNS = 2 + len(Scores._fields)  # case, class, then the scores with `empty` as its index in _EMPTY


class CaseScores(NamedTuple):
    """One row of cases.csv: the scores of one class in one case."""

    case: int
    class_name: str
    scores: Scores


class Summary(NamedTuple):
    """What `SegmentationScores.compute` gives, on every rank.

    `mean` maps each of `METRICS` to the mean over cases of the mean over foreground classes; `classes` maps each class
    name to the same for that class alone; `rows` lists every case and class, in the order of case index, then class.
    """

    mean: dict[str, float]
    classes: dict[str, dict[str, float]]
    rows: list[CaseScores]


class SegmentationScores(Metric):
    """Dice, Jaccard, 95HD and ASD of whole volumes (method.md section 5), one update per case.

    The result depends neither on the order of the cases nor on which rank scored which: it equals the single-process
    result to the last bit. A case scored more than once (a distributed sampler repeats cases to make the ranks' shares
    equal) counts once.

    Args:
        class_names: names of the foreground classes 1..K-1, in the order of their labels.
        distance_unit: "voxel", as the literature's tables, or "mm".
        regions: name -> labels whose union is scored, in the place of each class alone.

    Raises:
        ValueError: no class name, a repeated one, an unknown unit, or a region of labels that are none of the classes.

    >>> metric = SegmentationScores(["atrium"])
    >>> metric.update(torch.ones(4, 4, 4, dtype=torch.long), torch.ones(4, 4, 4, dtype=torch.long), None, case=0)
    >>> metric.compute().mean
    {'dice': 1.0, 'jaccard': 1.0, 'hd95': 0.0, 'asd': 0.0}
    """

    is_differentiable = False
    full_state_update = False

    def __init__(
        self,
        class_names: Sequence[str],
        distance_unit: Literal["voxel", "mm"] = "voxel",
        regions: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        super().__init__(dist_sync_fn=_gather_rows)
        if not class_names or len(set(class_names)) != len(class_names):
            raise ValueError(f"class_names {list(class_names)} must name each foreground class once")
        if distance_unit not in ("voxel", "mm"):
            raise ValueError(f"distance_unit {distance_unit!r} must be 'voxel' or 'mm'")
        self.num_classes = len(class_names) + 1
        regions = regions or {name: [label] for label, name in enumerate(class_names, start=1)}
        if any(not labels or not {*labels} <= {*range(1, self.num_classes)} for labels in regions.values()):
            raise ValueError(f"regions {dict(regions)} must be made of the labels 1..{len(class_names)}")
        self.class_names = tuple(regions)
        self.regions = [tuple(labels) for labels in regions.values()]
        self.distance_unit = distance_unit
        # One (classes or regions, _COLUMNS) tensor per case: the bits of float64 numbers seen as int64. Integers stay
        # what they are under .half() and .to(dtype), and MPS, which has no float64, holds them too.
        self.case_bits: list[Tensor]
        self.add_state("case_bits", default=[], dist_reduce_fx="cat")

    def update(self, prediction: Tensor, reference: Tensor, spacing: Sequence[float] | None, case: int) -> None:
        """Score one case.

        Args:
            prediction: integer labels 0..K-1, (W, H, D), on any device.
            reference: the same.
            spacing: voxel size along W, H and D in mm; read only where `distance_unit` is "mm".
            case: index of the case in the dataset, the same number on whichever rank scores it.

        Raises:
            ValueError: no spacing where `distance_unit` is "mm"; and as `functional.label_scores`.
        """
        if self.distance_unit == "mm" and spacing is None:
            raise ValueError(f"case {case} has no spacing, which distance_unit 'mm' needs")
        results = label_scores(
            prediction.cpu().numpy(),
            reference.cpu().numpy(),
            self.num_classes,
            spacing if self.distance_unit == "mm" else None,
            self.regions,
        )
        rows = [[case, k, *result[:-1], _EMPTY.index(result.empty)] for k, result in enumerate(results)]
        self.case_bits.append(torch.tensor(rows, dtype=torch.float64).view(torch.int64).to(self.device))

    def compute(self) -> Summary:
        """Means and rows over the cases of all ranks; every rank must call it. Later calls reuse its result.

        Raises:
            ValueError: no case was scored, or two different results bear the same case index.
        """
        # dim_zero_cat would refuse an empty list with a message about torchmetrics.
        bits = dim_zero_cat(self.case_bits) if len(self.case_bits) else torch.empty(0, _COLUMNS, dtype=torch.int64)
        rows = sorted({self._row(values) for values in bits.cpu().view(torch.float64).tolist()})
        if not rows:
            raise ValueError("no case was scored: call update before compute")
        keys = [row[:2] for row in rows]
        for key, following in itertools.pairwise(keys):
            if key == following:
                raise ValueError(f"case {key[0]} was scored twice with different results: give each its own index")

        table = torch.tensor([row[2][:-1] for row in rows], dtype=torch.float64)
        by_case = table.view(-1, len(self.class_names), len(METRICS))
        return Summary(
            mean=dict(zip(METRICS, by_case.mean(dim=1).mean(dim=0).tolist(), strict=True)),
            classes={
                name: dict(zip(METRICS, values, strict=True))
                for name, values in zip(self.class_names, by_case.mean(dim=0).tolist(), strict=True)
            },
            rows=[CaseScores(case, self.class_names[k], result) for case, k, result in rows],
        )

    @staticmethod
    def _row(values: list[float]) -> tuple[int, int, Scores]:
        """Case index, class index and scores of one row of the state."""
        case, k, dice, jaccard, hd95, asd, empty = values
        return int(case), int(k), Scores(dice, jaccard, hd95, asd, _EMPTY[int(empty)])


def _gather_rows(rows: Tensor, group: Any) -> list[Tensor]:
    """Rows of every rank.

    A rank without a case comes with torchmetrics' stand-in, a float tensor of shape (0,), which `gather_all_tensors`
    cannot match with the int64 tables of the others.
    """
    return gather_all_tensors(rows.to(torch.int64).reshape(-1, _COLUMNS), group)
