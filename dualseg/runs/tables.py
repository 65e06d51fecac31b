"""metrics.json as lines of text for the terminal."""

from collections.abc import Mapping
from typing import Any


def results_table(metrics: Mapping[str, Any]) -> str:
    """One line per stage and network: Dice and Jaccard in %, distances as metrics.json has them."""
    lines = [f"{'':22}{'Dice %':>9}{'Jaccard %':>11}{'95HD':>9}{'ASD':>9}"]
    for stage in ("validation", "test"):
        for network, m in metrics.get(stage, {}).items():
            numbers = f"{100 * m['dice']:9.2f}{100 * m['jaccard']:11.2f}{m['hd95']:9.2f}{m['asd']:9.2f}"
            lines.append(f"{stage + ' ' + network:22}{numbers}")
    return "\n".join(lines)
