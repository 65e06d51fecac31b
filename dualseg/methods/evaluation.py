"""What every method and every trained run share: networks that segment whole volumes and are scored."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from dualseg.inference import SlidingWindow
from dualseg.inference.folding import fold_batch_norm
from dualseg.metrics.segmentation import SegmentationScores, Summary
from dualseg.record import ENSEMBLE, Roles, roles_of

_SCORING = 80  # bytes for each voxel: label maps, distance transforms, slices

Stage = Literal["validation", "test"]


class NetworkEvaluation(pl.LightningModule):
    """Segments volumes with each network and with their ensemble, and scores them on the volumes' own grids.

    Args:
        networks: name -> network that returns (logits, features).
        class_names: of all K classes, background first.
        sliding_window: how volumes are cut.
        distance_unit: of 95HD and ASD.
        regions: name -> labels whose union is scored, in the place of each class alone.
        roles: which of them are averages, the ensemble, and stand for all; None: the ensemble is all of them, and it,
            or the only network, stands for all.

    Attributes:
        results: stage -> network -> Summary, filled at the end of each evaluation, the same on every rank.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        class_names: Sequence[str],
        sliding_window: SlidingWindow,
        distance_unit: Literal["voxel", "mm"] = "voxel",
        regions: Mapping[str, Sequence[int]] | None = None,
        roles: Roles | None = None,
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(networks)
        self.networks.to(memory_format=sliding_window.memory_format)  # type: ignore[call-overload]
        self.class_names = tuple(class_names)
        self.sliding_window = sliding_window
        self.roles = roles or roles_of({}, networks, "networks")
        names = [*networks, ENSEMBLE] if len(self.roles.ensemble) > 1 else list(networks)
        self.scores = nn.ModuleDict(
            {name: SegmentationScores(self.class_names[1:], distance_unit, regions) for name in names}
        )
        self.results: dict[str, dict[str, Summary]] = {}
        self._folded: dict[str, nn.Module] = {}  # of an evaluation in progress; a dict: no part of the state

    @torch.no_grad()
    def probabilities(self, image: Tensor, size: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Name -> (K, W, H, D) probabilities of an image (C, w, h, d), interpolated to `size`; `ensemble` included."""
        return self.sliding_window(self._folded or dict(self.networks.items()), image, size, self.roles.ensemble)

    def needs(self, channels: int, seen: float, own: float, on_cpu: bool = True) -> int:
        """Bytes of RAM that segmenting and scoring a volume takes, about; fitted to measured peaks.

        Args:
            channels: of the image.
            seen: voxels of the grid that the networks see.
            own: voxels of the grid that the volume is scored on.
            on_cpu: networks and probabilities are in RAM too.
        """
        classes, networks = len(self.class_names), len(self.networks)
        volume, scoring = 4 * channels * seen + own, _SCORING * own
        if not on_cpu:
            return int(volume + scoring)
        maps = 4 * classes * own * len(self.scores)
        # from where windows overlap to the own grid, then from there to the scores and the slices that are shown
        segmenting = 4 * (networks * classes + 1) * seen + 4 * networks * classes * own
        windows = self.sliding_window.pass_bytes(classes, networks)
        return int(windows + volume + max(segmenting, maps + scoring + 12 * classes * own))

    def _evaluate(self, volume: Any) -> dict[str, Tensor]:
        probabilities = self.probabilities(volume.image, volume.label.shape)
        for name, p in probabilities.items():
            self._metric(name).update(p.argmax(dim=0), volume.label, volume.spacing, volume.case_index)
        return probabilities

    def _metric(self, name: str) -> SegmentationScores:
        return cast(SegmentationScores, self.scores[name])

    def _summarise(self, stage: Stage) -> None:
        self._folded = {}
        self.results[stage] = {}
        for name in self.scores:
            self.results[stage][name] = self._metric(name).compute()
            self._metric(name).reset()

    def on_validation_start(self) -> None:
        """Along a run all ranks evaluate with rank 0's BatchNorm statistics, those of the checkpoint.

        DDP exchanges them at training's forward passes only; after the run Lightning does.
        """
        if self.trainer.state.fn == "fit" and self.trainer.world_size > 1:
            for buffer in self.networks.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def _fold(self) -> None:
        """Once for all volumes: it takes longer than a pass over a small volume."""
        self._folded = {name: fold_batch_norm(network) for name, network in self.networks.items()}

    def on_validation_epoch_start(self) -> None:
        self._fold()

    def on_test_epoch_start(self) -> None:
        self._fold()

    def validation_step(self, volume: Any, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate(volume)

    def test_step(self, volume: Any, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate(volume)

    def on_validation_epoch_end(self) -> None:
        self._summarise("validation")
        if self.trainer.state.fn != "fit":
            return
        results = self.results["validation"]
        self.log_curves({f"validation/{n}/{m}": v for n, s in results.items() for m, v in s.mean.items()})
        # the same on every rank; Lightning warns where it does not average itself
        self.log("dice", results[self.roles.record].mean["dice"], prog_bar=True, logger=False, sync_dist=True)

    def on_test_epoch_end(self) -> None:
        self._summarise("test")

    def log_curves(self, values: Mapping[str, float]) -> None:
        """Send values to every logger under the number of finished iterations."""
        for logger in self.loggers:
            logger.log_metrics(dict(values), step=self.trainer.global_step)
