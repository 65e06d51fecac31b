"""On a CUDA device: precisions, memory formats, agreement with the CPU, no waiting for the device.

Where a device is a parameter, the CPU takes its turn so that these tests are known to run before there is a GPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir

from dualseg.configuration import conf_dir
from dualseg.data import Phantom, SemiSupervisedDataModule
from dualseg.data.batch import Batch
from dualseg.inference import SlidingWindow
from dualseg.losses import class_prototypes, linear_quantile
from dualseg.methods import DualNetwork, SegmentationMethod, Time, copy_paste
from dualseg.methods.audit import audit
from dualseg.networks import ResNet34VNet, VNet
from dualseg.runs.folder import RunFolder
from dualseg.training import assembly
from dualseg.training.settings import resolve
from dualseg.training.trainer import build_trainer

NO_GPU = "no CUDA device"
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)]
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]
METHODS = sorted(path.stem for path in (conf_dir() / "method").glob("*.yaml"))


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return Phantom(tmp_path_factory.mktemp("phantom"), train=6, test=2, shape=(48, 48, 32))


@pytest.fixture(autouse=True)
def full_float32(monkeypatch):
    """TF32 rounds to 11 bits, which no comparison with the CPU bears."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def side(device: str) -> int:
    """Of the patches: the CPU's turn is to be short."""
    return 32 if device == "cuda" else 16


def build(phantom, device, objective="described"):
    pl.seed_everything(0, verbose=False)
    patch = (side(device),) * 3
    data = SemiSupervisedDataModule(phantom, patch, labeled=2)
    networks = {"a": ResNet34VNet(base_channels=4), "b": VNet(base_channels=4)}
    window = SlidingWindow(patch, patch)
    method = DualNetwork(
        networks,
        phantom.class_names,
        window,
        objective=objective,
        optimizer=partial(torch.optim.SGD, lr=0.01, momentum=0.9),
    )
    return data, method


