"""`dualseg-evaluate run=RUN_FOLDER [key=value ...]`: evaluate a trained run again, or several runs as one ensemble."""

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
    from dualseg.runs.evaluation import check_unseen, checkpoints_of, data_of, settings_of_evaluation, write_evaluation
    from dualseg.runs.folder import RunFolder
    from dualseg.runs.preprocessing import prepare_as_trained
    from dualseg.runs.settings import check, source_and_split

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
    # nothing is trained, so that labels and batches need not be there
    plain = {**settings, "data": {**settings["data"], "labeled": None, "labeled_ratio": None}}
    source, parts = source_and_split(plain)
    source.check_cases()
    prepare_as_trained(source, folders, changes)
    cases = getattr(parts, split)
    if not cases:
        raise DualsegError(f"split={split}: has no cases; give data.held_out_{split}=N or another split.")
    # another folder may hold the same dataset: it counts as another one where the user says so
    told = {**settings["data"], "name": changes.get("data.name", folders[0].config()["data"]["name"])}
    seen = check_unseen(folders, told, source, cases)
    taken = checkpoints_of(folders)

    from dualseg import assembly
    from dualseg.runs import provenance
    from dualseg.runs.callbacks import ScoredVolumes

    assembly.use_threads(settings)
    data = assembly.build_data({**plain, "batch": {"labeled": 1, "unlabeled": 0}}, source)
    evaluation = assembly.build_evaluation(settings, folders, source)
    scored = ScoredVolumes(seen)
    trainer = assembly.build_evaluator(settings, target, scored)
    run_stage = trainer.test if split == "test" else trainer.validate
    facts = {"dataset": settings["data"]["name"], "root": settings["data"]["root"], split: len(cases)}
    facts |= {"cases": {split: list(cases)}, "preprocessing": source.scan_record()}
    manifest = provenance.describe(settings["seed"], facts)
    manifest["evaluated"] = {str(run.path): {**taken[str(run.path)], "data": data_of(run)} for run in folders}
    began = time.perf_counter()
    run_stage(evaluation, data, verbose=False)
    manifest["data"]["evaluation_fingerprint"] = {split: scored.fingerprint.hexdigest()}
    provenance.start(target.manifest_file, manifest, resumed_at=0)
    provenance.finish(target.manifest_file, time.perf_counter() - began)
    write_evaluation(target, evaluation.results, {split: cases}, taken, settings)
    return target.path


def main() -> None:
    """Console script."""

    def command(words: list[str]) -> None:
        from dualseg.files import read_json
        from dualseg.runs.evaluation import parse_words
        from dualseg.runs.folder import RunFolder
        from dualseg.runs.tables import results_table

        runs, split, output, changes = parse_words(words)
        folder = RunFolder(evaluate(runs, split, output, changes))
        print(f"Evaluation: {folder.path}\n{results_table(read_json(folder.metrics_file), folder.config())}")

    run_with_words(command, HELP)


if __name__ == "__main__":
    main()
