"""The figures of a study, each a PNG: matplotlib is imported inside the functions, so that this module stays light."""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dualseg.reporting.figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, STYLE, VERMILLION
from dualseg.studies.comparisons import Comparison, by_scale, reference_of
from dualseg.studies.study_contents import StudyContents

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
GREY = "#666666"
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DPI = 150
NARROWEST = 10.0  # points of Dice that an axis of means spans at least: one run's difference is no result
PANELS_A_ROW = 3
FIGURES = ("figure.png", "variants.png", "differences.png", "cases.png")  # every name that is drawn under
LINE = ["method", "objective", "architecture"]  # what one line of the figure over labels is of


@dataclass(frozen=True)
class Drawing:
    """A figure: its PNG, what it shows, and its numbers in words, for those who do not see it."""

    png: bytes
    caption: str
    values: str


def draw_all(contents: StudyContents) -> dict[str, Drawing]:
    """File name, of `FIGURES` -> figure, figure.png first; none where nothing was scored."""
    record = of_record(contents)
    if record.empty:
        return {}
    drawn = {}
    counts = record.groupby("scale")["labeled"].nunique()
    if (counts >= 3).any():  # two counts are a study's bound, and no line
        drawn["figure.png"] = over_labels(contents, record)
        drawn["variants.png"] = dice_of_variants(contents, record)
    else:
        drawn["figure.png"] = dice_of_variants(contents, record)
    if contents.comparisons:
        drawn["differences.png"] = differences(contents.comparisons)
        drawn["cases.png"] = case_differences(contents.comparisons)
    return drawn


def of_record(contents: StudyContents) -> pd.DataFrame:
    """The results that stand for each variant; Dice in per cent."""
    results = contents.pooled.results
    own = results[(results["split"] == contents.tables.split) & (results["record"] == "1")]
    return own.assign(dice=100 * own["dice"].astype(float), labeled=own["labeled"].astype(int))


@contextmanager
def _figure(width: float, height: float) -> Iterator["Figure"]:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def _panels(names: Sequence[str], draw: Callable[["Axes", str], None], width: float, heights: Sequence[float]) -> bytes:
    """One panel a name, one below the other; without a title where the name is empty."""
    with _figure(width, sum(heights)) as figure:
        grid = figure.subplots(len(names), 1, squeeze=False, height_ratios=list(heights))
        for axes, name in zip(grid[:, 0], names, strict=True):
            draw(axes, name)
            if name:
                axes.set_title(f"scale={name}", loc="left", fontsize=9)
        return _png(figure)


def _seeds(contents: StudyContents, own: pd.DataFrame) -> str:
    """3 seeds, or 2 to 3 seeds."""
    counts = own.groupby(["scale", "variant"])["seed"].nunique()
    low, high = int(counts.min()), int(counts.max())
    return f"{low if low == high else f'{low} to {high}'} seed{'' if high == 1 else 's'}"


def over_labels(contents: StudyContents, record: pd.DataFrame) -> Drawing:
    """Dice against the number of labels: a line and a band (mean ± sd over seeds) a method, a dot a seed.

    The supervised results with the fewest and the most labels are drawn as horizontal lines, the bounds.
    """
    scales = [scale for scale in contents.scales if scale in set(record["scale"])]
    names = _line_names(record)

    def draw(axes: "Axes", scale: str) -> None:
        own = record[record["scale"] == scale]
        for index, (key, label) in enumerate(names.items()):
            line = own[(own[LINE] == list(key)).all(axis=1)]
            if line.empty:
                continue
            colour = GREY if key[0] == "supervised" else COLOURS[index % len(COLOURS)]
            by_count = line.groupby("labeled")["dice"]
            mean, deviation = by_count.mean(), by_count.std(ddof=1)
            marker = MARKERS[index % len(MARKERS)]
            axes.plot(mean.index, mean, color=colour, marker=marker, markersize=5, linewidth=1.8, label=label, zorder=3)
            axes.fill_between(mean.index, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0)
            axes.scatter(line["labeled"], line["dice"], s=13, color=colour, alpha=0.55, linewidths=0, zorder=2)
            if key[0] == "supervised" and len(mean) > 1:
                for count, style in ((mean.index.min(), "dotted"), (mean.index.max(), "dashed")):
                    bound = f"{label}, {count} labels"
                    axes.axhline(mean[count], color=colour, linestyle=style, linewidth=1.1, label=bound, zorder=1)
        axes.set_xscale("log", base=2)
        ticks = sorted(set(own["labeled"]))
        axes.set_xticks(ticks, [str(count) for count in ticks])
        axes.minorticks_off()
        axes.set_xlabel("labeled volumes; dots: seeds, line: mean, band: ± standard deviation")
        axes.set_ylabel(f"{contents.tables.split} Dice, %")
        axes.legend(fontsize=8)

    png = _panels(scales, draw, 6.8, [4.2] * len(scales))
    words = "; ".join(names.values())
    caption = (
        f"{_split_dice(contents)} against the number of labeled volumes for {words}. "
        f"A dot is a seed ({_seeds(contents, record)}), the line their mean, the band one standard deviation; "
        "horizontal lines are the supervised bounds."
    )
    return Drawing(png, caption, _means(record))


def _line_names(record: pd.DataFrame) -> dict[tuple[str, ...], str]:
    """Lines of the figure over labels, supervised first, with what tells one from the others."""
    keys = sorted({tuple(row) for row in record[LINE].itertuples(index=False)}, key=lambda k: (k[0] != "supervised", k))
    names = {}
    for key in keys:
        same = [other for other in keys if other[0] == key[0]]
        parts = [key[i] for i in range(1, len(key)) if len({other[i] for other in same}) > 1]
        names[key] = " ".join([key[0], *(part for part in parts if part)])
    return names