def trainer_for(iterations, device, precision="32-true"):
    return pl.Trainer(
        max_steps=iterations,
        max_epochs=1,
        accelerator={"cuda": "gpu"}.get(device, device),
        devices=1,
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def batch_on(device: str, seed: int = 0) -> Batch:
    generator, patch = torch.Generator().manual_seed(seed), (side(device),) * 3
    image = torch.randn(4, 1, *patch, generator=generator)
    label = (torch.rand(2, *patch, generator=generator) > 0.7).long()
    return Batch(image.to(device), label.to(device), list("wxyz"))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("objective", ["described", "released"])
@pytest.mark.parametrize("device", DEVICES)
def test_every_precision_trains_and_counts_iterations(phantom, device, precision, objective):
    if device == "cpu" and precision == "16-mixed":
        pytest.skip("torch scales gradients of a GPU alone")
    data, method = build(phantom, device, objective)
    before = {k: v.clone() for k, v in method.state_dict().items()}
    trainer = trainer_for(8 if device == "cuda" else 1, device, precision)
    trainer.fit(method, data)
    assert trainer.global_step == trainer.max_steps
    after = method.state_dict()
    for network in ("a", "b"):
        weights = [k for k in after if k.startswith(f"networks.{network}.") and after[k].ndim == 5]
        assert all(torch.isfinite(after[k]).all() for k in weights)
        assert all(not torch.equal(after[k].cpu(), before[k]) for k in weights)
    trainer.test(method, data, verbose=False)
    assert set(method.results["test"]) == {"a", "b", "ensemble"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device", DEVICES)
def test_losses_stay_in_float32_under_autocast(phantom, device, dtype):
    _, method = build(phantom, device)
    method.to(device)
    with torch.autocast(device, dtype=dtype):
        terms = method.loss_terms(batch_on(device), Time(5, 10))
    assert {t.value.dtype for t in terms} == {torch.float32}
    assert all(torch.isfinite(t.value) for t in terms)


@pytest.mark.parametrize("objective", ["described", "released"])
@pytest.mark.parametrize("device", DEVICES)
def test_loss_terms_agree_with_networks_in_float64(phantom, device, objective):
    """Same weights, same batch; dropout off, since the generators differ between devices.

    In float64, since the float32 of the CPU beside an H200 (AVX-512, torch 2.11.0) was 1 % off, without oneDNN as well.
    """
    _, method = build(phantom, device, objective)
    for module in method.modules():
        if isinstance(module, torch.nn.Dropout3d):
            module.p = 0.0
    method.train()
    skipped = {"contrast"}  # draws voxels from the device's generator

    def values(where: str, dtype: torch.dtype) -> dict[str, float]:
        batch = batch_on(where)
        terms = method.to(where, dtype).loss_terms(batch._replace(image=batch.image.to(dtype)), Time(10, 10))
        return {t.key: t.value.item() for t in terms if t.name not in skipped}

    in_float32 = values(device, torch.float32)
    assert in_float32 == pytest.approx(values("cpu", torch.float64), rel=2e-3, abs=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_audit_is_live(phantom, device):
    data, method = build(phantom, device)
    trainer_for(5 if device == "cuda" else 1, device).fit(method, data)
    method.to(device)
    batches = [batch_on(device, seed) for seed in range(2)]
    assert {row.verdict for row in audit(method, batches, 10)} <= {"live", "empty"}


@pytest.mark.parametrize("device", DEVICES)
def test_quantile_and_prototypes_agree_with_the_cpu_at_full_size(device):
    generator = torch.Generator().manual_seed(0)
    size = (112, 112, 80) if device == "cuda" else (28, 28, 20)
    values = torch.rand(2, *size, generator=generator).flatten()
    assert torch.equal(linear_quantile(values, 0.8), linear_quantile(values.to(device), 0.8).cpu())
    features = torch.rand(2, 16, *size, generator=generator)
    fused = (torch.rand(2, *size, generator=generator) > 0.9).long()
    reliable = torch.rand(2, *size, generator=generator) > 0.2
    on_cpu = class_prototypes(features, fused, reliable, 2)
    on_device = class_prototypes(features.to(device), fused.to(device), reliable.to(device), 2)
    torch.testing.assert_close(on_device.vectors.cpu(), on_cpu.vectors, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_sliding_window_agrees_with_the_cpu(phantom, device):
    _, method = build(phantom, device)
    method.eval()
    image = torch.from_numpy(phantom.read_image("phantom_000").array)
    on_cpu = method.probabilities(image)["ensemble"]
    on_device = method.to(device).probabilities(image.to(device))["ensemble"].cpu()
    torch.testing.assert_close(on_device, on_cpu, rtol=1e-3, atol=1e-4)


def parts_of(words: list[str], tmp_path: Path) -> tuple[Any, SemiSupervisedDataModule, SegmentationMethod]:
    """Settings, data that are read and method of a small run on the GPU, as the commands make them."""
    given = ["base_channels=4", "trainer.accelerator=gpu", "evaluate_on=[]", "trainer.progress_bar=false"]
    given += ["data.labeled=4", "data.stride=[16,16,16]", f"output={tmp_path}"]
    if not any(word.startswith("data.patch_size=") for word in words):
        given += ["data.patch_size=[16,16,16]"]
    given += [f"data.root={tmp_path / 'phantom'}", "+data.source.shape=[40,36,32]"]
    given += ["+data.source.train=8", "+data.source.test=2"]
    if not any(word.startswith("trainer.max_iterations=") for word in words):
        given += ["trainer.max_iterations=4"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        settings = resolve(compose("train", overrides=[*given, *words]))
    data = assembly.build_data(settings)
    module = assembly.build_method(settings, data.source)
    data.setup("fit")
    RunFolder.of(settings).open(settings)
    return settings, data, module


@contextmanager
def waiting_is(mode: str) -> Iterator[None]:
    """What torch does where the host waits for the GPU: `default` is nothing, `error` raises."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)
@pytest.mark.parametrize("method", [*METHODS, "supervised augmentation=strong augmentation.mix=true"])
def test_no_iteration_between_two_points_of_the_curves_waits_for_the_gpu(method: str, tmp_path: Path, monkeypatch):
    words = ["trainer.log_every=100", "trainer.precision=bf16-mixed"]
    settings, data, module = parts_of([*f"method={method}".split(), *words], tmp_path)
    search, step, watched = copy_paste.largest_component, module.training_step, []

    def allowed(*arguments: Any) -> Any:  # the one place that may wait
        with waiting_is("default"):
            return search(*arguments)

    def watching(batch: Any, batch_idx: int) -> None:
        inner = batch_idx in (1, 2)  # the first iteration is a point of the curves, and so is the last
        with waiting_is("error" if inner else "default"):
            step(batch, batch_idx)
        watched.extend([batch_idx] * inner)

    monkeypatch.setattr(copy_paste, "largest_component", allowed)
    monkeypatch.setattr(module, "training_step", watching)
    build_trainer(settings, RunFolder.of(settings), 0, "").fit(module, data)
    assert watched == [1, 2]


@pytest.mark.parametrize(
    "method", ["supervised", "mean_teacher", "bcp method.pretraining=0", "solo_mix method.pretraining=0"]
)
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)
def test_compiled_networks_train_as_they_do_uncompiled(method: str, tmp_path: Path):
    """In float32, with dropout: first by themselves, then recorded as a CUDA graph, then replayed. `bcp` has two passes
    of a network before the backward one."""
    # patches and steps in which rounding does not grow: BatchNorm of 4 values at the coarsest stage would let it
    words = ["trainer.max_iterations=5", "optimizer.lr=0.001", "data.patch_size=[32,32,32]"]
    states = []
    for compiled in (False, True):
        settings, data, module = parts_of([*f"method={method}".split(), *words], tmp_path)
        if compiled:
            module.compile_networks()
        build_trainer(settings, RunFolder.of(settings), 0, "").fit(module, data)
        states.append(module.cpu().state_dict())
    eager, graphs = states
    for name, value in eager.items():
        torch.testing.assert_close(graphs[name], value, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)
def test_patches_are_cut_on_the_gpu_as_on_the_host(tmp_path: Path):
    batches = []
    for workers in (0, 1):
        settings, data, _ = parts_of(["method=solo_mix", f"data.num_workers={workers}"], tmp_path)
        data.trainer = build_trainer(settings, RunFolder.of(settings), 0, "")
        batches.append(list(data.train_dataloader()))
    for on_gpu, on_host in zip(*batches, strict=True):
        assert on_gpu.image.is_cuda and on_gpu.label.is_cuda and not on_host.image.is_cuda
        assert torch.equal(on_gpu.image.cpu(), on_host.image) and torch.equal(on_gpu.label.cpu(), on_host.label)
        assert on_gpu.case == on_host.case
