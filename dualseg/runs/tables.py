"""metrics.json as lines of text for the terminal."""

from collections.abc import Mapping
from typing import Any

from dualseg.runs.folder import flatten


def distance_unit(config: Mapping[str, Any]) -> str:
    """Unit of 95HD and ASD under the configuration of a run or an evaluation, as headings write it: voxels or mm."""
    return "mm" if flatten(config).get("inference.distance_unit") == "mm" else "voxels"


def results_table(metrics: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """One line per stage and network: Dice and Jaccard in %, distances as metrics.json has them.

    Args:
        metrics: content of metrics.json.
        config: content of config.yaml beside it, which knows the unit of the distances.
    """
    hd95, asd = (f"{name} {distance_unit(config)}" for name in ("95HD", "ASD"))
    wide, narrow = max(9, len(hd95) + 2), max(9, len(asd) + 2)
    lines = [f"{'':22}{'Dice %':>9}{'Jaccard %':>11}{hd95:>{wide}}{asd:>{narrow}}"]
    for stage in ("validation", "test"):
        for network, m in metrics.get(stage, {}).items():
            numbers = f"{100 * m['dice']:9.2f}{100 * m['jaccard']:11.2f}{m['hd95']:{wide}.2f}{m['asd']:{narrow}.2f}"
            lines.append(f"{stage + ' ' + network:22}{numbers}")
    return "\n".join(lines)