def dice_of_variants(contents: StudyContents, record: pd.DataFrame) -> Drawing:
    """Dice of every seed (dots) and their mean (bar), one row a variant."""
    scales = [scale for scale in contents.scales if scale in set(record["scale"])]
    rows = {
        scale: [v for v in contents.variants if v in set(record[record["scale"] == scale]["variant"])]
        for scale in scales
    }

    def draw(axes: "Axes", scale: str) -> None:
        own = record[record["scale"] == scale]
        for place, variant in enumerate(rows[scale]):
            values = own[own["variant"] == variant]
            colour = GREY if set(values["method"]) == {"supervised"} else BLUE
            axes.scatter(values["dice"], [place] * len(values), s=28, color=colour, alpha=0.5, linewidths=0, zorder=2)
            axes.plot(values["dice"].mean(), place, "|", color=colour, markersize=14, markeredgewidth=2.5, zorder=3)
        _name_rows(axes, rows[scale])
        low, high = axes.get_xlim()
        half = max(high - low, NARROWEST) / 2
        axes.set_xlim((low + high) / 2 - half, (low + high) / 2 + half)
        axes.set_xlabel(f"{contents.tables.split} Dice, %; dots: seeds, bar: mean")

    png = _panels(scales, draw, 6.8, [0.9 + 0.27 * len(rows[scale]) for scale in scales])
    caption = f"{_split_dice(contents)}: a dot is a seed ({_seeds(contents, record)}), the bar their mean."
    return Drawing(png, caption, _means(record))


def _split_dice(contents: StudyContents) -> str:
    return f"{contents.tables.split.capitalize()} Dice"


def _means(record: pd.DataFrame) -> str:
    means = record.groupby(["scale", "variant"], sort=False)["dice"].mean()
    return "Means in per cent: " + "; ".join(f"{variant} {value:.2f}" for (_, variant), value in means.items())


def _name_rows(axes: "Axes", names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), list(names))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)


def differences(comparisons: Sequence[Comparison]) -> Drawing:
    """Mean difference of each variant, with its bootstrap interval, in points of Dice."""
    groups, reference = by_scale(comparisons), reference_of(comparisons)

    def draw(axes: "Axes", scale: str) -> None:
        own = groups[scale]
        axes.axvline(0, color="#888888", linewidth=1)
        for place, c in enumerate(own):
            colour = GREY if c.low <= 0 <= c.high else BLUE if c.mean > 0 else VERMILLION
            axes.plot([100 * c.low, 100 * c.high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
            axes.plot(100 * c.mean, place, "o", color=colour, markersize=6)
        _name_rows(axes, [_pair(c, reference) for c in own])
        axes.set_xlabel(f"difference of {comparisons[0].split} Dice{_to(reference)}, points; 95 % interval over cases")

    png = _panels(list(groups), draw, 6.8, [0.9 + 0.27 * len(own) for own in groups.values()])
    words = "; ".join(
        f"{_pair(c, reference)} {100 * c.mean:+.2f} ({100 * c.low:+.2f} to {100 * c.high:+.2f})" for c in comparisons
    )
    caption = (
        f"Mean difference of {comparisons[0].split} Dice{_to(reference)}, with its 95 % bootstrap interval over cases; "
        "grey where that holds 0."
    )
    return Drawing(png, caption, words)


def case_differences(comparisons: Sequence[Comparison]) -> Drawing:
    """The difference of every case, sorted, one panel a comparison; all on one axis."""
    reference = reference_of(comparisons)
    columns = min(PANELS_A_ROW, len(comparisons))
    lines = math.ceil(len(comparisons) / columns)
    width, height = 2.6 * columns + 0.75, 1.75 * lines + 0.2
    with _figure(width, height) as figure:
        figure.set_layout_engine("none")  # a constrained layout of 50 panels takes ten seconds
        edges = {"left": 0.75 / width, "right": 1 - 0.1 / width, "top": 1 - 0.3 / height, "bottom": 0.3 / height}
        grid = figure.subplots(lines, columns, squeeze=False, sharey=True, gridspec_kw={**edges, "hspace": 0.45})
        for axes in grid.flat[len(comparisons) :]:
            axes.set_axis_off()
        several = len({c.scale for c in comparisons}) > 1
        for axes, c in zip(grid.flat, comparisons, strict=False):
            values = 100 * np.sort(np.array(list(c.differences.values())))
            colours = [BLUE if value >= 0 else VERMILLION for value in values]
            axes.vlines(range(len(values)), 0, values, colors=colours, linewidth=min(120 / len(values), 12))
            axes.axhline(0, color="#888888", linewidth=0.8)
            axes.set_xlim(-1, len(values))
            axes.set_xticks([])
            axes.grid(axis="x", visible=False)
            name = _pair(c, reference)
            axes.set_title(f"{name}, {c.scale}" if several else name, fontsize=8, loc="left")
            axes.set_xlabel(f"{np.sum(values > 0)} better, {np.sum(values < 0)} worse", fontsize=8)
        figure.text(
            0.12 / width, 0.5, "difference of Dice, points", rotation=90, va="center", fontsize=9, color="#555555"
        )
        png = _png(figure)
    words = "; ".join(
        f"{_pair(c, reference)}: {sum(d > 0 for d in c.differences.values())} of {len(c.differences)} better"
        for c in comparisons
    )
    return Drawing(png, f"Difference of the {comparisons[0].split} Dice{_to(reference)}, a bar a case, sorted.", words)


def _to(reference: str | None) -> str:
    return f" to {reference}" if reference else ""


def _pair(comparison: Comparison, reference: str | None) -> str:
    """The variant, with what it is against where that is not the same for all."""
    return comparison.variant if reference else f"{comparison.variant} - {comparison.against}"
