"""A scan -> label map, uncertainty and disagreement on the scan's own grid."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dualseg.data.memory import BASE_BYTES, preparing_bytes
from dualseg.data.problems import Problem
from dualseg.data.volumes import Grid, Image, label_dtype
from dualseg.errors import DualsegError
from dualseg.inference.bars import bar_bytes, bar_count, segment_into
from dualseg.inference.mapping import to_slab
from dualseg.inference.scratch import Scratch
from dualseg.inference.sliding_window import SlidingWindow

MAPS = ("probabilities", "entropy", "disagreement")  # what is kept on request
MEASURES = ("mean_entropy", "mean_entropy_foreground", "disagreement", "disagreement_foreground")
SLAB_BYTES = 1 << 27  # of the arrays of one slab


@dataclass(frozen=True)
class Member:
    """Networks that see a scan alike, those of a run for example.

    Attributes:
        prepare: (scan, what messages call it) -> what the networks see.
        prepared_voxels: grid of a scan -> voxels of a channel that `prepare` makes of it, about.
        networks: name -> network that returns (logits, features).
        window: how a volume is cut.
        doubts: what makes the values of a scan doubtful, before it is prepared.
    """

    prepare: Callable[[Image, str], Image]
    prepared_voxels: Callable[[Grid], int]
    networks: Mapping[str, nn.Module]
    window: SlidingWindow
    doubts: Callable[[Image], Sequence[Problem]] = lambda scan: ()


@dataclass
class Prediction:
    """On the grid of the scan, (W, H, D).

    Attributes:
        label: of `label_dtype`, the class of the largest mean probability.
        probabilities: (W, H, D, K) float32, mean of the networks; None unless asked for, as all below.
        entropy: float32, predictive entropy of the mean probabilities over log K, 0..1.
        disagreement: uint8, 1 where two networks' own labels differ; also None where there is one network.
        measures: `mean_entropy` and `disagreement` (share of voxels), over all voxels and, as
            `mean_entropy_foreground` and `disagreement_foreground`, over those that any network calls foreground; NaN
            where there is no such voxel, or one network.
    """

    label: np.ndarray
    probabilities: np.ndarray | None
    entropy: np.ndarray | None
    disagreement: np.ndarray | None
    measures: dict[str, float]


class Predictor:
    """An ensemble of networks: each one's probabilities are brought to the scan's grid, and there averaged.

    Args:
        members: one for each way of preparing a scan.
        num_classes: K.
        device: where the networks run; they are moved there.
    """

    def __init__(self, members: Sequence[Member], num_classes: int, device: torch.device) -> None:
        self.members = tuple(members)
        self.num_classes = num_classes
        self.device = device
        for member in self.members:
            for network in member.networks.values():
                network.to(device).eval()

    @property
    def network_names(self) -> list[str]:
        return [name for member in self.members for name in member.networks]

    def doubts(self, scan: Image) -> list[Problem]:
        """What makes the values of a scan doubtful to any of the members."""
        return list(dict.fromkeys(problem for member in self.members for problem in member.doubts(scan)))

    def needs(self, grid: Grid) -> int:
        """Bytes of memory that a scan takes at the least, wherever the probabilities lie."""
        prepared = self._prepared_voxels(grid)
        windows = max(
            member.window.pass_bytes(self.num_classes) + bar_bytes(member.window, self.num_classes, prepared)
            for member in self.members
        )
        working = max(windows, self._slice_bytes(grid.shape))  # a slab has one slice at the least
        return BASE_BYTES + SLAB_BYTES + working + preparing_bytes(grid, prepared)

    def check(self, grid: Grid, where: str, budget: int) -> None:
        """Whether a scan can be predicted, by its header alone.

        Args:
            grid: of the scan, with the channels that its files have together.
            where: what messages call it.
            budget: bytes of memory.

        Raises:
            DualsegError: it takes more than the budget.
        """
        needed, prepared = self.needs(grid), self._prepared_voxels(grid)
        if needed <= budget:
            return
        size, fix = f"{' x '.join(map(str, grid.shape))} voxels", "give memory=... more"
        if prepared > math.prod(grid.shape):
            millions = f"{prepared / 1e6:.3g}" if prepared < 1e9 else f"{prepared / 1e6:,.0f}"
            size += f", {millions} million once resampled from {grid.edges},"
            fix += ", or correct the header if that is not its spacing"
        raise DualsegError(f"{where}: {size} take at least {needed / 2**30:,.1f} GiB; {fix}.")

    def _slice_bytes(self, shape: tuple[int, ...]) -> int:
        """Of all that exists at once for a slice of the result."""
        return shape[0] * shape[1] * 4 * (len(self.network_names) * self.num_classes * 3 + 12)

    def _prepared_voxels(self, grid: Grid) -> int:
        return max(member.prepared_voxels(grid) for member in self.members)

    def __call__(
        self,
        scan: Image,
        where: str,
        budget: int,
        folder: Path,
        keep: Collection[str] = (),
        progress: bool = False,
    ) -> Prediction:
        """Predict one scan.

        Args:
            scan: (C, W, H, D) float32, affine in mm.
            where: what messages call it.
            budget: bytes of memory; what does not fit lies in files of `folder` meanwhile, and the result is the same.
            keep: of `MAPS`.
            progress: show a bar.

        Raises:
            DualsegError: the scan cannot be prepared, or takes more than the budget as it is.
            OSError: `folder` has no room.
        """
        grid = Grid(scan.array.shape[1:], scan.affine, len(scan.array))
        self.check(grid, where, budget)
        scratch = Scratch(folder, budget - self.needs(grid))
        stores = self._segment(scan, where, scratch, progress)
        return self._combine(stores, scan.array.shape[1:], scratch, keep)

    def _segment(
        self, scan: Image, where: str, scratch: Scratch, progress: bool
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each network its probabilities and the matrix from voxels of the scan to theirs."""
        stores = []
        for member in self.members:
            image, affine = member.prepare(scan, where)
            to_store = np.linalg.inv(affine) @ scan.affine
            bars = bar_count(image.shape, member.window)
            with tqdm(total=bars * len(member.networks), desc=where, leave=False, disable=not progress) as bar:

                def after(bar: tqdm = bar) -> None:
                    bar.update()
                    scratch.let_go()

                for network in member.networks.values():
                    store = scratch.zeros((self.num_classes, *image.shape[1:]), np.float32)
                    segment_into(store, network, image, member.window, self.device, after)
                    stores.append((store, to_store))
        return stores

    def _combine(
        self,
        stores: Sequence[tuple[np.ndarray, np.ndarray]],
        shape: tuple[int, ...],
        scratch: Scratch,
        keep: Collection[str],
    ) -> Prediction:
        several = len(stores) > 1
        width, height, depth = shape
        # as a file has them, the first axis fastest
        label = scratch.zeros(shape, label_dtype(self.num_classes), "F")
        entropy = scratch.zeros(shape, np.float32, "F") if "entropy" in keep else None
        disagreement = scratch.zeros(shape, np.uint8, "F") if "disagreement" in keep and several else None
        probabilities = None
        if "probabilities" in keep:
            probabilities = scratch.zeros((*shape, self.num_classes), np.float32, "F")
        sums = Measures()
        step = max(1, SLAB_BYTES // self._slice_bytes(shape))
        for start in range(0, depth, step):
            stop = min(start + step, depth)
            each = torch.stack([to_slab(p, to_store, (width, height, depth), start, stop) for p, to_store in stores])
            mean = each.mean(dim=0)
            winner, own = _largest(mean), torch.stack([_largest(p) for p in each])
            spread = torch.special.entr(mean).sum(dim=0).clamp(min=0) / math.log(self.num_classes)
            differ = (own != own[:1]).any(dim=0)
            sums.add(spread, differ, (own > 0).any(dim=0) | (winner > 0))
            label[..., start:stop] = winner
            if entropy is not None:
                entropy[..., start:stop] = spread
            if disagreement is not None:
                disagreement[..., start:stop] = differ
            if probabilities is not None:
                probabilities[:, :, start:stop] = mean.movedim(0, -1)
            scratch.let_go()
        return Prediction(label, probabilities, entropy, disagreement, sums.means(several))


def _largest(probabilities: Tensor) -> Tensor:
    """(K, ...) -> `label_dtype`, the first class of the largest probability; torch's argmax is several times slower."""
    best = probabilities[0]
    winner = torch.from_numpy(np.zeros(best.shape, label_dtype(len(probabilities))))
    for value, p in enumerate(probabilities[1:], start=1):
        winner.masked_fill_(p > best, value)
        best = torch.maximum(best, p)
    return winner


class Measures:
    """Sums over slabs -> the measures of a `Prediction`."""

    def __init__(self) -> None:
        self._sums = dict.fromkeys(MEASURES, 0.0)
        self._voxels = self._foreground = 0

    def add(self, entropy: Tensor, differ: Tensor, foreground: Tensor) -> None:
        """`entropy` float, the others bool, of one slab."""
        self._voxels += entropy.numel()
        self._foreground += int(foreground.sum())
        for name, values in (("mean_entropy", entropy.double()), ("disagreement", differ.double())):
            self._sums[name] += float(values.sum())
            self._sums[f"{name}_foreground"] += float(values[foreground].sum())

    def means(self, several: bool) -> dict[str, float]:
        """Name -> mean; without `several` networks there is no disagreement."""
        means = {}
        for name, total in self._sums.items():
            count = self._foreground if name.endswith("_foreground") else self._voxels
            known = count and (several or not name.startswith("disagreement"))
            means[name] = total / count if known else math.nan
        return means
