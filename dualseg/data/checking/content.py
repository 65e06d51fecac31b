"""What the voxels themselves show: volumes that are the same or nearly empty, no HU, labels that fit in a mirror."""

import hashlib
from collections.abc import Mapping

import numpy as np

from dualseg.data.problems import Problem

VOXELS = 64**3  # about as many are looked at of a volume: mirroring moves whole organs
BINS = 32
ROUNDING = 1e-9  # nats
# On the 80 Left Atrium volumes every label fits 1.17 to 23 times better as it is than mirrored. An organ of which four
# labels of five do gives a false alarm in a few of a hundred datasets with these three numbers.
CLEARLY = 1.1  # times better in the mirror
UNANIMOUS = 0.95  # share of the other labels that fit better as they are
LEAST_CASES = 20  # labels, below which there is no telling what is usual

SAMPLE = 1 << 20  # voxels that quantiles are taken of
BULK = (0.001, 0.999)  # quantiles
NEARLY = 0.01  # standard deviations between them: 6 of noise, and this little beside one voxel 600,000 away of 1e6
UNSET = 1e30  # no scanner measures that much: what an unset float32 holds, such as 3.4e38
PADDING = -1500  # HU, below which values only fill what was not scanned
PADDED = 0.01  # share of voxels that are the lowest value, from which on they may fill what was not scanned
LOWEST = -5000  # HU, below which is neither a measurement nor usual padding (-1024 to -3024)
WRAPPED = 62_000  # -3,536 HU in 16 bits without a sign
TISSUE = (850, 1250)  # where soft tissue lies if 1024 was added to HU


def content_hash(array: np.ndarray) -> str:
    """Of the voxels alone: neither name, header nor compression enter."""
    digest = hashlib.blake2b(str(array.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array, dtype=np.float32).data)
    return digest.hexdigest()


def flat_problem(channel: np.ndarray) -> Problem | None:
    """A channel of one value, or one that voxels far off make as good as empty once it is normalised.

    Args:
        channel: (W, H, D), finite.
    """
    low, high = float(channel.min()), float(channel.max())
    if low == high:
        return Problem("constant", f"is {low:g} in every voxel; replace the file or take the case out of the list.")
    first, last = np.quantile(sample(channel).astype(np.float64), BULK)
    if max(-low, high) > UNSET:
        text = f"reaches from {low:.4g} to {high:.4g}, which no scanner measures; correct the voxels that are far off."
        return Problem("constant", text)
    # a single voxel that far off makes this deviation; the exact one would need a copy of the volume in 8 bytes a voxel
    if last - first < NEARLY * (high - low) / channel.size**0.5:
        text = f"lies between {first:.4g} and {last:.4g} in 99.8 % of its voxels, but reaches {low:.4g} and {high:.4g}"
        return Problem("constant", f"{text}, beside which all else is one value; correct the voxels that are far off.")
    return None


def wrapped_problem(channel: np.ndarray) -> Problem | None:
    """A CT whose negative values were stored without their sign.

    Args:
        channel: (W, H, D), finite, as its file has it.
    """
    seen = sample(channel)
    wrapped, between = (seen > WRAPPED).mean(), ((seen > 20_000) & (seen <= WRAPPED)).mean()
    if channel.min() < 0 or wrapped <= max(0.001, 3 * between):
        return None
    text = f"holds {100 * wrapped:.3g} % of its voxels from {WRAPPED} to {channel.max():.6g}"
    return Problem("CT values", f"{text}: negative HU that lost their sign; subtract 65536 from values above 32767.")


def offset_problem(channel: np.ndarray) -> Problem | None:
    """A CT whose values are no Hounsfield units: nothing is as low as air or fat, tissue is at 1050, or values too low.

    Args:
        channel: (W, H, D), finite, as its file has it.
    """
    low, high = float(channel.min()), float(channel.max())
    seen = sample(channel)
    tissue = ((seen > TISSUE[0]) & (seen < TISSUE[1])).mean()
    scanned = seen[seen > PADDING]
    if scanned.size and (lowest := scanned == scanned.min()).mean() > PADDED:  # which may be padding too
        scanned = scanned[~lowest]
    added = tissue > 0.05 and np.quantile(scanned, 0.005) > -200
    if LOWEST <= low < 0 and not added:
        return None
    if low < LOWEST and not added:
        text = f"holds values down to {low:.6g}, which no CT in HU has"
        return Problem("CT values", f"{text}; write -1024 where they only fill what was not scanned, or correct them.")
    text = f"holds values from {low:.6g} to {high:.6g}, where a CT in HU has air at about -1000"
    if added:
        text += f"; {100 * tissue:.0f} % of its voxels lie from {TISSUE[0]} to {TISSUE[1]}, as soft tissue + 1024 does"
    fix = "write it in HU (subtract what was added), or move the window of data.source.intensity as far"
    return Problem("CT values", f"{text}; {fix}.")


def sample(channel: np.ndarray, voxels: int = SAMPLE) -> np.ndarray:
    """About `voxels` of (W, H, D), evenly spread; all where there are no more."""
    step = max(1, round((channel.size / voxels) ** (1 / 3)))
    return channel[::step, ::step, ::step]


def mirror_ratios(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """For each axis, how many times more the label says about the image mirrored along it than as it is.

    What a label says is the mutual information of its classes and the image's intensities, summed over channels.

    Args:
        image: (C, W, H, D), finite.
        label: (W, H, D), whole numbers.

    Returns:
        (3,) float; NaN where the label says nothing, as an empty one.
    """
    step = max(1, round((label.size / VOXELS) ** (1 / 3)))
    label = label[::step, ::step, ::step].astype(int)
    image = image[:, ::step, ::step, ::step]
    bins = [np.searchsorted(np.quantile(c, np.linspace(0, 1, BINS + 1)[1:-1]), c) for c in image]
    as_it_is, *mirrored = (
        sum(_mutual_information(b, turned) for b in bins) for turned in (label, *(np.flip(label, k) for k in range(3)))
    )
    return np.asarray(mirrored) / (as_it_is if as_it_is > ROUNDING else np.nan)


def _mutual_information(first: np.ndarray, second: np.ndarray) -> float:
    """Nats between two maps of small whole numbers."""
    count = second.max() + 1
    joint = np.bincount((first * count + second).ravel(), minlength=BINS * count).reshape(-1, count) / first.size
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / independent[seen])).sum())


def mirrored_cases(ratios: Mapping[str, np.ndarray]) -> dict[str, tuple[int, float]]:
    """The cases whose label clearly fits its image better mirrored, in a dataset where the others' do not.

    Where the others do not agree, as for an organ that is symmetric or hardly differs from what is around it, nothing
    is said: the voxels cannot show it.

    Args:
        ratios: case -> `mirror_ratios`.

    Returns:
        case -> (axis, how many times better).
    """
    known = {case: own for case, own in ratios.items() if np.isfinite(own).all()}
    if len(known) < LEAST_CASES:
        return {}
    upright = (np.array([*known.values()]) < 1).sum(axis=0)  # (3,) labels that fit better as they are
    found = {}
    for case, own in known.items():
        axis = int(own.argmax())
        if own[axis] > CLEARLY and upright[axis] / (len(known) - 1) >= UNANIMOUS:  # it is none of them itself
            found[case] = (axis, float(own[axis]))
    return found
