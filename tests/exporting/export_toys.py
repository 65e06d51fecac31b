"""Run folders of untrained networks whose answers vary all the same, made without training."""

from pathlib import Path
from typing import Any

import torch
import yaml
from hydra.utils import instantiate
from torch import nn

from dualseg import __version__
from dualseg.files import write_json
from dualseg.methods.base import CHECKPOINT_FORMAT

STAGES = {
    "channels": [2, 2, 4, 4],
    "strides": [[1, 1, 1], [2, 2, 1], [2, 2, 2], [2, 1, 2]],
    "kernels": [[3, 3, 1], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
}
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet34": {"_target_": "dualseg.networks.ResNet34VNet", "base_channels": 2},
    "vnet": {"_target_": "dualseg.networks.VNet", "base_channels": 2},
    "segresnet": {"_target_": "dualseg.networks.monai_network", "network": "SegResNet", "init_filters": 8},
    "residual_encoder": {"_target_": "dualseg.networks.ResidualEncoderUNet", **STAGES, "blocks": [1, 2, 1, 1]},
    "plain_unet": {"_target_": "dualseg.networks.PlainUNet", **STAGES},
}
PHANTOM = {"class_names": ["background", "atrium"], "channels": 1}


def write_run(
    folder: Path,
    networks: tuple[str, ...] = ("resnet34", "vnet"),
    source: str = "dualseg.data.Phantom",
    record: dict[str, Any] = PHANTOM,
    **data: Any,
) -> Path:
    """What training leaves. `record`: of the source, see `scan_record`. `data`: other values there."""
    settings = {"patch_size": [32, 16, 16], "stride": [16, 8, 8], "downsample": 1, **data}
    config = {
        "data": {"name": "toy", "root": "/nowhere", "source": {"_target_": source, "root": "/nowhere"}, **settings},
        "networks": {f"n{k}": NETWORKS[name] for k, name in enumerate(networks)},
        "inference": {"batch_size": 3},
        "trainer": {"channels_last": True, "threads": None},
        "seed": 0,
    }
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    write_json(folder / "preprocessing.json", record)
    torch.manual_seed(7)
    state = {}
    for k, name in enumerate(networks):
        network = instantiate(NETWORKS[name], in_channels=record["channels"], num_classes=len(record["class_names"]))
        _unsettle(network)
        _balance(network, record["channels"])
        state |= {f"networks.n{k}.{key}": value for key, value in network.state_dict().items()}
    checkpoint = {"state_dict": state, "dualseg": {"format": CHECKPOINT_FORMAT, "version": __version__}}
    torch.save(checkpoint, folder / "checkpoints" / "iteration-000100.ckpt")
    return folder


def _unsettle(network: nn.Module) -> None:
    """Give every normalisation its own scale, shift and statistics, as training does."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d | nn.GroupNorm | nn.InstanceNorm3d):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.uniform_(module.bias, -0.3, 0.3)
        if isinstance(module, nn.BatchNorm3d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.7, 1.5)


def _balance(network: nn.Module, channels: int) -> None:
    """Shift the logits so that every class wins somewhere."""
    last = [module for module in network.modules() if isinstance(module, nn.Conv3d)][-1]
    assert last.bias is not None
    with torch.no_grad():
        last.bias -= network.eval()(torch.randn(2, channels, 32, 32, 32)).logits.mean(dim=(0, 2, 3, 4))
