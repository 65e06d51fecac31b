"""One ONNX file for each network, and a JSON file beside it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from dualseg.errors import DualsegError
from dualseg.exporting.networks import Inference, as_program, example_patches
from dualseg.files import write_json

TOLERANCE = 1e-4  # of the largest logit, or of 1: trained networks have logits of 20 and of 300


def write_onnx(folder: Path, networks: Mapping[str, nn.Module], facts: Mapping[str, Any]) -> None:
    """NETWORK.onnx, image (batch, C, w, h, d) -> logits (batch, K, w, h, d), and NETWORK.json.

    Args:
        folder: exists.
        networks: trained, on the CPU.
        facts: see `describe`; in the JSON file and in the model's own metadata.

    Raises:
        DualsegError: what onnxruntime computes is not what PyTorch computes.
    """
    for name, network in networks.items():
        path = folder / f"{name}.onnx"
        _write_model(path, Inference(network, softmax=False), facts)
        off = _difference(path, network, facts)
        if not off <= TOLERANCE:
            raise DualsegError(
                f"{path.name}: differs from PyTorch by {off:.1e} of the largest logit; report it with the network's "
                "settings."
            )
        layout = {"input": "image (batch, channel, voxel axes of prepared volumes)", "output": "logits (no softmax)"}
        checked = {"largest_logit_difference": off, "in_units_of": "the largest logit, or 1", "tolerance": TOLERANCE}
        write_json(path.with_suffix(".json"), {"network": name, **layout, **facts, "checked": checked})


def _write_model(path: Path, inference: Inference, facts: Mapping[str, Any]) -> None:
    program = as_program(inference, facts["channels"], facts["patch_size"])
    exported = torch.onnx.export(
        program, dynamo=True, input_names=["image"], output_names=["logits"], external_data=False, verbose=False
    )
    assert exported is not None
    model = exported.model_proto
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in facts.items()})
    onnx.save(model, path)


def _difference(path: Path, network: nn.Module, facts: Mapping[str, Any]) -> float:
    """Largest difference from the unfolded network's logits, over patches one by one and two at a time.

    In units of the largest logit where that is above 1.
    """
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = []
    for count in (1, 2):
        image = example_patches(count, facts["channels"], facts["patch_size"])
        with torch.inference_mode():
            expected = network.eval()(image).logits.numpy()
        (found,) = session.run(None, {"image": image.numpy()})
        worst.append(float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max())))
    return float(np.max(worst))
