"""What a study's page and tables are made of, what must not stand in one table, and what has to be said about it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from dualseg.errors import DualsegError
from dualseg.runs.identity import ADDED
from dualseg.studies.comparisons import Comparison, compare_all
from dualseg.studies.study import Study
from dualseg.studies.study_verdict import Verdict
from dualseg.studies.tidy import StudyTables

LITERATURE_COLUMNS = ("dataset", "method", "labeled", "dice", "jaccard", "hd95", "asd", "source")
SPLITS = "data.source.splits"


@dataclass(frozen=True)
class StudyContents:
    """Everything that is known of a study.

    Attributes:
        study: what was asked for.
        tables: results, cases and runs.
        literature: reported.csv, as texts; an optional column `variant` names the row that a figure belongs to.
        settings: run -> what decides its result, of the runs whose folder is here.
        unfinished, problems, remarks: sentences: runs that are not finished; run folders that were left out; what else
            to know.
        comparisons: of the variants with `study.against`.
        verdict: on the unlabeled scans, where the study gives one and has the runs for it.
    """

    study: Study
    tables: StudyTables
    literature: pd.DataFrame
    settings: Mapping[str, Mapping[str, Any]]
    unfinished: Sequence[str] = ()
    problems: Sequence[str] = ()
    remarks: Sequence[str] = ()
    comparisons: Sequence[Comparison] = field(default_factory=tuple)
    verdict: Verdict | None = None

    @cached_property
    def scales(self) -> list[str]:
        """Those of the study, then others that have rows."""
        return list(dict.fromkeys([*self.study.experiments, *sorted(self.tables.results["scale"].unique())]))

    @cached_property
    def variants(self) -> list[str]:
        """Rows of the study in their order, then others that have results."""
        return list(dict.fromkeys([*self.study.rows, *sorted(self.tables.results["variant"].unique())]))

    @cached_property
    def unit(self) -> str:
        """Of the distances: voxels or mm."""
        return next((unit for unit in self.tables.runs["distance_unit"] if unit), "voxels")

    @cached_property
    def pooled(self) -> StudyTables:
        """The tables with the folds of each variant and seed as one run."""
        return self.tables.pooled()

    def scored(self, scale: str) -> pd.DataFrame:
        """The results at one scale, of the split that the study compares; the folds of a seed are one."""
        results = self.pooled.results
        return results[(results["scale"] == scale) & (results["split"] == self.tables.split)]


def read_literature(path: Path) -> pd.DataFrame:
    """reported.csv; without that file, a table without rows.

    Raises:
        DualsegError: it is damaged, or a row has no source.
    """
    if not path.is_file():
        return pd.DataFrame(columns=[*LITERATURE_COLUMNS, "variant"], dtype=str)
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        frame = frame.assign(variant=frame.get("variant", ""))[[*LITERATURE_COLUMNS, "variant"]]
    except (OSError, ValueError, KeyError) as error:
        columns = ",".join(LITERATURE_COLUMNS)
        raise DualsegError(f"{path}: cannot be read ({error}); its columns are {columns}[,variant].") from error
    if frame.isna().any(axis=None) or (frame["source"].str.strip() == "").any():
        raise DualsegError(f"{path}: a row has no source; say where each figure is from.")
    return frame


def check_comparable(name: str, tables: StudyTables) -> None:
    """Raises: DualsegError where one table would mix datasets or units, or count one seed of a variant twice."""
    for what, table, column in (("datasets", tables.results, "dataset"), ("units", tables.runs, "distance_unit")):
        firsts = table[table[column] != ""].drop_duplicates(column)
        if len(firsts) > 1:
            found = ", ".join(f"{row[column]} ({row['run']})" for _, row in firsts.iterrows())
            fix = (
                "evaluate the runs in one unit" if what == "units" else "collect each dataset into a folder of its own"
            )
            raise DualsegError(f"{name}: several {what} in one table: {found}; {fix}.")
    keys = ["variant", "scale", "seed", "fold", "network", "split"]
    twice = tables.results[tables.results.duplicated(keys, keep=False)]
    if not twice.empty:
        first = twice.iloc[0]
        same = twice[(twice[keys] == first[keys]).all(axis=1)]
        runs = ", ".join(f"{row['run']} ({row['iterations']} iterations)" for _, row in same.iterrows())
        fix = "leave one of them out of sweep.json, or name the run folders to collect one by one"
        raise DualsegError(f"{name}: {first['variant']}, seed {first['seed']}, has several runs: {runs}; {fix}.")


def remarks_on(contents: StudyContents) -> list[str]:
    """What a reader has to know of the runs behind the tables: what is missing, unequal or not recorded."""
    found = list(contents.study.notes)
    several, asked = len(contents.scales) > 1, len(contents.study.seeds)
    results, split = contents.tables.results, contents.tables.split
    for scale in contents.scales:
        place = f"scale={scale}: " if several and scale else ""
        rows = contents.scored(scale)
        fewer: dict[str, list[str]] = defaultdict(list)
        for variant in contents.variants:
            own = rows[rows["variant"] == variant]
            if own.empty:
                continue
            seeds = sorted(set(own["seed"]), key=int)
            if len(seeds) < asked:
                fewer[f"{len(seeds)} of {asked} seeds ({', '.join(seeds)})"].append(variant)
            each = results[(results["scale"] == scale) & (results["variant"] == variant) & (results["split"] == split)]
            differing = [
                _differing(fold, contents.settings) for _, fold in each.groupby("fold")
            ]  # each has its own plan
            if difference := "; ".join(dict.fromkeys(filter(None, differing))):
                found.append(f"{place}the runs of {variant} differ in {difference}; their mean is of unlike runs")
        found += [place + sentence for sentence in _folds(contents, scale)]
        found += [f"{place}{seeds}: {', '.join(variants)}" for seeds, variants in fewer.items()]
        found += [place + sentence for sentence in _cases_differ(contents, scale)]
    runs = contents.tables.runs
    for sentence, without in (
        ("no per-case values, so no part in comparisons", set(contents.tables.cases["run"])),
        ("provenance not recorded", set(runs["run"])),
    ):
        if names := sorted(set(results["run"]) - without):
            found.append(f"{_some(names)}: {sentence}")
    for _, run in runs[runs["warning"] != ""].iterrows():
        scale = f", scale={run['scale']}" if several and run["scale"] else ""
        found.append(f"{run['variant']}{scale}, seed {run['seed']}: {run['warning']}")
    if others := sorted(set(results["run"]) - set(results[results["split"] == split]["run"])):
        found.append(f"{_some(others)}: not evaluated on {split} cases, so in results.csv alone")
    return found


def _folds(contents: StudyContents, scale: str) -> list[str]:
    """What each variant that is validated on folds reaches over them."""
    if contents.study.verdict:  # which says itself what the folds show
        return []
    results = contents.tables.results
    rows = results[(results["scale"] == scale) & (results["split"] == "validation") & (results["record"] == "1")]
    said = []
    for variant, own in rows[rows["fold"] != ""].groupby("variant", sort=False):
        dice = 100 * own.astype({"dice": float}).groupby("fold")["dice"].mean()
        if len(dice) > 1:
            spread = f"{dice.mean():.2f} ± {dice.std():.2f} %, mean and standard deviation over {len(dice)} folds"
            said.append(f"{variant}: cross-validation, Dice {spread}")
    return said


def _some(names: Sequence[str], shown: int = 3) -> str:
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{len(names)} {'run' if len(names) == 1 else 'runs'} ({', '.join(names[:shown])}{rest})"


def _differing(own: pd.DataFrame, settings: Mapping[str, Mapping[str, Any]]) -> str:
    """The keys in which the configurations of one variant's runs differ, and the number of iterations.

    A `data.draw` that is each run's own seed is no difference: that is what a draw a seed looks like. Nor is the
    folder of the split file, which is another one in each checkout: its name alone is compared.
    """
    seeds = {str(run): str(seed) for run, seed in zip(own["run"], own["seed"], strict=True) if run in settings}
    known = [{**settings[run], SPLITS: Path(str(settings[run].get(SPLITS))).name} for run in seeds]
    keys = dict.fromkeys(key for one in known for key in one)
    found = [
        key
        for key in keys
        if any(one.get(key) != known[0].get(key) for one in known)
        and not (key == "data.draw" and all(str(settings[run].get(key, ADDED[key])) == seeds[run] for run in seeds))
    ]
    iterations = sorted(set(own["iterations"]), key=int)
    if len(iterations) > 1:
        found = [key for key in found if key != "trainer.max_iterations"]
        found.insert(0, f"iterations ({', '.join(iterations)})")
    return ", ".join(found)


def _cases_differ(contents: StudyContents, scale: str) -> list[str]:
    sets = scored_cases(contents, scale)
    usual = max(sets.values(), key=list(sets.values()).count, default=frozenset())
    done = "tested" if contents.tables.split == "test" else "validated"
    return [
        f"{variant} was {done} on other cases than most ({len(own)}, {len(own & usual)} of them in common)"
        for variant, own in sets.items()
        if own != usual
    ]


def scored_cases(contents: StudyContents, scale: str) -> dict[str, frozenset[str]]:
    """Variant -> the cases that its runs at one scale were scored on, where they are known."""
    cases = contents.tables.cases
    own = cases[(cases["scale"] == scale) & (cases["split"] == contents.tables.split)]
    return {str(variant): frozenset(found) for variant, found in own.groupby("variant")["case"]}


def compared(contents: StudyContents) -> tuple[list[Comparison], list[str]]:
    """The study's comparisons and what could not be compared; nothing where the study compares nothing."""
    pairs = [pair for variant in contents.variants for pair in contents.study.pairs if pair[0] == variant]
    return compare_all(contents.tables.cases_of_record(), pairs, contents.tables.split)
