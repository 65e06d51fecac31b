"""The study `la_main`: the paper's method against its bounds and controls on Left Atrium with 8 labels.

    python experiments/la_main/study.py run --root DIR      runs what is not finished yet, then collects
    python experiments/la_main/study.py collect           run folders -> results.csv, table.md, figure.png

Cases 1-60 of the official training list train, 61-80 are the test split. Finished runs are kept, interrupted ones
resume. `--scale cpu` (default) is `experiment=la_cpu`, minutes a run; `--scale full` is `experiment=la_paper`.
"""

import argparse
import csv
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from dualseg.files import read_json, write_text
from dualseg.runs.folder import RunFolder

HERE = Path(__file__).resolve().parent
COLUMNS = [
    "study",
    "variant",
    "dataset",
    "scale",
    "method",
    "objective",
    "architecture",
    "labeled",
    "unlabeled",
    "seed",
    "network",
    "split",
    "dice",
    "jaccard",
    "hd95",
    "asd",
    "iterations",
    "run",
]
EXPERIMENT = {"cpu": "la_cpu", "full": "la_paper"}


@dataclass(frozen=True)
class Variant:
    """One line of the table: what is run, and which row of it counts."""

    name: str
    title: str
    overrides: tuple[str, ...]
    network: str


VNET = Variant("supervised_vnet_8", "supervised V-Net, 8 labels", ("method=supervised",), "a")
RESNET = Variant(
    "supervised_resnet34_8", "supervised ResNet-34, 8 labels", ("method=supervised", "networks=resnet34"), "a"
)
VNET_ALL = Variant("supervised_vnet_60", "supervised V-Net, 60 labels", ("method=supervised", "data.labeled=60"), "a")
GENTLE = Variant("dual_gentle_8", "dual described, gentle weights, 8 + 52", ("method=dual_gentle",), "ensemble")
DESCRIBED = Variant("dual_described_8", "dual described, 8 + 52", ("method=dual",), "ensemble")
RELEASED = Variant("dual_released_8", "dual released, 8 + 52", ("method=dual", "objective=released"), "ensemble")
VNET_PLAIN = Variant(
    "supervised_vnet_8_plain", "supervised V-Net without dropout, 8 labels", ("method=supervised", "dropout=0"), "a"
)

# in the order in which they are run
VARIANTS = (VNET, GENTLE, RESNET, VNET_ALL, RELEASED, VNET_PLAIN, DESCRIBED)
PAIR = (VNET, RESNET)
CONTROL = Variant("supervised_pair_8", "ensemble of the two supervised, 8 labels", (), "ensemble")
SHOWN = (*PAIR, CONTROL, VNET_PLAIN, DESCRIBED, RELEASED, GENTLE, VNET_ALL)  # rows of the table


def run_folder(runs: Path, scale: str, variant: str, seed: int) -> Path:
    return runs / f"la_main-{scale}-{variant}-seed{seed}"


def train(arguments: argparse.Namespace) -> int:
    """Train every variant and seed, `--parallel` at a time with `--cores` cores each, then evaluate the control.

    Returns the number of failures.
    """
    cores: SimpleQueue[int] = SimpleQueue()
    for slot in range(arguments.parallel):
        cores.put(slot)

    def launch(module: str, words: list[str], log: Path) -> int:
        slot = cores.get()
        first = arguments.first_core + slot * arguments.cores
        pin = ["taskset", "-c", f"{first}-{first + arguments.cores - 1}"] if arguments.parallel > 1 else []
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.cores)} if pin else dict(os.environ)
        with log.open("a") as file:
            command = [*pin, sys.executable, "-m", module, *words]
            try:
                code = subprocess.run(
                    command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False
                ).returncode
            finally:
                cores.put(slot)
        print(f"{'done' if code == 0 else f'FAILED ({code}), see {log}'}: {log.stem}", flush=True)
        return code

    jobs = []
    for seed in arguments.seeds:  # a whole table of one seed first: an interrupted study then still says something
        for variant in VARIANTS:
            folder = run_folder(arguments.runs, arguments.scale, variant.name, seed)
            words = [
                f"experiment={EXPERIMENT[arguments.scale]}",
                f"data.root={arguments.root}",
                "data.held_out_test=20",
            ]
            words += [*variant.overrides, f"seed={seed}", f"output={arguments.runs}", f"name={folder.name}"]
            words += ["trainer.progress_bar=false", *arguments.override]
            jobs.append(("dualseg.train", words, arguments.runs / "logs" / f"{folder.name}.log"))
    with ThreadPoolExecutor(arguments.parallel) as pool:
        codes = list(pool.map(lambda job: launch(*job), jobs))

    evaluations = []
    for seed in arguments.seeds:
        target = run_folder(arguments.runs, arguments.scale, CONTROL.name, seed)
        pair = [run_folder(arguments.runs, arguments.scale, v.name, seed) for v in PAIR]
        if not RunFolder(target).finished and all(RunFolder(p).finished for p in pair):
            words = [*(f"run={p}" for p in pair), f"output={target}", f"data.root={arguments.root}"]
            evaluations.append(("dualseg.evaluate", words, arguments.runs / "logs" / f"{target.name}.log"))
    with ThreadPoolExecutor(arguments.parallel) as pool:
        codes += list(pool.map(lambda job: launch(*job), evaluations))
    return sum(code != 0 for code in codes)


