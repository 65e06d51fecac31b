"""How a run prepares a scan, in the transforms of MONAI alone: entries of a bundle's configuration."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dualseg.data.brats2019 import PERCENTILE, BraTS2019
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
# Not NormalizeIntensity's nonzero: what is 0 is scored too.
BRAIN_SCORED = (
    "$lambda x: monai.data.MetaTensor(torch.stack([(c - b.mean()) / b.std(correction=0)"
    " for c in x.as_tensor() for b in [c[c > 0].double()]]).float(), meta=x.meta)"
)


class Preparation(NamedTuple):
    """What is done to the key `image` of a scan.

    Attributes:
        transforms: in their order.
        entries: of the configuration, which the transforms refer to.
        crops: parts of the scan are cut away; they are background.
    """

    transforms: list[Transform]
    entries: dict[str, Any]
    crops: bool = False


def preparation(source: VolumeSource, downsample: float) -> Preparation:
    """What `prepare_scan` does, and reading at `downsample`.

    Raises:
        DualsegError: MONAI has no transforms for what the source does.
    """
    how = type(source).prepare_scan
    if isinstance(source, Folder) and how is Folder.prepare_scan:
        done = _as_folder(source)
    elif isinstance(source, BraTS2019) and how is BraTS2019.prepare_scan:
        done = _as_brats(source)
    elif how is VolumeSource.prepare_scan:
        done = Preparation([], {})
    else:
        raise DualsegError(
            f"format=bundle: MONAI's transforms cannot do what {type(source).__name__}.prepare_scan does to a scan. "
            "Use format=onnx and prepare scans yourself, or train through data=folder on the raw scans as NIfTI."
        )
    if downsample != 1:
        shrunk = [{"_target_": "Lambdad", "keys": "image", "func": "@shrunk"}]
        entries = {"downsample": downsample, "shrunk": SHRUNK}
        done = Preparation([*done.transforms, *shrunk], done.entries | entries, done.crops)
    return done


def _as_folder(source: Folder) -> Preparation:
    transforms = [*_intensities(source.intensity), _turn("RAS")]
    if source.spacing is None:
        return Preparation(transforms, {})
    resample, entries = _resample(source.spacing)
    return Preparation([*transforms, resample], entries)


def _as_brats(source: BraTS2019) -> Preparation:
    resample, entries = _resample((source.spacing,) * 3)
    crop = {"_target_": "CropForegroundd", "keys": "image", "source_key": "image", "select_fn": "$lambda x: x != 0"}
    clip = {"_target_": "ClipIntensityPercentilesd", "keys": "image", "lower": None, "upper": PERCENTILE}
    scored = {"_target_": "Lambdad", "keys": "image", "func": BRAIN_SCORED}
    return Preparation([_turn("LPS"), crop, {**clip, "channel_wise": True}, scored, resample], entries, crops=True)


def _turn(axes: str) -> Transform:
    labels = [["L", "R"], ["P", "A"], ["I", "S"]]  # MONAI's own default depends on the metadata
    return {"_target_": "Orientationd", "keys": "image", "axcodes": axes, "labels": labels}


def _resample(spacing: Sequence[float]) -> tuple[Transform, dict[str, Any]]:
    """The transform, and the entries that it refers to."""
    entries = {"spacing": list(spacing), "kernels": KERNELS, "smoothed": SMOOTHED}
    entries |= {"resampled_size": RESAMPLED_SIZE, "resampled": RESAMPLED}
    return {"_target_": "Lambdad", "keys": "image", "func": "@resampled"}, entries


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
    if isinstance(how, Mapping):
        low, high = how["clip"]
        ends = [(edge - how["mean"]) / how["deviation"] for edge in (low, high)]
    else:
        (low, high), ends = how, [0.0, 1.0]
    window = {"a_min": low, "a_max": high, "b_min": ends[0], "b_max": ends[1], "clip": True}
    return [{"_target_": "ScaleIntensityRanged", "keys": key, **window}]
