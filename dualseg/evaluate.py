"""`dualseg-evaluate run=RUN_FOLDER [key=value ...]`: evaluate a trained run again, or several runs as one ensemble."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualseg.command.start import run_with_arguments
from dualseg.errors import DualsegError
from dualseg.machine import bytes_of

if TYPE_CHECKING:
    from dualseg.data.volumes import VolumeSource
    from dualseg.runs.folder import RunFolder
    from dualseg.training.trusted import Trust

USAGE = "dualseg-evaluate run=RUN_FOLDER [run=RUN_FOLDER ...] [split=test|validation] [key=value ...]"

OUT_OF_MEMORY = (
    "Lower inference.batch_size; on a GPU, trainer.accelerator=cpu takes RAM instead. Give less in memory=... than "
    "there is: a case that takes more is then named before the first one is read."
)


@dataclass(frozen=True)
class EvaluationOptions:
    """What the command line asks for, read by `dualseg.command.grammar`; --help says the same.

    Attributes:
        run: a run folder; several are evaluated together, every network on its own and all as one ensemble
        split: which cases: test or validation (default: test, or validation where there is no test case)
        output: folder of the evaluation (default: RUN_FOLDER/evaluations/NNN-SPLIT of the first run)
        memory: of RAM, at most, such as 8GiB (default: what this machine or its container offers); a case that takes
            more is named before the first one is read
        changes: changes to the first run's configuration under data, inference or trainer, for example data.root=DIR
            data.stride=[9,9,4] inference.distance_unit=mm
        trust: a network or dataset of your own that the run folder names, such as my_networks.MyNet; given again for
            each. Those of dualseg, MONAI and torch need none. Its module is run: for a folder from somebody else, give
            it only where you know that code

    Raises:
        DualsegError: an impossible value.
    """

    run: tuple[str, ...] = field(metadata={"value": "RUN_FOLDER", "again": True})
    split: str | None = None
    output: str | None = None
    memory: str | None = None
    changes: dict[str, Any] = field(default_factory=dict, metadata={"others": True})
    trust: tuple[str, ...] = field(default=(), metadata={"again": True})

    def __post_init__(self) -> None:
        if self.split not in ("test", "validation", None):
            raise DualsegError(f"split={self.split}: give test or validation.")
        if self.memory is not None:
            bytes_of("memory", self.memory)
            self.changes["data.memory"] = self.memory


def evaluate(
    runs: list[str], split: str | None, output: str | None, changes: dict[str, Any], trusted: Sequence[str] = ()
) -> Path:
    """Evaluate runs on a split of the first run's data; returns the folder with what was written.

    Args:
        split: None: test, or validation where there is no test case.
        trusted: values of trust=..., see `dualseg.training.trusted.Trust`.

    Raises:
        DualsegError: whatever the user can fix.
    """
    from dualseg.runs.evaluation import writing_evaluation
    from dualseg.runs.folder import RunFolder
    from dualseg.training.evaluation_settings import places_to_write, settings_of_evaluation
    from dualseg.training.settings import check, check_for_scans
    from dualseg.training.trusted import Trust, check_form

    folders = [RunFolder.existing(run) for run in runs]
    if len({folder.path.resolve() for folder in folders}) < len(folders):
        raise DualsegError("run: the same run folder is given twice.")
    for folder in folders:
        check_form(folder.config(), folder.config_file)
        check_for_scans(folder.config(), folder.config_file)
    settings = settings_of_evaluation([folder.config() for folder in folders], changes)
    recorded = settings["data"].get("source")
    trust = Trust(trusted, places_to_write(changes, recorded if isinstance(recorded, dict) else {}))
    for folder in folders:
        trust.check({**folder.config(), "data": settings["data"]}, folder.config_file)
    check(settings)
    source = trust.source(settings["data"]["source"], f"{folders[0].config_file}: data.source")
    split, cases = _cases_of(split, source, settings["data"])
    label = split if len(folders) == 1 else f"{split}-ensemble-of-{len(folders)}"
    with writing_evaluation(folders[0], label, output) as target:
        return _evaluate(folders, source, split, cases, target, settings, changes, trust)


def _untrained(data: dict[str, Any]) -> dict[str, Any]:
    """Nothing is trained, so that labels need not be there; a fold is of those that were."""
    return data if data.get("fold") is not None else {**data, "labeled": None, "labeled_ratio": None}


def _cases_of(split: str | None, source: "VolumeSource", data: dict[str, Any]) -> "tuple[str, Sequence[str]]":
    """The split that is evaluated, and its cases. Raises: DualsegError where there are none."""
    from dualseg.data.splits import split_source

    found = split_source(source, _untrained(data))
    for name in (split,) if split else ("test", "validation"):
        if cases := getattr(found, name):
            if split is None and name != "test":
                print(f"note: there are no test cases, so split={name}", file=sys.stderr)
            return name, cases
    others = [name for name in ("test", "validation") if name != split and getattr(found, name)]
    fix = " or ".join([f"data.held_out_{split or 'test'}=N", *(f"split={name}" for name in others)])
    raise DualsegError(f"split={split or 'test'}: has no cases; give {fix}.")


def _evaluate(
    folders: "list[RunFolder]",
    source: "VolumeSource",
    split: str,
    cases: Sequence[str],
    target: "RunFolder",
    settings: dict[str, Any],
    changes: dict[str, Any],
    trust: "Trust",
) -> Path:
    from dualseg.runs.evaluation import checkpoints_of, data_of, write_evaluation
    from dualseg.training.evaluation_settings import check_unseen
    from dualseg.training.preprocessing import prepare_as_trained

    plain = {**settings, "data": _untrained(settings["data"])}
    source.check_cases()
    prepare_as_trained(source, folders, changes)
    # another folder may hold the same dataset: it counts as another one where the user says so
    told = {**settings["data"], "name": changes.get("data.name", folders[0].config()["data"]["name"])}
    seen = check_unseen(folders, told, source, cases, trust)
    taken = checkpoints_of(folders)

    from dualseg.data.checking.doubts import warnings
    from dualseg.machine import MemoryLimit
    from dualseg.training import assembly, provenance, trained
    from dualseg.training.case_callbacks import ScoredVolumes

    assembly.use_threads(settings)
    data = assembly.build_evaluation_data({**plain, "batch": {"labeled": 1, "unlabeled": 0}}, source)
    evaluation = trained.build_evaluation(settings, folders, source, trust)
    scored = ScoredVolumes(seen)
    trainer = trained.build_evaluator(settings, target, scored)
    data.check_memory(
        MemoryLimit.of("memory", settings["data"]["memory"]),
        training=False,
        stages=[split],
        segmenting=partial(evaluation.needs, on_cpu=trainer.strategy.root_device.type == "cpu"),
    )
    run_stage = trainer.test if split == "test" else trainer.validate
    facts = {"dataset": settings["data"]["name"], "root": settings["data"]["root"], split: len(cases)}
    facts |= {"cases": {split: list(cases)}, "preprocessing": source.scan_record()}
    manifest = provenance.describe(settings["seed"], facts)
    manifest["evaluated"] = {str(run.path): {**taken[str(run.path)], "data": data_of(run)} for run in folders}
    provenance.start(target.manifest_file, manifest, resumed_at=0)  # before the slices
    began = time.perf_counter()
    run_stage(evaluation, data, verbose=False)
    manifest["data"]["evaluation_fingerprint"] = {split: scored.fingerprint.hexdigest()}
    provenance.start(target.manifest_file, manifest, resumed_at=0)
    provenance.finish(target.manifest_file, time.perf_counter() - began)
    for warning in warnings(data.reader.doubts):
        print(f"warning: {warning}", file=sys.stderr)
    write_evaluation(target, evaluation.results, {split: cases}, taken, settings, evaluation.roles)
    return target.path


def main() -> None:
    """Console script."""

    def command(options: EvaluationOptions) -> None:
        from dualseg.runs.folder import RunFolder
        from dualseg.runs.tables import results_of

        given = (list(options.run), options.split, options.output, options.changes, options.trust)
        folder = RunFolder(evaluate(*given))
        print(f"Evaluation: {folder.path}\n{results_of(folder)}")

    run_with_arguments(command, EvaluationOptions, USAGE, out_of_memory=OUT_OF_MEMORY)


if __name__ == "__main__":
    main()
