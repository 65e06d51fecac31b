"""How surely dualseg-check tells copies of a scan from other scans: all pairs of three datasets, and made copies.

    python benchmarks/near_duplicates.py LA_ROOT HIPPOCAMPUS_ROOT HEAD_NECK_ROOT

Every pair of scans in a dataset is compared in the eight mirror images. Of every eighth scan copies are made: resampled
to voxels of 0.8, 1.25 and 2 times the edges over the same field of view; the same from the first voxel on, in whole
voxels, by which the field of view shrinks; mirrored in each way; with another scale, clipped to 8 bits, with a gamma;
with noise of 1 and 3 % of the range from the 1st to the 99th percentile; without the first slice along each axis; and
mirrored, coarser, noisy and scaled at once.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dualseg.data import Folder, LeftAtrium
from dualseg.data.checking.look import Look, look_at
from dualseg.data.checking.near import MIRRORS, SAME
from dualseg.data.preprocessing import resample, resample_to_spacing
from dualseg.data.volumes import Grid, Image, VolumeSource

EVERY = 8


def copies_of(scan: Image, rng: np.random.Generator) -> Iterator[tuple[str, Image]]:
    """(how, copy) of a scan (C, W, H, D)."""
    array, affine = scan
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    low, high = np.quantile(array, (0.01, 0.99))
    size = array.shape[1:]
    for factor in (0.8, 1.25, 2):
        yield f"voxels x {factor}", resample_to_spacing(scan, spacing * factor)
    for factor in (0.8, 1.25):
        grid = Grid(tuple(int(n / factor) for n in size), affine @ np.diag([factor, factor, factor, 1]))
        yield f"voxels x {factor}, shifted", Image(resample(array, affine, grid, order=1), grid.affine)
    for x, y, z in MIRRORS[1:]:
        yield "mirrored", Image(array[:, ::x, ::y, ::z], affine)
    unit = (array - array.min()) / np.ptp(array)
    yield "another scale", Image(3 * array + 100, affine)
    yield "8 bits, clipped", Image(np.round(np.clip((array - low) / (high - low), 0, 1) * 255), affine)
    for gamma in (0.7, 1.5):
        yield f"gamma {gamma}", Image(unit**gamma, affine)
    for share in (0.01, 0.03):
        yield f"noise of {100 * share:g} %", Image(array + share * (high - low) * rng.normal(size=array.shape), affine)
    yield "a slice less", Image(array[:, 1:, 1:, 1:], affine)
    coarse = resample_to_spacing(Image(array[:, ::-1], affine), spacing * 1.25)
    noisy = coarse.array + 0.01 * (high - low) * rng.normal(size=coarse.array.shape)
    yield "mirrored, x 1.25, noise of 1 %, scaled", Image(2 * noisy, coarse.affine)


def alike(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n,) highest correlation of a detail (C, 24, 24, 24) with n others in any mirror image."""
    flat = others.reshape(len(others), -1)
    return np.max([flat @ one[:, ::x, ::y, ::z].ravel() for x, y, z in MIRRORS], axis=0)


def measure(name: str, source: VolumeSource) -> Iterator[str]:
    """The results of a dataset as lines."""
    cases = (*source.train_cases, *source.unlabeled_cases)
    rng = np.random.default_rng(0)
    looks: list[Look] = []
    found: dict[str, list[float]] = {}
    seconds = 0.0
    for number, case in enumerate(cases):
        scan = source.read_stored(case) or source.read_image(case)
        start = time.perf_counter()
        looks.append(look_at(scan))
        seconds += time.perf_counter() - start
        if number % EVERY == 0:
            own = looks[-1].detail.astype(np.float32)
            for how, copy in copies_of(scan, rng):
                found.setdefault(how, []).append(float(alike(own, look_at(copy).detail[None].astype(np.float32))[0]))
    details = np.stack([look.detail for look in looks]).astype(np.float32)
    pairs = np.concatenate([alike(own, details[k + 1 :]) for k, own in enumerate(details[:-1])])
    most = ", ".join(f"{value:.3f}" for value in np.sort(pairs)[:-4:-1])
    yield (
        f"{name}: {(pairs > SAME).sum()} false alarms in {len(pairs)} pairs of {len(cases)} scans, "
        f"at most {most}; {100 * seconds / len(cases):.1f} s a hundred looks"
    )
    for how, values in found.items():
        over = sum(value > SAME for value in values)
        yield f"  {how}: {over} of {len(values)} copies found, at least {min(values):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("la", "hippocampus", "head_neck"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args()
    print(*measure("Left Atrium", LeftAtrium(given.la)), sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:  # the split is not to be left in the dataset's folder
        for name in ("hippocampus", "head_neck"):
            source = Folder(getattr(given, name), splits=Path(folder) / f"{name}.json", spacing=None, intensity=None)
            print(*measure(name, source), sep="\n", flush=True)


if __name__ == "__main__":
    main()
