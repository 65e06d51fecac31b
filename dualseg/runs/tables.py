"""metrics.json and cases.csv as lines of text for the terminal."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

from dualseg.record import record_of
from dualseg.runs.folder import RunFolder
from dualseg.runs.identity import flatten
from dualseg.runs.reading import CaseRow, case_row, read_rows

STAGES = ("validation", "test")
POOR = 0.1  # mean Dice of a class, below which a network has not learned it
# split, network, class -> cases in which it is found, cases that contain it
Found = dict[tuple[str, str, str], tuple[int, int]]


def distance_unit(config: Mapping[str, Any]) -> str:
    """Unit of 95HD and ASD under the configuration of a run or an evaluation, as headings write it: voxels or mm."""
    return "mm" if flatten(config).get("inference.distance_unit") == "mm" else "voxels"


def results_of(folder: RunFolder) -> str:
    """The table of a finished run or evaluation; below it which one is the result, and classes never found or there.

    Raises:
        DualsegError: a file of the folder is damaged.
    """
    rows, metrics = _cases_of(folder), folder.metrics()
    networks = {network for stage in STAGES for network in metrics.get(stage, {})}
    if not networks:
        return nothing_scored(folder.config())
    record = record_of(metrics.get("record"), networks)
    chosen = [f"Result: {record}, which dualseg-predict takes."] if len(networks) > 1 else []
    return "\n".join([results_table(metrics, folder.config(), rows), *chosen, *absences(rows)])


def nothing_scored(config: Mapping[str, Any]) -> str:
    """Why a run scores nothing, and what would make it; `config`: of a run that has no case to score."""
    stages = config.get("evaluate_on", STAGES)
    if not stages:
        return "Nothing is scored: evaluate_on=[]."
    fix = "data.fold=0 validates on one of data.folds=N parts of the labeled cases"
    if "validation" not in stages:
        fix = "data.held_out_test=N holds labeled cases back"
    return f"Nothing is scored: there are no {' or '.join(stages)} cases; {fix}."


def poorly_found_of(folder: RunFolder) -> str | None:
    """`poorly_found` of a finished run or evaluation.

    Raises:
        DualsegError: a file of the folder is damaged.
    """
    return poorly_found(folder.metrics(), _cases_of(folder))


def _cases_of(folder: RunFolder) -> list[CaseRow]:
    return read_rows(folder.cases_file, case_row)[0] if folder.cases_file.is_file() else []


def results_table(metrics: Mapping[str, Any], config: Mapping[str, Any], rows: Sequence[CaseRow] = ()) -> str:
    """One line per stage and network: Dice and Jaccard in %, distances as metrics.json has them.

    Beside the mean Dice stands the median over cases, where these are known: a few that fail move the one and not the
    other.

    Where there are several classes or regions, each has a line of its own below: its scores, and in how many of the
    cases that contain it the network has found any of it.

    Args:
        metrics: content of metrics.json.
        config: content of config.yaml beside it, which knows the unit of the distances.
        rows: of cases.csv beside it.
    """
    hd95, asd = (f"{name} {distance_unit(config)}" for name in ("95HD", "ASD"))
    wide, narrow = max(9, len(hd95) + 2), max(9, len(asd) + 2)
    found, medians = _found(rows), _median_dice(rows)
    table: list[tuple[str, Mapping[str, float], float | None, str]] = []
    for stage in STAGES:
        for network, scores in metrics.get(stage, {}).items():
            table.append((f"{stage} {network}", scores, medians.get((stage, network, None)), ""))
            for name, own in scores.get("classes", {}).items():
                hits = found.get((stage, network, name))
                cases = f"{hits[0]} of {hits[1]} cases" if hits else ""
                table.append((f"  {name}", own, medians.get((stage, network, name)), cases))
    first = max([22, *(len(name) + 1 for name, *_ in table)])
    last = max([0, *(len(cases) + 2 for *_, cases in table if cases)])
    middle = 8 if medians else 0
    lines = [f"{'':{first}}{'Dice %':>9}{'median'[:middle]:>{middle}}{'Jaccard %':>11}{hd95:>{wide}}{asd:>{narrow}}"]
    lines[0] += f"{'found in':>{last}}" if last else ""
    for name, m, middle_dice, cases in table:
        numbers = f"{100 * m['dice']:9.2f}" + (f"{100 * middle_dice:{middle}.2f}" if middle_dice is not None else "")
        numbers += f"{100 * m['jaccard']:11.2f}{m['hd95']:{wide}.2f}{m['asd']:{narrow}.2f}"
        lines.append(f"{name:{first}}{numbers}{cases:>{last}}".rstrip())
    return "\n".join(lines)


def absences(rows: Sequence[CaseRow]) -> list[str]:
    """One sentence for each class or region that networks found in no case, or that no scored case holds."""
    networks: dict[tuple[str, str, int], list[str]] = {}
    for (split, network, name), (found, cases) in _found(rows).items():
        if not found:
            networks.setdefault((split, name, cases), []).append(network)
    said = []
    for (split, name, cases), by in networks.items():
        if cases:
            said.append(f"{split}: {name} found in 0 of {cases} cases that contain it ({', '.join(by)}).")
        else:
            said.append(f"{split}: no case contains {name}; its Dice is the share of cases where none is predicted.")
    return said


def poorly_found(metrics: Mapping[str, Any], rows: Sequence[CaseRow]) -> str | None:
    """A warning that names the classes that the run hardly finds, in its test or else its validation cases.

    Args:
        metrics: content of metrics.json.
        rows: of cases.csv beside it.
    """
    split = next((s for s in reversed(STAGES) if isinstance(metrics.get(s), Mapping) and metrics[s]), None)
    standing = record_of(metrics.get("record"), metrics[split]) if split else None
    dice: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if (row.split, row.network) == (split, standing) and row.empty in ("", "prediction"):
            dice[row.class_name].append(row.dice)
    poor = [f"{name} (Dice {100 * mean(own):.1f} %)" for name, own in dice.items() if mean(own) < POOR]
    if not poor:
        return None
    longer = "train longer (trainer.max_iterations: from the start, or from these weights by weights=)"
    return f"hardly found in the {split} cases: {', '.join(poor)}; {longer} or label more."


def _median_dice(rows: Sequence[CaseRow]) -> dict[tuple[str, str, str | None], float]:
    """Split, network, class -> the median over cases; class None: of each case's mean over classes."""
    cases: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    classes: dict[tuple[str, str, str | None], list[float]] = defaultdict(list)
    for row in rows:
        classes[row.split, row.network, row.class_name].append(row.dice)
        cases[row.split, row.network][row.case].append(row.dice)
    for (split, network), own in cases.items():
        classes[split, network, None] = [mean(values) for values in own.values()]
    return {key: median(values) for key, values in classes.items()}


def _found(rows: Sequence[CaseRow]) -> Found:
    """Found is what shares a voxel with the reference: a tumour predicted elsewhere is not found."""
    found: Found = {}
    for row in rows:
        key = (row.split, row.network, row.class_name)
        hits, cases = found.get(key, (0, 0))
        found[key] = (hits + (row.empty == "" and row.dice > 0), cases + (row.empty in ("", "prediction")))
    return found
