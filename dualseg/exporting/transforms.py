"""How a run prepares a scan, in the transforms of MONAI alone: entries of a bundle's configuration."""

from collections.abc import Sequence
from typing import Any

from dualseg.data.folder import Folder
from dualseg.data.volumes import VolumeSource
from dualseg.errors import DualsegError

Transform = dict[str, Any]

# As `resample` has it: sampled and normalised, four deviations to each side, edges repeated.
KERNELS = (
    "$lambda x, size: "
    "[torch.softmax(-0.5 * (torch.arange(-int(4 * s + 0.5), int(4 * s + 0.5) + 1).double() / s) ** 2, 0)"
    " for s in [max(1e-9, (n / m - 1) / 2) for n, m in zip(x.shape[1:], size)]]"
)
SMOOTHED = (
    "$lambda x, size: monai.data.MetaTensor(monai.networks.layers.separable_filtering("
    "x.as_tensor()[None], @kernels(x, size), mode='replicate')[0], meta=x.meta)"
)
RESAMPLED_SIZE = "$lambda x: tuple(max(1, round(n * float(s) / t)) for n, s, t in zip(x.shape[1:], x.pixdim, @spacing))"
RESAMPLED = (
    "$lambda x: (lambda size: x if tuple(x.shape[1:]) == size else "
    "monai.transforms.Resize(size, mode='trilinear', align_corners=False)(@smoothed(x, size)))(@resampled_size(x))"
)
SHRUNK = (
    "$lambda x: monai.transforms.Resize(tuple(max(1, round(n / @downsample)) for n in x.shape[1:]), mode='area')(x)"
)


def preparation(source: VolumeSource, downsample: float) -> tuple[list[Transform], dict[str, Any]]:
    """Transforms of the key `image` that do what `prepare_scan` does, and the entries that they refer to.

    Raises:
        DualsegError: MONAI has no transforms for what the source does.
    """
    transforms: list[Transform] = []
    entries: dict[str, Any] = {}
    if isinstance(source, Folder) and type(source).prepare_scan is Folder.prepare_scan:
        transforms += _intensities(source.intensity)
        axes = {"axcodes": "RAS", "labels": [["L", "R"], ["P", "A"], ["I", "S"]]}
        transforms.append({"_target_": "Orientationd", "keys": "image", **axes})
        if source.spacing is not None:
            entries |= {"spacing": list(source.spacing), "kernels": KERNELS, "smoothed": SMOOTHED}
            entries |= {"resampled_size": RESAMPLED_SIZE, "resampled": RESAMPLED}
            transforms.append({"_target_": "Lambdad", "keys": "image", "func": "@resampled"})
    elif type(source).prepare_scan is not VolumeSource.prepare_scan:
        raise DualsegError(
            f"format=bundle: MONAI's transforms cannot do what {type(source).__name__}.prepare_scan does to a scan. "
            "Use format=onnx and prepare scans yourself, or train through data=folder on the prepared volumes."
        )
    if downsample != 1:
        entries |= {"downsample": downsample, "shrunk": SHRUNK}
        transforms.append({"_target_": "Lambdad", "keys": "image", "func": "@shrunk"})
    return transforms, entries


def _intensities(each: Sequence[Any]) -> list[Transform]:
    """Of each channel its own; all at once where they are the same."""
    if all(how == each[0] for how in each):
        return _intensity("image", each[0])
    keys = [f"image_{channel}" for channel in range(len(each))]
    split = {"_target_": "SplitDimd", "keys": "image", "dim": 0, "output_postfixes": list(range(len(each)))}
    parts = [transform for key, how in zip(keys, each, strict=True) for transform in _intensity(key, how)]
    together = {"_target_": "ConcatItemsd", "keys": keys, "name": "image", "dim": 0}
    return [split, *parts, together, {"_target_": "DeleteItemsd", "keys": keys}]


def _intensity(key: str, how: Any) -> list[Transform]:
    if how is None:
        return []
    if isinstance(how, str):
        nonzero = how == "zscore_nonzero"
        return [{"_target_": "NormalizeIntensityd", "keys": key, "nonzero": nonzero, "channel_wise": True}]
    low, high = how
    window = {"a_min": low, "a_max": high, "b_min": 0.0, "b_max": 1.0, "clip": True}
    return [{"_target_": "ScaleIntensityRanged", "keys": key, **window}]
