"""Small things to test methods with: networks of stored tensors, tiny networks, volumes in memory, a watched fit."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from dualseg.data import SemiSupervisedDataModule
from dualseg.data.batch import Batch
from dualseg.data.volumes import Image, VolumeSource
from dualseg.inference import SlidingWindow
from dualseg.methods import DualNetwork, LossTerm, SegmentationMethod, Time
from dualseg.networks import SegmentationOutput

SHAPE = (16, 14, 12)  # 2,688 voxels a sample: the contrast draws several of the unreliable ones
FEATURES = 5


class Stored(nn.Module):
    """Returns its two parameters, whatever the image: the gradients of an objective can be read off them."""

    feature_channels = FEATURES

    def __init__(self, logits: Tensor, features: Tensor) -> None:
        super().__init__()
        self.logits, self.features = nn.Parameter(logits.clone()), nn.Parameter(features.clone())

    def forward(self, image: Tensor) -> SegmentationOutput:
        return SegmentationOutput(self.logits, self.features)


class Tiny(nn.Module):
    """Two pointwise convolutions with dropout between them."""

    def __init__(self, in_channels: int = 1, num_classes: int = 2, width: int = 4, dropout: float = 0.5) -> None:
        super().__init__()
        self.feature_channels = width
        self.body = nn.Conv3d(in_channels, width, 1)
        self.dropout = nn.Dropout3d(dropout)
        self.head = nn.Conv3d(width, num_classes, 1)

    def forward(self, image: Tensor) -> SegmentationOutput:
        features = self.dropout(self.body(image).relu())
        return SegmentationOutput(self.head(features), features)


class Normed(nn.Module):
    """A convolution with BatchNorm, whose statistics move, before the last one; no dropout."""

    feature_channels = 4

    def __init__(self, in_channels: int = 1, num_classes: int = 2) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(in_channels, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU())
        self.head = nn.Conv3d(4, num_classes, 1)

    def forward(self, image: Tensor) -> SegmentationOutput:
        features = self.body(image)
        return SegmentationOutput(self.head(features), features)


class Volumes(VolumeSource):
    """Noise with a bright block for each foreground class, in memory."""

    name = "volumes"
    test_cases = ("test_0", "test_1")

    def __init__(self, num_classes: int = 2, channels: int = 1, shape: tuple[int, int, int] = (20, 18, 16)) -> None:
        self.class_names = ("background", "atrium", "ventricle", "aorta")[:num_classes]
        self.channels, self.shape = channels, shape
        self.train_cases = tuple(f"case_{index}" for index in range(6))

    def _rng(self, case: str) -> np.random.Generator:
        return np.random.default_rng([int(case[-1]), case.startswith("test")])

    def read_label(self, case: str) -> np.ndarray:
        label = np.zeros(self.shape, np.uint8)
        for k in range(1, len(self.class_names)):
            x, y, z = self._rng(case).integers(1, 6, 3) + 3 * k
            label[x : x + 6, y : y + 6, z : z + 6] = k
        return label

    def read_image(self, case: str) -> Image:
        noise = 0.5 * self._rng(case).standard_normal((self.channels, *self.shape))
        return Image((noise + self.read_label(case)).astype(np.float32), np.diag([1.0, 1.5, 2.0, 1.0]))


class Bare(SegmentationMethod):
    """One network without a term: what is switched on stands alone."""

    def objective(self, batch: Batch, time: Time) -> Iterator[LossTerm]:
        yield from ()


class BarePair(Bare):
    takes = ("a", "b")


def outputs(num_classes: int, seed: int = 0, samples: int = 4) -> dict[str, tuple[Tensor, Tensor]]:
    """Logits and features of two networks that agree in part, as trained ones do: no mask is empty."""
    g = torch.Generator().manual_seed(seed)
    shared = 2 * torch.randn(samples, num_classes, *SHAPE, generator=g)
    result = {}
    for network in ("a", "b"):
        logits = shared + torch.randn(samples, num_classes, *SHAPE, generator=g)
        features = torch.randn(samples, FEATURES, *SHAPE, generator=g).abs() + logits[:, :1].relu()
        result[network] = logits, features
    return result


def stored_batch(num_classes: int, seed: int = 0, labeled: int = 2, samples: int = 4) -> Batch:
    label = torch.randint(num_classes, (labeled, *SHAPE), generator=torch.Generator().manual_seed(seed + 1000))
    return Batch(torch.zeros(samples, 1, *SHAPE), label, [f"case_{i}" for i in range(samples)])


def stored_method(
    method: type[SegmentationMethod], stored: Mapping[str, tuple[Tensor, Tensor]], **settings: Any
) -> Any:
    """A method on `Stored` networks."""
    num_classes = stored["a"][0].shape[1]
    names = ("background", "atrium", "ventricle", "aorta")[:num_classes]
    window = SlidingWindow((16, 16, 16), (8, 8, 8), memory_format=torch.contiguous_format)
    return method({i: Stored(*output) for i, output in stored.items()}, names, window, **settings)


def stored_dual(stored: Mapping[str, tuple[Tensor, Tensor]], **settings: Any) -> DualNetwork:
    """The dual method on `Stored` networks."""
    found: DualNetwork = stored_method(DualNetwork, stored, **settings)
    return found


def tiny_parts(
    source: Volumes | None = None, memory_format: torch.memory_format = torch.contiguous_format, **networks: nn.Module
) -> dict[str, Any]:
    """networks, class_names and sliding_window for a method; the weights depend on nothing but the arguments."""
    source = source or Volumes()
    torch.manual_seed(7)
    shape = {"in_channels": source.channels, "num_classes": len(source.class_names)}
    return {
        "networks": networks or {"a": Tiny(**shape), "b": Tiny(**shape, width=6)},
        "class_names": source.class_names,
        "sliding_window": SlidingWindow((16, 16, 16), (8, 8, 8), memory_format=memory_format),
    }


def volumes_data(source: Volumes | None = None, **settings: Any) -> SemiSupervisedDataModule:
    return SemiSupervisedDataModule(source or Volumes(), (16, 16, 16), labeled=2, **settings)


def cpu_trainer(iterations: int, **settings: Any) -> pl.Trainer:
    return pl.Trainer(
        **{
            "max_steps": iterations,
            "max_epochs": 1,
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "limit_val_batches": 0,
            "num_sanity_val_steps": 0,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **settings,
        }
    )


class StopAt(pl.Callback):
    """Saves a checkpoint before that iteration and stops the fit, as a kill does: nothing more happens."""

    def __init__(self, iteration: int, path: Path) -> None:
        self.iteration, self.path = iteration, path

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.iteration:
            trainer.save_checkpoint(self.path)
            raise StopIteration


def whole_and_resumed(
    make: Callable[[], SegmentationMethod], folder: Path, iterations: int = 6, at: int = 3
) -> tuple[SegmentationMethod, SegmentationMethod]:
    """The method trained at once, and another one that goes on from a checkpoint of the first `at` iterations."""
    made = []
    for _ in range(3):
        torch.manual_seed(0)
        made.append(make())
    whole, first, second = made
    path = folder / f"{at}.ckpt"
    cpu_trainer(iterations).fit(whole, volumes_data())
    cpu_trainer(iterations, callbacks=[StopAt(at, path)]).fit(first, volumes_data())
    cpu_trainer(iterations).fit(second, volumes_data(), ckpt_path=path, weights_only=True)
    assert second.trainer.global_step == iterations
    return whole, second


def differing(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    """Names of what is not the same to the last bit."""
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


plain_sgd = partial(torch.optim.SGD, lr=1.0)


class Watch(pl.Callback):
    """Parameters and learning rates after every iteration, and what the optimizer was asked to do."""

    def __init__(self) -> None:
        self.parameters: list[dict[str, Tensor]] = []
        self.rates: list[list[float]] = []
        self.steps: list[int] = []

    def _note(self, method: pl.LightningModule) -> None:
        self.parameters.append({name: p.detach().clone() for name, p in method.named_parameters()})

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._note(pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self._note(pl_module)
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])
        self.steps.append(trainer.global_step)


class States(pl.Callback):
    """The state of every network, averages included, after every iteration."""

    def __init__(self) -> None:
        self.after: list[dict[str, dict[str, Tensor]]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        networks = cast(SegmentationMethod, pl_module).networks
        self.after.append({n: {k: v.clone() for k, v in m.state_dict().items()} for n, m in networks.items()})


def fit_watched(method: SegmentationMethod, iterations: int, source: Volumes | None = None, **settings: Any) -> Watch:
    watch = Watch()
    cpu_trainer(iterations, callbacks=[watch], **settings).fit(method, volumes_data(source))
    return watch
