"""The figures of a study: Dice of every run, Dice against the number of labels, differences over cases."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dualseg.reporting.studies.comparisons import Comparison, network_of_record

METHOD_COLOUR = {"supervised": "#666666", "dual": "#0072B2", "dual_gentle": "#56B4E9"}
OTHER_COLOUR = "#D55E00"
NARROWEST = 10.0  # points of Dice that an axis spans at least: one run's difference is no result


def of_record(results: pd.DataFrame) -> pd.DataFrame:
    """Test rows of the network that stands for each run, with Dice in %."""
    test = results[results["split"] == "test"]
    networks = test.groupby("run")["network"].agg(lambda found: network_of_record(list(found)))
    own = test[test["network"] == test["run"].map(networks)]
    return own.assign(percent=100 * own["dice"].astype(float), labeled=own["labeled"].astype(int))


def runs_figure(results: pd.DataFrame, rows: Sequence[str]) -> Figure:
    """Dice of every seed and their mean, one line a variant in the order of `rows`."""
    own = of_record(results)
    shown = [variant for variant in rows if variant in set(own["variant"])][::-1]
    drawing = Figure(figsize=(7, 0.9 + 0.27 * len(shown)), layout="constrained")
    axis = drawing.subplots()
    for height, variant in enumerate(shown):
        line = own[own["variant"] == variant]
        colour = METHOD_COLOUR.get(line["method"].iloc[0], OTHER_COLOUR)
        axis.plot(line["percent"], [height] * len(line), "o", color=colour, alpha=0.5, markeredgewidth=0)
        axis.plot(line["percent"].mean(), height, "|", color=colour, markersize=16, markeredgewidth=2.5)
    axis.set_yticks(range(len(shown)), [variant.replace("_", " ") for variant in shown])
    axis.set_ylim(-0.6, len(shown) - 0.4)
    axis.set_xlabel("test Dice %; dots: seeds, bar: mean")
    low, high = axis.get_xlim()
    half = max(high - low, NARROWEST) / 2
    axis.set_xlim((low + high) / 2 - half, min((low + high) / 2 + half, 100))
    axis.grid(axis="x", alpha=0.3)
    return drawing


def labels_figure(results: pd.DataFrame) -> Figure:
    """Dice against the number of labels: mean and standard deviation over seeds of each method, dots for seeds."""
    own = of_record(results)
    drawing = Figure(figsize=(7, 4), layout="constrained")
    axis = drawing.subplots()
    for method, line in own.groupby("method", sort=True):
        colour = METHOD_COLOUR.get(str(method), OTHER_COLOUR)
        by_count = line.groupby("labeled")["percent"]
        mean, deviation = by_count.mean(), by_count.std(ddof=1).fillna(0.0)
        axis.plot(mean.index, mean, "-", color=colour, label=str(method))
        axis.fill_between(mean.index, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0)
        axis.plot(line["labeled"], line["percent"], "o", color=colour, alpha=0.5, markeredgewidth=0)
    supervised = own[own["method"] == "supervised"]
    if not supervised.empty:
        bound = supervised.loc[supervised["labeled"] == supervised["labeled"].max(), "percent"].mean()
        axis.axhline(bound, color=METHOD_COLOUR["supervised"], linestyle=":", linewidth=1)
        count = supervised["labeled"].max()
        axis.annotate(f"supervised, {count} labels", (own["labeled"].min(), bound), va="bottom", fontsize=8)
    counts = sorted(set(own["labeled"]))
    axis.set_xscale("log", base=2)
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.minorticks_off()
    axis.set_xlabel("labeled volumes")
    axis.set_ylabel("test Dice %")
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right")
    return drawing


def differences_figure(comparisons: Sequence[Comparison]) -> Figure:
    """Mean difference in Dice of each comparison with its interval, and the difference of every case as a dot."""
    shown = list(comparisons)[::-1]
    drawing = Figure(figsize=(7, 1.1 + 0.3 * len(shown)), layout="constrained")
    axis = drawing.subplots()
    for height, comparison in enumerate(shown):
        points = 100 * np.asarray(comparison.differences)
        axis.plot(points, [height] * len(points), "o", color="#666666", alpha=0.25, markersize=4, markeredgewidth=0)
        axis.plot([100 * comparison.low, 100 * comparison.high], [height] * 2, "-", color="#0072B2", linewidth=2.5)
        axis.plot(100 * comparison.difference, height, "D", color="#0072B2", markersize=6)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(shown)), [comparison.variant.replace("_", " ") for comparison in shown])
    axis.set_ylim(-0.6, len(shown) - 0.4)
    against = shown[0].against.replace("_", " ")
    axis.set_xlabel(f"Dice minus that of {against}, points; dots: cases, bar: 95 % interval of the mean")
    axis.set_xscale("symlog", linthresh=5)
    ticks = [-50, -20, -10, -5, -2, 0, 2, 5, 10, 20, 50]
    low, high = axis.get_xlim()
    inside = [tick for tick in ticks if low <= tick <= high]
    axis.set_xticks(inside, [str(tick) for tick in inside])
    axis.minorticks_off()
    axis.grid(axis="x", alpha=0.3)
    return drawing
