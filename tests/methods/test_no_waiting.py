"""Between the points of the curves no method waits for the device: on a CPU, nothing asks a tensor for its value."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dualseg.configuration import conf_dir
from dualseg.runs.folder import RunFolder
from dualseg.training import assembly
from dualseg.training.settings import resolve
from dualseg.training.trainer import build_trainer
from dualseg.views import largest_component

aten = torch.ops.aten
WAITING = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.is_nonzero, aten.equal, aten.unique_dim}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._unsafe_index}
READING = {"item", "tolist", "numpy", "cpu", "__array__", "__bool__", "__float__", "__int__", "__index__"}
METHODS = sorted(path.stem for path in (conf_dir() / "method").glob("*.yaml"))
WITH_TERMS = ("mean_teacher +term=[erda,guided_contrast]", "cps +term=guided_contrast")
AUGMENTED = tuple(f"{method} augmentation=strong augmentation.mix=true" for method in ("supervised", "mean_teacher"))


def allowed() -> bool:
    """Whether the largest component is being looked for: the one place that may wait."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not largest_component.__code__:
        frame = frame.f_back
    return frame is not None


class NoReading(TorchFunctionMode):
    """Raises where Python asks for values on the host, or makes a tensor on the device of values of the host.

    On a CPU these need no operation that a dispatch mode would see.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        # a device object may be that of another tensor, which on this machine is the CPU as well
        words = [value for value in (*args[1:], *kwargs.values()) if isinstance(value, str)]
        waits = name in READING or (name == "to" and "cpu" in words)
        waits |= name in ("tensor", "as_tensor") and kwargs.get("device") is not None
        assert not waits or allowed(), f"{name}: waits for the device"
        return func(*args, **kwargs)


class NoOperation(TorchDispatchMode):
    """Raises where an operation makes the host wait for a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        assert packet not in WAITING, f"{func}: waits for the device"
        if packet in INDEXING:
            indices = [index for index in args[1] if index is not None]
            assert not any(index.dtype in (torch.bool, torch.uint8) for index in indices), f"{func}: boolean index"
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waiting() -> Iterator[None]:
    with NoOperation(), NoReading():
        yield


def test_the_mode_sees_each_kind_of_waiting():
    x = torch.arange(4.0)
    for waits in (
        lambda: x[0].item(),
        lambda: bool(x.sum() > 1),
        lambda: x.nonzero(),
        lambda: x[x > 1],
        lambda: x.masked_select(x > 1),
        lambda: x.__setitem__(x > 1, torch.zeros(2)),
        lambda: x.numpy(),
        lambda: x.tolist(),
        lambda: x.to("cpu", torch.float64),
        lambda: x.to(device="cpu"),
        lambda: torch.tensor([1.0, 2.0], device=x.device),
    ):
        with pytest.raises(AssertionError), no_waiting():
            waits()
    with no_waiting():
        x[torch.tensor([0, 2])].where(x[:2] > 0, 0.0).sort()
        largest_component(torch.ones(1, 2, 2, 2, dtype=torch.long), [1])


@pytest.mark.parametrize("method", [*METHODS, *WITH_TERMS, *AUGMENTED])
def test_an_iteration_between_two_points_of_the_curves(method, tmp_path, phantom):
    words = [*f"method={method}".split(), "base_channels=4", "trainer.accelerator=cpu", "trainer.threads=1"]
    words += ["evaluate_on=[]"]
    words += ["trainer.max_iterations=4", "trainer.log_every=100", "trainer.progress_bar=false", "data.labeled=2"]
    words += ["data.patch_size=[16,16,16]", "data.stride=[16,16,16]", f"data.root={phantom.root}"]
    words += [f"+data.source.{key}={value}" for key, value in (("train", 6), ("test", 2), ("shape", "[40,36,32]"))]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        settings = resolve(compose("train", overrides=[*words, f"output={tmp_path}"]))
    data = assembly.build_data(settings)
    module = assembly.build_method(settings, data.source)
    data.setup("fit")
    folder = RunFolder.of(settings)
    folder.open(settings)
    watched = []
    step = module.training_step

    def watching(batch: Any, batch_idx: int) -> None:
        if batch_idx in (0, 3):  # the first iteration is a point of the curves, and so is the last
            step(batch, batch_idx)
            return
        with no_waiting():
            step(batch, batch_idx)
        watched.append(batch_idx)

    module.training_step = watching
    build_trainer(settings, folder, 0, "").fit(module, data)
    assert watched == [1, 2]
