"""A training iteration of the whole method against a bare forward + backward + SGD of the same two networks."""

import copy
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from training import training

RATIO_LIMIT = 1.10
WARM_UP = 2


class BareStep:
    """Forward, backward from a fixed gradient of the logits, SGD; networks and batch in channels-last, no loss."""

    def __init__(self, networks: nn.ModuleDict, optimizer: torch.optim.Optimizer) -> None:
        self.networks = copy.deepcopy(networks)
        self.optimizer = torch.optim.SGD(self.networks.parameters(), **optimizer.defaults)
        self.gradients: list[Tensor] = []

    def __call__(self, image: Tensor) -> None:
        self.optimizer.zero_grad()
        logits = [network(image).logits for network in self.networks.values()]
        if not self.gradients:
            self.gradients = [torch.randn_like(z) / z.numel() for z in logits]
        torch.autograd.backward(logits, self.gradients)
        self.optimizer.step()


class Paired(pl.Callback):
    """Takes a bare step after every iteration of the training loop, and times both: the loop's with all it does."""

    def __init__(self) -> None:
        self.method_s: list[float] = []
        self.bare_s: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module.networks, nn.ModuleDict)
        self.bare = BareStep(pl_module.networks, trainer.optimizers[0])
        self.began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        middle = time.perf_counter()
        self.bare(batch.image)
        end = time.perf_counter()
        self.method_s.append(middle - self.began)
        self.bare_s.append(end - middle)
        self.began = time.perf_counter()


def run(base_channels: int = 16, patch: tuple[int, int, int] = (64, 64, 32), repeats: int = 10) -> dict[str, Any]:
    """Train `repeats` iterations after a warm-up, with a bare step after each; seconds are medians."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"data.patch_size={list(patch)}", f"base_channels={base_channels}"]
        _, data, method, trainer = training(Path(folder), WARM_UP + repeats, overrides)
        paired = Paired()
        trainer.callbacks.append(paired)  # the last: what the others do is the loop's time  # type: ignore[attr-defined]
        trainer.fit(method, data)
    method_s, bare_s = (statistics.median(seconds[WARM_UP:]) for seconds in (paired.method_s, paired.bare_s))
    return {
        "name": "step",
        "subject": (
            f"{repeats} iterations of trainer.fit, objective=described, patch {'x'.join(map(str, patch))}, batch 2+2, "
            f"base_channels {base_channels}, each followed by a bare step on the same batch; medians"
        ),
        "facts": {"iteration": f"{method_s:.3f} s", "bare step": f"{bare_s:.3f} s"},
        "checks": [("time / bare step", method_s / bare_s, RATIO_LIMIT)],
    }
