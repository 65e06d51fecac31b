"""The unlabeled scans that are most unlike the labeled ones: one HTML page that needs nothing but itself."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dualseg.data.checking.look import Look, Picture
from dualseg.data.checking.pool import SHOWN, Unlike
from dualseg.files import sweep, write_text
from dualseg.reporting.html import render

SIDE = 150  # pixels of the longer side of a slice, which has the proportions of the body


def write_pool_page(pool: Sequence[Unlike], dataset: str, labeled: int, notes: Sequence[str], output: Path) -> None:
    """Write the page; it appears whole or not at all.

    Args:
        pool: the unlabeled scans, the most unlike first, of looks with pictures.
        dataset: what it is called.
        labeled: number of labeled scans.
        notes: what the check says beside its table.
        output: the page.

    Raises:
        DualsegError: it cannot be written.
    """
    page = render(
        Path(__file__).with_name("pool.html.j2"),
        dataset=dataset,
        scans=[_scan(scan) for scan in pool[:SHOWN]],
        unlabeled=len(pool),
        labeled=labeled,
        unlike=sum(scan.distance > 1 for scan in pool),
        notes=notes,
    )
    sweep(output.parent, output.name)
    write_text(output, page)


def _scan(scan: Unlike) -> dict[str, Any]:
    own, other = _facts(scan.look), _facts(scan.nearest_look)
    correlation = f"correlation {float(scan.look.content @ scan.nearest_look.content):.2f}"
    facts = {**{part: (own[part], other[part]) for part in own}, "content": (correlation, "")}
    return {
        "case": scan.case,
        "distance": f"{scan.distance:.2f}",
        "unlike": [part for part, distance in scan.parts.items() if distance > 1],
        "sides": [
            {"case": case, "title": title, "slices": [_slice(picture) for picture in look.pictures]}
            for case, title, look in (
                (scan.case, "this scan", scan.look),
                (scan.nearest, f"nearest labeled scan: {scan.nearest}", scan.nearest_look),
            )
        ],
        "rows": [
            {
                "part": part,
                "own": facts[part][0],
                "other": facts[part][1],
                "distance": f"{distance:.2f}",
                "unlike": distance > 1,
            }
            for part, distance in scan.parts.items()
        ],
    }


def _facts(look: Look) -> dict[str, str]:
    """Part -> what the scan has, in words."""
    low, _, middle, _, high = zip(*look.quantiles, strict=True)
    values = [f"{a:.4g} to {c:.4g}, median {b:.4g}" for a, b, c in zip(low, middle, high, strict=True)]
    return {
        "intensity": "; ".join(values),
        "spacing": f"{_edges(look.spacing)} mm",
        "field of view": f"{_edges(look.extent)} mm",
    }


def _edges(edges: np.ndarray) -> str:
    return " x ".join(f"{edge:.3g}" for edge in edges)


def _slice(picture: Picture) -> dict[str, Any]:
    from PIL import Image

    height, width = (max(1, round(SIDE * mm / max(picture.mm))) for mm in picture.mm)
    buffer = io.BytesIO()
    Image.fromarray(picture.grey).resize((width, height)).save(buffer, format="png", optimize=True)
    source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"plane": picture.plane, "source": source, "width": width, "height": height}
