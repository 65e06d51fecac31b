"""A MONAI Bundle: the networks as programs, and a configuration of MONAI's own transforms that runs them on scans."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import monai
import nibabel
import numpy as np
import torch

from dualseg import __version__
from dualseg.data.volumes import VolumeSource, label_dtype
from dualseg.errors import DualsegError
from dualseg.exporting.networks import Inference, as_program, example_patches
from dualseg.exporting.transforms import Preparation, preparation
from dualseg.files import write_json, write_text
from dualseg.inference.predictor import Member
from dualseg.names import as_markdown

TOLERANCE = 1e-4  # of a probability
# what a folder's own name has of a pattern is no pattern; without a file there is nothing to succeed in
FILES = (
    "$sorted(file for end in ('nii', 'nii.gz')"
    " for file in glob.glob(os.path.join(glob.escape(@dataset_dir), '*.' + end)))"
    " or sys.exit('error: dataset_dir=' + @dataset_dir + ': no folder with .nii or .nii.gz files; correct it.')"
)
SCANS = "$[{'image': file} for file in @files]"
# of several channels: one 4-D file, or CASE_0000.nii.gz, CASE_0001.nii.gz, ...; the headers say which
CHANNEL_FILES = (
    "$[file for file in @files if re.search(r'_\\d{4}\\.nii(\\.gz)?$', file) and nibabel.load(file).shape[3:] != (%d,)]"
)
SCANS_OF_CHANNELS = (
    "$[{'image': file} for file in @files if file not in @channel_files]"
    " + [{'image': [re.sub(r'_0000(\\.nii(\\.gz)?)$', r'_%%04d\\1' %% c, first) for c in range(%d)]}"
    " for first in sorted({re.sub(r'_\\d{4}(\\.nii(\\.gz)?)$', r'_0000\\1', file) for file in @channel_files})]"
)
PREDICTED = "$lambda x: monai.data.MetaTensor(@inferer(x.as_tensor()[None], @networks::%d)[0], meta=x.meta)"
# Shape and affine to go back to. The label map gets its metadata too: NaN says that its file has no axis of channels,
# as that of a 4-D scan does.
SCAN = (
    "$lambda x: monai.data.MetaTensor(x.as_tensor()[:1], affine=x.affine, meta={'original_channel_dim': float('nan')})"
)
LICENSE = """The configuration in this folder was written by dualseg, which is under the Apache License 2.0.

