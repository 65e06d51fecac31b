"""How the intensities of a channel are normalised: what `data.source.intensity` takes, checked and done."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dualseg.arguments import is_list, is_number
from dualseg.data.preprocessing import window, z_score
from dualseg.errors import DualsegError

SCORES = ("zscore", "zscore_nonzero")
# CT, CTA, CBCT (cone beam), NCCT (without contrast), CECT (with it), CT_venous, HU
_CT = re.compile(r"(^|[^a-z])(cb|nc|ce)?cta?([^a-z]|$)|^hu$", re.IGNORECASE)


def is_ct(channel_name: str) -> bool:
    """Whether dataset.json calls a channel so."""
    return _CT.search(channel_name) is not None


def intensities(given: Any, channel_names: Sequence[str]) -> tuple[Any, ...]:
    """What is done to each channel.

    Args:
        given: one for all channels, or a list with one for each: `zscore`; `zscore_nonzero`, which leaves out voxels of
            value 0; [low, high], a window that becomes 0..1; {clip: [low, high], mean, deviation}, clipped, then less
            the mean and divided by the deviation; None, as it is. `auto` is zscore.
        channel_names: of all C channels.

    Raises:
        DualsegError: something else, or a list for other channels.
    """
    if given == "auto":
        given = "zscore"
    several = is_list(given) and not is_window(given)
    each = list(given) if several else [given] * len(channel_names)
    if len(each) != len(channel_names):
        fix = f"give one for all channels, or one for each of {', '.join(channel_names)}"
        raise DualsegError(f"data.source.intensity={given}: is for {len(each)} channels; {fix}.")
    for how in each:
        if not (how is None or how in SCORES or (is_window(how) and how[0] < how[1]) or _is_clip(how)):
            clip = "{clip: [low,high], mean: M, deviation: S}"
            fix = f"choose {', '.join(SCORES)}, auto, null, a window [low,high], or {clip}"
            raise DualsegError(f"data.source.intensity={given}: {fix}.")
    return tuple(_plain(how) for how in each)


def normalise(channel: np.ndarray, how: Any) -> np.ndarray:
    """One channel (W, H, D) as `how` of `intensities` says; float32 unless that is None."""
    if how is None:
        return channel
    if how == "zscore":
        return z_score(channel)
    if how == "zscore_nonzero":
        return z_score(channel, channel != 0)
    if isinstance(how, Mapping):
        low, high = how["clip"]
        return ((channel.clip(low, high) - how["mean"]) / how["deviation"]).astype(np.float32, copy=False)
    return window(channel, how[0], how[1])


def kept_range(how: Any) -> tuple[float, float] | None:
    """The intensities below and above which all is the same; None: there are none."""
    edges = how["clip"] if isinstance(how, Mapping) else how
    return (float(edges[0]), float(edges[1])) if is_window(edges) else None


def is_window(value: Any) -> bool:
    """Two numbers."""
    return is_list(value) and len(value) == 2 and all(type(edge) in (int, float) for edge in value)


def _is_clip(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and {*value} == {"clip", "mean", "deviation"}
        and is_window(value["clip"])
        and value["clip"][0] < value["clip"][1]
        and is_number(value["mean"])
        and is_number(value["deviation"])
        and value["deviation"] > 0
    )


def _plain(how: Any) -> Any:
    if is_window(how):
        return [float(edge) for edge in how]
    if isinstance(how, Mapping):
        return {"clip": [float(edge) for edge in how["clip"]], **{k: float(how[k]) for k in ("mean", "deviation")}}
    return how
