"""The three tidy tables of a study's folder: results.csv, cases.csv, runs.csv."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from dualseg.errors import DualsegError
from dualseg.files import write_text
from dualseg.record import record_of
from dualseg.runs.reading import METRICS
from dualseg.studies.collecting import RESULT_COLUMNS, RUN_COLUMNS, STUDY_CASE_COLUMNS, RunRows

TABLES = {"results": RESULT_COLUMNS, "cases": STUDY_CASE_COLUMNS, "runs": RUN_COLUMNS}
ORDER = ("scale", "variant", "seed", "fold", "split", "network", "case", "class")
MEDIAN_DICE = "median_dice"
ROW = ["variant", "scale", "seed", "fold"]  # what is one run of a study
LATER = ("fold", "record")  # columns that tables of older versions lack; the first is written in a study of folds alone


@dataclass(frozen=True)
class StudyTables:
    """The tables, all of texts as they are written.

    Attributes:
        results: one row a run x network x split; `record` is 1 on the prediction that stands for the run, else 0.
        cases: one row a run x network x split x case x class.
        runs: one row a run: where it comes from.
    """

    results: pd.DataFrame
    cases: pd.DataFrame
    runs: pd.DataFrame

    @classmethod
    def read(cls, folder: Path) -> "StudyTables":
        """What the folder has; a table that is not there is empty.

        Raises:
            DualsegError: a file is damaged.
        """
        return cls(**{name: _read(folder / f"{name}.csv", columns) for name, columns in TABLES.items()})

    @classmethod
    def empty(cls) -> "StudyTables":
        """Tables without rows."""
        return cls(**{name: pd.DataFrame(columns=list(columns), dtype=str) for name, columns in TABLES.items()})

    @property
    def split(self) -> str:
        """Whose scores are compared: `test`, or `validation` where no run was tested, as in a study of choices."""
        return "validation" if not self.results.empty and "test" not in set(self.results["split"]) else "test"

    def cases_of_record(self) -> pd.DataFrame:
        """The rows of `cases` of the prediction that stands for each run."""
        record = self.results.loc[self.results["record"] == "1", [*ROW, "run", "split", "network"]]
        return self.cases.merge(record, how="inner")

    def pooled(self) -> "StudyTables":
        """With the folds of each variant, scale and seed as one run: means over all their cases, the names of the runs
        with a slash between, the fewest labels of a fold. Without folds these tables themselves."""
        if self.results.empty or not self.results["fold"].any():
            return self
        keys = [key for key in ROW if key != "fold"]
        names = self.results.groupby(keys)["run"].agg(lambda runs: "/".join(dict.fromkeys(runs))).rename("pooled")
        own = [*keys, "split", "network"]
        cases = self.cases.merge(names, on=keys).assign(fold="").drop(columns="run").rename(columns={"pooled": "run"})
        scores = cases.astype(dict.fromkeys(METRICS, float)).groupby(own)[[*METRICS]].mean()
        fewest = self.results.astype({"labeled": int}).groupby(own)["labeled"].min().astype(str)
        first = self.results.drop_duplicates(own).set_index(own)
        first = first.assign(
            fold="", labeled=fewest, **{metric: scores[metric].map("{:.6f}".format) for metric in METRICS}
        )
        results = first.reset_index().merge(names, on=keys).drop(columns="run").rename(columns={"pooled": "run"})
        return StudyTables(results[[*RESULT_COLUMNS]], cases[[*STUDY_CASE_COLUMNS]], self.runs)

    def median_dice(self) -> pd.DataFrame:
        """`MEDIAN_DICE` of each run x network x split whose cases are known: the median over cases of the mean over
        classes."""
        keys = [*ROW, "run", "split", "network"]
        dice = self.cases.astype({"dice": float}).groupby([*keys, "case"])["dice"].mean()
        return dice.groupby(keys).median().rename(MEDIAN_DICE).reset_index()

    def updated(self, collected: Sequence[RunRows]) -> tuple["StudyTables", list[str]]:
        """These tables with the rows of `collected` in place of those of the same variant, scale and seed.

        Also returns a sentence for each run whose rows went although another run of that name was collected.
        """
        new = {
            "results": [row for run in collected for row in run.results],
            "cases": [row for run in collected for row in run.cases],
            "runs": [run.run for run in collected],
        }
        taken = {tuple(run.run[key] for key in ROW): run.run["run"] for run in collected}
        earlier = self.results[[*ROW, "run"]].drop_duplicates()
        replaced = [
            f"{variant}, scale={scale}, seed {seed}{f', fold {fold}' if fold else ''}: {run} takes the place of {old}"
            for variant, scale, seed, fold, old in earlier.itertuples(index=False)
            if (run := taken.get((variant, scale, seed, fold), old)) != old
        ]
        tables = {}
        for name, columns in TABLES.items():
            known: pd.DataFrame = getattr(self, name)
            gone = pd.Series([key in taken for key in known[ROW].itertuples(index=False, name=None)], dtype=bool)
            frame = pd.concat([known[~gone.to_numpy()], pd.DataFrame(new[name], columns=list(columns), dtype=str)])
            order = [column for column in ORDER if column in columns]
            tables[name] = frame.sort_values(order, key=_sortable, kind="stable", ignore_index=True)
        return StudyTables(**tables), replaced

    def write(self, folder: Path) -> None:
        """Each file whole or not at all; none for a table without rows."""
        for name in TABLES:
            table: pd.DataFrame = getattr(self, name)
            path = folder / f"{name}.csv"
            if table.empty:
                path.unlink(missing_ok=True)
            else:
                shown = table if table["fold"].any() else table.drop(columns="fold")
                write_text(path, shown.to_csv(index=False, lineterminator="\n"))


def _record_by_name(results: pd.DataFrame) -> "pd.Series[str]":
    by_run = results.groupby([*ROW, "run", "split"])["network"]
    standing = by_run.transform(lambda own: record_of(None, list(own)))
    return (results["network"] == standing).astype(int).astype(str)


def _sortable(column: pd.Series) -> pd.Series:
    if column.name == "fold":
        return column.replace("", "-1").astype(int)
    return column.astype(int) if column.name == "seed" else column


def _read(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    if not path.is_file():
        return pd.DataFrame(columns=list(columns), dtype=str)
    fix = "restore it (git checkout), or remove it to collect anew"
    try:
        text = path.read_text(encoding="utf-8-sig")
        frame = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DualsegError(f"{path}: cannot be read ({error}); {fix}.") from error
    missing = [column for column in LATER if column in columns and column not in frame]
    if list(frame.columns) == [column for column in columns if column not in missing]:
        for column in missing:
            frame.insert(columns.index(column), column, "" if column == "fold" else _record_by_name(frame))
    if list(frame.columns) != list(columns):
        raise DualsegError(f"{path}: has not the columns {', '.join(columns)}; {fix}.")
    if not text.endswith("\n") or frame.isna().any(axis=None) or not frame["seed"].str.fullmatch(r"\d+").all():
        raise DualsegError(f"{path}: cut off or damaged; {fix}.")
    return frame