Nobody has said yet under which terms the weights in models/ may be used: that is for those who trained them. Put their
licence here before you pass the folder on.
"""


def write_bundle(folder: Path, member: Member, source: VolumeSource, facts: Mapping[str, Any]) -> None:
    """configs/, models/NETWORK.pt2, docs/README.md and LICENSE.

    Args:
        folder: exists.
        member: networks and window of the run, as dualseg-predict has them, on the CPU.
        source: of the run.
        facts: see `describe`.

    Raises:
        DualsegError: MONAI cannot prepare scans as the run does or would take the name of a class for an expression; a
            program differs from its network.
    """
    for name in source.class_names:
        if name.startswith(("$", "@", "%")):
            raise DualsegError(f"class {name}: MONAI takes a text that begins with {name[0]} for an expression.")
    prepared = preparation(source, facts["downsample"])
    models = folder / "models"
    models.mkdir()
    for name, network in member.networks.items():
        _write_program(models / f"{name}.pt2", Inference(network, softmax=True), facts)
    entries = _configuration(member, prepared, source.channels, len(source.class_names))
    write_json(folder / "configs" / "inference.json", entries)
    write_json(folder / "configs" / "metadata.json", _metadata(facts))
    write_text(folder / "docs" / "README.md", _readme(facts, list(member.networks)))
    write_text(folder / "LICENSE", LICENSE)


def _write_program(path: Path, inference: Inference, facts: Mapping[str, Any]) -> None:
    inference.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    content = io.BytesIO()  # torch's own writer ends the process, in C++, on a full disk
    torch.export.save(as_program(inference, facts["channels"], facts["patch_size"]), content)
    path.write_bytes(content.getvalue())
    program = torch.export.load(path).module()
    for count in (1, 2):
        patches = example_patches(count, facts["channels"], facts["patch_size"])
        with torch.no_grad():
            off = float((program(patches) - inference(patches)).abs().max())
        if not off <= TOLERANCE:
            raise DualsegError(f"{path.name}: differs from its network by {off:.1e}; report it with its settings.")


def _configuration(member: Member, prepared: Preparation, channels: int, classes: int) -> dict[str, Any]:
    several = len(member.networks) > 1
    predictions = [f"prediction_{number}" for number in range(len(member.networks))] if several else ["label"]
    # of a single network, MONAI would average the classes
    ensemble = [{"_target_": "MeanEnsembled", "keys": predictions, "output_key": "label"}] if several else []
    used = ["image", *(predictions if several else [])]
    load = {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader", "ensure_channel_first": True}
    keep = {"_target_": "Lambdad", "keys": "image", "func": SCAN, "overwrite": "scan"}
    inference = [
        {"_target_": "Lambdad", "keys": "image", "func": PREDICTED % number, "overwrite": key}
        for number, key in enumerate(predictions)
    ]
    return {
        "imports": [f"$import {name}" for name in ("glob", "nibabel", "os", "re", "sys", "monai", "numpy", "torch")],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/scans'",
        "output_dir": "$@bundle_root + '/labels'",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "files": FILES,
        **({"channel_files": CHANNEL_FILES % channels} if channels > 1 else {}),
        "scans": SCANS if channels == 1 else SCANS_OF_CHANNELS % channels,
        "networks": [
            f"$torch.export.load(@bundle_root + '/models/{name}.pt2').module().to(@device)" for name in member.networks
        ],
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(member.window.patch_size),
            "sw_batch_size": member.window.batch_size,
            "overlap": list(member.window.overlap),
            "mode": "constant",
            "padding_mode": "constant",
            "sw_device": "@device",
            "device": "cpu",
        },
        **prepared.entries,
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [load, keep, *prepared.transforms],
        },
        # By the affines, as dualseg does; Invertd would resample once for each transform.
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                *inference,
                *ensemble,
                {"_target_": "DeleteItemsd", "keys": used},
                *_to_scan(prepared.crops),
                {"_target_": "AsDiscreted", "keys": "label", "argmax": True},
                {
                    "_target_": "SaveImaged",
                    "keys": "label",
                    "output_dir": "@output_dir",
                    "output_postfix": "label",
                    "output_dtype": f"$numpy.{label_dtype(classes)}",
                    "separate_folder": False,
                    "resample": False,
                },
            ],
        },
        "dataset": {"_target_": "Dataset", "data": "@scans", "transform": "@preprocessing"},
        "initialize": ["$torch.set_grad_enabled(False)"],
        "run": ["$[len(@postprocessing(scan)) for scan in @dataset]"],
    }


def _to_scan(crops: bool) -> list[dict[str, Any]]:
    """Probabilities of the key `label` to the grid of `scan`; beyond what was cropped all are 0, so background wins."""
    onto = {"_target_": "ResampleToMatchd", "keys": "label", "key_dst": "scan"}
    interpolated = {**onto, "mode": "bilinear", "padding_mode": "border"}
    if not crops:
        return [interpolated]
    ones = "$lambda x: monai.data.MetaTensor(torch.ones_like(x.as_tensor()[:1]), meta=x.meta)"
    return [
        {"_target_": "Lambdad", "keys": "label", "func": ones, "overwrite": "inside"},
        interpolated,
        # the nearest voxel: up to the faces of the outermost ones
        {**onto, "keys": "inside", "mode": "nearest", "padding_mode": "zeros"},
        {"_target_": "MaskIntensityd", "keys": "label", "mask_key": "inside"},
    ]


def _metadata(facts: Mapping[str, Any]) -> dict[str, Any]:
    patch = {"spatial_shape": facts["patch_size"], "dtype": "float32", "is_patch_data": True}
    classes = {str(value): name for value, name in enumerate(facts["class_names"])}
    image = {"type": "image", "format": "magnitude", "num_channels": facts["channels"], **patch}
    label = {"type": "image", "format": "probabilities", "num_channels": len(classes), **patch, "channel_def": classes}
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
        "meta_schema_20240725.json",
        "version": "0.1.0",
        "changelog": {"0.1.0": f"exported by dualseg {__version__}"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"nibabel": nibabel.__version__},
        "task": f"Segmentation of {', '.join(facts['class_names'][1:])}",
        "description": "Networks trained by dualseg; label maps on the scans' own grids",
        "authors": "",
        "copyright": "",
        "intended_use": "Research",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": label}},
        "dualseg": dict(facts),
    }


def _readme(facts: Mapping[str, Any], networks: Sequence[str]) -> str:
    classes = as_markdown(", ".join(f"{value} {name}" for value, name in enumerate(facts["class_names"])))
    several = "one 4-D file a scan, or `CASE_0000.nii.gz`, `CASE_0001.nii.gz`, ..."
    return f"""# Segmentation by {len(networks)} networks

Labels: {classes}.

```
pip install 'monai[fire,nibabel]'
python -m monai.bundle run --bundle_root DIR --config_file DIR/configs/inference.json \\
    --dataset_dir SCANS --output_dir OUT
```

DIR is this folder, SCANS a folder of NIfTI files in mm ({"one file a scan" if facts["channels"] == 1 else several}),
as they come from the scanner. OUT/SCAN_label.nii.gz lies on the scan's own grid.
MONAI's reader does not compare the checksums of .nii.gz files, so that a damaged one may be segmented: test them first
(`gzip -t SCANS/*.gz`). Files of other kinds are passed over.
Written with torch {torch.__version__.partition("+")[0]} and MONAI {monai.__version__}; older ones may not read it.
"""
