"""Figures of the report: each function returns one small SVG as a data URI, so that the page can lay them out itself.

matplotlib is imported inside the functions: importing this module stays light.
"""

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from dualseg.reporting.contents import Curve
from dualseg.runs.reading import PlaneSlice

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Encoded = TypeVar("Encoded", str, bytes)

# Okabe & Ito's palette, told apart with any colour vision.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
NETWORK_COLOURS = {"a": BLUE, "b": VERMILLION, "ensemble": GREEN}
SHARED_COLOUR = "#444444"
OTHER_COLOURS = (PURPLE, ORANGE, SKY, BLACK)
REFERENCE_COLOUR, PREDICTION_COLOUR, DISAGREEMENT_COLOUR = ORANGE, SKY, GREEN
CLASS_STYLES = ("solid", "dashed", "dotted", "dashdot")
ENTROPY_MAP = "magma"

_FRAME_COLOUR = "#333A42"  # unlike the black of an empty image, so that the edge of the slice shows
_GRID_POINTS = 300  # what a panel of a few hundred pixels can show
_IMAGE_PIXELS = 256  # longest side of an embedded slice: keeps the page light on full-size CT

_PNG_DPI = 96

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, and drawn in the reader's own sans-serif
    "svg.hashsalt": "dualseg",  # the same run gives the same bytes
    "image.composite_image": False,  # embed slices on their own grid instead of resampled
    "text.parse_math": False,  # names come from files: a "$" in one is no formula
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "axes.labelcolor": "#555555",
    "legend.frameon": False,
}


def network_colour(network: str) -> str:
    """The colour a network has in every figure; the empty name is a term shared by all networks."""
    if not network:
        return SHARED_COLOUR
    return NETWORK_COLOURS.get(network) or OTHER_COLOURS[sum(network.encode()) % len(OTHER_COLOURS)]


def entropy_gradient() -> list[str]:
    """Colours of the entropy map from 0 to log K, for the legend."""
    import matplotlib
    from matplotlib.colors import to_hex

    return [to_hex(matplotlib.colormaps[ENTROPY_MAP](x)) for x in np.linspace(0, 1, 7)]


