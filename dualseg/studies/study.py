"""A study: which runs one table or figure needs. Read from conf/sweep/<study>.yaml; no Hydra, no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from dualseg.configuration import conf_dir
from dualseg.errors import DualsegError, nearest

ROLES = ("with_unlabeled", "labels_only", "supervised")  # of a verdict


@dataclass(frozen=True)
class Study:
    """What is run for one study.

    Attributes:
        name: as of its folder in experiments/.
        experiments: scale (`cpu`, `full`) -> option of the group `experiment`; empty: what the command line says, at
            no scale.
        seeds: of every variant.
        variants: row of the table -> {key or group: value} that is changed for it.
        ensembles: row of the table -> the variants whose runs are evaluated together for it.
        after: variant -> the variant whose run of the same seed it starts from (`weights=`).
        against: row -> the row, or rows, that it is compared with; empty: no comparison.
        folds: 0, or into how many parts the labeled cases are divided where the command line does not say
            (`data.folds`): each variant and seed is that many runs, of which each is validated on one part.
        verdict: role (`with_unlabeled`, `labels_only`, `supervised`) -> its row, where the study is to say whether
            unlabeled scans help; empty: it is not.
        notes: what a reader of the table has to know of its rows; a sentence each.
    """

    name: str
    experiments: Mapping[str, str]
    seeds: tuple[int, ...]
    variants: Mapping[str, Mapping[str, Any]]
    ensembles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    against: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    after: Mapping[str, str] = field(default_factory=dict)
    folds: int = 0
    verdict: Mapping[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> tuple[str, ...]:
        """Every row of the table in the order of the file: variants, then ensembles."""
        return (*self.variants, *self.ensembles)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """What is compared, and with what, in the order of the file."""
        listed = {row: [found] if isinstance(found, str) else found for row, found in self.against.items()}
        return [(row, reference) for row, references in listed.items() for reference in references]

    def definition(self) -> dict[str, Any]:
        """What `study_of` makes this study of again."""
        content = asdict(self)
        del content["name"]
        return content

    def stage(self, variant: str) -> int:
        """How many runs, one after the other, a run of `variant` needs before it."""
        return 1 + self.stage(self.after[variant]) if variant in self.after else 0

    def arguments(self, variant: str, scale: str | None) -> list[str]:
        """The arguments of a command line that make `variant`, its seed and fold excepted."""
        changes = [f"{key}={as_word(value)}" for key, value in self.variants[variant].items()]
        labels = [f"study={self.name}", f"variant={variant}"]
        if not self.experiments:
            if scale is not None:
                raise DualsegError(f"scale={scale}: the study {self.name} has no scales; leave it out.")
            return [*changes, *labels]
        if scale is None or scale not in self.experiments:
            raise DualsegError(f"scale={scale}: the study {self.name} has {', '.join(self.experiments)}.")
        return [f"experiment={self.experiments[scale]}", *changes, *labels, f"scale={scale}"]


def as_word(value: Any) -> str:
    """A value as Hydra's command line takes it."""
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{as_word(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(as_word(item) for item in value) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def study_names() -> list[str]:
    """Every study that conf/sweep describes."""
    return sorted(path.stem for path in (conf_dir() / "sweep").glob("*.yaml"))


def read_study(name: str, folder: Path | None = None) -> Study:
    """The study of conf/sweep/<name>.yaml.

    Args:
        name: of the study.
        folder: another folder of such files, in place of conf/sweep.

    Raises:
        DualsegError: no such study, or its file does not describe one.
    """
    path = (folder or conf_dir() / "sweep") / f"{name}.yaml"
    if not path.is_file():
        raise DualsegError(f"{name}: no such study (no {path}).{nearest(name, study_names())}")
    try:
        content = yaml.safe_load(path.read_text())
        return study_of(content["study"], content["sweep"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, DualsegError):
            raise
        reason = " ".join(str(error).split())
        raise DualsegError(f"{path}: describes no study ({reason}); see conf/sweep/la_main.yaml for one.") from error


def _one_line(sentence: str) -> str:
    """Without a full stop: the tables add it."""
    return " ".join(sentence.split()).removesuffix(".")


def study_of(name: str, sweep: Mapping[str, Any]) -> Study:
    """The study `name` of the content of its `sweep` key.

    Raises:
        DualsegError: a reference to a variant that is not there, or notes that are no list.
    """
    variants = {key: dict(value or {}) for key, value in sweep["variants"].items()}
    ensembles = {key: tuple(value) for key, value in (sweep.get("ensembles") or {}).items()}
    rows = [*variants, *ensembles]
    against = sweep.get("against") or {}
    if isinstance(against, str):  # one for all the others
        against = {row: against for row in rows if row != against}
    notes = sweep.get("notes") or []
    if not isinstance(notes, list | tuple) or not all(isinstance(note, str) for note in notes):
        raise DualsegError(f"sweep {name}: notes: give a list of sentences.")
    seeds = tuple(sweep["seeds"])
    found = Study(
        name,
        dict(sweep.get("experiments") or {}),
        seeds,
        variants,
        ensembles,
        dict(against),
        tuple(map(_one_line, notes)),
        folds=int(sweep.get("folds") or 0),
        verdict=dict(sweep.get("verdict") or {}),
    )
    if found.verdict and set(found.verdict) != set(ROLES):
        raise DualsegError(f"sweep {name}: verdict: name the rows of {', '.join(ROLES)}.")
    if found.folds and (ensembles or sweep.get("after")):
        raise DualsegError(f"sweep {name}: folds: a study of folds has no ensembles and no after.")
    named = [*ensembles.values(), *found.pairs, found.verdict.values()]
    for reference in (row for group in named for row in group):
        if reference not in rows:
            raise DualsegError(f"sweep {name}: {reference} is none of its variants.{nearest(reference, rows)}")
    after = dict(sweep.get("after") or {})
    for variant in (*after, *after.values()):
        if variant not in variants:
            raise DualsegError(
                f"sweep {name}: after: {variant} is none of its variants.{nearest(variant, [*variants])}"
            )
    for variant in after:
        chain = [variant]
        while chain[-1] in after:
            chain.append(after[chain[-1]])
            if chain[-1] in chain[:-1]:
                raise DualsegError(f"sweep {name}: after: {' starts from '.join(chain)}; one of them must be first.")
    return replace(found, after=after)
