"""One case into the output folder: the HDF5 file, its picture, and last the record that says it is finished."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from nibabel.affines import voxel_sizes

from dualseg.data.memory import Size, size_problems
from dualseg.data.volumes import Grid, Image
from dualseg.errors import DualsegError
from dualseg.files import read_json, replacing, write_json
from dualseg.machine import MemoryLimit
from dualseg.preparation.base import Preparation, Volume
from dualseg.preparation.picture import write_picture


def record_file(volume_file: Path) -> Path:
    """The record beside a case's volumes."""
    return volume_file.with_suffix(".json")


def is_finished(volume_file: Path) -> bool:
    """The record is written last."""
    return volume_file.is_file() and record_file(volume_file).is_file()


def read_record(volume_file: Path) -> dict[str, Any]:
    """The record of a finished case. Raises: DualsegError where it is damaged."""
    return read_json(record_file(volume_file))


def prepare_case(
    preparation: Preparation, case: str, files: Mapping[str, Any], out: Path, picture: Path | None
) -> None:
    """Read, prepare and write one case.

    Args:
        out: folder of the dataset.
        picture: PNG of the prepared case; None: no picture.

    Raises:
        DualsegError: naming the file that is wrong or cannot be written. Then nothing of the case is there.
    """
    target = preparation.file(out, case)
    raw = preparation.read(case, files)
    _check_memory(preparation, case, raw.image)
    prepared = preparation.prepare(case, raw)
    _write_volumes(target, prepared)
    if picture is not None:
        write_picture(picture, f"{case}, crop={preparation.crop}", prepared.image.array[0], prepared.label)
    write_json(record_file(target), _record(preparation, case, raw, prepared))


def _check_memory(preparation: Preparation, case: str, image: Image) -> None:
    """Raises: DualsegError where resampling would make more of a case than this machine holds."""
    grid = Grid(image.array.shape[1:], image.affine, len(image.array))
    voxels = grid.voxels_of((preparation.source.spacing,) * 3)
    size = Size(case, grid, grid.channels, voxels, None)  # the spacing is the protocol's, and not to be changed
    for problem in size_problems({case: size}, MemoryLimit.of("workers")).values():
        raise DualsegError(f"its image {problem.text}")


def _write_volumes(path: Path, volume: Volume) -> None:
    """`image` float32, (W, H, D) or, of several channels, (C, W, H, D); `label` uint8. Same input, same bytes.

    HDF5's latest format has checksums of its own structures, gzip has them of the voxels: no damage is read in silence.
    """
    array = volume.image.array
    memory = io.BytesIO()  # h5py may crash where the disk is full
    with h5py.File(memory, "w", libver="latest") as h5:
        h5.create_dataset("image", data=array[0] if len(array) == 1 else array, compression="gzip")
        h5.create_dataset("label", data=volume.label, compression="gzip")
    with replacing(path) as temporary:
        temporary.write_bytes(memory.getbuffer())


def _record(preparation: Preparation, case: str, raw: Volume, prepared: Volume) -> dict[str, Any]:
    sizes = voxel_sizes(prepared.image.affine)
    ml = float(np.prod(sizes)) / 1000
    classes = {
        name: round(int((prepared.label == k).sum()) * ml, 3) for k, name in enumerate(preparation.class_names) if k
    }
    return {
        "case": case,
        **preparation.settings(),
        "raw": _description(raw),
        "prepared": _description(prepared),
        "label_ml": classes,
        "raw_inside_label": round(float(raw.image.array[0][raw.label > 0].mean(dtype=np.float64)), 3),
        "remarks": list(prepared.remarks + raw.remarks),
    }


def _description(volume: Volume) -> dict[str, Any]:
    """Axes run to the left, posterior and superior; the affine maps voxel indices to mm (RAS+)."""
    array, affine = volume.image
    return {
        "shape": list(array.shape[1:]),
        "spacing": [round(float(size), 6) for size in voxel_sizes(affine)],
        "affine": affine.tolist(),
        "min": float(array.min()),
        "max": float(array.max()),
        "mean": round(float(array.mean(dtype=np.float64)), 6),
        "std": round(float(array.std(dtype=np.float64)), 6),
    }