def curve_panel(
    curves: Mapping[str, Curve], colours: Mapping[str, str], *, smooth: bool = True, legend: bool = False
) -> str:
    """One panel of curves over iterations.

    Args:
        curves: what to draw, by label.
        colours: colour of each label.
        smooth: a running mean over a fiftieth of the points in front, the raw values faint behind. False: the raw
            values as they are (schedules).
        legend: name the labels inside the panel.
    """

    def draw(axes: "Axes") -> None:
        shown = []
        for label, curve in curves.items():
            finite = np.isfinite(curve.values)
            x, y = curve.iterations[finite], curve.values[finite]
            if not len(y):
                continue
            marker = "o" if len(y) <= 25 else None
            if smooth and len(y) > 50:
                axes.plot(*_envelope(x, y), color=colours[label], alpha=0.22, linewidth=0.6, zorder=1.5)
                shown.append(np.percentile(y, [0.5, 99.5]))
                y, marker = running_mean(y, len(y) // 50), None
            else:
                shown.append(np.array([y.min(), y.max()]))
            shown.append(np.array([y.min(), y.max()]))
            thin = np.unique(np.linspace(0, len(y) - 1, min(len(y), 2 * _GRID_POINTS)).round().astype(int))
            axes.plot(x[thin], y[thin], color=colours[label], linewidth=1.5, marker=marker, markersize=3, label=label)
        if shown:  # a few outliers must not flatten the rest of the curve
            low, high = np.min(shown), np.max(shown)
            margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
            axes.set_ylim(low - margin, high + margin)
        else:
            axes.text(0.5, 0.5, "no finite value", ha="center", va="center", transform=axes.transAxes)
        if legend and shown:
            axes.legend(fontsize=8)
        axes.locator_params(axis="x", nbins=5)
        axes.locator_params(axis="y", nbins=5)
        axes.ticklabel_format(axis="y", scilimits=(-3, 4))
        axes.set_xlabel("iteration")

    return _panel(draw, 3.6, 2.1)


def dice_distribution(values: Mapping[str, Sequence[float]]) -> str:
    """Dice of every case (0..1 in, per cent drawn), one strip and box a network."""

    def draw(axes: "Axes") -> None:
        names = list(values)
        for position, name in enumerate(names):
            dice = 100 * np.sort(np.asarray([v for v in values[name] if math.isfinite(v)]))
            if not len(dice):
                continue
            colour = network_colour(name)
            box = {"color": colour, "linewidth": 1.2}
            axes.boxplot(
                dice, positions=[position], orientation="horizontal", widths=0.62, showfliers=False, manage_ticks=False,
                boxprops=box, whiskerprops=box, capprops=box, medianprops={"color": colour, "linewidth": 2.4},
            )  # fmt: skip
            jitter = 0.36 * ((np.arange(len(dice)) * 0.618) % 1 - 0.5)  # golden ratio: even, and no random numbers
            axes.scatter(dice, position + jitter, s=16, color=colour, alpha=0.65, linewidths=0, zorder=3)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.locator_params(axis="x", nbins=6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("Dice of each case, %")

    return _panel(draw, 3.6, 0.65 + 0.38 * max(len(values), 1))


def frame_ratio(slices: Sequence[PlaneSlice]) -> float:
    """Height over width of the frames of a case's slices: as tall as the tallest slice, within reason."""
    return min(max([0.6, *(found.ratio for found in slices)]), 1.1)


def contour_slice(found: PlaneSlice, ratio: float) -> str:
    """One slice in grey with the contours of reference and prediction, a line style for each class above 0.

    Args:
        found: the slice.
        ratio: height of the figure over its width; what the slice leaves free is dark grey.
    """
    return _slices([_draw_contours], found, ratio, _data_uri)


def uncertainty_slice(found: PlaneSlice, ratio: float) -> str:
    """The entropy map of a slice, the voxels where the networks disagree outlined on it; `ratio` as above."""
    return _slices([_draw_uncertainty], found, ratio, _data_uri)


def overlay_png(found: PlaneSlice, ratio: float) -> bytes:
    """`contour_slice` and, right of it, `uncertainty_slice` as one PNG, for what shows no SVG."""
    return _slices([_draw_contours, _draw_uncertainty], found, ratio, _png)


def _draw_contours(axes: "Axes", found: PlaneSlice) -> None:
    _show(axes, found.image, found.aspect)
    for labels, colour in ((found.reference, REFERENCE_COLOUR), (found.prediction, PREDICTION_COLOUR)):
        for label in range(1, int(labels.max()) + 1):
            style = CLASS_STYLES[(label - 1) % len(CLASS_STYLES)]
            _contour(axes, labels == label, colors=colour, linewidths=1.8, linestyles=style)


def _draw_uncertainty(axes: "Axes", found: PlaneSlice) -> None:
    _show(axes, found.entropy, found.aspect, colour_map=ENTROPY_MAP)
    if found.disagreement is not None:
        _contour(axes, found.disagreement, colors=DISAGREEMENT_COLOUR, linewidths=1.2, fill=0.5)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Centred running mean of (n,) values; windows shrink at both ends instead of reading beyond them."""
    half = max(window // 2, 1)
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    index = np.arange(len(values))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


def _envelope(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The curve thinned to the minimum and maximum of each of `_GRID_POINTS` stretches: looks the same, weighs less."""
    if len(y) <= 2 * _GRID_POINTS:
        return x, y
    keep = []
    for stretch in np.array_split(np.arange(len(y)), _GRID_POINTS):
        keep += sorted({int(stretch[y[stretch].argmin()]), int(stretch[y[stretch].argmax()])})
    return x[keep], y[keep]


def _show(axes: "Axes", image: np.ndarray, aspect: float, *, colour_map: str | None = None) -> None:
    """Show (rows, columns) uint8 values, in grey exactly as they are or through a colour map."""
    import matplotlib
    from PIL import Image

    rows, columns = image.shape
    step = math.ceil(max(rows, columns) / _IMAGE_PIXELS)
    small = np.asarray(Image.fromarray(np.ascontiguousarray(image, dtype=np.uint8)).reduce(step))
    coloured = matplotlib.colormaps[colour_map](small, bytes=True) if colour_map else np.stack([small] * 3, axis=-1)
    extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    axes.imshow(coloured, aspect=aspect, extent=extent, interpolation="none")
    axes.autoscale(False)  # contours, padded by a pixel, must not widen the view


def _contour(axes: "Axes", mask: np.ndarray, *, colors: str, fill: float = 0.0, **style: Any) -> None:
    if not mask.any():
        return
    rows, columns = mask.shape
    padded = np.pad(mask.astype(float), 1)  # closes contours at the edge of the slice
    x, y = np.arange(-1, columns + 1), np.arange(-1, rows + 1)
    axes.contour(x, y, padded, [0.5], colors=colors, **style)
    if fill:
        axes.contourf(x, y, padded, [0.5, 1.5], colors=colors, alpha=fill)


def _panel(draw: Callable[["Axes"], None], width: float, height: float) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.add_subplot())
        return _data_uri(figure)


def _slices(
    draws: Sequence[Callable[["Axes", PlaneSlice], None]],
    found: PlaneSlice,
    ratio: float,
    encode: Callable[["Figure"], Encoded],
) -> Encoded:
    """Frames of one slice side by side, as tall as `ratio` says of each."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4 * len(draws), 4 * ratio), facecolor=_FRAME_COLOUR)
        for position, draw in enumerate(draws):
            axes = figure.add_axes((position / len(draws), 0, 1 / len(draws), 1))
            axes.set_axis_off()
            draw(axes, found)
        return encode(figure)


def _data_uri(figure: "Figure") -> str:
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": None}  # no clock in it, and no link
    figure.savefig(buffer, format="svg", facecolor=figure.get_facecolor(), metadata=metadata)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_PNG_DPI, facecolor=figure.get_facecolor())
    return buffer.getvalue()
