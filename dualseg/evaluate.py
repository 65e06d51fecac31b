"""`dualseg-evaluate run=RUN_FOLDER [key=value ...]`: evaluate a trained run again, or several runs as one ensemble."""

import sys
import time
from pathlib import Path
from typing import Any

from dualseg.cli import run_with_words
from dualseg.errors import DualsegError

HELP = """dualseg-evaluate run=RUN_FOLDER [run=RUN_FOLDER ...] [split=test|validation] [output=DIR] [key=value ...]

  run      a run folder; several are evaluated together, every network on its own and all as one ensemble
  split    which cases (default: test)
  output   folder of the evaluation (default: RUN_FOLDER/evaluations/NNN-SPLIT of the first run)
  key      changes to the first run's configuration under data, inference or trainer, for example
           data.root=DIR  data.stride=[9,9,4]  inference.distance_unit=mm
"""


def evaluate(runs: list[str], split: str, output: str | None, changes: dict[str, Any]) -> Path:
    """Evaluate runs on a split of the first run's data; returns the folder with what was written.

    Raises:
        DualsegError: whatever the user can mend.
    """
    from dualseg.runs.evaluation import settings_of_evaluation
    from dualseg.runs.folder import RunFolder
    from dualseg.runs.settings import check, check_data

    folders = [RunFolder.existing(run) for run in runs]
    if len({folder.path.resolve() for folder in folders}) < len(folders):
        raise DualsegError("run: the same run folder is given twice.")
    settings = settings_of_evaluation([folder.config() for folder in folders], changes)
    check(settings)
    label = split if len(folders) == 1 else f"{split}-ensemble-of-{len(folders)}"
    target = RunFolder(output) if output else folders[0].new_evaluation(label)
    if target.path.exists() and not target.path.is_dir():
        raise DualsegError(f"output={target.path}: is a file; give a folder.")
    # slices alone are what an evaluation that was stopped has left
    if target.path.exists() and any(p != target.slices for p in target.path.iterdir()):
        raise DualsegError(f"output={target.path}: is not empty; evaluations are never written over earlier ones.")
    check_data(settings)

    from dualseg import assembly
    from dualseg.data.checking.doubts import warnings
    from dualseg.runs import provenance
    from dualseg.runs.evaluation import check_unseen, checkpoints_of, write_evaluation

    assembly.use_threads(settings)
    data = assembly.build_data(settings)
    cases = getattr(data.split, split)
    if not cases:
        raise DualsegError(f"split={split}: has no cases; give data.held_out_{split}=N or another split.")
    check_unseen([folder.config() for folder in folders], settings["data"], data.source, cases)
    evaluation = assembly.build_evaluation(settings, folders, data.source)
    trainer = assembly.build_evaluator(settings, target)
    run_stage = trainer.test if split == "test" else trainer.validate
    facts = {"dataset": settings["data"]["name"], split: len(cases)}
    manifest = {**provenance.describe(settings["seed"], facts), "evaluated": checkpoints_of(folders)}
    began = time.perf_counter()
    run_stage(evaluation, data, verbose=False)
    provenance.start(target.manifest_file, manifest, resumed_at=0)
    provenance.finish(target.manifest_file, time.perf_counter() - began)
    for warning in warnings(data.reader.doubts):
        print(f"warning: {warning}", file=sys.stderr)
    write_evaluation(target, evaluation.results, {split: cases}, folders, settings)
    return target.path


def main() -> None:
    """Console script."""

    def command(words: list[str]) -> None:
        from dualseg.runs.evaluation import parse_words
        from dualseg.runs.folder import RunFolder
        from dualseg.runs.tables import results_of

        runs, split, output, changes = parse_words(words)
        folder = RunFolder(evaluate(runs, split, output, changes))
        print(f"Evaluation: {folder.path}\n{results_of(folder)}")

    run_with_words(command, HELP)


if __name__ == "__main__":
    main()
