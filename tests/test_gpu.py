"""What only a CUDA device can show: precisions, memory formats, agreement with the CPU."""

from functools import partial

import pytest
import pytorch_lightning as pl
import torch

from dualseg.data import Phantom, SemiSupervisedDataModule
from dualseg.inference import SlidingWindow
from dualseg.losses import class_prototypes, linear_quantile
from dualseg.methods import DualNetwork, Time
from dualseg.methods.audit import audit
from dualseg.networks import ResNet34VNet, VNet

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return Phantom(tmp_path_factory.mktemp("phantom"), train=6, test=2, shape=(48, 48, 32))


def build(phantom, objective="described", memory_format=torch.channels_last_3d):
    pl.seed_everything(0, verbose=False)
    data = SemiSupervisedDataModule(phantom, (32, 32, 32), labeled=2)
    networks = {"a": ResNet34VNet(base_channels=8), "b": VNet(base_channels=8)}
    window = SlidingWindow((32, 32, 32), (16, 16, 16), memory_format=memory_format)
    method = DualNetwork(
        networks,
        phantom.class_names,
        window,
        objective=objective,
        optimizer=partial(torch.optim.SGD, lr=0.01, momentum=0.9),
    )
    return data, method


def trainer_for(iterations, precision="32-true"):
    return pl.Trainer(
        max_steps=iterations,
        max_epochs=1,
        accelerator="gpu",
        devices=1,
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def gpu_batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(4, 1, 32, 32, 32, generator=generator)
    label = (torch.rand(2, 32, 32, 32, generator=generator) > 0.7).long()
    return {"image": image, "label": label, "case": list("wxyz")}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("objective", ["described", "released"])
def test_every_precision_trains_and_counts_iterations(phantom, precision, objective):
    data, method = build(phantom, objective)
    before = {k: v.clone() for k, v in method.state_dict().items()}
    trainer = trainer_for(8, precision)
    trainer.fit(method, data)
    assert trainer.global_step == 8
    after = method.state_dict()
    for network in ("a", "b"):
        weights = [k for k in after if k.startswith(f"networks.{network}.") and after[k].ndim == 5]
        assert all(torch.isfinite(after[k]).all() for k in weights)
        assert all(not torch.equal(after[k].cpu(), before[k]) for k in weights)
    trainer.test(method, data, verbose=False)
    assert set(method.results["test"]) == {"a", "b", "ensemble"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_stay_in_float32_under_autocast(phantom, dtype):
    _, method = build(phantom)
    method.cuda()
    batch = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in gpu_batch().items()}
    with torch.autocast("cuda", dtype=dtype):
        terms = method.loss_terms(batch, Time(5, 10))
    assert {t.value.dtype for t in terms} == {torch.float32}
    assert all(torch.isfinite(t.value) for t in terms)


@pytest.mark.parametrize("objective", ["described", "released"])
def test_loss_terms_agree_with_the_cpu(phantom, objective):
    """Same weights, same batch, float32; dropout off, since the generators differ between devices."""
    _, method = build(phantom, objective)
    batch = gpu_batch()
    for module in method.modules():
        if isinstance(module, torch.nn.Dropout3d):
            module.p = 0.0
    method.train()
    torch.backends.cudnn.allow_tf32 = False
    skipped = {"contrast"}  # draws voxels from the device's generator
    on_cpu = {t.key: t.value.item() for t in method.loss_terms(batch, Time(10, 10)) if t.name not in skipped}
    method.cuda()
    moved = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    on_gpu = {t.key: t.value.item() for t in method.loss_terms(moved, Time(10, 10)) if t.name not in skipped}
    assert on_gpu == pytest.approx(on_cpu, rel=2e-3, abs=1e-4)


def test_audit_is_live_on_the_gpu(phantom):
    data, method = build(phantom)
    trainer = trainer_for(5)
    trainer.fit(method, data)
    method.cuda()
    batches = [{k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in gpu_batch(s).items()} for s in range(2)]
    assert {row.verdict for row in audit(method, batches, 10)} <= {"live", "empty"}


def test_quantile_and_prototypes_agree_with_the_cpu_at_full_size():
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(2 * 112 * 112 * 80, generator=generator)
    assert torch.equal(linear_quantile(values, 0.8), linear_quantile(values.cuda(), 0.8).cpu())
    features = torch.rand(2, 16, 112, 112, 80, generator=generator)
    fused = (torch.rand(2, 112, 112, 80, generator=generator) > 0.9).long()
    reliable = torch.rand(2, 112, 112, 80, generator=generator) > 0.2
    on_cpu = class_prototypes(features, fused, reliable, 2)
    on_gpu = class_prototypes(features.cuda(), fused.cuda(), reliable.cuda(), 2)
    torch.testing.assert_close(on_gpu.vectors.cpu(), on_cpu.vectors, rtol=1e-5, atol=1e-6)


def test_sliding_window_agrees_with_the_cpu(phantom):
    _, method = build(phantom)
    method.eval()
    image = torch.from_numpy(phantom.read_image("phantom_000").array)
    torch.backends.cudnn.allow_tf32 = False
    on_cpu = method.probabilities(image)["ensemble"]
    on_gpu = method.cuda().probabilities(image.cuda())["ensemble"].cpu()
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-3, atol=1e-4)
