"""A synthetic run folder: blobs for volumes, random numbers for scores, everything that docs/run-folder.md names."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

CONFIG = """\
name: la_dual_8
seed: 1337
data:
  name: la
  root: /data/la
  labeled: 8
  patch: [112, 112, 80]
method:
  _target_: dualseg.methods.DualNetwork
  objective: described
networks:
  a:
    _target_: dualseg.networks.ResNet34VNet
    base_channels: 16
  b:
    _target_: dualseg.networks.VNet
    base_channels: 16
trainer:
  max_iterations: {iterations}
inference:
  distance_unit: {unit}
"""

TERMS = (
    "supervised_ce", "supervised_dice", "rectification", "cross_pseudo", "uncertainty", "entropy_filtered", "cosine",
    "contrast",
)  # fmt: skip


def _blob(rng: np.random.Generator, shape: tuple[int, int], radius: float) -> np.ndarray:
    """A wobbly level set in [-1, 1], positive inside."""
    rows, columns = np.indices(shape)
    distance = np.hypot(rows - shape[0] * 0.52, columns - shape[1] * 0.47) / min(shape)
    wobble = gaussian_filter(rng.standard_normal(shape), 9)
    return radius - distance + 0.12 * wobble / wobble.std()


def write_slices(path: Path, rng: np.random.Generator, *, classes: int, disagree: bool, error: float) -> None:
    arrays: dict[str, np.ndarray] = {}
    for plane, shape in {"axial": (138, 180), "coronal": (88, 180), "sagittal": (88, 138)}.items():
        level = _blob(rng, shape, 0.28)
        guess = level + error * 0.05 * gaussian_filter(rng.standard_normal(shape), 6) * 20
        other = level + error * 0.05 * gaussian_filter(rng.standard_normal(shape), 6) * 20
        tissue = 90 + 50 * (level > 0) + 8 * gaussian_filter(rng.standard_normal(shape), 12) * 20
        image = gaussian_filter(tissue, 1) + 9 * rng.standard_normal(shape)
        edges = np.linspace(0, 0.2, classes - 1)
        arrays |= {
            f"{plane}_image": np.clip(image, 0, 255).astype(np.uint8),
            f"{plane}_reference": sum((level > edge).astype(np.uint8) for edge in edges),
            f"{plane}_prediction": sum((guess > edge).astype(np.uint8) for edge in edges),
            f"{plane}_entropy": (255 * np.exp(-((guess / 0.05) ** 2))).astype(np.uint8),
            f"{plane}_disagreement": ((guess > 0) != (other > 0)).astype(np.uint8) * disagree,
            f"aspect_{plane}": np.float64(1.0),
        }
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **arrays)


def write_run(
    folder: Path,
    *,
    cases: Sequence[str] = ("case_01", "case_02", "case_03", "case_04", "case_05"),
    networks: Sequence[str] = ("a", "b", "ensemble"),
    classes: Sequence[str] = ("atrium",),
    iterations: int = 12,
    slices: bool = True,
    split: str = "test",
    unit: str = "voxel",
    seed: int = 0,
) -> Path:
    """Write a finished run: case i of n has Dice 0.9 - 0.05 i in network a, a little more in each further network."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG.format(iterations=iterations, unit=unit))
    manifest = {
        "dualseg": "0.1.0",
        "versions": {"python": "3.11.9", "torch": "2.13.0"},
        "git": {"revision": "0123abc", "dirty": False},
        "seed": 1337,
        "hardware": {"cpu": "A & B <9000>", "cores": 2, "gpu": None},
        "data": {"dataset": "la", "fingerprint": "f00d", "labeled": 8, "unlabeled": 52, "test": len(cases)},
        "command": "dualseg-train experiment=la_paper",
        "started": "2025-01-01T10:00:00",
        "finished": "2025-01-01T10:12:14",
        "seconds": 734.2,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))

    rows = []
    summary: dict[str, dict] = {}
    for bonus, network in enumerate(networks):
        for class_index, class_name in enumerate(classes):
            for index, case in enumerate(cases):
                dice = 0.9 - 0.2 * index / max(len(cases) - 1, 1) + 0.01 * bonus - 0.05 * class_index
                rows.append([case, split, network, class_name, dice, dice / (2 - dice), 5 + index, 1 + index / 4, ""])
        per_class = {}
        for class_name in classes:
            own = [row for row in rows if row[2] == network and row[3] == class_name]
            metrics = ("dice", "jaccard", "hd95", "asd")
            per_class[class_name] = {m: float(np.mean([row[4 + i] for row in own])) for i, m in enumerate(metrics)}
        mean = {m: float(np.mean([values[m] for values in per_class.values()])) for m in metrics}
        summary[network] = mean | ({"classes": per_class} if len(classes) > 1 else {})
    with (folder / "cases.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "split", "network", "class", "dice", "jaccard", "hd95", "asd", "empty"])
        writer.writerows(rows)
    (folder / "metrics.json").write_text(json.dumps({"status": "finished", "iterations": iterations, split: summary}))

    (folder / "logs").mkdir()
    with (folder / "logs" / "curves.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["iteration", "name", "value"])
        members = [n for n in networks if n != "ensemble"]
        for t in range(1, iterations + 1):
            done = t / iterations
            for index, term in enumerate(TERMS):
                shared = term == "cosine" and len(members) > 1
                for offset, network in enumerate(members if not shared else [""]):
                    value = (0.2 + 0.1 * index + 0.05 * offset) * (0.25 + np.exp(-4 * done)) * rng.gamma(20, 0.05)
                    writer.writerow([t, f"loss/{network}/{term}" if network else f"loss/{term}", f"{value:.6g}"])
            writer.writerow([t, "loss/total", f"{3 * np.exp(-3 * done) + 0.4 * rng.gamma(20, 0.05):.6g}"])
            for i, name in enumerate(("a", "b", "labels")):
                writer.writerow([t, f"foreground/{name}", f"{0.1 + 0.02 * i:.6g}"])
            writer.writerow([t, "ramp/consistency", f"{np.exp(-5 * (1 - min(10 * done, 1)) ** 2):.6g}"])
            writer.writerow([t, "ramp/contrast", f"{0.1 * np.exp(-5 * (1 - done) ** 2):.6g}"])
            writer.writerow([t, "lr", 0.01 if done < 0.42 else 0.001 if done < 0.83 else 0.0001])
            if t % max(iterations // 12, 1) == 0:
                for offset, network in enumerate(networks):
                    score = 0.88 * (1 - np.exp(-5 * done)) + 0.01 * offset
                    writer.writerow([t, f"validation/{network}/dice", f"{score:.6g}"])
    dual = len(networks) > 1
    for index, case in enumerate(cases if slices else []):
        error = 0.4 + index / len(cases)
        write_slices(folder / "slices" / f"{case}.npz", rng, classes=len(classes) + 1, disagree=dual, error=error)
    return folder


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished two-network run; read it, do not change it."""
    return write_run(tmp_path_factory.mktemp("runs") / "finished", iterations=120)


@pytest.fixture
def make_run() -> Callable[..., Path]:
    """`write_run`, for tests that change the run they ask for."""
    return write_run
