"""Seconds that collecting many run folders takes: all tables, comparisons, figures and the page of a study.

A script makes the folders: variants x seeds, each with 20 cases x 3 networks and the curves of 2,000 iterations.
"""

import csv
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dualseg.runs.reading import CASE_COLUMNS, METRICS
from dualseg.studies.index import Job, Sweep
from dualseg.studies.members import members_of
from dualseg.studies.study import study_of
from dualseg.studies.writing import write_study

SECONDS_LIMIT = 20
NETWORKS = ("a", "b", "ensemble")
TERMS = 27  # curves that a run of two networks logs at each point


def config(variant: str, seed: int) -> dict[str, Any]:
    """A resolved configuration of the usual size."""
    network = {"_target_": "dualseg.networks.VNet", "base_channels": 8, "dropout": 0.5}
    return {
        "data": {"name": "la", "root": "/data/la", "labeled": 8, "labeled_ratio": None, "held_out_test": 20,
                 "source": {"_target_": "dualseg.data.LeftAtrium", "root": "/data/la"},
                 "patch_size": [32, 32, 16], "stride": [8, 8, 4], "downsample": 4, "num_workers": 0},
        "networks": {name: {"architecture": name, **network} for name in ("resnet34", "vnet")},
        "batch": {"labeled": 2, "unlabeled": 2},
        "method": {"name": "dual", "confidence": 0.6, "variant": variant,
                   "terms": {f"term_{i}": {"enabled": True, "weight": 1.0} for i in range(8)}},
        "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.0001},
        "trainer": {"max_iterations": 2000, "accelerator": "auto", "devices": 1, "precision": "32-true"},
        "objective": "described", "study": "fake", "scale": "cpu", "variant": variant, "seed": seed,
        "inference": {"batch_size": 4, "distance_unit": "voxel"},
    }  # fmt: skip


def curves() -> str:
    """logs/curves.csv of 2,000 iterations, a point every 10."""
    names = [f"loss/a/term_{i}" for i in range(TERMS - 1)] + ["time/seconds_per_iteration"]
    rows = [f"{iteration},{name},0.123457" for iteration in range(10, 2001, 10) for name in names]
    return "\n".join(["iteration,name,value", *rows]) + "\n"


def write_run(folder: Path, variant: str, seed: int, level: float, curve: str) -> None:
    """A finished run whose cases have Dice around `level`."""
    rng = np.random.default_rng([seed, *variant.encode()])
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(CASE_COLUMNS)
    summary = {}
    for network in NETWORKS:
        dice = np.clip(rng.normal(level, 0.05, 20), 0, 1).round(6)
        scores = np.stack(
            [dice, (dice / (2 - dice)).round(6), (20 * (1 - dice)).round(6), (5 * (1 - dice)).round(6)], 1
        )
        rows.writerows([f"case{i:02d}", "test", network, "atrium", *values, ""] for i, values in enumerate(scores))
        summary[network] = dict(zip(METRICS, scores.mean(axis=0).tolist(), strict=True))
    (folder / "logs").mkdir(parents=True)
    (folder / "logs" / "curves.csv").write_text(curve)
    (folder / "config.yaml").write_text(yaml.safe_dump(config(variant, seed), sort_keys=False))
    (folder / "cases.csv").write_text(text.getvalue())
    manifest = {
        "dualseg": "0.1.0", "versions": {"torch": "2.13.0"}, "git": {"revision": "0" * 40, "dirty": seed == 0},
        "seed": seed, "hardware": {"cpu": "CPU", "cores": 1, "threads": 1, "gpu": None},
        "data": {"dataset": "la", "fingerprint": "f00d", "labeled": 8, "unlabeled": 52, "test": 20},
        "command": f"dualseg-train variant={variant} seed={seed}", "started": "2026-01-01T00:00:00+00:00",
        "seconds": 450.0, "resumed": [],
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "metrics.json").write_text(json.dumps({"status": "finished", "iterations": 2000, "test": summary}))


def write_sweep(runs: Path, variants: int, seeds: int) -> dict[str, Any]:
    """Run folders and the sweep.json that lists them; returns the sweep as a file of conf/sweep would have it."""
    names = [f"variant_{index:02d}" for index in range(variants)]
    curve, jobs = curves(), []
    for index, variant in enumerate(names):
        for seed in range(seeds):
            write_run(runs / f"{variant}-seed{seed}", variant, seed, 0.8 + 0.1 * index / variants, curve)
            jobs.append(Job(f"{variant}-seed{seed}", (), f"{variant} seed {seed}", "fake", 2000, seed, variant))
    Sweep.named(runs, "fake", "cpu", ()).write(jobs, "fake", "cpu")
    return {
        "experiments": {"cpu": "la_cpu"},
        "seeds": list(range(seeds)),
        "against": names[0],
        "variants": dict.fromkeys(names),
    }


def run(variants: int = 50, seeds: int = 20) -> dict[str, Any]:
    """Collect variants x seeds run folders once into an empty folder, and once more over what that left."""
    with tempfile.TemporaryDirectory() as folder:
        study = study_of("fake", write_sweep(Path(folder), variants, seeds))
        seconds = []
        for _ in range(2):
            began = time.perf_counter()
            write_study(study, members_of(study, Path(folder)), Path(folder) / "out")
            seconds.append(time.perf_counter() - began)
        size = (Path(folder) / "out" / "report.html").stat().st_size
    return {
        "subject": f"{variants * seeds:,} run folders ({variants} variants, {seeds} seeds, 20 cases x 3 networks)",
        "facts": {"first": f"{seconds[0]:.1f} s", "again": f"{seconds[1]:.1f} s", "page": f"{size / 2**20:.1f} MiB"},
        "checks": [("seconds to collect", max(seconds), SECONDS_LIMIT)],
    }
