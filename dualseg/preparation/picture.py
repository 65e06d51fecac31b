"""A picture of a prepared case: three planes through its label, with the label's contour."""

from pathlib import Path

import numpy as np

from dualseg.files import replacing

COLOURS = ("#e41a1c", "#377eb8", "#4daf4a")
WIDTH = 4.0  # inches of a plane
# name, axis across which it is cut, edges of the picture: those the axes of the volume grow away from or towards
PLANES = (("axial", 2, "R A"), ("coronal", 1, "R S"), ("sagittal", 0, "A S"))


def write_picture(path: Path, title: str, image: np.ndarray, label: np.ndarray) -> None:
    """Write a PNG; the letters say which way the left and the upper edge of a plane look.

    Args:
        image: (W, H, D), axes to the left, posterior and superior, isotropic.
        label: the same grid; each class has a contour.

    Raises:
        DualsegError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    place = [round(float(index.mean())) for index in np.nonzero(label)]
    low, high = np.percentile(image, (1, 99))
    figure = Figure(figsize=(WIDTH * len(PLANES), WIDTH + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for axes, (name, axis, edges) in zip(figure.subplots(1, len(PLANES)), PLANES, strict=True):
        # rows downwards: posterior in the axial plane, else inferior
        origin = "upper" if axis == 2 else "lower"
        shown, drawn = (np.take(array, place[axis], axis).T for array in (image, label))
        axes.imshow(shown, cmap="gray", vmin=low, vmax=high, origin=origin)
        for k, colour in zip(range(1, int(label.max()) + 1), COLOURS, strict=False):
            if (drawn == k).any():
                axes.contour(drawn == k, [0.5], colors=[colour], linewidths=0.8)
        left, top = edges.split()
        axes.set_title(f"{name} {place[axis]}   left: {left}, top: {top}", fontsize=8)
        axes.axis("off")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80, metadata={"Software": None})