def rows_of(folder: RunFolder, variant: Variant, scale: str, seed: int) -> Iterator[dict[str, Any]]:
    """The rows of one finished run: one per network and split."""
    config, metrics = folder.config(), read_json(folder.metrics_file)
    architectures = {name: network["architecture"] for name, network in config["networks"].items()}
    ensemble = "+".join(architectures.values()) if variant is not CONTROL else "vnet+resnet34"
    labeled = config["data"]["labeled"]
    for split in ("validation", "test"):
        for network, scores in metrics.get(split, {}).items():
            if variant is CONTROL and network != "ensemble":
                continue  # the two networks have rows of their own
            yield {
                "study": "la_main",
                "variant": variant.name,
                "dataset": config["data"]["name"],
                "scale": scale,
                "method": config["method"]["name"],
                "objective": config.get("objective", ""),
                "architecture": architectures.get(network, ensemble),
                "labeled": labeled,
                "unlabeled": 60 - labeled if config["batch"]["unlabeled"] else 0,
                "seed": seed,
                "network": network,
                "split": split,
                **{metric: f"{scores[metric]:.6f}" for metric in ("dice", "jaccard", "hd95", "asd")},
                "iterations": metrics["iterations"],
                "run": folder.path.name,
            }


def collect(arguments: argparse.Namespace) -> None:
    """Add the rows of finished runs to results.csv (those of the same run are replaced), then table and figure."""
    results = HERE / "results.csv"
    rows = list(csv.DictReader(results.read_text().splitlines())) if results.is_file() else []
    for variant in (*VARIANTS, CONTROL):
        for seed in arguments.seeds:
            folder = RunFolder(run_folder(arguments.runs, arguments.scale, variant.name, seed))
            if folder.finished:
                rows = [row for row in rows if row["run"] != folder.path.name]
                rows += [{k: str(v) for k, v in r.items()} for r in rows_of(folder, variant, arguments.scale, seed)]
    rows.sort(key=lambda row: (row["scale"], row["variant"], row["seed"], row["split"], row["network"]))
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(results, text.getvalue())
    write_text(HERE / "table.md", table(rows))
    figure(rows, HERE / "figure.png")
    print((HERE / "table.md").read_text())


def values_of(rows: list[dict[str, str]], scale: str, variant: Variant, network: str, metric: str) -> list[float]:
    wanted = (scale, variant.name, network, "test")
    return [float(r[metric]) for r in rows if (r["scale"], r["variant"], r["network"], r["split"]) == wanted]


def table(rows: list[dict[str, str]]) -> str:
    """Mean and standard deviation (n - 1) over seeds of every variant's networks, for each scale that has rows."""
    lines = []
    for scale in ("cpu", "full"):
        if not any(row["scale"] == scale for row in rows):
            continue
        lines += [f"Test cases 61-80, scale={scale}; mean ± standard deviation over seeds.", ""]
        lines += [
            "| | network | iterations | runs | Dice % | Jaccard % | 95HD (voxels) | ASD (voxels) |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for variant in SHOWN:
            for network in ("a", "b", "ensemble"):
                columns = [values_of(rows, scale, variant, network, m) for m in ("dice", "jaccard", "hd95", "asd")]
                if not columns[0]:
                    continue
                cells = [_spread(c, 100 if i < 2 else 1) for i, c in enumerate(columns)]
                iterations = ", ".join(
                    sorted({f"{n:,.0f}" for n in values_of(rows, scale, variant, network, "iterations")})
                )
                first = f"| {variant.title} | {network} | {iterations} | {len(columns[0])} |"
                lines.append(f"{first} {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _spread(values: list[float], factor: float) -> str:
    deviation = f" ± {factor * np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{factor * np.mean(values):.2f}{deviation}"


def figure(rows: list[dict[str, str]], path: Path) -> None:
    """Dice of every seed and its mean, one panel per scale."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    scales = [scale for scale in ("cpu", "full") if any(row["scale"] == scale for row in rows)]
    if not scales:
        return
    drawing, axes = plt.subplots(
        len(scales), 1, figsize=(7, 0.6 + 2.4 * len(scales)), squeeze=False, layout="constrained"
    )
    for axis, scale in zip(axes[:, 0], scales, strict=True):
        shown = [v for v in reversed(SHOWN) if values_of(rows, scale, v, v.network, "dice")]
        for height, variant in enumerate(shown):
            dice = [100 * d for d in values_of(rows, scale, variant, variant.network, "dice")]
            colour = "#0072B2" if variant.name.startswith("dual") else "#666666"
            axis.plot(dice, [height] * len(dice), "o", color=colour, alpha=0.5, markeredgewidth=0)
            axis.plot(np.mean(dice), height, "|", color=colour, markersize=18, markeredgewidth=2.5)
        axis.set_yticks(range(len(shown)), [v.title for v in shown])
        axis.set_ylim(-0.6, len(shown) - 0.4)
        axis.set_xlabel("Dice %, test cases 61-80; dots: seeds, bar: mean")
        middle, half = np.mean(axis.get_xlim()), max(np.ptp(axis.get_xlim()) / 2, 5)
        axis.set_xlim(
            middle - half, middle + half
        )  # no narrower than 10 points: a single run's difference is no result
        axis.set_title(f"scale={scale}", loc="left", fontsize=10)
        axis.grid(axis="x", alpha=0.3)
    drawing.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "collect"))
    parser.add_argument("--root", type=Path, help="folder of <case>/mri_norm2.h5")
    parser.add_argument("--scale", choices=tuple(EXPERIMENT), default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of run folders")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time")
    parser.add_argument("--cores", type=int, default=2, help="cores of each run where several run at a time")
    parser.add_argument("--first-core", type=int, default=0)
    parser.add_argument("--override", nargs="*", default=[], help="further key=value of dualseg-train")
    arguments = parser.parse_args()
    failures = 0
    if arguments.command == "run":
        if arguments.root is None:
            parser.error("run needs --root")
        failures = train(arguments)
    collect(arguments)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
